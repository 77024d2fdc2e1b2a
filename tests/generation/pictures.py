# SPDX-License-Identifier: Apache-2.0
"""Folders of pictures, a captioner that counts what it is asked, and the command that uses both."""

import contextlib
import json
import resource

import numpy as np
from PIL import Image

from cir_jax import config as configs
from cir_jax.generation import caption, dedupe, images
from cir_jax.main import main

# The section of the config says what it does: `url` is the file of its calls, `timeout` the seconds
# of a reply, and beside the calls may lie the replies it gives, {key: [first, second, ...]}.
CAPTIONER = """
import json, time
from cir_jax.generation.captioner import Reply
KEYS = {"url": ("", "file of its calls", None), "timeout": (0.0, "seconds of a reply", None)}


class Captioner:
    def __init__(self, section, seed):
        self.calls, self.delay = section.url, section.timeout
        self.identity = {"captioner": "counting", "model": section.model}
        with open(self.calls + ".json") as file:
            self.script = json.load(file)

    @classmethod
    def from_config(cls, section, seed, names):
        return cls(section, seed)

    def generate(self, requests):
        for r in requests:
            with open(self.calls, "a") as file:
                file.write(json.dumps([r.key, r.attempt, r.prompt]) + "\\n")
            time.sleep(self.delay)
            replies = self.script.get(r.key, ["a picture of " + r.key.replace("/", " ")])
            said = replies[min(r.attempt, len(replies) - 1)]
            yield Reply(r.key, said, "cut at 9 tokens" if said.endswith("...") else "")
"""


def pixels(seed, width=12, height=9):
    """Noise [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def folder(root, count=12):
    """Pictures 00.png, 01.png ..., the last one the same as the first."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(i % (count - 1))).save(root / f"{i:02d}.png")
    return root


class Counting:
    """The captioner above in a folder of its own."""

    def __init__(self, tmp_path, script=None):
        self.file, self.calls = tmp_path / "counting.py", tmp_path / "calls"
        self.file.write_text(CAPTIONER)
        self.answers(script or {})

    def answers(self, script):
        """Sets its replies."""
        self.calls.with_name("calls.json").write_text(json.dumps(script))

    def asked(self):
        """[[key, attempt, prompt]] of all calls since it was last asked for them."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    @property
    def sets(self):
        """What the config needs."""
        return (
            f"caption.captioner={self.file}", f"caption.url={self.calls}", "caption.timeout=0.0",
            "caption.model=m",
        )  # fmt: skip


def flags(workdir, root, *changes, recipe="folder"):
    """The command line."""
    common = (f"workdir={workdir}", f"data.root={root}", "data.threads=2")
    sets = [flag for change in (*common, *changes) for flag in ("--set", change)]
    return ["positives", "--config", f"positives:{recipe}", *sets]


def make(workdir, root, *changes, recipe="folder"):
    """Runs the command; its exit status."""
    return main(flags(workdir, root, *changes, recipe=recipe))


def config(workdir, root, *changes, recipe="folder"):
    """The same as a locked config."""
    common = (f"workdir={workdir}", f"data.root={root}", "data.threads=2")
    return configs.load(f"positives:{recipe}", [*common, *changes])


def lines(file):
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


@contextlib.contextmanager
def largest_file(size):
    """No file can grow beyond `size` bytes: what a full disk looks like to a program."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def captions(workdir, root, *changes, recipe="folder"):
    """Image -> caption."""
    made = config(workdir, root, *changes, recipe=recipe)
    pool, groups = dedupe.run(made, images.read(made), workdir)
    return caption.run(made, pool, groups, workdir)


def deduped(paths, workdir, *changes):
    """The readable pool of `paths`, and its groups."""
    return dedupe.run(config(workdir, "unused", *changes), images.Pool(paths), workdir)
