# SPDX-License-Identifier: Apache-2.0
"""What files of weights and the arguments of `cir_jax.load` say together, and what neither says.

The commands ask for the same by `--set` and `--model`; here messages name the argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_jax import plugins, weights
from cir_jax.contract import Functions
from cir_jax.convert import identify, tables
from cir_jax.convert.layout import Found, Layout
from cir_jax.convert.opened import sources_of
from cir_jax.convert.sources import Source
from cir_jax.data.pixels import LOADINGS, PADS
from cir_jax.errors import UserError, nearest
from cir_jax.retrieval import load

_PAD = (
    "pad='target' (padded to 1.25, as CLIP4CIR and SPN train), 'square', 'none' (CLIP's crop) or "
    "'squash' (SigLIP's)"
)


@dataclass(frozen=True)
class Parts:
    """The places that hold a model together.

    Attributes:
      places: all of them.
      runs: those that are run folders; the others are read by layouts.
      found: (layout, what the file says) of each other.
    """

    places: Sequence[str]
    runs: Sequence[str]
    found: Sequence[tuple[Layout, Found]] = ()


def read(
    places: Sequence[str],
    model: str | None,
    tower: str | None,
    pad: str | None,
    loading: str | None = None,
) -> tuple[Parts, list[str]]:
    """(parts, changes of a config) of the arguments of `cir_jax.load`.

    Raises:
      UserError: an argument is wrong, or one of `model` and `tower` is needed and not given.
    """
    if pad is not None and pad not in PADS:
        raise UserError(f"pad={pad!r} is unknown; give {_PAD}.{nearest(pad, PADS)}")
    if loading is not None and loading not in LOADINGS:
        raise UserError(
            f"loading={loading!r} is unknown; give 'natural' (as a person sees it) or 'released' "
            f"(as published runs were trained).{nearest(loading, LOADINGS)}"
        )
    given = {"model.tower": tower, "data.pad": pad, "data.loading": loading}
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    runs = [place for place in places if weights.is_run(place)]
    opened = sources_of([place for place in places if place not in runs])
    if not opened:
        return Parts(places, runs), changes
    if runs and model is None:
        raise UserError(
            f"{runs[0]} is a run among several places; say which model they are parts of, "
            "model='clip_combiner'"
        )
    model = model or _sole_model(opened)
    found = [identify.find(source, model) for source in opened]
    for source, (_, says) in zip(opened, found, strict=True):
        _check_tower(source, says, tower)
    keys = {key: value for _, says in found for key, value in says.config.items()}
    if "tower" not in keys and tower is None and not runs:
        raise UserError(
            f"{_listed(places)} does not say the size of the encoders of {model}; give a list with "
            "the file that has them too"
        )
    if tower is not None:  # what else the files say goes with it
        changes += [f"model.{k}={v}" for k, v in keys.items() if k not in ("name", "tower")]
    return Parts(places, runs, found), changes


def check(parts: Parts, functions: Functions, pad: str | None) -> None:
    """Raises UserError unless the parts are a whole model, and somebody says how images are padded.

    Weights to train from lack leaves that start at random: a model of them would be no model.
    """
    if not parts.found:
        return
    held: set[str] = set()
    for layout, _ in parts.found:
        held |= tables.leaves(layout.rules_of(functions), functions.abstract).keys()
    missing = [path for path in functions.abstract if path not in held]
    if missing and not parts.runs:
        raise UserError(
            f"{_listed(parts.places)} holds no {', '.join(missing[:3])} of {functions.config.name} "
            f"({len(missing)} leaves in all): weights to train from. Train them first (`cir-jax "
            "train --init-from`), or give a list with the file that has the rest"
        )
    if pad is None and not load.inputs_of([says for _, says in parts.found], parts.runs):
        raise UserError(
            f"{_listed(parts.places)} does not say how images become squares; give {_PAD}"
        )


def _sole_model(opened: Sequence[Source]) -> str:
    models, where = identify.models_of(opened), _listed([source.place for source in opened])
    if len(models) == 1 and not identify.is_file(models[0]):
        return models[0]
    if len(models) == 1:
        raise UserError(
            f"{where} is of the model {models[0]!r}, whose code would be run; if you trust it, say "
            f"so: model={Path(models[0]).name!r}, with the path that it has here"
        )
    if models:
        raise UserError(
            f"{where} could be of any of {', '.join(models)}; say which, model={models[0]!r}"
        )
    parts = sorted({name for one in opened for name, _, _ in identify.candidates(one)})
    remedy = (
        f"it may be a part of {', '.join(parts)}: give a list of all its parts"
        if parts
        else f"say which it is of, model={plugins.available(identify.MODELS)[0]!r}"
    )
    holds = "; ".join(identify.describe(source) for source in opened)
    raise UserError(f"{where} is of no whole model here ({holds}); {remedy}")


def _check_tower(source: Source, says: Found, tower: str | None) -> None:
    own = says.config.get("tower")
    if own is None:
        return
    if tower is None and says.doubt:
        pad = "" if says.data else f"; and {_PAD}"
        raise UserError(
            f"{source.place}: {says.doubt}. Say it, tower={own!r} or tower='{own}+gelu'{pad}"
        )
    if tower is not None and not says.fits("tower", tower):
        raise UserError(f"{source.place} is of tower {own!r}, not tower={tower!r}; leave it out")


def _listed(places: Sequence[Any]) -> str:
    return ", ".join(map(str, places))
