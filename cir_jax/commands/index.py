# SPDX-License-Identifier: Apache-2.0
"""Makes an index of a folder of images, or brings one up to date: each image is encoded once.

Examples:
  cir-jax index PHOTOS --model WEIGHTS --out INDEX
  cir-jax index --out INDEX
WEIGHTS is a run folder, or any weights that this project reads. The same command again encodes what
is new or has changed; stopped at any moment, it goes on.
"""

import argparse
from typing import TYPE_CHECKING, Any

from cir_jax.commands.evaluate import add_code_arguments

if TYPE_CHECKING:
    from cir_jax.retrieval.index.update import Report

HELP = "encode a folder of images once, to search it"
_SHOWN = 3  # images that cannot be read; unreadable.jsonl has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "place", nargs="?", default=None, metavar="FOLDER_OR_TABLE",
        help="images, with any folders in it; or a table that names some (.csv, .tsv, .json, "
        ".jsonl, .parquet), relative to its folder. As before if it is not given",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--model", nargs="+", metavar="WEIGHTS",
        help="run folder, file or folder of weights; several if each holds a part of the model. As "
        "before if it is not given",
    )  # fmt: skip
    add_weights_arguments(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "int8"),
        help="of the rows that are kept: float32 (default, exact); the others take 2 or 1 byte a "
        "value, and say what that costs",
    )  # fmt: skip
    parser.add_argument(
        "--allow-outside", action="store_const", const=True,
        help="links and tables may lead out of the folder",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=128, help="images encoded at a time")
    parser.add_argument("--threads", type=int, default=16, help="images opened at a time")


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for what weights do not say themselves, see `cir_jax.load`."""
    parser.add_argument("--model-name", help="which model composes, where files fit several")
    parser.add_argument("--tower", help="size of the encoders, e.g. ViT-B/32+gelu")
    parser.add_argument("--pad", help="how images become squares: target, square or none")
    parser.add_argument("--loading", help="how files become pictures: natural or released")
    parser.add_argument("--compute", help="type of computation: float32, bfloat16 or auto")
    add_code_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encodes, and says what was done."""
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    from cir_jax.retrieval import opening
    from cir_jax.retrieval.index import update

    options = update.Options(
        place=args.place,
        dtype=args.dtype,
        allow_outside=args.allow_outside,
        batch=args.batch,
        threads=args.threads,
    )
    report = update.update(args.out, options, model=_model(args), load=opening.model_of)
    _say(args.out, report)
    return 0


def _model(args: argparse.Namespace) -> Any:
    from cir_jax.retrieval import loading

    if not args.model:
        return None
    return loading.load(
        args.model,
        loading.Arguments(
            args.model_name, args.tower, args.pad, args.compute, args.loading,
            args.trust_code, args.ignore_remote_code,
        ),
    )  # fmt: skip


def _say(folder: str, report: "Report") -> None:
    from cir_jax import progress

    done = [f"{report.new:,} new", f"{report.changed:,} changed", f"{report.gone:,} gone"]
    rate = report.encoded / report.seconds if report.encoded else 0
    speed = f"; {rate:,.0f} images/s" if rate else ""
    progress.say(f"{folder}: {report.images:,} images ({', '.join(done)}){speed}")
    for name, problem in [*report.unreadable.items()][:_SHOWN]:
        progress.say(f"cannot be read: {name} ({problem.reason})")
