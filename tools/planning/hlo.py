# SPDX-License-Identifier: Apache-2.0
"""The collectives of a compiled program: which, over which mesh axes, how often, of how many bytes;
and its instructions whose results are large.

They are read from the text of the program. A loop's body stands there once, and how often it runs
is not written beside it: it is the number that the loop's condition compares its counter with.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# Instructions whose result is a view of what goes in; a loop hands on what its body makes.
_VIEWS = frozenset(
    "parameter bitcast tuple get-tuple-element while conditional call opt-barrier".split()
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b[a-z]\w*\[[\d,]*\](?:\{[^{}]*\})?")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
# Of an instruction, the computations that run when it runs. Those of `to_apply` are sums of two
# numbers in all but calls.
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|true_computation|false_computation|branch_computations|"
    r"called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESHED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,? ?device_ids=\(([^)]*)\))? \{([^}]*)\}")
_PART = re.compile(r"(channel_id=\d+),.*\b(chain_id=\"?\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same axes, of one step.

    Attributes:
      kind: one of KINDS.
      axes: mesh axes whose devices take part, "data", "model" or "data+model"; "?" where the groups
        are those of no axes.
      devices: number of devices in a group.
      times: how often one is run in a step.
      bytes: of all of them in a step, on one device: of the result, or of what is put in where that
        is larger.
    """

    kind: str
    axes: str
    devices: int
    times: int
    bytes: float

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least, as in a ring."""
        share = (self.devices - 1) / self.devices
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(
            self.kind, share
        )


def collectives(text: str, mesh: Mesh) -> tuple[list[Collective], list[str]]:
    """The collectives of a compiled program, largest first, and loops whose count is not known.

    A TPU runs one collective beside several other instructions. It then stands in the program once
    for each of them, with the same channel and chain, and is counted once.

    Args:
      text: `compiled.as_text()`.
      mesh: its devices; their order is that of the program's partitions.
    """
    lines, entry = _computations(text)
    found: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0, 0.0])
    counted: dict[tuple, int] = defaultdict(int)  # a collective in parts -> its runs
    unknown: list[str] = []
    for name, times in _times(lines, entry, unknown).items():
        for shape, op, rest in lines[name]:
            kind = op.removesuffix("-start")
            if kind not in KINDS:
                continue
            groups = _groups(rest, mesh)
            devices = len(groups[0])
            if devices < 2:
                continue
            runs = times
            if part := _PART.search(rest):
                runs -= counted[part.groups()]
                counted[part.groups()] = max(times, counted[part.groups()])
            if runs < 1:
                continue
            # What is started and waited for carries what was put in beside the result.
            size = _bytes(shape, largest=op != kind)
            if kind == "reduce-scatter":
                size = max(size, _bytes(shape) * devices)
            total = found[kind, _axes(groups, mesh), devices]
            total[0] += runs
            total[1] += runs * size
    listed = [Collective(*key, int(n), size) for key, (n, size) in found.items()]
    return sorted(listed, key=lambda c: -c.bytes), unknown


def large(text: str, least: float) -> list[tuple[str, str, float]]:
    """Instructions that write at least so many bytes on a device: (kind, result, bytes).

    Parameters and views of them are left out; what lies in the memory on the chip, into which a
    TPU fetches what it reads; and what happens inside of a fusion, of which only the result is
    written.

    Args:
      text: `compiled.as_text()`.
      least: bytes.
    """
    lines, entry = _computations(text)
    found, waiting, seen = [], [entry], {entry}
    while waiting:
        for shape, op, rest in lines[waiting.pop()]:
            # What is started and waited for is counted where it is there.
            if op not in _VIEWS and not op.endswith(("-start", "-update")):
                for one in _ARRAY.findall(shape):
                    size = _bytes(one)
                    found += [(op, one, size)] if size >= least and "S(1)" not in one else []
            if op == "fusion" or op in KINDS:
                continue
            for role, several, single in _CALLED.findall(rest):
                if role == "to_apply" and op != "call":
                    continue
                inner = set(re.findall(r"[\w.\-]+", several or single)) & lines.keys() - seen
                waiting += inner
                seen |= inner
    return found


def dimensions(shape: str) -> list[int]:
    """[128, 640] of "f32[128,640]{1,0}", the result of an instruction."""
    return [int(n) for _, dims in _SHAPE.findall(shape)[:1] for n in dims.split(",") if n]


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """{computation: its instructions as (shape, op, rest of the line)}, and the entry's name."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            found[current] = []
            entry = current if head[1] else entry
        elif current and (parts := _LINE.match(line)):
            found[current].append((parts[2], parts[3], parts[4]))
    return found, entry


def _times(
    lines: dict[str, list[tuple[str, str, str]]], entry: str, unknown: list[str]
) -> dict[str, int]:
    """How often each computation runs when the entry runs once."""
    found: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        found[name] += times
        for _, op, rest in lines[name]:
            if op.endswith(("-done", "-update")) or (op in KINDS):
                continue
            each = times * (_trips(rest, lines, unknown) if op == "while" else 1)
            for role, several, single in _CALLED.findall(rest):
                if role == "to_apply" and op.removesuffix("-start") not in ("call", "async"):
                    continue
                for inner in re.findall(r"[\w.\-]+", several or single):
                    if inner not in lines:
                        continue
                    visit(inner, each)

    visit(entry, 1)
    return found


def _trips(rest: str, lines: dict[str, list[tuple[str, str, str]]], unknown: list[str]) -> int:
    """How often a loop runs: its counter starts at 0 and is compared with a constant."""
    said = re.search(r'known_trip_count[^}]*?"?n"?\s*[:=]\s*"?(\d+)', rest)
    if said:
        return int(said[1])
    named = re.search(r"condition=%?([\w.\-]+)", rest)
    body = lines.get(named[1], []) if named else []
    less = any("direction=LT" in tail for _, op, tail in body if op == "compare")
    numbers = [
        int(n[1])
        for shape, op, tail in body
        if op == "constant" and (n := re.match(r"(\d+)\)", tail)) and shape.startswith(("s", "u"))
    ]
    if less and len(numbers) == 1:
        return numbers[0]
    unknown.append(named[1] if named else "?")
    return 1


def _bytes(shape: str, largest: bool = False) -> float:
    """Bytes of a shape as it is written, of all parts of a tuple or of the largest one."""
    sizes = [_width(kind) * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in
             _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shape))]  # fmt: skip
    return (max if largest else sum)(sizes) if sizes else 0.0


def _width(kind: str) -> float:
    if kind in _BYTES:
        return _BYTES[kind]
    bits = re.match(r"[a-z]+(\d+)", kind)
    return int(bits[1]) / 8 if bits else 0


def _groups(rest: str, mesh: Mesh) -> list[list[int]]:
    """The groups of partitions that a collective joins."""
    if listed := _LISTED.search(rest):
        groups = [
            [int(n) for n in g.split(",") if n.strip()]
            for g in re.findall(r"\{([\d, ]*)\}", listed[1] or "")
        ]
        groups = [g for g in groups if g]
        return groups or [list(range(mesh.size))]  # none written: all of them
    if iota := _IOTA.search(rest):
        shape, dims = _numbers(iota[1]), _numbers(iota[2])
        order = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            order = order.transpose(_numbers(iota[3]))
        return order.reshape(shape).tolist()
    if meshed := _MESHED.search(rest):
        sizes = {k.strip(" '"): int(n) for k, n in (p.split("=") for p in meshed[1].split(","))}
        names = [name.strip(" '") for name in meshed[3].split(",")]
        ids = np.arange(math.prod(sizes.values()))
        if meshed[2]:
            ids = np.asarray(_numbers(meshed[2]))
        if set(names) <= set(sizes):
            axes = list(sizes)
            last = [axes.index(n) for n in names]
            first = [i for i in range(len(axes)) if i not in last]
            width = math.prod(sizes[n] for n in names)
            return (
                ids.reshape(list(sizes.values()))
                .transpose(first + last)
                .reshape(-1, width)
                .tolist()
            )
    if pairs := _PAIRS.search(rest):
        return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\d+,\d+", pairs[1])]
    return [list(range(mesh.size))]


def _axes(groups: list[list[int]], mesh: Mesh) -> str:
    """The mesh axes along which the devices of a group differ."""
    sizes = list(mesh.shape.values())
    if any(max(g) >= mesh.size for g in groups):
        return "?"
    places = [np.stack(np.unravel_index(np.asarray(g), sizes)) for g in groups]
    vary = {tuple(bool(np.ptp(row)) for row in one) for one in places}
    named = [name for i, name in enumerate(mesh.shape) if any(one[i] for one in vary)]
    return "+".join(named) or "?"


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
