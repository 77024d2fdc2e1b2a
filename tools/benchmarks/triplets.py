# SPDX-License-Identifier: Apache-2.0
"""Files of millions of triplets: from the command to the first batch, in columns and in memory.

A file of made triplets (two texts each, names as MegaPairs has them) is opened as training opens
it: read, placed, screened, numbered, tokenized, fingerprinted, and one batch drawn. `first` makes
what is kept, `later` finds it; `memory` is the path of small files, at a size it can bear. Each
runs in a process of its own. Memory is what a process holds beside mapped files, over what it held
before it opened the file. In the last column stands what MegaPairs' 26 million would take at the
same rate a triplet and the same number of images for each.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.benchmarks import timing

HELP = "opening millions of triplets: columns against triplets in memory"
_MEGAPAIRS = 26_000_000
_WORDS = (
    "a red blue dark small round dress shirt car dog with without more of the same style in front "
    "shorter sleeves wooden table bright sky behind street person holding two other show me similar"
).split()
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360"
    "606000000004000115ba2a3d0000000049454e44ae426082"
)
_PROGRAM = """
import json, re, sys, threading, time
from pathlib import Path
from cir_jax.data import fingerprints, loader, pipeline, tokens
from cir_jax.data.screening import Screen
from cir_jax.datasets import conversion, generated
file, images, in_memory, batch = json.loads(sys.argv[1])
conversion.LEAST = 1 << 60 if in_memory else 1
tokenizer = tokens.load("clip")
tokenizer.encode(["the vocabulary"])
def held():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]) << 10
before, peak, over = held(), [0], threading.Event()
def watch():
    while not over.wait(0.01):
        peak[0] = max(peak[0], held())
watcher = threading.Thread(target=watch)
watcher.start()
clock, busy = time.perf_counter(), time.process_time()
steps = {}
def step(name):
    steps[name] = round(time.perf_counter() - clock - sum(steps.values()), 3)
sets = [one.of_each_target() for one in generated.read([file], {}, images, images=images)]
step("read_s")
data = pipeline.prepare(sets, tokenizer, on_missing=Screen(root=images))
step("prepare_s")
fingerprints.of(data)
step("fingerprint_s")
fields = ("text", "exclude_id")
options = loader.Options(batch, 0, fields, exclude_reference=True, exclude_positives=True)
next(pipeline.batches(data, options))
step("batch_s")
seconds, busy = time.perf_counter() - clock, time.process_time() - busy
over.set()
watcher.join()
print(json.dumps({"seconds": seconds, "cpu_s": busy, "bytes": peak[0] - before, **steps}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--triplets", type=int, default=1_000_000)
    parser.add_argument("--in-memory", type=int, default=100_000, help="triplets of today's path")
    parser.add_argument("--images", type=int, default=100_000, help="files, 1,000 in a folder")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--folder", default="", help="where the files are made, and removed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures all; the ratio is of the CPU time of a triplet, in memory against later starts."""
    with tempfile.TemporaryDirectory(dir=args.folder or None, prefix="bench-triplets-") as made:
        names = _images(Path(made) / "images", args.images)
        large = _triplets(Path(made) / "large.jsonl", args.triplets, names)
        small = _triplets(Path(made) / "small.jsonl", args.in_memory, names)
        # The first start looks at images: those of both are the same ones, and are kept apart.
        results = {"first": _start(made, large, args, False)}
        later = [_start(made, large, args, False) for _ in range(max(args.repeats, 1))]
        results["later"] = sorted(later, key=lambda one: one["cpu_s"])[len(later) // 2]
        for _ in range(min(args.repeats, 2)):  # of two the second one: its images are known
            results["memory"] = _start(made, small, args, True)
        size = {large: large.stat().st_size, "kept": _size(large.parent / ".cir_jax")}
    rows = []
    for name, one in results.items():
        count = args.in_memory if name == "memory" else args.triplets
        one |= {
            "triplets": count,
            "us_a_triplet": 1e6 * one["cpu_s"] / count,
            "bytes_a_triplet": one["bytes"] / count,
            "megapairs_s": one["seconds"] / count * _MEGAPAIRS,
            "megapairs_gb": one["bytes"] / count * _MEGAPAIRS / 1e9,
        }
        rows.append([name, *one.values()])
    timing.table(["start", *results["later"]], rows)
    return {
        "triplets": args.triplets,
        "images": args.images,
        "source_bytes": size[large],
        "kept_bytes": size["kept"],
        "cpu_ratio": results["memory"]["us_a_triplet"] / results["later"]["us_a_triplet"],
        "memory_ratio": results["memory"]["bytes_a_triplet"] / results["later"]["bytes_a_triplet"],
        "starts": results,
    }


def _start(made: str, file: Path, args: argparse.Namespace, in_memory: bool) -> dict[str, Any]:
    given = json.dumps([str(file), str(Path(made) / "images"), in_memory, args.batch])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, given],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CIR_JAX_CACHE": str(Path(made) / "cache")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _images(folder: Path, count: int) -> list[str]:
    names = []
    for number in range(count):
        name = f"train-{number // 100_000:05}/{number // 1000:05}/{number:09}.png"
        if number % 1000 == 0:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_PIXEL)
        names.append(name)
    return names


def _triplets(file: Path, count: int, names: list[str]) -> Path:
    drawn = random.Random(0)
    # One sentence in twenty has a letter that is no ASCII, as captions of the web do.
    texts = [" ".join(drawn.choices(_WORDS, k=drawn.randint(6, 20))) for _ in range(10_000)]
    texts = [f"{text} caf\u00e9" if i % 20 == 0 else text for i, text in enumerate(texts)]
    with file.open("w") as out:
        for number in range(count):
            reference, target = drawn.choice(names), drawn.choice(names)
            record = {"reference": reference, "target": target, "texts": drawn.choices(texts, k=2)}
            record |= {"source": "megapairs", "id": f"m.jsonl:{number}"}
            out.write(json.dumps(record) + "\n")
    return file


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
