# SPDX-License-Identifier: Apache-2.0
"""Makes a data set of a folder of images and a table of their titles, ready to train on.

Examples:
  cir-jax prepare PHOTOS --titles titles.csv --out DATA
  cir-jax prepare PHOTOS --titles titles.csv --group product --out DATA
What is left out is listed, and the three commands that come next are printed. Validation images are
in no training triplet; neither is another copy of one. Files that are there are never changed
without --overwrite.
"""

import argparse
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cir_jax import config as configs
from cir_jax import files, progress
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cir_jax.generation.catalogue import Catalogue

HELP = "make a data set of a folder of images and their titles"
_RECIPE, _TINY = "positives:titles", "clip_sum:tiny"
_SHOWN = 3  # files of a reason to leave them out; left_out.jsonl has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("folder", help="of the images, with any folders in it")
    parser.add_argument(
        "--titles", required=True, nargs="+", metavar="FILE",
        help="tables of image names and titles: .csv, .tsv, .json, .jsonl",
    )  # fmt: skip
    parser.add_argument("--out", required=True, help="folder of the data set")
    parser.add_argument("--text-field", default="", help="column of the titles, if not 'title'")
    parser.add_argument(
        "--group", default="", metavar="COLUMN",
        help="column of the product: its images all go to one side; without it, pictures are split",
    )  # fmt: skip
    parser.add_argument(
        "--val", type=float, default=0.2, help="share of the images held out (default 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of split and pairs (default 0)")
    for flag, choices, about in (
        ("--empty", ("drop", "error"), "records without a title"),
        ("--unknown", ("error", "ignore"), "titles of images that are not there"),
        ("--duplicates", ("error", "first", "last"), "of two titles of one image"),
    ):
        parser.add_argument(flag, choices=choices, default=choices[0], help=about)
    parser.add_argument(
        "--copy", action="store_true", help="copy the images that are used, and link nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--threads", type=int, default=16, help="images opened at a time")


def run(args: argparse.Namespace) -> int:
    """Looks the folder over, writes the data set, and prints what comes next."""
    from cir_jax.generation import catalogue, prepared

    folder, out = Path(args.folder), Path(args.out)
    _check_flags(args, folder, out)
    options = catalogue.Options(
        args.text_field, args.empty, args.unknown, args.duplicates, args.group
    )
    cache = files.cache() / "prepare" / _digest(folder)

    def split(items: "Sequence[catalogue.Item]") -> prepared.Split:
        return prepared.split(items, args.val, args.seed, bool(args.group))

    found = catalogue.look(folder, args.titles, options, cache, args.threads, check=split)
    _list_left_out(found)
    sides = split(found.items)
    recipe = configs.load(_RECIPE)
    record = {
        "folder": str(folder.resolve()),
        "titles": [str(Path(table).resolve()) for table in args.titles],
        "group": args.group, "val": args.val, "seed": args.seed,
        "text_field": args.text_field, "images": len(found.items),
        "train": len(sides.train), "gallery": len(sides.val),
    }  # fmt: skip
    made = prepared.contents(found, sides, recipe, args.seed, record)
    written = prepared.write(out, made, args.overwrite)
    prepared.place_images(folder, out, found.items, args.copy)
    state = "" if written else " (as it was)"
    print(
        f"{out}{state}: {len(sides.train):,} images to train on, {len(sides.val):,} held out, one "
        "query of each by the templates of the titles. Triplets that people wrote say more: add "
        "them to train.jsonl and val.jsonl"
    )
    more = prepared.more_pairs(made, recipe.pair.per_image)
    print("\n".join(["next, in this order:", *_next(out, len(sides.train), more, recipe)]))
    return 0


def _check_flags(args: argparse.Namespace, folder: Path, out: Path) -> None:
    """Raises UserError with all that is wrong with the flags themselves."""
    from cir_jax.generation import prepared

    wrong = []
    if args.threads < 1:
        wrong.append(f"--threads {args.threads} is below 1; the default is 16")
    if not folder.is_dir():
        wrong.append(f"{folder} is no folder; name the folder of your images")
    if not args.out:
        wrong.append("--out is empty; name the folder of the data set")
    for check in (
        lambda: prepared.check_share(args.val),
        lambda: prepared.check_place(folder, out, args.copy),
    ):
        try:
            check()
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n  ".join(wrong))


def _digest(folder: Path) -> str:
    import hashlib

    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _list_left_out(found: "Catalogue") -> None:
    reasons = Counter(_reason(why) for _, why in found.left_out)
    for reason, count in reasons.most_common():
        names = [
            progress.shown(name, one_line=True)
            for name, why in found.left_out
            if _reason(why) == reason
        ]
        more = ", ..." if count > _SHOWN else ""
        said = progress.shown(reason, one_line=True)
        print(f"left out, {said}: {count:,} ({', '.join(names[:_SHOWN])}{more})")


def _reason(why: str) -> str:
    """What several files have in common."""
    same = "the same picture as "
    return f"{same}another" if why.startswith(same) else why.partition(":")[0]


def _next(out: Path, count: int, more: int, recipe: "configs.ConfigDict") -> list[str]:
    """The commands that make triplets, train and evaluate."""
    root, name = shlex.quote(f"data.root={out}"), out.resolve().name
    run, lines, flag = shlex.quote(f"runs/{name}"), [], ""
    if more:
        each = "" if more == recipe.pair.per_image else f" --set pair.per_image={more}"
        place, flag = shlex.quote(f"workdir={out / 'positives'}"), ",positives"
        lines.append(f"  cir-jax positives --config {_RECIPE} --set {root}{each} --set {place}")
    batch = whole = configs.load(_TINY).batch
    while batch > count * (1 + more):
        batch //= 2
    size = "" if batch == whole else f" --set batch={batch}"
    return [
        *lines,
        f"  cir-jax train --config {_TINY}{flag} --set {root}{size} --set workdir={run}",
        f"  cir-jax evaluate --workdir {run} --save rankings",
        "From the weights of a CLIP, the second line with --config clip_sum:folder"
        f"{flag} --init-from FILE.",
    ]
