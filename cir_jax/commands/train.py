# SPDX-License-Identifier: Apache-2.0
"""Trains one stage of a model. The same command again resumes a run that was stopped.

Examples:
  cir-jax train --config clip_sum:quicktest
  cir-jax train --config clip_sum:cirr,stage=1 --init-from RN50x4.pt --set data.root=DATA
"""

import argparse

from cir_jax import config
from cir_jax.errors import UserError

HELP = "train one stage of a model; again, to resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    config.add_arguments(parser)
    config.add_init_from_argument(parser, "start from these parameters")


def run(args: argparse.Namespace) -> int:
    """Loads the config before anything heavy, so that a typo is reported at once."""
    loaded = config.with_init_from(config.from_args(args), args.init_from)
    if "stage" not in loaded:
        raise UserError(f"--config {args.config} makes triplets; use it with `cir-jax positives`")
    from cir_jax.runtime import distributed

    distributed.initialize()  # before jax starts a backend
    from cir_jax.training import train

    train.train(loaded)
    return 0
