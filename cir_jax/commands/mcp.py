# SPDX-License-Identifier: Apache-2.0
"""Lets an agent search an index, as a server of the Model Context Protocol.

Examples:
  cir-jax mcp INDEX
  cir-jax mcp INDEX OTHER --files ~/Downloads
The protocol runs over standard input and output: an agent starts this command itself, so give it
the command and its arguments where it keeps its servers. Its tools are search_images and get_image.
`cir-jax serve` has the same at /mcp.
"""

import argparse
from functools import partial

from cir_jax.commands import serve

HELP = "let an agent search an index (Model Context Protocol)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("index", nargs="+", metavar="INDEX", help="folder of an index; several")
    parser.add_argument(
        "--files", nargs="+", default=[], metavar="FOLDER",
        help="folders whose images an agent may search with, beside those of the index",
    )  # fmt: skip
    serve.add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Answers until standard input ends."""
    from cir_jax.serving import agents

    agents.serve(args.index, args.files, partial(serve.opened, args))
    return 0
