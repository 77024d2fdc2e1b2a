# SPDX-License-Identifier: Apache-2.0
"""Which model a file holds, and of which size, by its shapes and configs, never by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_jax import plugins
from cir_jax.convert import native
from cir_jax.convert.layout import Found, Layout
from cir_jax.convert.sources import Source, open_source
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


def everything(source: Source) -> list[tuple[str, Layout, Found]]:
    """(model, layout, what it says) of every model one of whose layouts is that of `source`."""
    if says := native.find(source):
        return [(says.config["name"], native.LAYOUT, says)]
    found = []
    for model in plugins.available(MODELS):
        for layout in layouts(model):
            if says := layout.find(source):
                found.append((model, layout, says))
                break
    return found


def find(source: Source, model: str) -> tuple[Layout, Found]:
    """The layout of `source` for a model.

    Raises:
      UserError: it is none of that model's; what it holds is said.
    """
    known = layouts(model)
    for layout in known:
        if found := layout.find(source):
            return layout, found
    others = [f"model.name={name} ({layout.about})" for name, layout, _ in everything(source)]
    hint = f"It looks like {', '.join(others)}. " if others else ""
    raise UserError(
        f"{source.place} holds no weights of {model}, but {held(source)}. {hint}{model} reads: "
        f"{', '.join(layout.about for layout in known)}"
    )


def agreed(source: Source, model: Any) -> tuple[Layout, Found, dict[str, Any]]:
    """(layout, what the file says, the keys of the config's `model` section that it settles).

    Args:
      source: the weights.
      model: the `model` section; values that the file agrees with are kept as they are written.

    Raises:
      UserError: another model or another size, or `tower` is "auto" and the file does not say.
    """
    layout, found = find(source, model.name)
    chosen = {}
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
        chosen[key] = value if automatic else model[key]
    return layout, found, chosen


def settled(config: Any, places: Sequence[str | Path]) -> Any:
    """`config` with what `model.tower=auto` leaves to the weights at `places`.

    Raises:
      UserError: see `agreed`; or none of them says the size.
    """
    keys = {}
    for place in places:
        keys |= agreed(open_source(place), config.model)[2]
    if "tower" not in keys:
        raise UserError(
            f"{', '.join(map(str, places))}: nothing there says the size of the encoders; name "
            "the CLIP that goes with it too, or give --set model.tower=NAME"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update(keys)
    return config


def held(source: Source) -> str:
    """What is in a source, in one line."""
    said = []
    for key, group in source.groups.items():
        first = ", ".join(list(group)[:3])
        said.append(f"{key or 'a state dict'} of {len(group)} tensors ({first}, ...)")
    return "; ".join([*said, *(f"{key}={value}" for key, value in source.values.items())])


def only(opened: Sequence[Source]) -> str:
    """Name of the one model that all these weights are of.

    Raises:
      UserError: it is none's, or that of several, or that of a file which would be run.
    """
    candidates = [
        {model for model, layout, _ in everything(source) if len(opened) > 1 or not layout.part}
        for source in opened
    ]
    models = sorted(set.intersection(*candidates))
    if len(models) == 1 and models[0] not in plugins.available(MODELS):
        # It is a path, and opening it runs what is there.
        raise UserError(
            f"{opened[0].place} is of the model {models[0]!r}, which is not one of this project's; "
            "give the file of the model that you trust, --model FILE.py"
        )
    if len(models) != 1:
        which = f"they could be any of {', '.join(models)}" if models else "no model here has these"
        what = "; ".join(f"{source.place} holds {held(source)}" for source in opened)
        raise UserError(f"{what}: {which}; give --model NAME")
    return models[0]
