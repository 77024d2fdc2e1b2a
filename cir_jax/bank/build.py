# SPDX-License-Identifier: Apache-2.0
"""Builds a bank: each image is opened once, and its rows go straight into the files of the bank."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cir_jax import progress
from cir_jax.bank import files, folders, mirrors
from cir_jax.bank.bank import Inputs
from cir_jax.bank.references import Plan
from cir_jax.contract import Functions
from cir_jax.errors import UserError
from cir_jax.files import gigabytes
from cir_jax.params import Params
from cir_jax.runtime import encode
from cir_jax.runtime import mesh as meshes

_TEXTS = 8  # most texts of an image in one pass of its encoder
_ON_DISK = ("references", "disk")  # array and place
_KEPT = 64  # images of several passes that stay decoded until the next one


@dataclass(frozen=True)
class Visit:
    """One pass of an image: its target where it is the first, and some of its references."""

    image: int
    first: bool
    rows: range


def visits(images: int, plan: Plan, place: str) -> list[Visit]:
    """How the images are passed through: each once, or once per few of its texts."""
    if place == "recompute":
        return [Visit(i, True, range(0)) for i in range(images)]
    start = np.searchsorted(plan.image, np.arange(images + 1)).tolist()
    width = _texts_per_pass(plan)
    return [
        Visit(i, at == start[i], range(at, min(at + width, start[i + 1])))
        for i in range(images)
        for at in range(start[i], max(start[i + 1], start[i] + 1), width)
    ]


def _texts_per_pass(plan: Plan) -> int:
    """As many as an image has in the mean, so that most images are encoded in one pass."""
    images = max(len(np.unique(plan.image)), 1)
    return min(-(-len(plan) // images), _TEXTS) or 1


def load_or_build(
    folder: str | Path, inputs: Inputs, mesh: Mesh, *, batch: int = 128, threads: int = 16
) -> dict[str, np.ndarray]:
    """The bank in `folder`, memory-mapped, built there if it is not.

    Args:
      folder: may be shared by the processes of a run, or be another on each host. For one in a
        mounted bucket see `mirrors`.
      inputs: what the bank is made of.
      mesh: the device mesh.
      batch: images per encoding batch.
      threads: loading threads of this process.

    Returns:
      {"targets": float32 [N, K, D], "references": float32 [M, R, C], or the bits of bfloat16 as
      uint16, or not there}.

    Raises:
      UserError: the bank there was made of something else, or there is no room for one.
    """
    made_of = inputs.fingerprint()
    if mirrors.is_mirrored(folder):
        mirror = mirrors.of(folder)
        _fill(mirror, Path(folder), inputs, made_of)
        rows = _loaded_or_built(mirror, inputs, made_of, mesh, batch, threads)
        if jax.process_index() == 0:
            mirrors.keep(mirror, Path(folder), inputs.arrays())
        return rows
    return _loaded_or_built(Path(folder), inputs, made_of, mesh, batch, threads)


def _fill(mirror: Path, kept: Path, inputs: Inputs, made_of: dict[str, str]) -> None:
    """Takes the bank that is kept in a bucket, on each host that has none on its disk."""
    elsewhere = f"another process cannot take the bank that is kept in {kept}; it says why"
    _in_every_process(partial(folders.make, mirror), elsewhere)
    lacks = folders.is_writer(mirror) and not (mirror / files.RECORD).exists()
    _in_every_process(
        lambda: mirrors.fill(mirror, kept, made_of, inputs.arrays()) if lacks else None, elsewhere
    )


def _loaded_or_built(
    folder: Path,
    inputs: Inputs,
    made_of: dict[str, str],
    mesh: Mesh,
    batch: int,
    threads: int,
) -> dict[str, np.ndarray]:
    rows = _load(folder, inputs, made_of, mesh)
    # Where hosts do not share the folder some have it and some not: then all take part.
    if not _everywhere(rows is not None):
        rows = _build_alone(folder, inputs, made_of, mesh, batch, threads)
    assert rows is not None
    return rows


def _build_alone(
    folder: str | Path,
    inputs: Inputs,
    made_of: dict[str, str],
    mesh: Mesh,
    batch: int,
    threads: int,
) -> dict[str, np.ndarray] | None:
    """The bank, built while no other run builds in `folder`."""
    _in_every_process(
        partial(folders.make, folder), f"another process cannot make its {folder}; it says why"
    )
    writes = folders.is_writer(folder)
    lock = _in_every_process(
        lambda: folders.lock(folder) if writes else None,
        f"another process cannot build the bank in {folder}; it says why",
    )
    try:
        rows = _load(folder, inputs, made_of, mesh)  # another run may have built it since
        if not _everywhere(rows is not None):
            _build(folder, inputs, made_of, mesh, writes and rows is None, batch, threads)
            rows = _load(folder, inputs, made_of, mesh)
    finally:
        if lock:
            lock.release()
    return rows


def _load(
    folder: str | Path, inputs: Inputs, made_of: dict[str, str], mesh: Mesh
) -> dict[str, np.ndarray] | None:
    """The bank, of which this process has checked the rows that its devices are going to hold.

    References on disk are checked as they are read.
    """

    def load() -> dict[str, np.ndarray] | None:
        found = files.load(folder, made_of, inputs.arrays())
        on_devices = {n: x for n, x in (found or {}).items() if (n, inputs.place) != _ON_DISK}
        checked = [files.check(x, _spans(len(x), mesh)) for x in on_devices.values()]
        if not all(checked):
            progress.say(f"the bank in {folder} was made before banks had checksums: not checked")
        return found

    elsewhere = f"another process cannot use the bank in its {folder}; it says why"
    return _in_every_process(load, elsewhere)


def _spans(rows: int, mesh: Mesh) -> list[tuple[int, int]]:
    """(first, behind the last) of the rows that the devices of this process hold."""
    shape = (rows + -rows % mesh.size,)
    held = meshes.row_sharding(mesh).addressable_devices_indices_map(shape)
    spans = ((index[0] if index else slice(None)).indices(shape[0]) for index in held.values())
    return [(start, min(stop, rows)) for start, stop, _ in spans if start < rows]


def _in_every_process(here: Callable[[], Any], elsewhere: str) -> Any:
    """What `here` returns; if it fails in one process all stop, or the others would wait for it."""
    result, error = None, None
    try:
        result = here()
    except UserError as raised:
        error = raised
    if not _everywhere(error is None):
        raise error or UserError(elsewhere)
    return result


def _build(
    folder: str | Path,
    inputs: Inputs,
    made_of: dict[str, str],
    mesh: Mesh,
    writes: bool,
    batch: int,
    threads: int,
) -> None:
    """Encodes the bank into `folder`, batch by batch, from where an earlier build was cut off.

    One program gives the target of an image and its references. Those that depend on texts come
    several at a time, by `vmap` over the texts: what depends on the image alone is computed once.

    Args:
      writes: this process writes `folder`; the others are those of `load_or_build`.
    """
    todo = visits(len(inputs.data.images), inputs.plan, inputs.place)
    writer = _in_every_process(
        partial(files.Writer, folder, inputs.arrays(), made_of),
        f"another process cannot go on with the bank in its {folder}; it says why",
    )
    _check_room(writer, writes, folder)
    done = _least(writer.done if writes else len(todo))
    progress.say(
        f"building the bank of {len(inputs.data.images):,} images in {folder}: "
        f"{gigabytes(writer.missing())} to write"
        + (f", going on at {done / len(todo):.0%}" if done else "")
    )
    done = _begin(writer if writes else None, todo, done, inputs.place)
    with writer, progress.counter(len(todo), "bank", done) as bar:
        rest = todo[done:]
        stream = encode.stream(
            _program(inputs.functions, inputs.place),
            inputs.index,
            rest,
            _loader(inputs),
            batch=batch,
            mesh=mesh,
            threads=threads,
            prepare=partial(_prepare, inputs),
        )
        for start, rows in stream:
            part = rest[start : start + len(rows["targets"])]
            if writes:
                _add(writer, part, rows)
                writer.commit(done + start + len(part))
            bar.update(len(part))
        if writes:
            writer.finish(len(todo))
    _everywhere(True)  # nobody reads before all is written


def _begin(writer: files.Writer | None, todo: list[Visit], done: int, place: str) -> int:
    """Starts all writers behind the same item, and says which: the first where rows are damaged."""

    def start(done: int) -> int:
        return writer.start(done, _counts(todo[:done], place)) if writer else done

    elsewhere = "another process cannot write the bank; it says why"
    begun = _in_every_process(lambda: start(done), elsewhere)
    least = _least(begun)
    if not _everywhere(begun == least):
        _in_every_process(lambda: start(least), elsewhere)
    return least


def _add(writer: files.Writer, part: list[Visit], rows: dict[str, np.ndarray]) -> None:
    writer.add("targets", rows["targets"][[i for i, visit in enumerate(part) if visit.first]])
    if "references" in rows:
        pairs = [(i, j) for i, visit in enumerate(part) for j in range(len(visit.rows))]
        at = np.asarray(pairs, np.int64).reshape(-1, 2)
        writer.add("references", rows["references"][at[:, 0], at[:, 1]])


def _counts(done: list[Visit], place: str) -> dict[str, int]:
    counts = {"targets": sum(visit.first for visit in done)}
    return counts if place == "recompute" else counts | {"references": _last(done)}


def _last(done: list[Visit]) -> int:
    return done[-1].rows.stop if done else 0


def _check_room(writer: files.Writer, writes: bool, folder: str | Path) -> None:
    lacking = writer.lacks_room() if writes else ""
    if not _everywhere(not lacking):
        elsewhere = f"another process lacks room for the bank in {folder}; it says how much"
        raise UserError(lacking or elsewhere)


@lru_cache(maxsize=8)
def _program(functions: Functions, place: str) -> Callable:
    def rows(params: Params, fields: dict[str, jax.Array]) -> dict[str, jax.Array]:
        pixels = fields["pixels"]
        out = {"targets": functions.target(params, pixels).astype(jnp.float32)}
        if place == "recompute":
            return out
        if "text" in fields:
            references = jax.vmap(
                lambda text: functions.reference(params, pixels, text), in_axes=1, out_axes=1
            )(fields["text"])
        else:
            blank = pixels[:, 0, :1, 0].astype(jnp.int32)  # no text is read
            references = functions.reference(params, pixels, blank)[:, None]
        kind = jnp.bfloat16 if place == "disk" else jnp.float32
        return out | {"references": references.astype(kind)}

    return rows


def _loader(inputs: Inputs) -> Callable[[Visit], dict[str, np.ndarray]]:
    """Visit -> {"pixels"}, and "text" [texts of a visit, T] where references read one."""
    data, plan, width = inputs.data, inputs.plan, _texts_per_pass(inputs.plan)
    pixels = _Opened(lambda row: inputs.preprocess(data.images.paths[row]))
    length = int(data.tokens.lengths.max())
    if not inputs.functions.inputs.cut_padding:
        length = data.tokens.context

    def load(visit: Visit) -> dict[str, np.ndarray]:
        fields = {"pixels": pixels(visit.image)}
        if plan.reads_text and inputs.place != "recompute":
            rows = [*visit.rows, *[max(visit.rows.stop - 1, 0)] * (width - len(visit.rows))]
            fields["text"] = data.tokens.rows(plan.text[rows], length)
        return fields

    return load


def _prepare(inputs: Inputs, visited: Sequence[Visit]) -> None:
    """Lets a preprocessing that asks others for vectors ask for those of all images together."""
    if (prepare := getattr(inputs.preprocess, "prepare", None)) is not None:
        paths = inputs.data.images.paths
        prepare([paths[image] for image in dict.fromkeys(visit.image for visit in visited)])


class _Opened:
    """Opens each image once, though several passes that follow each other ask for it."""

    def __init__(self, open_image: Callable[[int], np.ndarray]):
        self._open = open_image
        self._images: OrderedDict[int, Future] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, image: int) -> np.ndarray:
        with self._lock:
            opened = self._images.get(image)
            if opened is None:
                future = self._images[image] = Future()
                if len(self._images) > _KEPT:
                    self._images.popitem(last=False)
        if opened is not None:
            return opened.result()
        try:
            future.set_result(self._open(image))
        except BaseException as error:
            future.set_exception(error)
        return future.result()


def _everywhere(here: bool) -> bool:
    return bool(_least(int(here)))


def _least(number: int) -> int:
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).min())
