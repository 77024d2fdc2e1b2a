# SPDX-License-Identifier: Apache-2.0
"""Weights in and out: memory and time, against loading the whole file with torch first.

Random parameters of a whole CLIP are exported and imported again, each in a fresh process. Memory
is the peak of that process, less what it held when the modules were imported and the model was
built (before an export: the parameters too). The other way to import has all of the state dict in
memory before the first leaf is filled; it is left out where torch is not installed.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.convert import exporting, importing, sources, tables
from cir_jax.convert.containers import tensors
from cir_jax.models.clip_sum import layouts as clip_sum
from cir_jax.retrieval import load
from tools.benchmarks import timing
from tools.benchmarks.positives import peak

HELP = "memory and time of weights in and out, against loading whole files"
_NAMES = {
    "spn": "best.pt", "openai": "clip.pt", "clip4cir": "stage1.pt",
    "safetensors": "clip.safetensors",
}  # fmt: skip
FORMATS = ("spn:float32", "spn:float16", "safetensors:float32", "safetensors:float16",
           "huggingface:float32")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tower, and which files; the default is the largest CLIP that stage one trains."""
    parser.add_argument("--tower", default="ViT-L/14")
    parser.add_argument(
        "--formats", nargs="+", default=FORMATS, metavar="LAYOUT:DTYPE",
        help=f"layouts of clip_sum, default {' '.join(FORMATS)}",
    )  # fmt: skip
    parser.add_argument("--folder", help="where to put the files (two at a time); default /tmp")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures; the time ratio is whole file first / tensor by tensor."""
    abstract = _functions(args.tower).abstract
    size = sum(x.size for x in abstract.values())
    result = {
        "tower": args.tower,
        "parameters": size,
        "parameters_mib": size * 4 / 2**20,
        "largest_leaf_mib": max(x.size for x in abstract.values()) * 4 / 2**20,
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = [_format(Path(folder), args, one, size) for one in args.formats]
        result["formats"] = [row for row, _ in found]
        result["tasks"] = [row for _, rows in found for row in rows]
    for rows in (result["formats"], result["tasks"]):
        timing.table(list(rows[0]), [list(row.values()) for row in rows])
    result["worst_import_ratio"] = max(row["import_ratio"] for row in result["formats"])
    result["worst_export_mib"] = max(row["export_mib"] for row in result["formats"])
    return result


def _format(
    folder: Path, args: argparse.Namespace, one: str, size: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One layout and type out and in; with the first one, what else is done with weights too."""
    layout, dtype = one.split(":")
    place = folder / _NAMES.get(layout, layout)
    written = _child("export", args.tower, place, layout, dtype)
    read = _child("import", args.tower, place)
    files = [p for p in [place, *place.rglob("*")] if p.is_file()]
    row = {
        "format": one,
        "file_mib": sum(p.stat().st_size for p in files) / 2**20,
        "export_mib": written["mib"],
        "export_s": written["seconds"],
        "import_mib": read["mib"],
        "import_ratio": read["mib"] * 2**20 / (size * 4),
        "import_s": read["seconds"],
    }
    rows = []
    if one == args.formats[0]:
        rows = _compared(args, place, size)
        rows.append(_row("import, export", _child("convert", args.tower, place), size))
        rows.append(_row("retriever", _child("load", args.tower, place), size))
        rows.append(_row("run folder", _child("save", args.tower, place), size))
        rows.append(_row("hash alone", _child("hash", args.tower, place), size))
        rows.append(_row("new memory alone", _child("touch", args.tower, place), size))
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    return row, rows


def _compared(args: argparse.Namespace, place: Path, size: int) -> list[dict[str, Any]]:
    """Both ways to import, in turns."""
    ways = {"tensor by tensor": "import"}
    if importlib.util.find_spec("torch") and place.suffix == ".pt":
        ways["whole file first"] = "naive"
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(args.repeats):
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            found[name].append(_child(ways[name], args.tower, place))
    seconds = {name: [x["seconds"] for x in measured] for name, measured in found.items()}
    rows = []
    for name, measured in found.items():
        middle = {key: statistics.median(x[key] for x in measured) for key in measured[0]}
        rows.append(_row(name, middle, size, timing.ratio(seconds, name, next(iter(ways)))))
    return rows


def _row(
    name: str, measured: dict[str, float], size: int, ratio: float | None = None
) -> dict[str, Any]:
    return {
        "task": name,
        "mib": measured["mib"],
        "memory_ratio": measured["mib"] * 2**20 / (size * 4),
        "seconds": measured["seconds"],
        "time_ratio": ratio,
    }


def _functions(tower: str) -> contract.Functions:
    return contract.build(_config(tower).model)


def _config(tower: str) -> Any:
    changes = ["model.name=clip_sum", f"model.tower={tower}", "model.dtype=float32"]
    return configs.load("base", [*changes, "eval.benchmark=none"])


def _child(task: str, *arguments: Any) -> dict[str, float]:
    """{"mib", "seconds"} of one task in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", "from tools.benchmarks import convert; convert.measure()",
         task, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},  # it is the host's memory that is measured
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> None:
    """The program of a child: one task, named on its command line; prints what it took."""
    task, tower, place, *options = sys.argv[1:]
    functions = _functions(tower)
    if task == "convert" or "huggingface" in options or place.endswith("huggingface"):
        clip_sum.huggingface_rules(functions.config)  # imports transformers, and with it torch
    work = _TASKS[task](functions, tower, Path(place), *options)
    before, start = peak(), time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - start
    print(json.dumps({"mib": peak() - before, "seconds": seconds}))
    del kept  # alive until its memory was counted


def _export(
    functions: contract.Functions, tower: str, place: Path, layout: str, dtype: str
) -> Callable[[], Any]:
    random = np.random.default_rng(0)
    params = {p: random.random(x.shape, np.float32) for p, x in functions.abstract.items()}
    return lambda: exporting.write(place, functions, params, params, layout=layout, dtype=dtype)


def _convert(functions: contract.Functions, tower: str, place: Path) -> Callable[[], Any]:
    def work() -> weights.Weights:
        found = importing.read(place, functions)
        with tempfile.TemporaryDirectory(dir=place.parent) as out:
            exporting.write(out, functions, found.index, found.query, layout="huggingface")
        return found

    return work


def _save(functions: contract.Functions, tower: str, place: Path) -> Callable[[], Any]:
    def work() -> weights.Weights:
        found = importing.read(place, functions)
        with tempfile.TemporaryDirectory(dir=place.parent) as out:
            weights.save_run(out, _config(tower), functions, found)
        return found

    return work


def _naive(functions: contract.Functions, tower: str, place: Path) -> Callable[[], Any]:
    import torch  # the package does without

    source = sources.open_source(place)
    layout = next(x for x in clip_sum.LAYOUTS if x.find(source))
    group = layout.find(source).group
    table = tables.expand(layout.rules(functions.config), functions.abstract)

    def work() -> Any:
        tree = torch.load(place, map_location="cpu", weights_only=True)
        state = tree[group] if group else tree
        arrays = {name: x.float().numpy() for name, x in state.items()}
        whole = {
            name: tensors.Tensor(x.shape, "float32", lambda x=x: x) for name, x in arrays.items()
        }
        return tables.fill(table, functions.abstract, whole, str(place))

    return work


_TASKS: dict[str, Callable[..., Callable[[], Any]]] = {
    "export": _export,
    "import": lambda functions, _, place: lambda: importing.read(place, functions),
    "convert": _convert,
    "load": lambda _, tower, place: lambda: load.from_weights(_config(tower), str(place)),
    "save": _save,
    "naive": _naive,
    "hash": lambda _, tower, place: lambda: sources.fingerprint(sources.open_source(place)),
    "touch": lambda functions, *_: (
        lambda: [np.ones(x.shape, np.float32) for x in functions.abstract.values()]
    ),
}
