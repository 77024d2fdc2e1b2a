# SPDX-License-Identifier: Apache-2.0
"""Weights of PyTorch projects in, and ours out: `python tools/convert_weights.py COMMAND ...`.

    inspect PLACE                        as `cir-jax inspect`
    import PLACE [PLACE ...] RUN         as `cir-jax import`
    export PLACE OUT --format FORMAT     as `cir-jax export`
    verify PLACE                         PyTorch's model against ours on the same random inputs

PLACE is a run folder, a file or a folder of weights, see `cir-jax import --help`. Only `verify`
needs torch (`pip install 'cir_jax[torch]'`); it knows all models of cir_jax/models.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script finds its own folder only

from cir_jax import main as cir_jax_command
from cir_jax.commands import import_
from cir_jax.errors import UserError

COMMANDS = ("inspect", "import", "export")  # of cir-jax


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs one command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return cir_jax_command.main(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=[*COMMANDS, "verify"])
    import_.add_place_arguments(parser)
    parser.add_argument("--batch", type=int, default=2, help="random images and texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1e-4, help="largest difference allowed")
    try:
        verify(parser.parse_args(argv))
    except UserError as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        return 2
    return 0


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
    _, _, functions, loaded = import_.weights_of(args, args.seed)
    worst = against_torch.compare(args.places, functions, loaded, batch=args.batch, seed=args.seed)
    if worst > args.limit:
        raise UserError(f"the largest difference {worst:.3g} is over the limit of {args.limit:g}")


if __name__ == "__main__":
    sys.exit(main())
