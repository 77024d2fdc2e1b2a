# SPDX-License-Identifier: Apache-2.0
"""Scaling positives: comparing images against decoding them, and pairing against its products.

`dedupe`: hashing the pixels of many images against only opening them, with the same threads, and
the peak memory of processes that compare few and many. `near`: near duplicates among many hashes by
bands, against blocks of all comparisons. `pair`: images in a window of the similarity ranking, and
those that a model ranks first, against the matrix products alone, for some of the rows in each
round, and the peak memory of this process, features included.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from cir_jax.data.pixels import open_image
from cir_jax.generation import dedupe, near_duplicates, similarity
from cir_jax.retrieval import ranking
from cir_jax.runtime import mesh as meshes
from tools.benchmarks import timing

HELP = "comparing images against decoding, pairing against matrix products"
_FILES = 100  # different pictures; more would only fill the disk
_NEAR, _IN_BLOCKS = 8, 22  # bits of near duplicates: usual, and the fewest that bands do not prune
_BLOCKED = 20_000  # hashes that are compared in blocks
_MINED = 10  # images of a ranking that mining looks at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes; pictures are as large as those of FashionIQ, windows those of the released recipe."""
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=400, help="short side of an image, pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--features", type=int, nargs="+", default=(100_000, 1_000_000), metavar="N",
        help="images to pair, and whose hashes are compared, from few to many",
    )  # fmt: skip
    parser.add_argument("--width", type=int, default=512, help="of a feature, C")
    parser.add_argument("--window", type=int, nargs=2, default=(10_000, 20_000))
    parser.add_argument("--rows", type=int, default=512, help="references per round")
    parser.add_argument("--block", type=int, default=256, help="rows per matrix product")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all; ratios are ours / decoding, and ours / products."""
    # First: the peak memory of this process never falls, and comparing images takes little.
    result: dict[str, Any] = {"dedupe": compare(args)}
    result["near"] = [near(count, args) for count in args.features]
    result["pair"] = [pair(count, args) for count in args.features]
    for name, found in result.items():
        lines = found if isinstance(found, list) else [found]
        timing.table([name, *lines[0]], [["", *values.values()] for values in lines])
    return {"repeats": args.repeats, **result}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one comparison and of decoding alone; memory at a tenth of the images and at all.

    Repeated names of a few files stand for many files: all are opened and decoded each time.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = _pictures(Path(folder), args.images, args.side)

        def decode() -> None:
            with ThreadPoolExecutor(args.threads) as workers:
                for start in range(0, len(paths), 1024):
                    part = list(paths.values())[start : start + 1024]
                    for _ in workers.map(lambda path: open_image(path) and None, part):
                        pass

        def compared() -> None:
            journal = Path(folder) / "hashes.jsonl"
            journal.unlink(missing_ok=True)
            dedupe.hash_images(paths, journal, threads=args.threads)

        seconds, busy = _alternate({"decode": decode, "dedupe": compared}, args.repeats)
        memory = [_peak(folder, n, args) for n in (args.images // 10, args.images)]
    return {
        "images": args.images,
        **{f"{name}_s": statistics.median(values) for name, values in seconds.items()},
        "time_ratio": timing.ratio(seconds, "dedupe", "decode"),
        # Of the processors' time, which what else runs on the machine does not change.
        "share_in_decoder": timing.ratio(busy, "decode", "dedupe"),
        "peak_mib_at_a_tenth": memory[0],
        "peak_mib": memory[1],
    }


def near(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all near duplicates among hashes that are spread evenly.

    In blocks, which compare all with all, only of the first some: the ratio is to so many times
    their time as there are more comparisons.
    """
    hashes = np.random.default_rng(0).integers(0, 2**64, (count, 2), np.uint64)
    few = min(count, _BLOCKED)

    def found(hashes: np.ndarray, distance: int) -> int:
        return sum(map(len, near_duplicates.pairs_within(hashes, distance)))

    seconds, busy = _alternate(
        {
            "bands": partial(found, hashes, _NEAR),
            "blocks": partial(found, hashes[:few], _IN_BLOCKS),
        },
        args.repeats,
    )
    more = count * (count - 1) / (few * (few - 1))
    return {
        "hashes": count,
        "bands_s": statistics.median(seconds["bands"]),
        "bands_busy_s": statistics.median(busy["bands"]),
        "in_blocks": few,
        "blocks_s": statistics.median(seconds["blocks"]),
        "time_ratio": timing.ratio(seconds, "bands", "blocks") / more,
        "busy_ratio": timing.ratio(busy, "bands", "blocks") / more,
    }


def pair(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of ranks in a window, of the images ranked first, and of the products alone."""
    mesh = meshes.make(devices=jax.devices()[: args.devices])
    random = np.random.default_rng(0)
    made = random.standard_normal((count, args.width), np.float32)
    features = similarity.unit_rows(made, "random features")
    del made
    rows = np.arange(min(args.rows, count))
    ranks = [random.integers(*args.window, 1) for _ in rows]

    def products() -> None:
        for _, scores in similarity.similarities(features, rows, mesh, args.block):
            scores.block_until_ready()

    def ranked() -> list:
        return similarity.at_ranks(features, ranks, rows=rows, mesh=mesh, block=args.block)

    def mined() -> tuple:
        gallery = ranking.place(features[:, None], mesh)
        return ranking.top_rows(features[rows], gallery, min(_MINED, count - 1), rows, mesh=mesh)

    seconds, busy = _alternate(
        {"products": products, "ranked": ranked, "mined": mined}, args.repeats
    )
    return {
        "features": count,
        "width": args.width,
        "rows_per_round": len(rows),
        **{f"{name}_s": statistics.median(values) for name, values in seconds.items()},
        "time_ratio": timing.ratio(seconds, "ranked", "products"),
        "busy_ratio": timing.ratio(busy, "ranked", "products"),
        "mined_ratio": timing.ratio(seconds, "mined", "products"),
        "mined_busy_ratio": timing.ratio(busy, "mined", "products"),
        "peak_mib": peak(),
    }


def _alternate(
    programs: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """As `timing.alternate`, and the processors' time of each, which what else runs on the machine
    changes little."""
    busy: dict[str, list[float]] = {name: [] for name in programs}

    def counted(name: str) -> Any:
        start = time.process_time()
        found = jax.block_until_ready(programs[name]())
        busy[name].append(time.process_time() - start)
        return found

    seconds = timing.alternate({name: partial(counted, name) for name in programs}, repeats)
    return seconds, {name: values[1:] for name, values in busy.items()}  # the first one warms up


def peak() -> float:
    """MiB of memory that this process has held at most (Linux).

    Not `getrusage`: what that tells begins with the memory of the parent.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def _pictures(folder: Path, count: int, side: int) -> dict[str, str]:
    random = np.random.default_rng(0)
    files = []
    for number in range(min(_FILES, count)):
        # Coarse noise, enlarged: a JPEG of it is as large and as slow as one of a photograph.
        coarse = Image.fromarray(random.integers(0, 256, (side // 8, side // 6, 3), np.uint8))
        file = folder / f"{number}.jpg"
        coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(str(file))
    return {f"image-{i}": files[i % len(files)] for i in range(count)}


def _peak(folder: str, count: int, args: argparse.Namespace) -> float:
    """MiB at the peak of a process that compares `count` images."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cir_jax.generation import dedupe\n"
        "folder, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "files = sorted(Path(folder).glob('*.jpg'))\n"
        "paths = {f'image-{i}': str(files[i % len(files)]) for i in range(count)}\n"
        "dedupe.hash_images(paths, Path(folder) / f'{count}.jsonl', threads=threads)\n"
        "from tools.benchmarks.positives import peak\n"
        "print(peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder, str(count), str(args.threads)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])
