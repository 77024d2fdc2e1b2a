# SPDX-License-Identifier: Apache-2.0
"""Finds images of an index: by an image, by a text, or by an image and what to change in it.

Examples:
  cir-jax search INDEX --image a.jpg --text "but red"
  cir-jax search INDEX --image a.jpg
  cir-jax search INDEX --text "a red dress" --not stripes --top 20
  cir-jax search INDEX --image a.jpg --text "but red" --where "category = 'shoes' and price < 50"
  cir-jax search INDEX --image a.jpg --text "but red" --json
The score of an image is
  query weight * (its product with the query that the model composes of image and text)
  + image weight * (its product with the reference image itself)
  - avoid weight * (its product with the words to avoid).
An image alone, or a text alone, weighs 1. Of several images each part is the mean.
A `where` compares fields (= != < <= > >=), asks for `in (...)`, `contains '...'` or `is null`, and
joins these by and, or, not and parentheses; texts stand in single quotes.
Exit status 1 if nothing was found.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

from cir_jax.commands import serve
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from cir_jax.retrieval.index.opened import Index
    from cir_jax.retrieval.search.asking import Question
    from cir_jax.retrieval.search.results import Answer

HELP = "find images of an index: like this one, but ..."
_PREVIEWS = ("auto", "none", "blocks", "kitty", "iterm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "index", nargs=1, metavar="INDEX", help="folder that `cir-jax index` has made"
    )
    add = parser.add_argument_group("the question").add_argument
    add("--image", action="append", default=[], metavar="FILE",
        help="reference image; several times for several")  # fmt: skip
    add("--id", action="append", default=[], type=int, metavar="ID",
        help="as --image, an image of the index by its id")  # fmt: skip
    add("--text", default="", help="what to change in the image; alone, what to find")
    add("--not", action="append", default=[], metavar="WORDS", dest="avoid",
        help="words whose images come later; several times for several")  # fmt: skip
    add("--query-weight", type=float, default=1.0, metavar="W", help="default 1")
    add("--image-weight", type=float, default=0.0, metavar="W", help="default 0")
    add("--avoid-weight", type=float, default=0.5, metavar="W", help="default 0.5, with --not")
    add = parser.add_argument_group("what may be found").add_argument
    add("--top", type=int, default=10, metavar="K", help="images to find (default 10)")
    add("--offset", type=int, default=0, metavar="N", help="leave out the first N images")
    add("--min-score", type=float, metavar="SCORE", help="worst score that is shown")
    add("--where", default="", metavar="CONDITION", help="which images, by their fields")
    add("--no-fold", action="store_true",
        help="show images that are nearly the same one by one")  # fmt: skip
    add("--keep-reference", action="store_true", help="the reference images may be found too")
    add("--approximate", action="store_true",
        help="rank approximately, on a TPU or GPU; rankings are exact otherwise")  # fmt: skip
    serve.add_recall_argument(parser)
    add = parser.add_argument_group("what is shown").add_argument
    add("--why", action="store_true",
        help="what image, text and words to avoid each give to a score; for models whose query is "
        "a sum")  # fmt: skip
    add("--preview", default="auto", choices=_PREVIEWS,
        help="pictures on the terminal; auto (default): as it can, and none elsewhere")  # fmt: skip
    add("--json", action="store_true", help="one JSON document instead of the table")
    add("--html", default="", metavar="FILE",
        help="also write a page with small pictures to FILE")  # fmt: skip
    serve.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Asks the index, and shows what it found."""
    from cir_jax.retrieval.search import html

    if args.html and not os.path.isdir(os.path.dirname(os.path.abspath(args.html))):
        raise UserError(f"--html {args.html}: its folder does not exist; make it first")
    # What loading a model says is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        index, question = serve.opened(args, args.index[0]), _question(args)
        [answer] = index.answer([question])
        if args.html:
            html.write(args.html, index, args.index[0], question, answer)
    _show(args, index, answer)
    return 0 if answer.hits else 1


def _question(args: argparse.Namespace) -> "Question":
    from cir_jax.retrieval.search.asking import Question, Weights

    return Question(
        images=(*args.image, *args.id),
        text=args.text,
        avoid=", ".join(args.avoid),
        weights=Weights(args.query_weight, args.image_weight, args.avoid_weight),
        k=args.top,
        offset=args.offset,
        min_score=args.min_score,
        where=args.where,
        fold=not args.no_fold,
        keep_reference=args.keep_reference,
        exact=not args.approximate,
        why=args.why,
    )


def _show(args: argparse.Namespace, index: "Index", answer: "Answer") -> None:
    from cir_jax import progress
    from cir_jax.retrieval.search import previews, printing

    if args.json:
        print(json.dumps(printing.document(args.index[0], answer)))
        return
    kind = args.preview
    terminal = sys.stdout.isatty()
    if kind == "auto":
        kind = previews.supported(os.environ, sys.stdout.encoding) if terminal else "none"
    width = shutil.get_terminal_size().columns if terminal else 0
    if not answer.hits:
        progress.show("nothing was found")
    elif kind == "none":
        progress.show(printing.table(answer.hits, width))
    else:
        for hit in answer.hits:
            previews.show(index, hit, kind, os.environ, width)
    seconds = answer.seconds["encode"] + answer.seconds["rank"]
    progress.show(f"{answer.formula}; {answer.candidates:,} candidates, {seconds:.2f} s")
    if args.html:
        progress.show(f"page: {args.html}")
