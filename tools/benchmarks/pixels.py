# SPDX-License-Identifier: Apache-2.0
"""Input of stage one: the second epoch, whose images are kept, against the first, which decodes.

The images are made JPEGs of 500 x 400, read by the loader that training uses. Times are those of
the input alone, without a model: 16 threads on a machine of two cores that does nothing else say
how much input costs, and not how long a step waits for it. An epoch opens each image twice, as
reference and as target. "later run" is the first epoch of another run with the same cache folder,
which also compares each file with its row.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from cir_jax.data import loader, pipeline, tokens
from cir_jax.data.kept_pixels import KeptPixels, Part
from cir_jax.data.pixels import Preprocess
from cir_jax.data.triplets import Triplet, TripletSet
from tools.benchmarks import timing

HELP = "the input of stage one, decoded and kept"
_LONG_AGO = 1_000_000_000  # seconds: files that were not just written
_BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--images", type=int, default=256, help="distinct images")
    parser.add_argument("--size", type=int, default=224, help="side of their squares in pixels")
    parser.add_argument("--threads", type=int, default=16, help="as data.threads")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The ratios of input times, and milliseconds an image."""
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), args.images)
        data = _triplets(paths)
        epochs: dict[str, list[float]] = {}
        for turn in range(args.repeats + 1):
            cache = {"CIR_JAX_CACHE": str(Path(folder) / f"cache{turn}")}
            with mock.patch.dict(os.environ, cache):
                for name, seconds in _epochs(args, data):
                    if turn:  # the first round reads the files from the disk
                        epochs.setdefault(name, []).append(seconds)
        with mock.patch.dict(os.environ, {"CIR_JAX_CACHE": f"{folder}/rows"}):
            rows = _rows(args, paths)
    each = {name: 1e3 * statistics.median(s) / (2 * args.images) for name, s in epochs.items()}
    each = {f"{name}, {args.threads} threads": value for name, value in each.items()}
    each |= {name: 1e3 * statistics.median(s) / args.images for name, s in rows.items()}
    timing.table(["", "ms an image"], list(each.items()))
    return {
        "images": args.images,
        "size": args.size,
        "threads": args.threads,
        "milliseconds": each,
        "second_epoch_of_first": timing.ratio(epochs, "disk, epoch two", "disk, epoch one"),
        "first_epoch_of_decoding": timing.ratio(epochs, "disk, epoch one", "decode"),
        "later_run_of_decoding": timing.ratio(epochs, "disk, later run", "decode"),
        "memory_of_decoding": timing.ratio(epochs, "memory, epoch two", "decode"),
        "row_of_decoding": timing.ratio(rows, "row, one thread", "decode, one thread"),
        "fast_of_decoding": timing.ratio(rows, "decode, data.resize=fast", "decode, one thread"),
    }


def _epochs(args: argparse.Namespace, data: pipeline.TrainingData) -> list[tuple[str, float]]:
    """(what, seconds) of passes over all triplets, in an order."""
    found = []
    disk = _part("disk", args.size, data.images.paths)
    elsewhere = {"CIR_JAX_CACHE": f"{os.environ['CIR_JAX_CACHE']}-empty"}  # nothing is on its disk
    with mock.patch.dict(os.environ, elsewhere):
        memory = _part("memory", args.size, data.images.paths)
    for name, part in (
        ("decode", _part("decode", args.size, data.images.paths)),
        ("disk, epoch one", disk),
        ("disk, epoch two", disk),
        ("memory, epoch one", memory),
        ("memory, epoch two", memory),
    ):
        found.append((name, _epoch(args, data, part)))
    disk.kept.close()
    later = _part("disk", args.size, data.images.paths)
    return [*found, ("disk, later run", _epoch(args, data, later))]


def _epoch(args: argparse.Namespace, data: pipeline.TrainingData, part: Part) -> float:
    """Seconds of one pass over all triplets."""
    options = loader.Options(batch=_BATCH, seed=0, fields=loader.PIXELS, threads=args.threads)
    load = loader.Loader(data, options, loader.Sources(part))
    order = np.random.default_rng(0).permutation(len(data.triplets))
    start = time.perf_counter()
    for first in range(0, len(order), _BATCH):
        rows = order[first : first + _BATCH]
        load(np.stack([rows, data.text_start[rows]], axis=1))
    return time.perf_counter() - start


def _rows(args: argparse.Namespace, paths: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of all images in one thread: decoded, read from the disk, copied from a map."""
    part, preprocess = _part("disk", args.size, paths), Preprocess(args.size)
    fast = Preprocess(args.size, resize="fast")
    for path in paths:
        part(path)
    [file] = part.kept.folder.glob("*.pixels")
    mapped = np.memmap(file, np.uint8, "r").reshape(-1, args.size, args.size, 3)
    return timing.alternate(
        {
            "decode, one thread": lambda: [preprocess(path) for path in paths][:1],
            "decode, data.resize=fast": lambda: [fast(path) for path in paths][:1],
            "row, one thread": lambda: [part(path) for path in paths][:1],
            "mapped row, unchecked": lambda: [np.array(row) for row in mapped][:1],
        },
        args.repeats,
    )


def _part(mode: str, size: int, paths: Sequence[str]) -> Part:
    part = KeptPixels(mode, Preprocess(size)).part(again=True)
    part.expect(paths)
    return part


def _triplets(paths: Sequence[str]) -> pipeline.TrainingData:
    """One triplet an image, each with its neighbour: an epoch opens all of them twice."""
    triplets = tuple(
        Triplet(path, paths[i - 1], ("red",), "red", "made", str(i)) for i, path in enumerate(paths)
    )
    sets = [TripletSet("made", triplets, {path: path for path in paths})]
    return pipeline.prepare(sets, tokens.load("clip"))


def photographs(folder: Path, count: int) -> list[str]:
    """JPEGs of 500 x 400 with coarse shapes and fine grain, as photographs have."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        shapes = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
        picture = np.asarray(shapes.resize((500, 400), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 8, (400, 500, 1)).astype(np.int16)
        path = str(folder / f"{number}.jpg")
        Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        os.utime(path, (_LONG_AGO, _LONG_AGO))
        paths.append(path)
    return paths
