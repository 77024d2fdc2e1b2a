# SPDX-License-Identifier: Apache-2.0
"""The parameters to start from: a run folder of ours, or weights that PyTorch left behind."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import keys, progress
from cir_jax.config import from_json, to_json
from cir_jax.contract import Functions
from cir_jax.convert import identify, importing, inputs
from cir_jax.convert.importing import Weights
from cir_jax.convert.opened import sources_of
from cir_jax.data import tokenizer_files
from cir_jax.errors import UserError
from cir_jax.files import put
from cir_jax.params import OF_STAGES, Params
from cir_jax.runtime import checkpoint, run_steps
from cir_jax.runtime import mesh as meshes

TOKENIZER = "tokenizer"  # folder in a run: files that came with the weights it started from
_MODEL_KEYS = ("tower", "context", "image_size")
_NO_CONFIG = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # of `_config_in`


def places(init_from: str) -> list[str]:
    """`init_from` may name several, with commas between: parts of one model."""
    if init_from and os.path.exists(init_from):  # a path may have a comma in it
        return [init_from]
    return [place for place in (p.strip() for p in init_from.split(",")) if place]


def is_run(place: str | Path) -> bool:
    """Whether a folder is one of a run of ours."""
    return (Path(place) / "checkpoints").is_dir()


def config_of(workdir: str | Path, which: str = "best") -> ConfigDict:
    """The config a run was trained with.

    Raises:
      UserError: no such run or step.
    """
    return _whole(workdir, which)[1]


def record_of(workdir: str | Path, which: str = "best") -> dict[str, Any]:
    """What a run notes with the parameters of a step: config, paths and shapes, history, ...

    Raises:
      UserError: no such run or step.
    """
    return _whole(workdir, which)[0]


def _whole(workdir: str | Path, which: str) -> tuple[dict[str, Any], ConfigDict]:
    """(record, the config in it) of a step, or of one before it whose record is whole.

    Raises:
      UserError: no such run or step.
    """
    trouble: list[UserError] = []
    for checkpoints, step in run_steps.candidates(workdir, which):
        try:
            record = checkpoints.record(step)
            return record, _here(_config_in(record["config"]), workdir)
        except UserError as error:  # `of_run` says which step is used in its place
            trouble.append(error)
        except _NO_CONFIG as error:
            trouble.append(checkpoints.damaged(step, f"the config in its record: {error!r}"))
    raise UserError("; ".join(map(str, trouble)))


def _here(config: ConfigDict, workdir: str | Path) -> ConfigDict:
    """The config of a run, whose tokenizer lies in its folder wherever that is today."""
    if config.model[inputs.TOKENIZER]:
        with config.unlocked():
            config.model[inputs.TOKENIZER] = str(Path(workdir) / TOKENIZER)
    return config


def _config_in(text: str) -> ConfigDict:
    """The config of a record, of which every key is of the type it has in configs/base.py.

    Raises:
      One of _NO_CONFIG: it is none.
    """
    config = from_json(text)
    held = keys.flat(config)
    for key, default in keys.flat(configs.module("base").get_config()).items():
        kind, value = type(default), held[key]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise TypeError(f"{key}={value!r}")
    return config


def resumed(config: ConfigDict) -> ConfigDict | None:
    """The config of the run in `config.workdir` that training goes on with; None if it is new.

    Also None if none of its steps can be read: who restores them says so of all of them.
    """
    if not checkpoint.Checkpoints(Path(config.workdir) / checkpoint.LAST).steps():
        return None
    try:
        return config_of(config.workdir, "last")
    except UserError:  # all are damaged: the training, which begins next, sets them aside
        return None


def resolve(config: ConfigDict, init_from: str | None = None, which: str = "best") -> ConfigDict:
    """`config` with what it leaves to its weights.

    That is `model.tower=auto`, and the keys of `convert.inputs`: normalisation, filter, tokenizer.

    Args:
      config: of a run.
      init_from: the parameters that are used; None for those that training starts with: what it
        resumes in `config.workdir`, or else `config.init_from`.
      which: of a run: "best", "last" or a step.

    Raises:
      UserError: there are no weights to ask, they do not say, or the config says something else.
    """
    resumes = False
    if init_from is None:
        init_from = config.init_from
        resumes = bool(checkpoint.Checkpoints(Path(config.workdir) / checkpoint.LAST).steps())
        if resumes:
            init_from, which = config.workdir, "last"
    return _with_inputs(_sized(config, init_from, which), init_from, which, resumes)


def _sized(config: ConfigDict, init_from: str, which: str) -> ConfigDict:
    if config.model.tower != identify.AUTO:
        return config
    if from_run := next(filter(is_run, places(init_from)), None):
        held = config_of(from_run, which).model
        keys = {key: held[key] for key in _MODEL_KEYS}
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.model.update(keys)
        return config
    if not init_from:
        raise UserError(
            "model.tower=auto takes the size of the weights in init_from, which is empty; give "
            "--init-from FILE_OR_FOLDER, or the name of a tower"
        )
    return identify.resolve(config, places(init_from))


def _with_inputs(config: ConfigDict, init_from: str, which: str, resumes: bool) -> ConfigDict:
    """`config` with the keys of `inputs` that it leaves open as its weights have them."""
    said = inputs.agreed(_inputs_of(config, init_from, which, resumes))
    model = config.model
    by_hand = {key: value for key in inputs.KEYS if (value := model[key])}
    if model[inputs.TOKENIZER] and not model[inputs.CONTENT]:
        by_hand[inputs.CONTENT] = tokenizer_files.checksum(
            tokenizer_files.read(model[inputs.TOKENIZER])
        )
    wrong = inputs.differing(by_hand, {k: v for k, v in said.items() if k in by_hand})
    if wrong and not resumes:  # the two configs of a run that is resumed are compared later
        raise UserError(
            f"{init_from} was trained with {'; '.join(wrong)}, which was set; every image or text "
            "would look wrong to it. Leave that out"
        )
    taken = said | by_hand
    if all(model[key] == value for key, value in taken.items()):
        return config
    given = configs.given(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.update(taken)
    return configs.note_given(config.lock(), given)


def _inputs_of(
    config: ConfigDict, init_from: str, which: str, resumes: bool
) -> dict[str, dict[str, Any]]:
    """Place -> what it says of inputs."""
    if resumes:
        own = resumed(config)
        return {} if own is None else {init_from: {key: own.model[key] for key in inputs.KEYS}}
    named = places(init_from)
    runs = [place for place in named if is_run(place)]
    said = {}
    for run in runs:
        held = config_of(run, which).model
        said[run] = {key: held[key] for key in inputs.KEYS}
    for source in sources_of([place for place in named if place not in runs]):
        said[str(source.place)] = dict(identify.find(source, config.model.name)[1].inputs)
    return said


def load(
    init_from: str,
    functions: Functions,
    which: str = "best",
    seed: int = -1,
    kept: Iterable[str] = (),
) -> Weights:
    """The parameters that `init_from` names, on the host.

    Args:
      init_from: a run folder, a file or a folder of weights; or several, with commas between, each
        of which holds a part of the model. One that needs none, see PLAIN in `cir_jax.contract`,
        reads a run folder alone, and is else as it was drawn.
      functions: the model.
      which: of a run: "best", "last" or a step.
      seed: for leaves that may be new, see NEW in `cir_jax.contract`; below 0 none may be.
      kept: paths of leaves that will not train and may not be new either.

    Raises:
      UserError: no such place; or together they do not hold exactly this model.
    """
    named = places(init_from)
    plain = getattr(functions.module, "PLAIN", False)
    if plain and not any(map(is_run, named)):
        drawn = _host(functions.init(max(seed, 0)))
        return Weights(drawn, drawn, {"from_scratch": True, "seed": max(seed, 0)}, ())
    if which != "best" and not any(map(is_run, named)):
        raise UserError(f"--step={which} is of a run, and {init_from} is none; leave it out")
    parts = _parts(named, functions, which)
    index: Params = {}
    query: Params = {}
    for part in parts:
        twice = sorted(part.query.keys() & query.keys())
        if twice:
            raise UserError(
                f"init_from={init_from}: {', '.join(twice[:3])} ({len(twice)} in all) are in more "
                "than one of them; give each part of the model once"
            )
        index |= part.index
        query |= part.query
    missing = [path for path in functions.abstract if path not in query]
    if missing:
        if lacking := sorted(set(missing).intersection(kept)):
            raise UserError(
                f"init_from={init_from} lacks {', '.join(lacking[:4])} ({len(lacking)} leaves in "
                "all), which stage two does not train: bank and references would be those of "
                "random parameters. Train stage one from these weights first"
            )
        fresh = _new(init_from, functions, missing, seed)
        index |= fresh
        query |= fresh
    record = parts[0].record if len(parts) == 1 else {"parts": [p.record for p in parts]}
    return Weights(index, query, record, tuple(f for part in parts for f in part.files))


def save_run(
    workdir: str | Path, config: ConfigDict, functions: Functions, weights: Weights
) -> Path:
    """Writes weights as a run folder of ours, which `init_from` and `--workdir` take.

    Raises:
      UserError: there is a run already, or no folder can be made there.
    """
    folder = Path(workdir)
    if is_run(folder):
        raise UserError(f"{folder} holds a run already; give another folder, or delete that one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made a folder ({error.strerror}); give another one"
        ) from None
    different = {p: x for p, x in weights.query.items() if x is not weights.index.get(p)}
    record = {
        "config": to_json(config),
        "git": checkpoint.git_hash(),
        "paths": {"fixed": sorted(weights.index), "trained": sorted(different)},
        "shapes": {p: list(s.shape) for p, s in functions.abstract.items()},
        "index_is_query": not different,
        "step": 0,
        "seconds": 0.0,
        "best": None,
        "history": [],
        "data": None,
        "source": weights.record,
    }
    best = checkpoint.Checkpoints(folder / checkpoint.BEST, keep=1, chunk_gb=1)
    best.save(0, {"fixed": _in_place(weights.index), "trained": _in_place(different)}, record)
    best.close()
    carry(weights.files, folder)
    keep_tokenizer(config, folder)
    return folder


def carry(files: tuple[Path, ...], workdir: str | Path) -> None:
    """Copies tokenizer files into a run folder, so that an export of it has them."""
    folder = Path(workdir) / TOKENIZER
    for file in files if jax.process_index() == 0 else ():
        if file.parent.absolute() != folder.absolute():
            put(folder / file.name, file.read_bytes())


def keep_tokenizer(config: ConfigDict, workdir: str | Path) -> None:
    """Copies the tokenizer of a config into a run folder, so that the run is whole."""
    place, folder = config.model[inputs.TOKENIZER], Path(workdir) / TOKENIZER
    if not place or jax.process_index() != 0 or Path(place).absolute() == folder.absolute():
        return
    for name, content in tokenizer_files.read(place).items():
        put(folder / name, content)


def carried(workdir: str | Path) -> tuple[Path, ...]:
    """The tokenizer files in a run folder."""
    folder = Path(workdir) / TOKENIZER
    return tuple(sorted(folder.iterdir())) if folder.is_dir() else ()


def _parts(places: Iterable[str], functions: Functions, which: str) -> list[Weights]:
    """What each place holds; files come before runs."""
    runs = [place for place in places if is_run(place)]
    opened = sources_of([place for place in places if place not in runs])
    files = [importing.read(source, functions) for source in opened]
    return [*files, *(_of_place(run, functions, which) for run in runs)]


def _of_place(place: str, functions: Functions, which: str) -> Weights:
    index, query, record = of_run(place, functions, which)
    origin = {"place": str(Path(place).absolute()), "step": record["step"], "layout": "run"}
    return Weights(index, query, origin | {"source": record.get("source")}, carried(place))


def of_run(
    workdir: str | Path, functions: Functions, which: str = "best"
) -> tuple[Params, Params, dict[str, Any]]:
    """(index, query, record) of a run, on the host; leaves that are new to it are left out.

    Raises:
      UserError: no such run, or its parameters are not those of this model.
    """
    checkpoints, step, record = run_steps.sound(workdir, which)
    need, shapes = functions.abstract, record["shapes"]
    wanted = {
        name: {p: need.get(p, jax.ShapeDtypeStruct((), jnp.float32)) for p in paths}
        for name, paths in record["paths"].items()
    }
    have = {p for paths in record["paths"].values() for p in paths} - {*OF_STAGES}
    absent = {p for p in need.keys() - have if not may_be_new(functions, p)}
    different = sorted((have - need.keys()) | absent)
    different += [p for p, s in shapes.items() if p in need and need[p].shape != tuple(s)]
    if different:
        trained_as = _config_in(record["config"]).model
        raise UserError(
            f"{workdir} holds {trained_as['name']} / {trained_as['tower']}, not this model: "
            f"{', '.join(different[:4])} differ ({len(different)} in all); "
            "give model.name and model.tower as that run has them"
        )
    place = meshes.replicated(meshes.make())
    placed = {
        name: {p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for p, s in part.items()}
        for name, part in wanted.items()
        if part
    }
    tree = {"fixed": {}, "trained": {}, **checkpoints.restore_checked(step, placed, partial=True)}
    checkpoints.close()
    query = _host({**tree["fixed"], **tree["trained"]})
    return query if record["index_is_query"] else _host(tree["fixed"]), query, record


def may_be_new(functions: Functions, path: str) -> bool:
    """Whether a leaf may start at random beside weights that lack it."""
    return any(re.fullmatch(regex, path) for regex in getattr(functions.module, "NEW", ()))


def _new(init_from: str, functions: Functions, missing: list[str], seed: int) -> Params:
    lacking = [path for path in missing if seed < 0 or not may_be_new(functions, path)]
    if lacking:
        raise UserError(
            f"init_from={init_from} lacks {', '.join(lacking[:4])} ({len(lacking)} leaves in all) "
            "of the model; name the file that has them too, with a comma between"
        )
    progress.say(
        f"{init_from} has no {', '.join(missing[:3])} ({len(missing)} leaves in all): they start "
        f"at random, seed {seed}"
    )
    drawn = functions.init(seed)
    return {path: np.asarray(drawn[path]) for path in missing}


def _in_place(params: Mapping[str, Any]) -> Params:
    """The same arrays as jax's: Orbax copies those of numpy, twice, before it writes them."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names none
        return dict(params)
    return {path: jax.device_put(x, host) for path, x in params.items()}


def _host(params: Mapping[str, Any]) -> Params:
    return {p: np.asarray(x) for p, x in params.items()}
