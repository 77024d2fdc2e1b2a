# SPDX-License-Identifier: Apache-2.0
"""Packs the images of FashionIQ or CIRR into a few large ArrayRecord files, for pods and buckets.

Example: cir-jax pack fashioniq DATA/fashionIQ_dataset DATA/fashioniq_packed
The result is used as data.root in place of the original folder.
"""

import argparse

from cir_jax import progress

HELP = "pack a data set into ArrayRecord files (TFDS)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("dataset", choices=("fashioniq", "cirr"))
    parser.add_argument("root", help="folder of the data set in its official layout")
    parser.add_argument("out", help="new folder")


def run(args: argparse.Namespace) -> int:
    """Packs, and says where."""
    from cir_jax.datasets import tfds_builders

    progress.show(f"packed; use data.root={tfds_builders.pack(args.dataset, args.root, args.out)}")
    return 0
