# SPDX-License-Identifier: Apache-2.0
"""Disturbs runs at random moments and checks that nothing is lost: `python tools/soak.py`.

Runs of OpenMoji in every stage, with one process and with two, are killed (SIGKILL), told to stop
(SIGTERM) or frozen (SIGSTOP) at a random moment between start and end, and started again
with the same command, until they finish. Then parameters, optimizer, losses and evaluations must be
those of a run that was left alone, bit for bit. This goes on until there were so many disturbances
in a row without a difference. The last line, on stdout, is the result as JSON.

  python tools/soak.py --kills 100
  python tools/soak.py --kills 6 --processes 1 --stages 2 --out /tmp/soak
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from cir_jax import progress
from cir_jax.runtime import checkpoint, metrics

HERE = Path(__file__).parents[1]
STOPPED = 75  # exit status of a run that asks to be started again
LIMIT = 300  # seconds in which a run that was disturbed must have ended
# A small run in which everything happens: several checkpoints, two evaluations, one bank.
RUN = (
    "model.tower=tiny-vit", "batch=8", "steps=12", "log_every=1", "checkpoint.every_steps=2",
    "data.annotated=48", "eval.every=1", "eval.batch=256", "data.threads=2",
    "cluster.lost_seconds=6", "checkpoint.grace_seconds=15",
)  # fmt: skip
KINDS = ("KILL", "KILL", "TERM", "TERM", "STOP")  # killing and asking twice as often as freezing


@dataclass
class Case:
    """One kind of run.

    Attributes:
      processes: of the run; each has as many devices as make two in all.
      stage: 0, 1 or 2.
      seconds: that a run takes which is left alone.
      result: what such a run ends with, see `outcome`.
    """

    processes: int
    stage: int
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages and folders."""
        return f"stage{self.stage}-{self.processes}x{2 // self.processes}"


@dataclass
class Run:
    """A started run: its launcher, its folder, and how much there was of both before."""

    launcher: subprocess.Popen
    workdir: Path
    log: Path
    offset: int
    steps: int

    def said(self) -> str:
        """What process 0 has printed."""
        return self.log.read_bytes()[self.offset :].decode(errors="replace")

    def processes(self) -> list[int]:
        """Ids of the processes that train."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit():
                    continue
                words = (folder / "cmdline").read_bytes().split(b"\0")
                # The name of a program may hold blanks and brackets; the fields follow it.
                session = (folder / "stat").read_text().rpartition(")")[2].split()[3]
            except (OSError, IndexError):
                continue  # it has ended
            if session == str(self.launcher.pid) and b"cir_jax.main" in words:
                found.append(int(folder.name))
        return sorted(found)

    def wait(self, seconds: float, until: Callable[[], bool] = bool) -> int | None:
        """The exit status, once the run has ended; None if `until` came true before.

        Raises:
          SystemExit: neither happened in time.
        """
        limit = time.monotonic() + seconds
        while self.launcher.poll() is None and not until():
            if time.monotonic() > limit:
                _send(self.processes(), signal.SIGKILL)
                raise SystemExit(f"not ended after {seconds:.0f} s:\n{self.said()[-3000:]}")
            time.sleep(0.02)
        return self.launcher.poll()


class Soak:
    """Runs cases, disturbs them, and counts."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.kinds: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.chains = 0
        self._random = random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, case: Case) -> None:
        """Runs the case undisturbed and keeps what it ends with."""
        workdir = self.folder / f"{case.name}-still"
        shutil.rmtree(workdir, ignore_errors=True)
        began = time.monotonic()
        run = self.start(case, workdir)
        if status := run.wait(LIMIT):
            raise SystemExit(f"{case.name} ends with status {status}:\n{run.said()[-3000:]}")
        case.seconds = time.monotonic() - began
        case.result = outcome(workdir)

    def start(self, case: Case, workdir: Path) -> Run:
        """`launch/local_processes.sh` with the training run of a case, in a session of its own."""
        changes = [*RUN, f"workdir={workdir}"]
        if case.stage == 2:
            changes.append(f"init_from={self.folder / 'stage1-1x2-still'}")
        flags = [x for change in changes for x in ("--set", change)]
        command = [
            *("bash", str(HERE / "launch/local_processes.sh"), "--processes", str(case.processes)),
            *("--devices", str(2 // case.processes), "--logs", str(workdir) + ".logs"),
            *("train", "--config", f"clip_sum:quicktest,stage={case.stage}", *flags),
        ]
        environment = os.environ | {
            "CIR_JAX": f"{sys.executable} -m cir_jax.main",
            "PYTHONPATH": str(HERE),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(self.folder / "programs")
            ),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        log = Path(f"{workdir}.log")
        offset = log.stat().st_size if log.is_file() else 0
        steps = {x["step"] for x in metrics.read(workdir / metrics.FILE) if "loss" in x}
        with log.open("ab") as file:
            launcher = subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        return Run(launcher, workdir, log, offset, len(steps))

    def chain(self, case: Case, left: int) -> int:
        """One run, disturbed at most `left` times, to its end; how often it was disturbed.

        Raises:
          SystemExit: it ends in another state than the run that was left alone, or not at all.
        """
        workdir = self.folder / f"{case.name}-disturbed"
        shutil.rmtree(workdir, ignore_errors=True)
        Path(f"{workdir}.log").unlink(missing_ok=True)
        count = 0
        while True:
            began = time.monotonic()
            run = self.start(case, workdir)
            kind = self._disturb(case, run) if count < left else ""
            count += bool(kind)
            status = run.wait(LIMIT)
            if status == 0 and _finished(workdir):
                if not count:  # it came to its end before it was disturbed: less was compiled
                    case.seconds = min(case.seconds, time.monotonic() - began)
                break
            allowed = {"": (), "TERM": (STOPPED,), "STOP": None, "KILL": None}[kind]
            if status == 0 or (allowed is not None and status not in allowed):
                what = f"after SIG{kind} " if kind else ""
                raise SystemExit(
                    f"{case.name} {what}ends with status {status}:\n{run.said()[-3000:]}"
                )
        differs = difference(case.result, outcome(workdir))
        if differs:
            raise SystemExit(f"{case.name} after {count} disturbances: {differs}; see {workdir}")
        self.chains += 1
        return count

    def _disturb(self, case: Case, run: Run) -> str:
        """Waits for a random moment and sends a signal; its name, "" if the run ended before."""
        moment = time.monotonic() + self._random.uniform(0.2, case.seconds)
        run.wait(LIMIT, until=lambda: time.monotonic() > moment)
        processes, phase = run.processes(), _phase(run)
        if not processes:
            return ""
        kind = self._random.choice(KINDS)
        chosen = processes if self._random.random() < 0.5 else [self._random.choice(processes)]
        self.kinds[f"{kind} of {len(chosen)} of {case.processes}"] += 1
        self.moments[phase] += 1
        _send(chosen, getattr(signal, f"SIG{kind}"))
        if kind == "STOP":
            if len(chosen) < case.processes:  # its host is gone: it never goes on
                run.wait(LIMIT, until=lambda: set(run.processes()) <= set(chosen))
                _send(chosen, signal.SIGKILL)
            else:  # a laptop that sleeps
                time.sleep(self._random.uniform(0.5, 3))
                _send(chosen, signal.SIGCONT)
        return kind


def outcome(workdir: Path) -> dict[str, Any]:
    """All that a finished run ends with: arrays of its last checkpoint, losses, evaluations."""
    step = checkpoint.Checkpoints(workdir / checkpoint.LAST).steps()[-1]
    state = workdir / checkpoint.LAST / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        names = reader.metadata(state).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        tree = reader.restore(state, restore_args=arguments)
    lines = metrics.read(workdir / metrics.FILE)
    report = json.loads((workdir / "results.json").read_text())
    return {
        "step": step,
        "arrays": flatten_dict(tree, sep="/"),
        "metrics": [{k: v for k, v in line.items() if k not in metrics.TIMED} for line in lines],
        "history": [{k: v for k, v in x.items() if k != "seconds"} for x in report["history"]],
        "best": report["best"],
    }


def difference(want: dict[str, Any], got: dict[str, Any]) -> str:
    """What differs between two outcomes; "" if nothing does."""
    for part in ("step", "metrics", "history", "best"):
        if want[part] != got[part]:
            return f"{part} are {got[part]}, and of the run that was left alone {want[part]}"
    if want["arrays"].keys() != got["arrays"].keys():
        return "the arrays have other names"
    differ = [
        name for name, x in want["arrays"].items() if x.tobytes() != got["arrays"][name].tobytes()
    ]
    return f"{len(differ)} arrays differ, {', '.join(differ[:3])} among them" if differ else ""


def _send(processes: list[int], number: int) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def _phase(run: "Run") -> str:
    """What process 0 was at, from what the run has written since it was started."""
    said, workdir = run.said(), run.workdir
    lines = metrics.read(workdir / metrics.FILE)
    steps = {line["step"] for line in lines if "loss" in line}
    evaluated = {line["step"] for line in lines if "loss" not in line}
    last = max(steps, default=0)
    if any(".orbax" in p.name or "tmp" in p.name for p in workdir.glob("checkpoints/*/*")):
        return "save"
    if "  workdir:" not in said:
        return "restore" if "resuming" in said else "start"
    if "building the bank" in said and not (workdir / "bank" / "bank.json").is_file():
        return "bank"
    if last in (6, 12) and last not in evaluated:
        return "evaluation"
    if last == 12:
        return "report"
    return "step" if len(steps) > run.steps else "compile"


def _finished(workdir: Path) -> bool:
    try:
        return bool(json.loads((workdir / "results.json").read_text())["finished"])
    except (OSError, ValueError):
        return False


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parses the command line and runs; returns what it printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="disturbances in a row (100)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2], choices=[0, 1, 2])
    parser.add_argument("--most", type=int, default=8, help="disturbances of one run (8)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder (runs/soak)")
    args = parser.parse_args(argv)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax notes each file that may be missing
    soak = Soak(args.out.absolute(), args.seed)
    # Stage two starts from the stage one that one process has trained.
    cases = [Case(p, s) for s in sorted(args.stages) for p in sorted(args.processes)]
    if 2 in args.stages and not {1} <= set(args.stages):
        soak.prepare(Case(1, 1))
    for case in cases:
        soak.prepare(case)
        progress.say(f"{case.name}: {case.seconds:.1f} s undisturbed")
    done = turn = 0
    while done < args.kills:
        case = cases[turn % len(cases)]
        done += soak.chain(case, min(args.most, args.kills - done))
        turn += 1
        progress.say(f"{done} disturbances, {soak.chains} runs as if left alone; last {case.name}")
    result = {
        "disturbances": done,
        "runs": soak.chains,
        "differences": 0,
        "kinds": dict(soak.kinds),
        "moments": dict(soak.moments),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
