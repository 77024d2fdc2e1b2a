# SPDX-License-Identifier: Apache-2.0
"""Writes weights of other projects as a run folder, for --init-from and --workdir.

PLACE is a .pt or .safetensors file (OpenAI CLIP, open_clip, LAVIS, released runs of CLIP4Cir, SPN,
TG-CIR, BLIP4CIR and SPRC, ours), a folder of transformers or open_clip, or a run folder. No PyTorch
is needed, and no code in a file is run. With --model served it is the address of an embeddings
server, or a folder of sentence-transformers.

Examples:
  cir-jax import clip-vit-large-patch14 runs/clip-large
  cir-jax import clip_finetuned.pt combiner.pt runs/combiner
  cir-jax import ViT-B-32.safetensors runs/b32 --set model.tower=ViT-B/32+gelu --set data.pad=none
  cir-jax import http://localhost:8000/v1 runs/served --model served --set model.tower=NAME
"""

import argparse
from typing import TYPE_CHECKING

from cir_jax import config as configs
from cir_jax.commands.evaluate import add_code_arguments

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cir_jax.contract import Functions
    from cir_jax.weights import Weights

HELP = "write weights of other projects as a run folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_place_arguments(parser)
    parser.add_argument("run", metavar="RUN", help="folder to make")


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that name weights: the places, `--model`, `--step` and `--set`."""
    parser.add_argument(
        "places", nargs="+", metavar="PLACE",
        help="run folder, file or folder of weights; several if each holds a part of the model",
    )  # fmt: skip
    parser.add_argument(
        "--model", default="", metavar="NAME",
        help="a model of cir_jax/models, or a file; found by itself if not given",
    )  # fmt: skip
    parser.add_argument("--step", default="best", help="of a run: best (default), last or a number")
    configs.add_override_argument(parser, "model.tower=ViT-B/32+gelu, where a file does not say it")
    add_code_arguments(parser)


def weights_of(
    args: argparse.Namespace, seed: int = -1
) -> "tuple[ConfigDict, bool, Functions, Weights]":
    """(config, whether it is known how images are padded, model, parameters) of these flags.

    Args:
      args: with the flags of `add_place_arguments`.
      seed: for leaves that may be new; below 0 none may be.

    Raises:
      UserError: see `retrieval.load.config_of` and `weights.load`.
    """
    from cir_jax import contract, trust, weights
    from cir_jax.convert import remote_code
    from cir_jax.retrieval import load

    with trust.trusting(args.trust_code), remote_code.ignoring(args.ignore_remote_code):
        config, known = load.config_of(args.places, args.model, args.step, args.overrides)
        functions = contract.build(config.model)
        joined = ",".join(args.places)
        return config, known, functions, weights.load(joined, functions, args.step, seed)


def run(args: argparse.Namespace) -> int:
    """Reads, and writes the run folder."""
    from cir_jax import progress, trust, weights
    from cir_jax.retrieval import golden

    config, known, functions, loaded = weights_of(args)
    made = golden.of_weights(config, functions, loaded.index, loaded.query) if known else None
    if made is not None:
        golden.check_places(args.places, args.step, made, args.overrides)
    folder = weights.save_run(args.run, config, functions, loaded)
    if made is not None:
        golden.keep_with_run(folder, 0, made, set())
    trust.remember(config)
    progress.say(f"{folder}: model.name={config.model.name} model.tower={config.model.tower}")
    if not known:
        progress.say(
            f"{', '.join(args.places)} does not say how images are padded; {folder} says "
            f"data.pad={config.data.pad}, and --set data.pad=... changes it"
        )
    return 0
