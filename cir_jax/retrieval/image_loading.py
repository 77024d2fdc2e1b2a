# SPDX-License-Identifier: Apache-2.0
"""`data.loading=auto`, decided: how files become pictures belongs to the weights.

What trained on pixels of one kind is used with them: stage two, evaluation, search and banks take
`data.loading` and `data.background` of the run or file they start from. Where that does not say,
published data sets are released, as published runs were, and everything else is natural.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress, weights
from cir_jax.convert import identify
from cir_jax.convert.opened import sources_of
from cir_jax.data.pixels import AUTO, RELEASED, Loading
from cir_jax.datasets import reader
from cir_jax.errors import UserError


def of_training(config: ConfigDict, trains_index: bool) -> ConfigDict:
    """The config of a run that trains, with `data.loading` decided.

    A run that is resumed keeps its own. Stages zero and one, which train the image side too, go by
    the data, and say where the weights they start from were used otherwise; stage two, whose bank
    is made of that image side as it is, goes by the weights.

    Args:
      config: of the run.
      trains_index: whether its stage trains the index side.

    Raises:
      UserError: stage two is told another loading than its weights have; or a damaged run.
    """
    own = by_images(config.data, config.data.name)
    if (resumed := weights.resumed(config)) is not None:
        # Another one that is asked for by name is refused where the two configs are compared.
        return _decided(config, _said(resumed.data) or own)
    held = _of_places(config, config.init_from, "best")
    config = _decided(config, own if trains_index else (held or own))
    chosen = _said(config.data)
    if held and chosen and held != chosen:
        if not trains_index:
            raise UserError(
                f"{_words(chosen)}, but {config.init_from} was trained with {_words(held)}, and "
                "stage two makes its bank with that image side as it is; leave data.loading=auto, "
                "or train stage one with the other"
            )
        progress.say(
            f"{config.init_from} was trained with {_words(held)}; this run goes on with "
            f"{_words(chosen)}"
        )
    return config


def of_use(
    config: ConfigDict, init_from: str, which: str = "best", dataset: str = ""
) -> ConfigDict:
    """The config that weights are used with, with `data.loading` decided.

    Args:
      config: of a run, or of a benchmark.
      init_from: the weights, see `weights.load`.
      which: of a run: "best", "last" or a step.
      dataset: name of the data set or benchmark whose images they are; "" is `eval.benchmark`.

    Raises:
      UserError: an unknown loading or colour.
    """
    held = say_if_other(config, init_from, which)
    return _decided(config, held or by_images(config.data, dataset or config.eval.benchmark))


def say_if_other(config: ConfigDict, init_from: str, which: str = "best") -> Loading | None:
    """What the weights say, after a line if the config says another one."""
    held, chosen = _of_places(config, init_from, which), _said(config.data)
    if held and chosen and held != chosen:
        progress.say(
            f"{init_from} was trained with {_words(held)} and is used with {_words(chosen)}"
        )
    return held


def by_images(data: Any, dataset: str) -> Loading:
    """That of images of a published data set, or of others, for weights that do not say theirs.

    Args:
      data: section of a config.
      dataset: name of a data set or benchmark; "none" and "" are others.
    """
    if dataset not in ("", "none") and reader.is_published(dataset):
        return RELEASED
    return Loading("natural", data.background)


def agreed(said: Sequence[Any]) -> dict[str, str]:
    """What parts of a model say together: {"loading", "background"}, or {} where none does.

    Raises:
      UserError: they say different things.
    """
    found = {loading for data in said if (loading := _said(data)) is not None}
    if len(found) > 1:
        raise UserError(
            f"parts of one model say {' and '.join(sorted(map(_words, found)))}; say which they "
            "are used with, data.loading=released or natural"
        )
    return {key: value for one in found for key, value in _keys(one)}


def _keys(loading: Loading) -> tuple[tuple[str, str], ...]:
    return ("loading", loading.name), ("background", loading.background)


def _of_places(config: ConfigDict, init_from: str, which: str) -> Loading | None:
    """What the weights say; None where none does, or not all that do say the same."""
    named = weights.places(init_from)
    runs = [place for place in named if weights.is_run(place)]
    found = {_said(weights.config_of(run, which).data) for run in runs}
    for source in sources_of([place for place in named if place not in runs]):
        found.add(_said(identify.find(source, config.model.name)[1].data))
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _said(data: Any) -> Loading | None:
    """Of the section `data` of a run, or of what a file says; None if that is not decided."""
    name = data.get("loading", AUTO)
    if name in (AUTO, RELEASED.name):  # a background is of the other one only
        return RELEASED if name == RELEASED.name else None
    return Loading(name, data.get("background", RELEASED.background))


def _decided(config: ConfigDict, default: Loading) -> ConfigDict:
    """The config with `default`, as far as it leaves things to it."""
    if config.data.loading != AUTO:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.loading = default.name
        if config.data.background == RELEASED.background:
            config.data.background = default.background
    return config.lock()


def _words(loading: Loading) -> str:
    colour = "" if loading.name == "released" else f" data.background={loading.background}"
    return f"data.loading={loading.name}{colour}"
