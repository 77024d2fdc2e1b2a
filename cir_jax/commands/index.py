# SPDX-License-Identifier: Apache-2.0
"""Makes an index of a folder of images, or brings one up to date: each image is encoded once.

Examples:
  cir-jax index PHOTOS --model WEIGHTS --out INDEX
  cir-jax index PHOTOS --model WEIGHTS --out INDEX --titles titles.csv
  cir-jax index --out INDEX
  cir-jax index --out INDEX --export FOLDER
WEIGHTS is a run folder, or any weights that this project reads; no training is needed. The same
command again encodes what is new or has changed, and stopped at any moment it goes on. What is not
given is as it was before.
"""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cir_jax.commands.evaluate import add_code_arguments
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from cir_jax.retrieval.index.options import Options
    from cir_jax.retrieval.index.update import Report

HELP = "encode a folder of images once, to search it"
_SHOWN = 5  # images that cannot be read; unreadable.jsonl has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "place", nargs="?", metavar="FOLDER_OR_TABLE",
        help="images, with any folders in it; or a table that names some (.csv, .tsv, .json, "
        ".jsonl, .parquet), relative to its folder",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--model", nargs="+", metavar="WEIGHTS",
        help="run folder, file or folder of weights; several if each holds a part of the model",
    )  # fmt: skip
    add_weights_arguments(parser)
    _add_content_arguments(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "int8"),
        help="of the rows that are kept: float32 (default) is exact; float16 and int8 take a half "
        "and a quarter of it, and what that costs is measured and said",
    )  # fmt: skip
    parser.add_argument(
        "--store", metavar="STORE",
        help="what ranks the rows: embedded (default), or milvus:FILE.db or milvus:http://HOST:PORT",
    )  # fmt: skip
    parser.add_argument(
        "--export", metavar="FOLDER",
        help="encode nothing: write the index for other programs, rows.npy and images.parquet",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=128, help="images encoded at a time (128)")
    parser.add_argument("--threads", type=int, default=16, help="images opened at a time (16)")


def _add_content_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--titles", nargs="*", metavar="FILE",
        help="tables of image names and columns to show and to filter by: .csv, .tsv, .json, "
        ".jsonl, .parquet; without a file, none",
    )  # fmt: skip
    parser.add_argument(
        "--duplicates", choices=("error", "first", "last"),
        help="of two records of one image that differ (default error)",
    )  # fmt: skip
    parser.add_argument(
        "--queries", metavar="FILE",
        help="JSON lines of reference, text and target(s), whose right answers the page then marks",
    )  # fmt: skip
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help="instead of a folder: gallery and queries of a benchmark",
    )
    parser.add_argument("--root", default="", help="with --benchmark: folder of its data set")
    parser.add_argument("--split", default="", help="with --benchmark: another than its own")
    parser.add_argument(
        "--allow-outside", action=argparse.BooleanOptionalAction,
        help="links and tables may lead out of the folder",
    )  # fmt: skip


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

    if args.export:
        return _export(args)
    distributed.initialize()  # before jax starts a backend
    from cir_jax.retrieval import opening
    from cir_jax.retrieval.index import update

    options = _options(args)
    report = update.update(args.out, options, model=_model(args), load=opening.model_of)
    _say(args.out, report)
    return 0


def _options(args: argparse.Namespace) -> "Options":
    from cir_jax.retrieval.index.options import Options

    place, gallery = args.place, None
    if args.benchmark:
        from cir_jax.evals import indexing

        if place:
            raise UserError(f"--benchmark brings its own images; leave {place} out")
        place, gallery = indexing.gallery(args.benchmark, args.root, args.split)
    elif args.root or args.split:
        raise UserError("--root and --split belong to --benchmark NAME; leave them out")
    return Options(
        place=place,
        gallery=gallery,
        titles=args.titles,
        duplicates=args.duplicates,
        queries=args.queries,
        dtype=args.dtype,
        store=args.store,
        allow_outside=args.allow_outside,
        batch=args.batch,
        threads=args.threads,
    )


def _model(args: argparse.Namespace) -> Any:
    """The model that is named; None for that of the index."""
    from cir_jax.data.pixels import AUTO
    from cir_jax.retrieval import image_loading, loading
    from cir_jax.retrieval.index import records

    if not args.model:
        return None
    compute = args.compute
    if compute is None and records.exists(args.out):
        # Rows of one index are computed in one way, on whichever device they are.
        compute = records.read(args.out)["model"]["compute"]
    said = loading.Arguments(
        args.model_name, args.tower, args.pad, compute, args.loading,
        args.trust_code, args.ignore_remote_code,
    )  # fmt: skip
    model = loading.load(args.model, said)
    if args.benchmark and model.config.data.loading == AUTO:
        # As `cir-jax evaluate` reads them; an index keeps it for the queries.
        chosen = image_loading.by_images(model.config.data, args.benchmark)
        model = loading.load(args.model, replace(said, loading=chosen.name))
    return model


def _export(args: argparse.Namespace) -> int:
    from cir_jax import progress
    from cir_jax.retrieval.index.opened import Index

    if args.place or args.model:
        raise UserError("--export writes an index that is there; leave folder and model out")
    fresh = argparse.ArgumentParser()
    add_arguments(fresh)
    given = (key for key, value in vars(args).items() if value != fresh.get_default(key))
    others = [f"--{key.replace('_', '-')}" for key in given if key not in ("out", "export")]
    if others:
        raise UserError(
            f"--export writes an index as it is, float32 and with all fields; leave "
            f"{', '.join(others)} out, or bring the index up to date with it first"
        )
    for path in Index(args.out).export(args.export):
        progress.say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return 0


def _say(folder: str, report: "Report") -> None:
    from cir_jax import progress
    from cir_jax.data import screening
    from cir_jax.retrieval.index import records

    counts = {
        "new": report.new, "changed": report.changed, "moved": report.moved,
        "touched": report.touched, "gone": report.gone,
    }  # fmt: skip
    done = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    speed = f"; {report.encoded / report.seconds:,.0f} images/s" if report.encoded else ""
    done = done or ("no image has changed" if report.renewed else "nothing has changed")
    progress.say(f"{folder}: {report.images:,} images ({done}){speed}")
    if report.left_out:
        name, why = report.left_out[0]
        progress.say(f"left out: {len(report.left_out):,}, {name} for one ({why})")
    bad = report.unreadable
    if bad:
        found = screening.in_words(screening.summary(bad))
        progress.say(
            f"cannot be read: {len(bad):,} ({found}), all in {folder}/{records.UNREADABLE}"
        )
        for problem in [*bad.values()][:_SHOWN]:
            progress.say(f"  {problem}")
