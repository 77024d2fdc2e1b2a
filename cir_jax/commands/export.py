# SPDX-License-Identifier: Apache-2.0
"""Writes a trained run, or any weights, in the layout of another project, or in ours.

A run with adapters (LoRA) is written with these merged, but as `peft`, which is the adapters alone.

Examples:
  cir-jax export runs/fiq2 trained.safetensors --format safetensors
  cir-jax export runs/fiq2 trained.pt --format spn
  cir-jax export runs/clip-large clip-large-hf --format huggingface
  cir-jax export runs/adapted adapter --format peft
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
PEFT = "peft"  # --format: adapters, not merged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_place_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="file or folder to write")
    parser.add_argument(
        "--format", required=True,
        help="safetensors (ours, both trees), and those of the model: clip_sum has huggingface, "
        "siglip, open_clip, openai, clip4cir, spn; clip_combiner also combiner; clip_weighted, of "
        "its CLIP, huggingface, siglip, open_clip, openai; tgcir has tgcir, "
        "tgcir_spn, and of its CLIP huggingface, open_clip, openai; blip huggingface, blip4cir, "
        "spn; sprc huggingface, sprc, spn; gemma_embedding huggingface; of a run with adapters "
        "peft, where there is huggingface",
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
    if args.format == PEFT:
        return _adapter(args)
    config, known, functions, loaded = weights_of(args)
    origin = loaded.record
    trained = origin.get("layout") == "run" and origin["step"] > 0
    while origin.get("layout") == "run":  # what the first of a chain of runs was made of
        origin = origin.get("source") or {}
    part = exporting.check(functions, args.format, args.tree, args.dtype).part
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
    # Ours holds them; and a part of a model, such as the CLIP below a head, gives others.
    if vectors and not part and args.format != native.LAYOUT.name:
        written.append(golden.beside(args.out))
        files.put(written[-1], vectors.encoded())
    for path in written:
        progress.say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    if known:
        _say_if_padded_otherwise(args.out, config)
    return 0


def _adapter(args: argparse.Namespace) -> int:
    """Writes the adapters of a run as a folder of PEFT."""
    from cir_jax import contract, progress, trust, weights
    from cir_jax.convert import adapters
    from cir_jax.retrieval import load
    from cir_jax.towers import lora

    if len(args.places) != 1 or not weights.is_run(args.places[0]):
        raise UserError(
            f"--format {PEFT} is of the folder of a run that trained with adapters (lora.rank "
            f"above 0), and {', '.join(args.places)} is none; give that folder"
        )
    if (args.tree, args.dtype) != ("retrieval", "float32"):
        raise UserError(
            f"--tree={args.tree} --dtype={args.dtype}: adapters are of the query, in float32; "
            "leave both out"
        )
    (place,) = args.places
    with trust.trusting(args.trust_code):
        config, _ = load.config_of(args.places, args.model, args.step, args.overrides)
        functions = contract.build(config.model)
        fixed, trained, record = weights.trees_of_run(place, functions, args.step)
    if not (said := record.get("lora")):
        raise UserError(
            f"{place} was trained without adapters (lora.rank=0), so --format {PEFT} has nothing "
            "to write; another --format writes the model"
        )
    whole = frozenset(path for path in trained if path in functions.abstract)
    shapes = {path: x for path, x in trained.items() if lora.is_factor(path)}
    chosen = lora.Adapters(said["rank"], said["alpha"], shapes, whole)
    source = (record.get("source") or {}).get("place", "")
    written = adapters.write(args.out, functions, chosen, fixed | trained, said["base"], source)
    for path in written:
        progress.say(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
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
