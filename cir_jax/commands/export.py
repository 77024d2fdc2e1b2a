# SPDX-License-Identifier: Apache-2.0
"""Writes a trained run, or any weights, in the layout of another project, or in ours.

Examples:
  cir-jax export runs/fiq2 trained.safetensors --format safetensors
  cir-jax export runs/fiq2 trained.pt --format spn
  cir-jax export runs/clip-large clip-large-hf --format huggingface
"""

import argparse
from typing import TYPE_CHECKING

from cir_jax.commands.import_ import add_place_arguments, weights_of
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cir_jax.contract import Functions
    from cir_jax.retrieval.golden import Golden
    from cir_jax.weights import Weights

HELP = "write a run or any weights in another layout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_place_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="file or folder to write")
    parser.add_argument(
        "--format", required=True,
        help="safetensors (ours, both trees), and those of the model: clip_sum has huggingface, "
        "siglip, open_clip, openai, clip4cir, spn; clip_combiner also combiner; tgcir has tgcir, "
        "tgcir_spn, and of its CLIP huggingface, open_clip, openai; blip huggingface, blip4cir, "
        "spn; sprc huggingface, sprc, spn",
    )  # fmt: skip
    parser.add_argument(
        "--tree", default="retrieval",
        help="retrieval (default: image side of the index, text side of the query), index or query",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32",
        help="source (each tensor's type when it was imported), float16, bfloat16 or float32",
    )  # fmt: skip
    parser.add_argument("--epoch", type=int, default=0, help="of layouts that say one")


def run(args: argparse.Namespace) -> int:
    """Reads, and writes the other layout."""
    from cir_jax import files, progress
    from cir_jax.convert import exporting, native
    from cir_jax.retrieval import golden

    if args.epoch < 0:
        raise UserError(f"--epoch={args.epoch} is below 0; give the epoch that was finished")
    config, known, functions, loaded = weights_of(args)
    origin = loaded.record
    trained = origin.get("layout") == "run" and origin["step"] > 0
    while origin.get("layout") == "run":  # what the first of a chain of runs was made of
        origin = origin.get("source") or {}
    vectors = _golden(args, config, functions, loaded) if known else None
    written = exporting.write(
        args.out,
        functions,
        loaded.index,
        loaded.query,
        layout=args.format,
        tree=args.tree,
        dtype=args.dtype,
        record=origin,
        epoch=args.epoch,
        temperature=config.loss.temperature if trained else 0.0,
        files=loaded.files,
        data=config.data.to_dict() if known else None,
        golden=vectors.encoded() if vectors else b"",
    )
    if vectors and args.format != native.LAYOUT.name:  # ours holds them
        written.append(golden.beside(args.out))
        files.put(written[-1], vectors.encoded())
    for path in written:
        progress.say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    if known:
        _say_if_padded_otherwise(args.out, config)
    return 0


def _golden(
    args: argparse.Namespace, config: "ConfigDict", functions: "Functions", loaded: "Weights"
) -> "Golden":
    """What is exported makes of the golden inputs; what is read is compared with its own."""
    from cir_jax.convert import exporting
    from cir_jax.retrieval import golden

    exporting.check(functions, args.format, args.tree, args.dtype)
    now = golden.of_weights(config, functions, loaded.index, loaded.query)
    golden.check_places(args.places, args.step, now, args.overrides)
    stored = loaded.record.get("dtypes", {}).values() if args.dtype == "source" else [args.dtype]
    if args.tree != "retrieval":
        one = loaded.index if args.tree == "index" else loaded.query
        now = golden.of_weights(config, functions, one, one)
    return now.stored_as(golden.coarsest(stored))


def _say_if_padded_otherwise(place: str, config: "ConfigDict") -> None:
    """Layouts of other projects do not say how images were padded, and whoever reads one assumes
    what its project does."""
    from cir_jax import progress
    from cir_jax.convert import identify, sources

    assumed = identify.find(sources.open_source(place), config.model.name)[1].data
    loading, taken = config.data.loading, assumed.get("loading", "natural")
    if loading not in ("auto", taken):
        progress.say(
            f"{place}: who loads this takes data.loading={taken}, but the model was trained with "
            f"data.loading={loading}; say so there"
        )
    for key in ("pad", "target_ratio"):
        if assumed.get(key, config.data[key]) != config.data[key]:
            progress.say(
                f"{place}: who loads this takes data.{key}={assumed[key]}, as its layout has it, "
                f"but the model was used with data.{key}={config.data[key]}; say so there"
            )
