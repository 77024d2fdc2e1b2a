# SPDX-License-Identifier: Apache-2.0
"""`cir-jax index`: its speed against decoding alone, and what many files take that are as before.

First photographs (made, JPEG) are read and decoded by threads, and indexed from nothing with a tiny
model, in turns: the ratio is what is left of the speed of decoding. Then an index is made of many
tiny files (their rows are drawn, not encoded) and brought up to date, where nothing has changed:
all files are listed, asked for their size and time, and compared, and all rows are compared with
their checksums.
"""

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.retrieval import loading
from cir_jax.retrieval.index import finishing, options, reading, records, update
from cir_jax.retrieval.index import found as looking
from cir_jax.retrieval.index.building import Building
from cir_jax.retrieval.index.options import Options
from cir_jax.runtime import mesh as meshes
from tools.benchmarks import timing

HELP = "an index: against decoding alone, and brought up to date"
_TOWER = "vit-32-16-w64-l2-h1_text-w64-l3-h1_d32"
_CHUNK = 10_000  # images whose rows are drawn at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--images", type=int, default=4_000, help="photographs (4,000)")
    parser.add_argument("--side", type=int, default=640, help="their longer side in pixels (640)")
    parser.add_argument("--tower", default=_TOWER, help=f"size of the model ({_TOWER})")
    parser.add_argument("--threads", type=int, default=16, help="that read and decode (16)")
    parser.add_argument("--files", type=int, default=1_000_000, help="tiny files; 0 for none")
    parser.add_argument("--keep", type=Path, help="folder of the tiny files, made if need be")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mesh = meshes.make(devices=jax.devices()[: args.devices])
        model = _model(folder, args.tower, mesh)
        result = _speed(folder, model, args)
        if args.files:
            result |= _again(folder, model, args.files, args.keep or folder / "tiny")
    timing.table(list(result), [list(result.values())])
    return result


def _model(folder: Path, tower: str, mesh: jax.sharding.Mesh) -> Any:
    """A tiny model with random parameters."""
    changes = ["model.name=clip_sum", "eval.benchmark=none", f"model.tower={tower}"]
    config = configs.load("clip_sum:tiny", changes)
    functions = contract.build(config.model)
    params = functions.init(0)
    weights.save_run(folder / "model", config, functions, weights.Weights(params, params, {}))
    return loading.load(folder / "model", loading.Arguments(), mesh)


def _speed(folder: Path, model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of decoding alone and of an index that is made of nothing."""
    photos = folder / "photos"
    photos.mkdir()
    width, height = args.side, args.side * 3 // 4
    for number in range(args.images):
        noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        image.save(photos / f"{number:06}.jpg", quality=90)
    files = sorted(map(str, photos.iterdir()))

    def decode() -> None:
        with ThreadPoolExecutor(args.threads) as pool:
            for _ in pool.map(model.preprocess, files):
                pass

    def index() -> None:
        shutil.rmtree(folder / "index", ignore_errors=True)
        update.update(folder / "index", Options(place=photos, threads=args.threads), model=model)

    processor: dict[str, list[float]] = {"decode": [], "index": []}

    def counted(name: str, act: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            act()
            processor[name].append(time.process_time() - started)

        return run

    acts = {"decode": counted("decode", decode), "index": counted("index", index)}
    seconds = timing.alternate(acts, args.repeats)
    processor = {name: one[-args.repeats :] for name, one in processor.items()}  # without warm-up
    return {
        "images": args.images,
        "decode_per_s": args.images / statistics.median(seconds["decode"]),
        "index_per_s": args.images / statistics.median(seconds["index"]),
        "speed_ratio": timing.ratio(seconds, "decode", "index"),
        "processor_ratio": timing.ratio(processor, "decode", "index"),
    }


def _again(folder: Path, model: Any, count: int, tiny: Path) -> dict[str, Any]:
    """Seconds to bring an index of many files up to date where nothing has changed."""
    if not tiny.is_dir():
        for number in range(count):
            path = tiny / f"{number // 1000:06}" / f"{number % 1000:03}.png"
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"\x89PNG\r\n\x1a\n tiny")
            os.utime(path, ns=(10**18, 10**18))
    index = folder / "many"
    index.mkdir()
    _drawn(index, tiny, model)
    started, processor = time.perf_counter(), time.process_time()
    report = update.update(index, Options(), model=model)
    seconds = time.perf_counter() - started
    processor = time.process_time() - processor
    assert report.encoded == 0 and report.generation == 1, report
    found = [time.perf_counter(), len(reading.catalogue(index, records.generation(index, 1)))]
    return {
        "files": found[1],
        "again_s": seconds,
        "again_processor_s": processor,
        "opened_s": time.perf_counter() - found[0],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _drawn(index: Path, tiny: Path, model: Any) -> None:
    """An index of these files whose rows are drawn."""
    record = options.record(index, None, Options(place=tiny), model)
    found = looking.look(tiny, index)
    shape = "float32", model.rows_per_image, model.embedding_dim
    random = np.random.default_rng(0)
    records.write(index, record)
    with Building(index, records.Generation(), *shape) as building:
        for start in range(0, len(found.names), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(found.names)))
            rows = random.standard_normal((part.stop - start, *shape[1:]), np.float32)
            rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
            contents = [random.bytes(16) for _ in range(start, part.stop)]
            stamps = list(zip(found.size[part].tolist(), found.time[part].tolist(), strict=True))
            building.add(found.names[part], stamps, contents, rows)
        building.finish()
        old = finishing.Old(records.Generation(), reading.catalogue(index, records.Generation()))
        lines = building.table()
        finishing.next_generation(index, record, old, lines, lines.select([]), building)
