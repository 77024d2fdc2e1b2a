# SPDX-License-Identifier: Apache-2.0
"""Which model a file holds, and of which size, by its shapes and configs, never by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import plugins
from cir_jax.convert import inputs, native, subtrees
from cir_jax.convert.layout import Found, Layout
from cir_jax.convert.opened import sources_of
from cir_jax.convert.sources import Source
from cir_jax.errors import UserError

MODELS = "cir_jax.models"
AUTO = "auto"  # `model.tower`: whatever the file holds


def layouts(model: str) -> tuple[Layout, ...]:
    """The layouts of the model called `model`, our own first.

    Raises:
      UserError: no such model.
    """
    module = plugins.load(MODELS, model, marker="Model")
    return (native.LAYOUT, *getattr(module, "LAYOUTS", ()))


def candidates(source: Source) -> list[tuple[str, Layout, Found]]:
    """(model, layout, what it says) of every model one of whose layouts is that of `source`.

    Raises:
      UserError: it holds more than one set of weights of each model that it fits.
    """
    if found := native.find(source):
        return [(found.config["name"], native.LAYOUT, found)]
    fitting, several = [], None
    for model in plugins.available(MODELS):
        try:
            if fits := subtrees.find(source, layouts(model)):
                fitting.append((model, *fits))
        except subtrees.Several as error:
            several = error
    if several and not fitting:
        raise several
    return fitting


def find(source: Source, model: str) -> tuple[Layout, Found]:
    """The layout of `source` for a model.

    Raises:
      UserError: it is none of that model's, what it holds is said; or it holds two of them.
    """
    known = layouts(model)
    if fitting := subtrees.find(source, known):
        return fitting
    others = [f"model.name={name} ({layout.about})" for name, layout, _ in candidates(source)]
    hint = f"It looks like {', '.join(others)}. " if others else subtrees.hint(source, known)
    raise UserError(
        f"{source.place} holds no weights of {model}, but {describe(source)}. {hint}{model} reads: "
        f"{', '.join(layout.about for layout in known)}"
    )


def match(source: Source, model: ConfigDict) -> tuple[Layout, Found, dict[str, Any]]:
    """(layout, what the file says, the keys of the config's `model` section with their values).

    Args:
      source: the weights.
      model: the `model` section; values that the file agrees with are kept as they are written.

    Raises:
      UserError: another model or another size, or `tower` is "auto" and the file does not say.
    """
    layout, found = find(source, model.name)
    keys = {}
    for key, value in found.config.items():
        automatic = model.tower == AUTO and key != "name"
        if automatic and found.doubt and key == "tower":
            raise UserError(
                f"{source.place}: {found.doubt}. Say it, --set model.tower={value} or "
                f"--set model.tower={value}+gelu, or put its open_clip_config.json beside it"
            )
        if not automatic and not found.fits(key, model[key]):
            auto = " (or model.tower=auto)" if key == "tower" and not found.doubt else ""
            raise UserError(
                f"{source.place} ({layout.about}) is of model.{key}={value}, but the config says "
                f"model.{key}={model[key]}; give --set model.{key}={value}{auto}"
            )
        keys[key] = value if automatic else model[key]
    return layout, found, keys


def check_inputs(source: Source, found: Found, model: ConfigDict) -> None:
    """Raises UserError if weights were trained with other inputs than a `model` section says."""
    if other := inputs.differing(model, found.inputs):
        raise UserError(
            f"{source.place} was trained with {'; '.join(other)} of the config: every image or "
            "text would look wrong to it. Leave the key out, which takes that of the weights"
        )


def resolve(config: ConfigDict, places: Sequence[str | Path]) -> ConfigDict:
    """`config` with what `model.tower=auto` leaves to the weights at `places`.

    Raises:
      UserError: see `match`; or none of them says the size.
    """
    keys: dict[str, Any] = {}
    for source in sources_of(places):
        keys |= match(source, config.model)[2]
    if "tower" not in keys:
        raise UserError(
            f"{', '.join(map(str, places))}: nothing there says the size of the encoders; name "
            "the CLIP that goes with it too, or give --set model.tower=NAME"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update(keys)
    return config


def describe(source: Source) -> str:
    """What is in a source, in one line."""
    parts = []
    for key, group in source.groups.items():
        first = ", ".join(list(group)[:3])
        parts.append(f"{key or 'a state dict'} of {len(group)} tensors ({first}, ...)")
    return "; ".join([*parts, *(f"{key}={value}" for key, value in source.values.items())])


def models_of(opened: Sequence[Source]) -> list[str]:
    """Names of the models that all these weights are of, sorted.

    One source alone must hold a whole model: of a CLIP that is `clip_sum`, not the Combiner that
    would start at random on it. Of several each may hold a part.
    """
    fitting = [
        {model for model, layout, _ in candidates(source) if len(opened) > 1 or not layout.part}
        for source in opened
    ]
    return sorted(set.intersection(*fitting))


def is_file(model: str) -> bool:
    """Whether a model is the code of a file, which naming it would run."""
    return model not in plugins.available(MODELS)


def sole_model(opened: Sequence[Source]) -> str:
    """Name of the one model that all these weights are of.

    Raises:
      UserError: it is none's, or that of several, or that of a file which would be run.
    """
    models = models_of(opened)
    if len(models) == 1 and is_file(models[0]):
        raise UserError(
            f"{opened[0].place} is of the model {models[0]!r}, which is not one of this project's; "
            "give the file of the model that you trust, --model FILE.py"
        )
    if len(models) != 1:
        which = f"they could be any of {', '.join(models)}" if models else "no model here has these"
        what = "; ".join(f"{source.place} holds {describe(source)}" for source in opened)
        raise UserError(f"{what}: {which}; give --model NAME")
    return models[0]
