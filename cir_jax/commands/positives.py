# SPDX-License-Identifier: Apache-2.0
"""Makes triplets from images without annotators: dedupe, caption, pair, modify.

Example: cir-jax positives --config positives:emoji
Every step leaves a file in the work folder; the same command goes on where it was stopped.
"""

import argparse
import functools
import json
import os
from typing import Any

from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import progress
from cir_jax.errors import UserError

HELP = "make triplets from images: dedupe, caption, pair, modify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    configs.add_arguments(
        parser,
        "positives:folder",
        "caption.captioner=server (every key and all recipes: configs/positives.py)",
    )
    parser.add_argument(
        "--trust-code", action="store_true",
        help="run the .py files that the folder pair.run names, though you have not trained with "
        "them",
    )  # fmt: skip
    parser.add_argument(
        "--worker", metavar="K/N",
        help="do the work of worker K of N beside the others, on any host, in one workdir; K,L/N "
        "does that of two. When all have ended, the same command without it makes the triplets",
    )  # fmt: skip
    parser.add_argument(
        "--wait", type=float, default=None, metavar="SECONDS",
        help="with --worker: how long to wait for workers that show no sign of life, by default "
        "600; it then ends with status 75, and the same command goes on",
    )  # fmt: skip
    recipes = ", ".join(configs.module("positives").RECIPES)
    parser.epilog = f"recipes, as --config positives:RECIPE:\n{recipes}"


def run(args: argparse.Namespace) -> int:
    """Runs the steps and says what came of it and how to train on it."""
    config = configs.from_args(args)

    from cir_jax import trust
    from cir_jax.generation import steps

    share = _share(args)
    with trust.trusting(args.trust_code):
        results = steps.run(config, functools.partial(_open_run, config), share)
    if share:
        progress.show(
            f"--worker {args.worker} has done its part of {results['images']:,} images, of which "
            f"{results['distinct']:,} are different. When all workers have ended, the same command "
            "without --worker makes the triplets"
        )
        return 0
    made = results["files"][0]
    progress.show(
        f"{results['triplets']:,} triplets of {results['captions']:,} captioned images in "
        f"{results['seconds']:.0f} s"
    )
    progress.show(f"to train on them: --set data.generated={made}{_images(config, made)}")
    return 0


def _share(args: argparse.Namespace) -> Any:
    """What `--worker` says; None without it."""
    from cir_jax.generation.workers import PATIENCE, Share

    if args.worker is None:
        if args.wait is not None:
            raise UserError("--wait is how long a --worker waits for others; give that, too")
        return None
    return Share.parse(args.worker, PATIENCE if args.wait is None else args.wait)


def _images(config: ConfigDict, made: str) -> str:
    """The key that lets a training read images which lie in no data set; "" if there are none."""
    from cir_jax.datasets import image_lists

    with open(made, encoding="utf-8") as lines:
        first = json.loads(next(lines, "{}"))
    if "reference_path" not in first:
        return ""
    data = config.data
    folders = [os.path.dirname(file) or "." for file in image_lists.expand(data.lists)]
    folders = sorted({folder for folder in (data.root, *folders) if folder})
    folder = "" if data.allow_outside else folders[0] if len(folders) == 1 else _common(folders)
    if folder in ("", os.path.dirname(folder)):  # anywhere, or nothing less than all
        return " --set data.allow_outside=True"
    return f" --set data.generated_images={folder}"


def _common(folders: list[str]) -> str:
    """The folder that all of them are in; "" if there is none, as on two drives."""
    try:
        return os.path.commonpath(map(os.path.abspath, folders))
    except ValueError:
        return ""


def _open_run(config: ConfigDict, run: str) -> Any:
    from cir_jax.retrieval import load  # most recipes ask no trained model, and need no jax

    batch = config.pair.batch
    changes = [f"eval.batch={batch}"] if batch else []
    retriever = load.from_run(run, overrides=changes, dataset=config.data.name)[1]
    retriever.batch_key = "pair.batch"
    return retriever
