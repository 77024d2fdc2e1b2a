# SPDX-License-Identifier: Apache-2.0
"""Kills `cir-jax index` at random moments and checks that nothing is lost.

A folder of made pictures is indexed, then changed (new, changed, touched, moved and deleted files)
and indexed again, and so on. Each command is killed (SIGKILL) at a random moment and given again
until it ends. Then the index must be that of commands that were left alone: the same images, each
once, with the same ids and rows, bit for bit. Between the kills a reader opens the index, and must
find a whole generation or be told that the first one is not finished. The last line, on stdout, is
the result as JSON.

  python tools/index_kills.py --kills 30
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

import numpy as np
from PIL import Image

from cir_jax import config as configs
from cir_jax import contract, progress, weights
from cir_jax.errors import UserError
from cir_jax.retrieval.index import writing
from cir_jax.retrieval.index.opened import Index

HERE = Path(__file__).parents[1]
LIMIT = 300  # seconds in which a command that is left alone must have ended
SIDE = 96  # pixels of a picture
# The command with commits so often, and segments so small, that a kill can hit every moment.
STATE = "building/state.json"  # written with every commit
PROGRAM = """
import sys
from cir_jax import main
from cir_jax.retrieval.index import building, compaction, segments
building.COMMIT, segments.SEGMENT_BYTES, compaction.SMALL = 0.02, 100_000, 3
sys.exit(main.main(sys.argv[1:]))
"""


class Kills:
    """Two folders of the same pictures: one is indexed undisturbed, the other by killed commands.

    Args:
      folder: for all of it.
      images: pictures at the beginning.
      dtype: of the rows.
      seed: of pictures, changes and moments.
    """

    def __init__(self, folder: Path, images: int, dtype: str, seed: int):
        self.folder, self._images, self._dtype = folder, images, dtype
        self._random = random.Random(seed)
        self._drawn = self._rounds = 0
        self._shortest = float(LIMIT)
        self.killed: Counter[str] = Counter()
        shutil.rmtree(folder, ignore_errors=True)
        self.photos = folder / "photos"
        for number in range(images):
            self._draw(f"{number % 7}/{number:05}.jpg")
        (self.photos / "0" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
        (self.photos / "3" / "page.png").write_bytes(b"<html>not found</html>")
        self._save_model()

    def _save_model(self) -> None:
        config = configs.load("clip_sum:tiny", ["model.name=clip_sum", "eval.benchmark=none"])
        functions = contract.build(config.model)
        params = functions.init(0)
        made = weights.Weights(params, params, {})
        weights.save_run(self.folder / "model", config, functions, made)

    def _draw(self, name: str) -> None:
        """A picture that is like no other."""
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(self._drawn).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(path, quality=90)
        self._drawn += 1

    def change(self) -> None:
        """Every other time both indexes are made anew; else the pictures change.

        It adds, changes, touches, moves and deletes some pictures.
        """
        self._rounds += 1
        if self._rounds % 2:
            for name in ("still", "killed"):
                shutil.rmtree(self.folder / name)
            return
        files = sorted(self.photos.glob("*/[0-9]*.jpg"))
        some = self._random.sample(files, max(len(files) // 4, 4))
        share = len(some) // 4
        for number, path in enumerate(some):
            name = path.relative_to(self.photos).as_posix()
            if number < share:
                self._draw(name)
            elif number < 2 * share:
                os.utime(path)
            elif number < 3 * share:
                path.rename(path.with_name(f"{path.stem}-moved.jpg"))
            else:
                path.unlink()
        for number in range(share):
            self._draw(f"{number % 7}/{self._drawn:05}-new.jpg")

    def _start(self, index: Path) -> subprocess.Popen:
        command = [
            sys.executable, "-c", PROGRAM, "index", str(self.photos), "--out", str(index),
            "--model", str(self.folder / "model"), "--batch", "32", "--threads", "2",
            "--dtype", self._dtype,
        ]  # fmt: skip
        environment = os.environ | {
            "PYTHONPATH": str(HERE),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with Path(f"{index}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def alone(self) -> float:
        """Indexes undisturbed; the seconds from when it holds the lock to its end.

        Raises:
          SystemExit: the command fails.
        """
        index = self.folder / "still"
        process = self._start(index)
        _wait_for_lock(process, index)
        began = time.monotonic()
        if status := process.wait(LIMIT):
            raise SystemExit(f"status {status}: {(self.folder / 'still.log').read_text()[-3000:]}")
        return time.monotonic() - began

    def disturbed(self, seconds: float, left: int) -> int:
        """Indexes with at most `left` kills; how many there were.

        Raises:
          SystemExit: a command fails, or a reader finds half an index.
        """
        index, count = self.folder / "killed", 0
        while True:
            process = self._start(index)
            _wait_for_lock(process, index)
            began = time.monotonic()
            if count < left and count % 2:  # every other one amid its images
                _wait_for_commits(process, index, self._random.randrange(1, 9))
                moment = self._random.uniform(0, 0.1)
            else:  # early ones more often: what is left is shorter after each kill
                moment = self._random.uniform(0, 1) ** 2 * min(seconds, self._shortest)
            try:
                status = process.wait(moment if count < left else LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                count += 1
                self.killed[self._read(index)] += 1
                continue
            if status:
                raise SystemExit(f"status {status}: {Path(f'{index}.log').read_text()[-3000:]}")
            self._shortest = min(self._shortest, max(time.monotonic() - began, 0.5))
            return count

    def _read(self, index: Path) -> str:
        """What a reader finds after a kill; in words, with what was begun."""
        begun = (index / STATE).is_file()
        try:
            found = f"generation {Index(index).generation}"
        except UserError as error:
            if "not finished" not in str(error) and "it is no index" not in str(error):
                raise SystemExit(f"a reader finds: {error}") from None
            found = "no generation"
        return f"{'begun' if begun else 'nothing begun'}, {found}"

    def compare(self) -> str:
        """What differs between the two indexes; "" if nothing does."""
        return difference(Index(self.folder / "still"), Index(self.folder / "killed"))


def _wait_for_lock(process: subprocess.Popen, index: Path) -> None:
    """Returns when a command has begun, or has ended."""
    (index / writing.WRITER).unlink(missing_ok=True)  # of one that was killed
    limit = time.monotonic() + LIMIT
    while process.poll() is None and not (index / writing.WRITER).exists():
        if time.monotonic() > limit:
            process.kill()
            raise SystemExit(f"not begun after {LIMIT} s; see {index}.log")
        time.sleep(0.01)


def _wait_for_commits(process: subprocess.Popen, index: Path, count: int) -> None:
    """Returns when a command has written so many commits, or has ended."""

    def written() -> int:
        try:
            return (index / STATE).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    last = written()
    while process.poll() is None and count:
        if (now := written()) not in (last, 0):
            last, count = now, count - 1
        time.sleep(0.001)


def difference(want: Index, got: Index) -> str:
    """What differs between two indexes of one folder; "" if nothing does."""
    names = Counter(got.catalogue.names.to_pylist())
    if names and max(names.values()) > 1:
        return f"{names.most_common(1)[0][0]} is there more than once"
    for column in ("id", "name", "content", "segment", "row"):
        if not want.catalogue.lines[column].equals(got.catalogue.lines[column]):
            return f"column {column} differs"
    if not want.catalogue.fields.equals(got.catalogue.fields):
        return "the fields differ"
    ids = want.catalogue.ids
    if want.rows(ids).tobytes() != got.rows(ids).tobytes():
        return "rows differ"
    if want.loss != got.loss:
        return f"the loss is {got.loss}, and {want.loss} of the one that was left alone"
    lists = [(i.folder / "unreadable.jsonl").read_bytes() for i in (want, got)]
    return "" if lists[0] == lists[1] else "unreadable.jsonl differs"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parses the command line and runs; returns what it printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="in all (30)")
    parser.add_argument("--most", type=int, default=6, help="kills of one command (6)")
    parser.add_argument("--images", type=int, default=1500, help="pictures (1,500)")
    parser.add_argument("--dtype", default="float32", help="of the rows (float32)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, changes and moments")
    parser.add_argument("--out", type=Path, default=Path("runs/index-kills"), help="folder")
    args = parser.parse_args(argv)
    kills = Kills(args.out.absolute(), args.images, args.dtype, args.seed)
    done = commands = 0
    while done < args.kills:
        if commands:
            kills.change()
        seconds = kills.alone()
        done += kills.disturbed(seconds, min(args.most, args.kills - done))
        commands += 1
        if differs := kills.compare():
            raise SystemExit(f"after {done} kills: {differs}; see {kills.folder}")
        progress.say(f"{done} kills, {commands} indexes as if left alone ({seconds:.1f} s alone)")
    found = Index(kills.folder / "killed")
    result = {
        "kills": done,
        "commands": commands,
        "differences": 0,
        "images": len(found),
        "segments": len(found.segments),
        "after_a_kill": dict(kills.killed),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
