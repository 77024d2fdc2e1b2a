# SPDX-License-Identifier: Apache-2.0
"""Trains one stage of a model. The same command again resumes a run that was stopped.

SIGTERM or Ctrl-C saves and stops, with exit status 75; a second Ctrl-C ends at once.

Examples:
  cir-jax train --config clip_sum:quicktest
  cir-jax train --config clip_sum:cirr,stage=1 --init-from RN50x4.pt --set data.root=DATA
"""

import argparse
import contextlib
import os
from pathlib import Path

from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax.errors import UserError
from cir_jax.training import from_scratch

HELP = "train one stage of a model; again, to resume"
WATCHED = True  # by `cir_jax.runtime.supervision`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    configs.add_arguments(parser)
    configs.add_init_from_argument(parser, "start from these parameters")
    configs.add_remote_code_argument(parser)
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="start a model of full size from random parameters; without weights it is refused",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, parameters, memory and steps, and train nothing",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="trace five steps into the run folder, for TensorBoard and Perfetto",
    )
    parser.epilog = f"configs and their arguments:\n{configs.listing()}"


def run(args: argparse.Namespace) -> int:
    """Trains, or with --dry-run says what would be trained."""
    from cir_jax.convert import remote_code

    with remote_code.ignoring(args.ignore_remote_code):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Loads the config before anything heavy, so that a typo is reported at once."""
    try:
        loaded = _load(args)
    except UserError:
        if any(name.startswith("CIR_JAX_PROCESS") for name in os.environ):
            from cir_jax.runtime import distributed

            with contextlib.suppress(UserError):  # the others wait for this process, to hear why
                distributed.initialize()
        raise
    from cir_jax.runtime import distributed, supervision
    from cir_jax.runtime.limits import Limits

    distributed.initialize(Limits.of(loaded))  # before jax starts a backend
    import jax

    from cir_jax import progress

    if args.dry_run:
        from cir_jax.training import dry_run, memory, setup

        with setup.gathered(loaded), memory.reading(loaded):
            made = setup.make(setup.resolve(loaded))
            data = setup.read_data(made)
        progress.say(dry_run.describe(made, data))
        return 0
    from cir_jax.training import train

    results = train.train(loaded)
    if not results["finished"]:
        return supervision.STOPPED
    if results["best"] is not None:
        progress.say(f"best {results['selection'] or 'score'}: {results['best']:.2f}")
    if jax.process_index() == 0:
        progress.say(f"report: {Path(results['workdir'], 'report.html').resolve()}")
    return 0


def _load(args: argparse.Namespace) -> ConfigDict:
    loaded = configs.with_init_from(configs.from_args(args), args.init_from)
    if "stage" not in loaded:
        raise UserError(f"--config {args.config} makes triplets; use it with `cir-jax positives`")
    with loaded.unlocked():
        loaded.from_scratch = loaded.from_scratch or args.from_scratch
        loaded.profile = loaded.profile or args.profile
    from_scratch.check(loaded)
    return loaded
