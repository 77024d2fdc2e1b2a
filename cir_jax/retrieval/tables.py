# SPDX-License-Identifier: Apache-2.0
"""The rows of an index on the devices, in blocks, each sharded over all of them.

On a CPU a block is a part of the memory-mapped file itself, not a copy of it. Rows stay as they are
stored, float32, float16 or int8, and lie two-dimensional, [images K, D]: with three axes a product
would hold a transposed copy.

Axis letters: N images, K rows of an image, D embedding.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from cir_jax.runtime import memory
from cir_jax.runtime import mesh as meshes

# Values of a block on each device. The scores of a block should stay in the cache of a CPU; on an
# accelerator starting a program takes longer than there, so that its blocks are larger.
_BLOCK_VALUES, _BLOCK_VALUES_CPU = 2**27, 2**25
_LEAST_VALUES = 2**19  # of the smallest block: the end of a segment is filled up to a multiple
_DEVICE_SHARE = 0.8  # of what is free on a device that rows may take


class Rows(NamedTuple):
    """A segment: `rows` [n, K, D] float32, float16 or int8; of int8 `scales` [n, K] float32."""

    rows: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    def taken(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, K, D]: some images, as they are scored."""
        found = self.rows[numbers].astype(np.float32)
        return found if self.scales is None else found * self.scales[numbers][..., None]


class Block(NamedTuple):
    """A part of a segment.

    Attributes:
      start: position in the table of its first image.
      first: images at its start that the block before it holds too.
      images: in it, those included; zero rows may follow.
      rows: [b K, D], on the devices, or on the host where they do not fit.
      scales: [b K] float32, or None.
    """

    start: int
    first: int
    images: int
    rows: Any
    scales: Any

    def placed(self, mesh: Mesh) -> "Block":
        """With its rows on the devices; where these read the host's memory nothing is copied."""
        if isinstance(self.rows, jax.Array):
            return self
        rows, scales = jax.device_put((self.rows, self.scales), meshes.row_sharding(mesh))
        return self._replace(rows=rows, scales=scales)


class Table:
    """Segments one after the other: image i of one has the position i + the images before it.

    Args:
      segments: at least one, with K and D alike.
      mesh: of devices of this process.
      room: bytes for rows on each device; what does not fit is sent to it for every batch. None
        for a share of its memory.
      block: values of a block on each device; 0 for what suits it.
    """

    def __init__(
        self, segments: Sequence[Rows], mesh: Mesh, room: float | None = None, block: int = 0
    ):
        self.mesh = mesh
        # Plain arrays: taking rows of a `np.memmap` is slow.
        self.segments = tuple(
            Rows(np.asarray(r), s if s is None else np.asarray(s)) for r, s in segments
        )
        self.starts = np.cumsum([0, *(len(s.rows) for s in segments)])
        self.rows_per_image, self.width = segments[0].rows.shape[1:]
        left = self._room() if room is None else room
        self.blocks: list[Block] = []
        values = block or (_BLOCK_VALUES_CPU if self.on_cpu else _BLOCK_VALUES)
        for part in self._cut(values):
            left -= (part.rows.nbytes + getattr(part.scales, "nbytes", 0)) / mesh.size
            self.blocks.append(part.placed(mesh) if left >= 0 else part)
        self._longest: float | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def on_cpu(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"

    def taken(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, K, D]: the rows at some positions, read from where the segments lie."""
        out = np.empty((len(positions), self.rows_per_image, self.width), np.float32)
        segment = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(segment):
            mine = segment == number
            out[mine] = self.segments[number].taken(positions[mine] - self.starts[number])
        return out

    def longest(self) -> float:
        """The length of the longest row. The first call reads all of them."""
        if self._longest is None:
            length = _lengths(self.mesh)
            found = []
            for block in self.blocks:
                here = block.placed(self.mesh)
                with meshes.LAUNCH:
                    found.append(length(here.rows, here.scales))
                found[-1].block_until_ready()  # so that one block at a time is sent
            self._longest = max(map(float, found))
        return self._longest

    def _room(self) -> float:
        if self.on_cpu:  # they read the host's memory
            return float("inf")
        return _DEVICE_SHARE * _free(list(self.mesh.devices.flat))

    def _cut(self, values: int) -> Iterator[Block]:
        """Blocks of sizes that are powers of two, so that few programs serve all of them."""
        each, width, devices = self.rows_per_image, self.width, self.mesh.size
        most = devices * power_below(values // (each * width))
        least = min(most, devices * power_below(_LEAST_VALUES // (each * width)))
        for offset, (rows, scales) in zip(self.starts, self.segments, strict=False):
            start, size, images = 0, most, len(rows)
            while start < images:
                while size > images - start and size > least:
                    size //= 2
                left = images - start
                if size < left <= 2 * size <= min(most, left + least):  # one block instead of two
                    size *= 2
                # The last block begins earlier rather than being filled up: so it is no copy.
                begin = max(0, min(start, images - size))
                part = slice(begin, begin + size)
                yield Block(
                    int(offset) + begin,
                    start - begin,
                    min(size, images - begin),
                    _filled(rows[part].reshape(-1, width), size * each),
                    None if scales is None else _filled(scales[part].reshape(-1), size * each),
                )
                start = begin + size


def power_below(number: int) -> int:
    """The largest power of two that is not larger; 1 for what is smaller."""
    return 1 << max(0, number.bit_length() - 1)


def _free(devices: Sequence[Any]) -> int:
    """Bytes that are free on each device, the least of them; 0 if unknown.

    A model lies there too, and for a moment the generation of an index before this one.
    """
    held = max(int((device.memory_stats() or {}).get("bytes_in_use", 0)) for device in devices)
    return max(0, memory.of_device(devices) - held)


def _filled(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Zeros behind what is too short."""
    short = count - len(rows)
    return np.pad(rows, [(0, short)] + [(0, 0)] * (rows.ndim - 1)) if short else rows


@lru_cache(maxsize=8)
def _lengths(mesh: Mesh) -> Any:
    """The length of the longest row of a block, but of those that hold what is no number."""

    def length(rows: jax.Array, scales: jax.Array | None) -> jax.Array:
        squares = jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=-1)
        if scales is not None:
            squares = squares * jnp.square(scales)
        return jnp.sqrt(jnp.max(jnp.where(jnp.isfinite(squares), squares, 0)))

    return jax.jit(length, out_shardings=meshes.replicated(mesh))
