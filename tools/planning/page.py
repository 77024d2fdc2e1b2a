# SPDX-License-Identifier: Apache-2.0
"""A plan as a page of text, and as JSON."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cir_jax.bank.references import gigabytes
from cir_jax.runtime import mesh as meshes
from tools.planning import analysis, floors, memory
from tools.planning.analysis import Plan
from tools.planning.measured import Row
from tools.planning.remedies import Remedy

Lines = list[tuple[str, str]]
# What stands in a page instead of a number that nobody has measured.
_VERDICTS = {
    "yes": "fits",
    "no": "does not fit",
    "perhaps": f"may not fit: compiled programs took up to {memory.MARGIN} times such an estimate",
}


def text(
    plan: Plan, remedies: Sequence[Remedy] = (), price: float = 0.0, rows: Iterable[Row] = ()
) -> str:
    """The page of a plan.

    Args:
      plan: the plan.
      remedies: what to change, if it does not fit.
      price: of a chip and hour; 0 for none.
      rows: of the table of measurements that are of this plan.
    """
    changes = "".join(f" --set {change}" for change in plan.changes)
    parts = [
        ("machine", _machine(plan)),
        ("run", _run(plan)),
        (f"memory of a device, {_how(plan)}", _memory(plan)),
        *(
            [("what to change", _remedies(plan, remedies))]
            if plan.memory.step_fits != "yes"
            else []
        ),
        (f"collectives of a step, {'compiled' if plan.listed else 'by shapes'}", _traffic(plan)),
        ("products of a step", _products(plan)),
        ("a step takes at least", _floors(plan)),
        ("the run takes at least", _whole(plan, price)),
        ("assumptions", _assumptions(plan)),
        ("predicted against measured", _measured(rows)),
    ]
    body = "\n\n".join(f"{title}\n{_table(lines)}" for title, lines in parts)
    return f"{plan.spec}{changes} on {plan.machine.on}\n\n{body}"


def values(plan: Plan, remedies: Sequence[Remedy] = (), price: float = 0.0) -> dict[str, Any]:
    """The numbers of a plan, for programs: bytes, FLOP and seconds."""
    steps = plan.program.steps
    return {
        "config": plan.spec,
        "changes": list(plan.changes),
        "on": plan.machine.on,
        "mesh": dict(plan.program.setup.mesh.shape),
        "memory": plan.memory.parts,
        "step_bytes": plan.memory.step,
        "evaluation_bytes": plan.memory.evaluation,
        "limit_bytes": plan.memory.limit,
        "compiled": plan.memory.compiled,
        "refused_bytes": plan.refused,
        "fits": plan.memory.fits,
        "remedies": [dataclasses.asdict(r) for r in remedies],
        "collectives": [dataclasses.asdict(c) for c in plan.collectives],
        "flop_of_a_device": plan.products,
        "flop_by_formula": plan.formula,
        "floors": plan.floors.step,
        "bound": plan.floors.bound,
        "step_seconds": plan.floors.slowest,
        "triplets_per_second": plan.rate,
        "steps": steps,
        "run_seconds": plan.seconds,
        "cost": plan.cost(price) if price else None,
    }


def _table(lines: Lines) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in lines)


def _how(plan: Plan) -> str:
    if plan.refused:
        return f"which the compiler of {plan.machine.chip.name} refuses"
    if plan.memory.compiled:
        return f"compiled for {plan.machine.chip.name}"
    return "an estimate by shapes"


def _machine(plan: Plan) -> Lines:
    machine, mesh = plan.machine, plan.program.setup.mesh
    each = f"{machine.hosts} {'host' if machine.chip.tpu else 'node'}{'s' * (machine.hosts > 1)}"
    lines = [
        (
            "devices",
            f"{len(machine.devices)} x {machine.chip.name}, {each} of {machine.each}, "
            f"{machine.processes} process{'es' * (machine.processes > 1)}",
        ),
        ("mesh", f"data={mesh.shape[meshes.DATA]} x model={mesh.shape[meshes.MODEL]}"),
    ]
    rows = analysis.host_rows(mesh, plan.program.setup.config.batch)
    shown = list(rows.items())[:4]
    for process, spans in shown:
        said = ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in spans)
        lines.append((f"process {process} loads", f"rows {said}"))
    if len(rows) > len(shown):
        lines.append(("", f"and {len(rows) - len(shown)} more processes as many each"))
    return lines


def _run(plan: Plan) -> Lines:
    program, config = plan.program, plan.program.setup.config
    counts = program.counts
    lines = [
        ("triplets", f"{counts.triplets:,} of {counts.images:,} images ({counts.source})"),
        ("steps", f"{program.steps:,} of {config.batch}"),
        ("texts", f"{program.text} tokens"),
    ]
    if program.place:
        shape = " x ".join(map(str, program.setup.functions.reference_shape))
        lines.append(("references", f"{program.references:,} of {shape}, {program.place}"))
    if counts.gallery:
        said = f"{plan.floors.evaluations} of {counts.queries:,} queries, {counts.gallery:,} images"
        lines.append(("evaluations", said))
    else:
        lines.append(("evaluations", "left out: the size of the benchmark is not given"))
    return lines


def _memory(plan: Plan) -> Lines:
    found, limit = plan.memory, plan.memory.limit
    lines = [(name, gigabytes(size)) for name, size in found.parts.items()]
    verdict = _VERDICTS[found.step_fits]
    if plan.refused:
        verdict += f"; the compiler says {gigabytes(plan.refused)} at least"
    lines.append(("a step", f"{gigabytes(found.step)} of {gigabytes(limit)}: {verdict}"))
    if plan.program.counts.gallery:
        said = "fits" if found.evaluation <= limit else "does not fit; lower eval.batch"
        lines.append(("an evaluation", f"{gigabytes(found.evaluation)}, by shapes: {said}"))
    each = plan.machine.each
    lines.append(("on each host", f"{gigabytes(found.host * each)} of batches that are ready"))
    return lines


def _remedies(plan: Plan, found: Sequence[Remedy]) -> Lines:
    if not found:
        return [("", "nothing in the config makes it fit; take more or larger devices")]
    lines = []
    for one in found[:6]:
        said = f"about {gigabytes(one.needs)}: {'fits' if one.fits else 'does not fit either'}"
        if any(change.startswith("batch=") for change in one.changes):
            said += "; another batch is another recipe"
        lines.append((" ".join(f"--set {change}" for change in one.changes), said))
    return lines


def _traffic(plan: Plan) -> Lines:
    lines = [
        (
            f"{one.kind} over {one.axes}",
            f"{gigabytes(one.bytes)} in {one.times:,}, among {one.devices} devices",
        )
        for one in plan.collectives
    ]
    if plan.loops:
        lines.append(("", f"{len(plan.loops)} loops counted once: their rounds are not known"))
    if not plan.listed and plan.program.setup.mesh.shape[meshes.MODEL] > 1:
        lines.append(("", "what layers exchange over model is not counted"))
    return lines or [("", "none")]


def _products(plan: Plan) -> Lines:
    devices = plan.program.setup.mesh.size
    counted = sum(plan.products.values())
    lines = [
        (f"{kind}", f"{_tera(flop)} on each device") for kind, flop in sorted(plan.products.items())
    ]
    if plan.formula is None:
        lines.append(("by formula", "none is known for this model; counted in its trace"))
    else:
        ratio = counted * devices / plan.formula
        said = f"{_tera(plan.formula)} on all; counted in the trace are {ratio:.3f} of it"
        lines.append(("by formula", said))
    return lines


def _floors(plan: Plan) -> Lines:
    bound = plan.floors.bound
    lines = [
        (name, f"{_time(seconds)}{'  <- the bound' * (name == bound)}")
        for name, seconds in plan.floors.step.items()
    ]
    per = plan.program.setup.config.batch
    images = sum("pixels" in name for name in plan.program.arguments[3])
    said = f"{plan.rate:,.0f} triplets/s"
    if images:
        said += f", {plan.rate * images:,.0f} images/s"
    lines.append(("so at most", f"{said} in steps of {per}"))
    if bound == floors.DECODING and images:
        lines += [("", tip) for tip in _faster_images(plan)]
    return lines


def _faster_images(plan: Plan) -> Iterator[str]:
    """What to do where a step waits for images."""
    config, machine = plan.program.setup.config, plan.machine
    cores = machine.chip.cores * machine.each
    each = machine.processes // machine.hosts
    rate = min(cores, config.data.threads * each) / plan.speeds.decode / each
    if rate > floors.LOCKED and machine.processes < len(machine.devices) and not machine.chip.tpu:
        yield (
            f"a process opens at most {floors.LOCKED:,} images/s: launch/local_gpu.sh "
            "--process-per-gpu starts one for each GPU"
        )
    elif rate < floors.LOCKED and config.data.threads * each < cores:
        yield f"a host has {cores:.0f} cores: --set data.threads={int(cores / each)} uses them"
    size = plan.program.counts.images * plan.program.setup.functions.image_size**2 * 3
    yield (
        f"--set data.pixels=memory decodes each image once; a process then keeps up to "
        f"{gigabytes(size)}, and with data.pixels=disk its host, for later runs too"
    )


def _whole(plan: Plan, price: float) -> Lines:
    one = plan.floors
    lines = [("steps", _time(plan.program.steps * one.slowest))]
    if one.bank:
        lines.append(("bank", _time(one.bank)))
    if one.evaluations:
        seconds = one.evaluation + (one.evaluations - 1) * one.later
        lines.append(("evaluations", _time(seconds)))
    lines.append(("in all", f"{_time(plan.seconds)} ({plan.seconds / 86400:.2f} days)"))
    if price:
        chips = plan.machine.rented
        lines.append(
            ("cost", f"{plan.cost(price):,.2f}, for {chips:g} chips at {price:g} an hour each")
        )
    else:
        lines.append(("cost", "give --price, of a chip and hour"))
    return lines


def _assumptions(plan: Plan) -> Lines:
    chip, speeds = plan.machine.chip, plan.speeds
    per = "half of a chip" if chip.per_chip > 1 else "a chip" if chip.tpu else "a GPU"
    return [
        (
            "peak",
            f"{_tera(chip.peak)}/s of {per} in bfloat16, {_tera(chip.float32)}/s in float32, "
            f"{_tera(chip.highest)}/s at highest precision",
        ),
        ("memory", f"{gigabytes(chip.memory)}, {gigabytes(chip.bandwidth)}/s"),
        ("links", f"{gigabytes(chip.link)}/s sent by a device, all links busy"),
        ("network", f"{gigabytes(chip.network)}/s sent by a host, where it is crossed"),
        ("host", f"{chip.cores:g} cores and {gigabytes(chip.pcie)}/s to a device, for each device"),
        ("", f"source: {chip.source}"),
        (
            "image",
            f"{speeds.decode * 1e3:g} ms of a core to decode and resize, {floors.LOCKED:,}/s in a "
            f"process at most, {plan.program.setup.config.data.threads} threads in each",
        ),
        ("disk", f"{gigabytes(speeds.disk)}/s, and {floors.LOOP * 1e3:g} ms a step for the loop"),
        ("", "source: measured by this project on two cores; the disk is a guess"),
        ("texts", f"the longest of a batch takes {plan.program.text} tokens; a guess"),
        (
            "left out",
            "compiling (minutes for each length of texts), checkpoints, waiting for a start",
        ),
    ]


def _measured(rows: Iterable[Row]) -> Lines:
    lines = [
        (
            f"{row.date} {row.what}",
            f"{row.predicted:.4g} predicted, {row.measured:.4g} measured: "
            f"{row.measured / row.predicted:.2f} of it",
        )
        for row in rows
    ]
    return lines or [("", "not measured yet on such devices; --measured adds to the table")]


def _tera(flop: float) -> str:
    return f"{flop / 1e12:,.4g} TFLOP" if flop >= 1e10 else f"{flop / 1e9:,.4g} GFLOP"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:,.3g} ms"
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
