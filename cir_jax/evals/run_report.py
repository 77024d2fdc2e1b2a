# SPDX-License-Identifier: Apache-2.0
"""The report of one training run: results.json and report.html in its folder."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from cir_jax.runtime import checkpoint

RESULTS = "results.json"
_EXAMPLES = "examples.json"


def keep(run: Any, result: Any) -> None:
    """Notes the best evaluation so far, so that a resumed run can report it."""
    if jax.process_index() == 0:
        content = {
            "scores": result.scores,
            "score": result.score,
            "protocol": result.protocol,
            "examples": result.examples,
        }
        _write(Path(run.config.workdir) / _EXAMPLES, content)


def write(run: Any, state: Any, bank_seconds: float, finished: bool) -> dict[str, Any]:
    """Writes the report of a run as it stands, and returns the content of results.json."""
    folder = Path(run.config.workdir)
    best = _read(folder / _EXAMPLES)
    results = {
        "workdir": str(folder),
        "stage": run.config.stage,
        "model": f"{run.config.model.name} {run.config.model.tower}",
        "step": state.step,
        "finished": finished,
        "seconds": state.seconds,
        "bank_seconds": bank_seconds,
        "triplets": {
            name: int((run.data.source_of == i).sum()) for i, name in enumerate(run.data.sources)
        },
        "dropped": run.data.dropped,
        "best": state.best,
        "scores": best.get("scores", {}),
        "protocol": best.get("protocol", {}),
        "history": state.history,
        "config": run.config.to_dict(),
        "environment": environment(),
    }
    if jax.process_index() == 0:
        _write(folder / RESULTS, results)
    return results


def environment() -> dict[str, Any]:
    """Versions and devices that numbers depend on."""
    packages = ("cir_jax", "jax", "flax", "optax", "numpy", "pillow")
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "git": checkpoint.git_hash(),
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2, default=str))
    temporary.replace(path)
