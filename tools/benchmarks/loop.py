# SPDX-License-Identifier: Apache-2.0
"""The training loop against its update alone, and what comes before the first step.

Three ratios, each of neighbours that run in turns: a step of `cir_jax.training.train`, with input,
logs and all, against the same update called again and again with one batch that lies on the
devices; CPU seconds of a command of one step that reads its compiled programs back, and of one that
compiles them; CPU seconds to import the trainer, and to import the libraries that it stands on.
The model is the tiny one, the data a few made images: what a loop and a start cost beside the
arithmetic shows best where there is little of it.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from cir_jax import config as configs
from cir_jax.runtime import encode, metrics, programs
from cir_jax.runtime import mesh as meshes
from cir_jax.training import setup as setups
from cir_jax.training import state as states
from cir_jax.training import step, train
from tools.benchmarks import timing

HELP = "the training loop against its update alone; starting cold and warm; importing"
HERE = Path(__file__).parents[2]
TRAINER = "import cir_jax.training.train"
LIBRARIES = "import jax, flax, optax, orbax.checkpoint"
IMAGES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--steps", type=int, default=60, help="measured steps of a round")
    parser.add_argument("--tower", default="tiny-vit", help="size of the model")
    parser.add_argument("--batch", type=int, default=32, help="triplets of a step")
    parser.add_argument("--starts", type=int, default=3, help="rounds of starts and of imports")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the three."""
    with tempfile.TemporaryDirectory() as folder:
        root = _data(Path(folder) / "data")
        loop = _loop(Path(folder), root, args)
        starts = _starts(Path(folder), root, args)
    imports = _in_turns(
        {"trainer": lambda: _python("-c", TRAINER), "libraries": lambda: _python("-c", LIBRARIES)},
        args.starts,
    )
    rows = [
        ("step: loop / update alone", loop, "loop", "update"),
        ("CPU s of a start: warm / cold", starts, "warm", "cold"),
        ("CPU s of an import: trainer / libraries", imports, "trainer", "libraries"),
    ]
    timing.table(
        ("what", "s", "of s", "ratio"),
        [
            (what, statistics.median(found[one]), statistics.median(found[other]),
             timing.ratio(found, one, other))
            for what, found, one, other in rows
        ],
    )  # fmt: skip
    return {
        "tower": args.tower,
        "batch": args.batch,
        "steps": args.steps,
        "step_s": {name: statistics.median(found) for name, found in loop.items()},
        "loop_ratio": timing.ratio(loop, "loop", "update"),
        "start_cpu_s": {name: statistics.median(found) for name, found in starts.items()},
        "start_ratio": timing.ratio(starts, "warm", "cold"),
        "import_cpu_s": {name: statistics.median(found) for name, found in imports.items()},
        "import_ratio": timing.ratio(imports, "trainer", "libraries"),
    }


def _data(root: Path) -> Path:
    """A folder of made images and triplets, all of whose texts have one length."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for i in range(IMAGES):
        pixels = rng.integers(0, 256, (72, 72, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    lines = []
    for i in range(4 * IMAGES):
        one, other = rng.choice(IMAGES, 2, replace=False)
        record = {"reference": f"{one}.png", "target": f"{other}.png", "text": f"number {i}"}
        lines.append(json.dumps(record))
    (root / "train.jsonl").write_text("\n".join(lines))
    return root


def _changes(root: Path, workdir: Path, args: argparse.Namespace, steps: int) -> list[str]:
    return [
        *(f"data.root={root}", f"workdir={workdir}", f"batch={args.batch}", f"steps={steps}"),
        *(f"model.tower={args.tower}", "eval.benchmark=none", "data.text_lengths=(32,)"),
    ]


def _loop(folder: Path, root: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step, in the loop and of the update alone."""
    warm = min(20, args.steps)  # steps in which each image is decoded once
    steps = warm + args.steps
    changes = _changes(root, folder / "run", args, steps)
    # Saved at the end alone: writing checkpoints takes cores, but is no part of a step.
    changes += [f"log_every={warm}", f"checkpoint.every_steps={steps}"]
    config = configs.load("clip_sum:tiny", changes)
    update = _update(config, args.steps)
    found: dict[str, list[float]] = {"loop": [], "update": []}
    for turn in range(args.repeats):
        for name in sorted(found, reverse=bool(turn % 2)):
            workdir = folder / f"run-{turn}"
            one = update() if name == "update" else _in_loop(config, workdir, warm)
            found[name].append(one)
    return found


def _in_loop(config: ConfigDict, workdir: Path, warm: int) -> float:
    """Seconds of a step of a new run, without the first `warm`."""
    with contextlib.redirect_stdout(sys.stderr):
        train.train(configs.override(config, [f"workdir={workdir}"]))
    lines = metrics.read(workdir / metrics.FILE)
    first = next(line for line in lines if line["step"] == warm)
    return (lines[-1]["seconds"] - first["seconds"]) / (lines[-1]["step"] - warm)


def _update(config: ConfigDict, steps: int) -> Callable[[], float]:
    """Returns seconds of a step, of so many with the same batch."""
    with contextlib.redirect_stdout(sys.stderr):
        made = setups.make(setups.resolve(config))
        data = setups.read_data(made)
        state, tx = states.start(made, data)
    places = jax.tree.map(lambda x: x.sharding, (state.trained, state.optimizer))
    update = step.make(made.stage, made.functions, tx, len(data.triplets.sources), places)
    rows = next(setups.make_batches(made, data, None))
    sharding = meshes.batch_sharding(made.mesh)
    batch = {k: encode.place(x, sharding, config.batch) for k, x in rows.items()}
    key = jax.device_put(jax.random.key(config.seed), meshes.replicated(made.mesh))

    def one(number: int) -> Any:
        state.trained, state.optimizer, values = update(
            state.trained, state.optimizer, state.fixed, batch, None, key, np.int32(number)
        )
        return values["loss"]

    def measured() -> float:
        jax.block_until_ready(one(0))  # compiles
        began = time.perf_counter()
        jax.block_until_ready([one(number) for number in range(steps)])
        return (time.perf_counter() - began) / steps

    return measured


def _starts(folder: Path, root: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of a command of one step."""
    kept = str(folder / "programs")
    count = iter(range(10**6))

    def start(place: str) -> Callable[[], None]:
        def one() -> None:
            changes = _changes(root, folder / f"start-{next(count)}", args, 1)
            flags = [x for change in changes for x in ("--set", change)]
            command = ("-m", "cir_jax.main", "train", "--config", "clip_sum:tiny", *flags)
            _python(*command, environment={programs.VARIABLE: place})

        return one

    start(kept)()  # fills the folder
    return _in_turns({"warm": start(kept), "cold": start("off")}, args.starts)


def _in_turns(commands: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of processes that commands start and wait for; the order turns each round."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds):
        for name in sorted(commands, reverse=bool(turn % 2)):
            before = _of_children()
            commands[name]()
            found[name].append(_of_children() - before)
    return found


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _python(*arguments: str, environment: dict[str, str] | None = None) -> None:
    """Runs Python in a process of its own, which takes nothing of jax's cache from this one."""
    outer = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=outer | {"PYTHONPATH": str(HERE)} | (environment or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
