# SPDX-License-Identifier: Apache-2.0
"""Stage two takes model, size and preprocessing from the run or file that it starts from.

Its bank is made by that image side as it is, so another size or another crop would not be a choice
but a mistake. What the config file says of these keys gives way, with a line; what was set by hand
(`--set`, or the changes of `cir_jax.train`) and contradicts the weights is refused. A run that is
resumed keeps what it began with. `data.loading` is decided in `cir_jax.retrieval.image_loading`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import contract, keys, progress, weights
from cir_jax.contract import Functions
from cir_jax.convert import identify
from cir_jax.convert.layout import Found
from cir_jax.convert.sources import Source, open_source
from cir_jax.errors import UserError
from cir_jax.params import OF_STAGES

MODEL, TOWER, PAD, RATIO = "model.name", "model.tower", "data.pad", "data.target_ratio"
REMAT, ATTENTION = "model.remat", "model.attention"
_BLOCK = "loss.bank_block"  # 0 may be another number of rows elsewhere, and sums are rounded
_PACKS = "data.pack_texts"
_COMPUTED = (REMAT, ATTENTION, _BLOCK, _PACKS)  # how a run computes: its numbers differ in rounding
_SIZES = (TOWER, "model.image_size", "model.context")


def take(config: ConfigDict) -> ConfigDict:
    """`config` with the keys that belong to its weights as these have them.

    Args:
      config: of a stage whose index side does not train.

    Raises:
      UserError: a key that was set by hand contradicts the weights; both values are named.
    """
    if (own := weights.resumed(config)) is not None:
        given = configs.given(config)  # another value is refused where the two are compared
        return with_values(config, {k: v for k, v in _of_run(own).items() if k not in given})
    for place in weights.places(config.init_from):
        if weights.is_run(place):
            config = _from_run(config, place)
        else:
            config = _from_file(config, open_source(place))
    return config


def of_resumed(config: ConfigDict) -> ConfigDict:
    """`config`, of which a run that is resumed computes as it began to, unless told by hand."""
    if (own := weights.resumed(config)) is None:
        return config
    theirs, ours, given = keys.flat(own), keys.flat(config), configs.given(config)
    shared = {k for k in _COMPUTED if k in theirs and k in ours and k not in given}
    other = {k: theirs[k] for k in sorted(shared) if theirs[k] != ours[k]}
    if REMAT in other:
        progress.say(f"{config.workdir} goes on with {REMAT}={other[REMAT]}, as it began")
    return with_values(config, other)


def _from_run(config: ConfigDict, place: str) -> ConfigDict:
    held = weights.config_of(place)
    theirs, ours = _of_run(held), keys.flat(config)
    if ours[TOWER] == identify.AUTO:  # taken with the rest of the sizes, when weights are resolved
        theirs = {key: value for key, value in theirs.items() if key not in _SIZES}
    if held.model.name == config.model.name:
        return _taken(config, place, theirs)
    sized = with_values(config, {key: theirs[key] for key in _SIZES if key in theirs})
    if _holds(place, sized):  # such as a CLIP, of which a Combiner starts
        return _taken(config, place, theirs)
    _refuse_if_given(config, place, {MODEL: held.model.name})
    if identify.is_file(held.model.name):
        raise UserError(
            f"{place} was trained with model.name={held.model.name}, but the config says "
            f"model.name={config.model.name}; give --set model.name={held.model.name}, whose code "
            "is then run"
        )
    return _taken(config, place, {MODEL: held.model.name, **theirs})


def _of_run(held: ConfigDict) -> dict[str, Any]:
    flat = keys.flat(held)
    ratio = (RATIO,) if flat[PAD] == "target" else ()  # which nothing else reads
    return {key: flat[key] for key in (*_SIZES, PAD, *ratio)}


def _holds(place: str, config: ConfigDict) -> bool:
    """Whether a run has the parameters of the config's model, but for those that may be new."""
    try:
        functions: Functions = contract.build(config.model)
    except UserError:  # the size of another family
        return False
    record = weights.record_of(place)
    have = {path for part in record["paths"].values() for path in part} - {*OF_STAGES}
    shapes, need = record["shapes"], functions.abstract
    return (
        have <= need.keys()
        and all(tuple(shapes[p]) == need[p].shape for p in have)
        and all(weights.may_be_new(functions, p) for p in need.keys() - have)
    )


def _from_file(config: ConfigDict, source: Source) -> ConfigDict:
    place = str(source.place)
    if MODEL not in configs.given(config) and not identify.is_file(config.model.name):
        models = {name for name, _, _ in identify.candidates(source)}
        if models and config.model.name not in models and len(models) == 1:
            (only,) = models
            if not identify.is_file(only):
                config = _taken(config, place, {MODEL: only})
    _, found = identify.find(source, config.model.name)
    return _taken(config, place, _of_file(config, found))


def _of_file(config: ConfigDict, found: Found) -> dict[str, Any]:
    """What a file says and the config has otherwise; a size is read when weights are resolved."""
    theirs: dict[str, Any] = {}
    sizes = [key for key in found.config if key != "name"]
    if config.model.tower != identify.AUTO and not all(
        found.fits(key, config.model[key]) for key in sizes
    ):
        # In doubt the size is left to whoever asks for it, with the reason.
        theirs |= (
            {TOWER: identify.AUTO}
            if found.doubt
            else {f"model.{key}": found.config[key] for key in sizes}
        )
    if "pad" in found.data:
        theirs[PAD] = found.data["pad"]
        if found.data["pad"] == "target":
            theirs[RATIO] = found.data["target_ratio"]
    return theirs


def _taken(config: ConfigDict, place: str, theirs: Mapping[str, Any]) -> ConfigDict:
    """The config with `theirs`, which is said where it changes something."""
    ours = keys.flat(config)
    other = {key: value for key, value in theirs.items() if ours[key] != value}
    if not other:
        return config
    _refuse_if_given(config, place, other)
    said = ", ".join(f"{key}={value} (not {ours[key]})" for key, value in other.items())
    progress.say(f"stage {config.stage} takes from {place}: {said}")
    return with_values(config, other)


def _refuse_if_given(config: ConfigDict, place: str, other: Mapping[str, Any]) -> None:
    ours = keys.flat(config)
    for key, value in other.items():
        if (
            key in configs.given(config)
            and value != identify.AUTO
            and not _is_own_size(config, key, other)
        ):
            raise UserError(
                f"{key}={ours[key]} was set, but {place} was trained with {key}={value}, and stage "
                f"{config.stage} makes its bank with that image side as it is; leave {key} out, or "
                "train stage one with it"
            )


def _is_own_size(config: ConfigDict, key: str, other: Mapping[str, Any]) -> bool:
    """Whether a size that was set by hand is what 0, "the tower's own", comes to."""
    ours = keys.flat(config)[key]
    if key not in _SIZES[1:] or 0 not in (other[key], ours):
        return False

    def measured(values: Mapping[str, Any]) -> int:
        one = with_values(config, values)
        functions = contract.build(one.model)
        if key == "model.image_size":
            return functions.image_size
        return functions.inputs.tokenizer.context

    try:
        return measured({**other, key: ours}) == measured(other)
    except UserError:  # a tower that takes one size alone
        return False


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A locked copy with these values, for which the same keys count as set by hand."""
    if not values:
        return config
    given = configs.given(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return configs.note_given(config.lock(), given)
