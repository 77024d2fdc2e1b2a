# SPDX-License-Identifier: Apache-2.0
"""Rewrites a triplet set of another project as neutral JSON lines, which training reads.

Example: cir-jax triplets megapairs DATA/megapairs/*.jsonl DATA/megapairs.jsonl
Use the result as data.generated, or as {root}/train.jsonl of data.name=folder.
"""

import argparse

from cir_jax import progress
from cir_jax.errors import UserError

HELP = "import triplets of other projects"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    from cir_jax.datasets import importer

    importers = {name: importer.load(name) for name in importer.names()}
    formats = [f"  {name:<18}{module.HELP}" for name, module in importers.items()]
    options = [
        f"  {name:<18}{option}: {text}"
        for name, module in importers.items()
        for option, text in getattr(module, "OPTIONS", {}).items()
    ]
    parser.epilog = "\n".join(["formats:", *formats, "options of a format (--set):", *options])
    parser.add_argument("format", help="one of those below, or a Python file of yours")
    parser.add_argument("sources", nargs="+", help="files, folders or glob patterns")
    parser.add_argument("out", help="JSON lines to write")
    parser.add_argument("--images", help="refuse triplets whose images are not in this folder")
    parser.add_argument("--suffix", default="", help="append to names without one, e.g. .jpg")
    parser.add_argument("--strip", default="", help="take this beginning off names that have it")
    parser.add_argument("--source", default="", help="source of the triplets (default: the format)")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE",
                        help="an option of the format")  # fmt: skip
    parser.add_argument("--limit", type=int, help="stop after so many triplets")
    parser.add_argument("--refused", help="write the refused records and why to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> int:
    """Imports, and says what was refused."""
    from cir_jax.datasets.importing import run

    options = {}
    for item in args.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item} is no option of a format; write OPTION=VALUE")
        options[name] = value
    summary = run.run(
        args.format,
        args.sources,
        args.out,
        args.images,
        suffix=args.suffix,
        strip=args.strip,
        source=args.source,
        options=options,
        limit=args.limit,
        refused=args.refused,
        overwrite=args.overwrite,
    )
    progress.show("\n".join(summary.lines()))
    return 0
