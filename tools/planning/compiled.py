# SPDX-License-Identifier: Apache-2.0
"""The step as the TPU's own compiler makes it: its memory and its collectives. Results are kept.

A compile of a published step takes one to three minutes of a processor. What comes out depends on
the program and on the versions of jax and libtpu, by which it is kept: recipes that differ in a
learning rate share it.
"""

import dataclasses
import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from cir_jax import files
from tools.planning import hlo
from tools.planning.hlo import Collective
from tools.planning.program import Program

_NUMBER = re.compile(r"dense<(?!0\.0+e\+00>|1\.0+e\+00>)-?\d\.\d+e[+-]\d+>(?= : tensor<f32>)")


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step on one device.

    Attributes:
      arguments, results: bytes; results that are written over arguments are left out.
      temporaries: bytes of everything between.
      refused: what is needed at least, if the compiler refused the step for lack of memory; then
        nothing else is known. 0 if not.
      collectives: of a step.
      loops: those whose number of rounds is not known; their collectives are counted once.
    """

    arguments: float = 0.0
    results: float = 0.0
    temporaries: float = 0.0
    refused: float = 0.0
    collectives: tuple[Collective, ...] = ()
    loops: tuple[str, ...] = ()


def compile_step(program: Program, on: str) -> Compiled:
    """Compiles a step for the devices of its mesh, or reads what was kept of that.

    Args:
      program: its mesh is of a TPU slice.
      on: name of the slice.
    """
    lowered = program.update.lower(*program.arguments)
    text = essence(lowered.as_text())
    library = Path(os.environ.get("TPU_LIBRARY_PATH", "")).parent.parent.name
    devices = [str(d) for d in program.setup.mesh.devices.flat]  # their order too
    said = "\n".join((text, on, jax.__version__, library, *devices))
    kept = _folder() / f"{hashlib.sha256(said.encode()).hexdigest()}.json"
    if kept.is_file():
        return from_json(json.loads(kept.read_text()))
    print(f"compiling the step for {on}: a minute or more", file=sys.stderr, flush=True)
    found = _compile(lowered, program)
    with files.whole(kept) as file:
        file.write(json.dumps(dataclasses.asdict(found)).encode())
    return found


def essence(text: str) -> str:
    """A program without the values of its float constants: rates, temperatures, weights of losses.

    They change no byte and no collective, but for 0 and 1, which a compiler computes away.
    """
    return _NUMBER.sub("dense<#>", text)


def _compile(lowered: Any, program: Program) -> Compiled:
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = over(str(error))
        if not needed:
            raise
        return Compiled(refused=needed)
    memory = done.memory_analysis()
    found, loops = hlo.collectives(done.as_text(), program.setup.mesh)
    return Compiled(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        collectives=tuple(found),
        loops=tuple(loops),
    )


def over(message: str) -> float:
    """Bytes that a compiler's message says a program needs; 0 where it is another message."""
    if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message.lower():
        return 0.0
    found = re.search(r"Used ([\d.]+)([KMGT]) of|\(([\d.]+)([KMGT])\) exceeds", message)
    if found is None:
        return 0.0
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(number) * 2.0 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit]


def from_json(values: dict[str, Any]) -> Compiled:
    """The inverse of `dataclasses.asdict`, of what JSON makes of that."""
    listed = tuple(Collective(**c) for c in values.pop("collectives"))
    return Compiled(**{**values, "collectives": listed, "loops": tuple(values.pop("loops"))})


def _folder() -> Path:
    base = os.environ.get("CIR_JAX_CACHE") or Path.home() / ".cache" / "cir_jax"
    return Path(base) / "plans"
