# SPDX-License-Identifier: Apache-2.0
"""Lists what a file or folder of weights holds, and which model it is; no value is read.

Examples:
  cir-jax inspect best.pt
  cir-jax inspect runs/fiq2
"""

import argparse
from typing import TYPE_CHECKING

from cir_jax import config, progress
from cir_jax.errors import UserError

if TYPE_CHECKING:
    from cir_jax.convert.layout import Found, Layout
    from cir_jax.convert.sources import Source

HELP = "list what a file of weights holds, and which model it is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("place", metavar="PLACE", help="run folder, file or folder of weights")
    config.add_remote_code_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what there is."""
    from cir_jax import weights
    from cir_jax.convert import sources, tables

    say = progress.say
    if weights.is_run(args.place):
        model = weights.config_of(args.place).model
        say(f"{args.place}: a run of model.name={model.name} model.tower={model.tower}")
        return 0
    adapter = sources.is_adapter(args.place)
    source = sources.open_adapter(args.place)[0] if adapter else sources.open_source(args.place)
    say(f"{args.place}: {source.container}, {', '.join(f.name for f in source.files)}")
    for key, value in source.values.items():
        say(f"  {progress.shown(key, one_line=True)} = {progress.shown(value, one_line=True)}")
    candidates = _say_models(source, args.ignore_remote_code)
    for key, group in source.groups.items():
        megabytes = sum(t.nbytes for t in group.values()) / 1e6
        title = progress.shown(key, one_line=True) or "state dict"
        say(f"  {title}: {len(group)} tensors, {megabytes:,.1f} MB")
        for name, tensor in group.items():
            why = (tables.ignored_reason(layout.ignored, name) for _, layout, _ in candidates)
            reason = next(filter(None, why), "")
            note = f"  (not read: {reason})" if reason else ""
            title = progress.shown(name, one_line=True)
            say(f"    {title}  {tensor.dtype} {list(tensor.shape)}{note}")
    return 0


def _say_models(source: "Source", ignore_remote_code: bool) -> "list[tuple[str, Layout, Found]]":
    """Says which models the source may be of; those."""
    from cir_jax.convert import identify, remote_code

    say = progress.say
    try:
        with remote_code.ignoring(ignore_remote_code):
            candidates = identify.candidates(source)
    except UserError as error:  # what there is, which is said next, helps to do what it asks for
        say(f"  {error}")
        return []
    for model, layout, found in candidates:
        keys = [f"model.{k}={v}" for k, v in found.config.items() if k != "name"]
        keys += [f"data.{k}={v}" for k, v in found.data.items()]
        part = "a part of " if layout.part else ""
        about = f"{layout.about}; {part}model.name={model} {' '.join(keys)}"
        say(f"  {layout.name}: {about}".rstrip())
        if found.doubt:
            say(f"  in doubt: {found.doubt}")
        if found.renamed:
            say(f"  {found.renamed}, and the other names likewise")
    if not candidates:
        say("  no model of this project has these tensors")
    return candidates
