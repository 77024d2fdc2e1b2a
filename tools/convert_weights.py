# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch projects in, and ours out: `python tools/convert_weights.py COMMAND ...`.

    inspect PLACE                        what a file or folder holds, and which model it is
    import PLACE [PLACE ...] RUN         into a run folder, for `--init-from` and `--workdir`
    export PLACE OUT --format FORMAT     a run folder or any weights, to another layout
    verify PLACE                         PyTorch's model against ours on the same random inputs

PLACE is a run folder, a .pt or .safetensors file (OpenAI CLIP, open_clip, LAVIS, released runs of
CLIP4Cir, TG-CIR, BLIP4CIR, SPRC and SPN, ours) or a folder of transformers or open_clip. Only
`verify` needs torch (`pip install 'cir_jax[torch]'`); it knows all models of cir_jax/models.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

from cir_jax import config as configs
from cir_jax import contract, weights
from cir_jax.convert import exporting, identify, sources, tables
from cir_jax.errors import UserError

MODEL = "a model of cir_jax/models, or a file; found by itself if not given"


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choice = parser.add_subparsers(dest="command", required=True)
    for name, (function, add_arguments) in COMMANDS.items():
        one = choice.add_parser(name, help=function.__doc__.split("\n")[0])
        add_arguments(one)
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command][0](args)
        sys.stdout.flush()
    except UserError as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `inspect ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def inspect(args: argparse.Namespace) -> None:
    """List what a file or folder holds, and which model it is."""
    if weights.is_run(args.place):
        config = weights.config_of(args.place)
        print(f"{args.place}: a run of model.name={config.model.name} "
              f"model.tower={config.model.tower}")  # fmt: skip
        return
    source = sources.open_source(args.place)
    print(f"{args.place}: {source.container}, {', '.join(f.name for f in source.files)}")
    for key, value in source.values.items():
        print(f"  {key} = {value}")
    chosen = identify.everything(source)
    for model, layout, found in chosen:
        said = " ".join(f"model.{k}={v}" for k, v in found.config.items() if k != "name")
        part = "a part of " if layout.part else ""
        print(f"  {layout.name}: {layout.about}; {part}model.name={model} {said}".rstrip())
        if found.doubt:
            print(f"  in doubt: {found.doubt}")
    if not chosen:
        print("  no model of this project has these tensors")
    for key, group in source.groups.items():
        print(f"  {key or 'state dict'}: {len(group)} tensors, "
              f"{sum(t.nbytes for t in group.values()) / 1e6:,.1f} MB")  # fmt: skip
        for name, tensor in group.items():
            why = next(
                filter(None, (tables.ignored_reason(c[1].ignored, name) for c in chosen)), ""
            )
            note = f"  (not read: {why})" if why else ""
            print(f"    {name}  {tensor.dtype} {list(tensor.shape)}{note}")


def import_(args: argparse.Namespace) -> None:
    """Write weights as a run folder, for --init-from and --workdir."""
    config, functions, found = _load(args.places, args)
    folder = weights.save_run(args.run, config, functions, found)
    print(f"{folder}: model.name={config.model.name} model.tower={config.model.tower}")


def export(args: argparse.Namespace) -> None:
    """Write a run or any weights in another layout."""
    if args.epoch < 0:
        raise UserError(f"--epoch={args.epoch} is below 0; give the epoch that was finished")
    config, functions, found = _load(args.places, args)
    origin = found.record
    trained = origin.get("layout") == "run" and origin["step"] > 0
    while origin.get("layout") == "run":  # what the first of a chain of runs was made of
        origin = origin.get("source") or {}
    written = exporting.write(
        args.out,
        functions,
        found.index,
        found.query,
        layout=args.format,
        tree=args.tree,
        dtype=args.dtype,
        record=origin,
        epoch=args.epoch,
        temperature=config.loss.temperature if trained else 0.0,
        files=found.files,
    )
    for path in written:
        print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")


def verify(args: argparse.Namespace) -> None:
    """Run PyTorch's model and ours on the same random inputs, layer by layer."""
    try:
        from tools.torch_models import verify as against_torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"verify runs PyTorch's model, and {error.name} is not installed; "
            "pip install 'cir_jax[torch]'"
        ) from None
    args.overrides = [*args.overrides, "model.dtype=float32"]
    _, functions, found = _load(args.places, args, args.seed)
    worst = against_torch.compare(args.places, functions, found, batch=args.batch, seed=args.seed)
    if worst > args.limit:
        raise UserError(f"the largest difference {worst:.3g} is over the limit of {args.limit:g}")


def _load(
    places: list[str], args: argparse.Namespace, seed: int = -1
) -> tuple[Any, Any, weights.Weights]:
    """(config, functions, parameters) of what `places` hold together; `seed` of what may be new."""
    joined = ",".join(places)
    named = [f"model.name={args.model}"] if args.model else []
    if len(places) == 1 and weights.is_run(joined):
        held = weights.config_of(joined, args.step)
        config = weights.resolve(configs.override(held, [*named, *args.overrides]), joined)
    else:
        if not named and any(map(weights.is_run, places)):
            raise UserError(f"{joined}: a run is one of several places; say of what, --model NAME")
        model = args.model or identify.only([sources.open_source(place) for place in places])
        changes = [f"init_from={joined}", f"model.name={model}", "model.tower=auto",
                   "eval.benchmark=none", *args.overrides]  # fmt: skip
        config = weights.resolve(configs.load("base", changes), joined, args.step)
    functions = contract.build(config.model)
    return config, functions, weights.load(joined, functions, args.step, seed)


def _place_arguments(parser: argparse.ArgumentParser, several: bool = True) -> None:
    parser.add_argument(
        "places", nargs="+" if several else 1, metavar="PLACE",
        help="run folder, file or folder of weights; several if each holds a part of the model",
    )  # fmt: skip
    parser.add_argument("--model", default="", help=MODEL)
    parser.add_argument("--step", default="best", help="of a run: best (default), last or a number")
    configs.add_override_argument(parser, "model.tower=ViT-B/32+gelu, where a file does not say it")


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="PLACE", help="run folder, file or folder of weights")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    _place_arguments(parser)
    parser.add_argument("run", metavar="RUN", help="folder to make")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _place_arguments(parser)
    parser.add_argument("out", metavar="OUT", help="file or folder to write")
    parser.add_argument(
        "--format", required=True,
        help="safetensors (ours, both trees), and those of the model: clip_sum has huggingface, "
        "open_clip, openai, clip4cir, spn; clip_combiner also combiner; tgcir has tgcir, "
        "tgcir_spn, and of its CLIP huggingface, open_clip, openai; blip huggingface, blip4cir, "
        "spn; sprc huggingface, sprc, spn",
    )  # fmt: skip
    parser.add_argument(
        "--tree", default="retrieval",
        help="retrieval (default: image side of the index, text side of the query), index or query",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32",
        help=f"{', '.join(exporting.DTYPES)}; source is each tensor's type when it was imported",
    )  # fmt: skip
    parser.add_argument("--epoch", type=int, default=0, help="of layouts that say one")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _place_arguments(parser)
    parser.add_argument("--batch", type=int, default=2, help="random images and texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1e-4, help="largest difference allowed")


COMMANDS = {
    "inspect": (inspect, _inspect_arguments),
    "import": (import_, _import_arguments),
    "export": (export, _export_arguments),
    "verify": (verify, _verify_arguments),
}


if __name__ == "__main__":
    sys.exit(main())
