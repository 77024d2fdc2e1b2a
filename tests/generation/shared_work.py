# SPDX-License-Identifier: Apache-2.0
"""Workers of one work folder, and what one that was killed leaves behind."""

import json

from cir_jax.generation.workers import Workers
from cir_jax.main import main
from cir_jax.runtime import supervision
from tests.generation import pictures

SAME = (
    "triplets.jsonl", "pairs.jsonl", "hashes.jsonl", "same_image_list.json",
    "optimized_images.json",
)  # fmt: skip
AGAIN = supervision.STOPPED


def worker(made, root, which, *changes, wait="0"):
    """Runs the command of a worker; its exit status."""
    return main([*pictures.flags(made, root, *changes), "--worker", which, "--wait", wait])


def in_turns(made, root, count, *changes):
    """Workers one after the other, each again and again until it has done its part."""
    left = list(range(1, count + 1))
    for _ in range(5):
        statuses = {n: worker(made, root, f"{n}/{count}", *changes) for n in left}
        assert set(statuses.values()) <= {0, AGAIN}
        left = [n for n, status in statuses.items() if status == AGAIN]
        if not left:
            return
    raise AssertionError(f"workers {left} do not end")


def rewriting(counting):
    """What the config needs to have texts rewritten."""
    return (
        f"rewrite.captioner={counting.file}", f"rewrite.url={counting.calls}", "rewrite.model=m",
        "rewrite.timeout=0.0",
    )  # fmt: skip


def leave_lease(workdir, count, number):
    """What a worker on another host leaves behind that was killed."""
    folder = Workers(workdir, count).folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    owner = {"host": "elsewhere", "boot": "x", "process": 1, "nonce": "n", "seconds": 0.2}
    (folder / ".lease").write_text(json.dumps(owner | {"beat": 3}))
