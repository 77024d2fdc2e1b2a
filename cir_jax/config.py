# SPDX-License-Identifier: Apache-2.0
"""Loads a config: a Python file by name or path, an argument, and overrides; then locks it.

`clip_sum:fashioniq,stage=2` runs `get_config("fashioniq,stage=2")` of `cir_jax.configs.clip_sum`; a
name that ends in `.py` is a file. Unknown keys, and values that a key may not have, are errors
here, before jax is imported and before data is read; `cir_jax.keys` says how what is allowed is
written.
"""

import argparse
import ast
import importlib
import inspect
import json
import pkgutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cir_jax import keys, plugins
from cir_jax.errors import UserError, nearest

PACKAGE = "cir_jax.configs"


def add_arguments(
    parser: argparse.ArgumentParser,
    example: str = "clip_sum:quicktest",
    change: str = "optim.learning_rate=1e-4 (every key: configs/base.py)",
) -> None:
    """Adds `--config` and `--set` to a command's parser; the rest is said in their help."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:ARGUMENT]",
        help=f"a config by name ({', '.join(available())}) or a .py file, e.g. {example}",
    )
    add_override_argument(parser, change)


def add_remote_code_argument(parser: argparse.ArgumentParser) -> None:
    """The flag of every command that reads weights of other projects."""
    parser.add_argument(
        "--ignore-remote-code",
        action="store_true",
        help="read a transformers folder as the plain model its tensors fit, where its config "
        "names code of its own (auto_map), which is never run; vectors may differ from that code's",
    )


def add_override_argument(
    parser: argparse.ArgumentParser,
    change: str = "optim.learning_rate=1e-4 (every key: configs/base.py)",
) -> None:
    """Adds `--set key=value`, which may be given many times."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"changes a key, e.g. --set {change}",
    )


def add_init_from_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds `--init-from`; see `with_init_from`."""
    parser.add_argument(
        "--init-from",
        nargs="+",
        default=[],
        metavar="FILE_OR_FOLDER",
        help=f"{purpose}: a run folder, .pt or .safetensors (OpenAI CLIP, open_clip, released "
        "CLIP4Cir and SPN runs), a folder of transformers or open_clip; FILE::PART for one of two "
        "sets in a file, e.g. best.pt::model_ema; several if each holds a part of the model, or an "
        "adapter of PEFT and its base",
    )


def with_init_from(config: ConfigDict, places: Sequence[str]) -> ConfigDict:
    """`config` with the places of `--init-from` as its `init_from`.

    Raises:
      UserError: `--set init_from=` names others.
    """
    if not places:
        return config
    joined = ",".join(places)
    if config.init_from not in ("", joined):
        raise UserError(
            f"--init-from {joined} and init_from={config.init_from} are two places to start from; "
            "give one"
        )
    with config.unlocked():
        config.init_from = joined
    return config


def from_args(args: argparse.Namespace) -> ConfigDict:
    """The locked config of parsed arguments."""
    return load(args.config, args.overrides)


def available() -> list[str]:
    """Names of the configs that come with the project."""
    package = _package()
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


def listing() -> str:
    """The configs that train a model, and what argument each takes."""
    lines = []
    for name in (n for n in available() if n != "positives"):
        about = (inspect.getdoc(module(name).get_config) or "").partition("\n\n")[0]
        text = f"{name}:ARGUMENT, where {' '.join(about.replace('`arg`:', 'it is').split())}"
        lines.append(textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads "name", "name:argument" or "path/to/file.py:argument" and applies "key=value" strings.

    Raises:
      UserError: no such config, a bad argument, an unknown key (the nearest is named), or a value
        that its key may not have.
    """
    name, _, argument = spec.partition(":")
    loaded = module(name)
    config = loaded.get_config(argument) if argument else loaded.get_config()
    if not config.workdir:
        stem = "-".join(p for p in (Path(name).stem, *argument.replace("=", "").split(",")) if p)
        config.workdir = str(Path("runs") / stem)
    return override(config, overrides)


def override(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """Applies "key=value" strings, checks every value, and locks the config.

    Values are Python literals or text. Names of plug-ins are applied first: they bring keys.

    Raises:
      UserError: an unknown key, a value that its key may not have, or a key that nothing reads.
    """
    pairs = []
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"override {item!r} has no value; write key=value")
        pairs.append(_renamed(key.strip(), text))
    names = {kind.key for kind in keys.KINDS}
    allowed = module(_base(config)).ALLOWED
    with config.unlocked():
        for key, text in (pair for pair in pairs if pair[0] in names):
            assign(config, key, text)
        keys.add(config)
        _rename(config)  # a text is read as the type of the value that it takes the place of
        for key, text in (pair for pair in pairs if pair[0] not in names):
            assign(config, key, text)
        keys.check(config, allowed)
    keys.check_read(config, [key for key, _ in pairs], allowed)
    return note_given(config.lock(), given(config) | {key for key, _ in pairs})


def given(config: ConfigDict) -> frozenset[str]:
    """The keys that were set by hand, not by a config file; they do not give way to weights."""
    return getattr(config, "_given", frozenset())


def note_given(config: ConfigDict, names: Iterable[str]) -> ConfigDict:
    """`config`, of which these keys count as set by hand. A copy of a config has none."""
    object.__setattr__(config, "_given", frozenset(names))  # beside its keys: it is no value
    return config


def assign(config: ConfigDict, key: str, text: str) -> None:
    """Sets one key from its text, with the type that the key has now.

    Raises:
      UserError: no such key, or the text is no value of the key's type.
    """
    values = keys.flat(config)
    if key not in values:
        raise UserError(f"unknown config key {key!r}.{_meant(key, values)} {_where(config)}")
    value = _parse(key, text, values[key])
    with config.unlocked():
        config.update_from_flattened_dict({key: value})


# What people write who come from other trainers.
_OTHER_NAMES = {
    "lr": "optim.learning_rate", "learning_rate": "optim.learning_rate", "wd": "optim.weight_decay",
    "batch_size": "batch", "num_epochs": "epochs", "max_steps": "steps", "tau": "loss.temperature",
    "temperature": "loss.temperature", "device_count": "mesh.data", "output_dir": "workdir",
    "out_dir": "workdir", "num_workers": "data.threads", "data_root": "data.root",
    "dataset": "data.name", "precision": "model.dtype", "pretrained": "init_from",
    "resume": "workdir", "weights": "init_from",
}  # fmt: skip


def _meant(key: str, values: Mapping[str, Any]) -> str:
    """A hint for a key that does not exist."""
    other = _OTHER_NAMES.get(key.rpartition(".")[2].replace("-", "_"))
    return f" Did you mean {other!r}?" if other in values else nearest(key, values)


def _where(config: ConfigDict) -> str:
    """Where the keys of a config are listed."""
    return f"All: configs/{_base(config)}.py, and KEYS of the plug-ins"


def _base(config: ConfigDict) -> str:
    """The config file that defines the keys: triplets are made with others than models."""
    return "base" if "stage" in config else "positives"


def flag_hint(flag: str) -> str:
    """A hint for a command-line flag that is a key of a config, such as --epochs; "" if not."""
    values = keys.flat(module("base").get_config())
    key = flag.lstrip("-").partition("=")[0].replace("-", "_")
    if key not in values:
        named = [k for k in values if k.rpartition(".")[2] == key]
        key = _OTHER_NAMES.get(key, named[0] if len(named) == 1 else "")
    return f"; {key} is a key of the config: --set {key}=VALUE" if key in values else ""


# What runs did before there was a key, where its default is something else.
_BEFORE = {
    "data.loading": "released", "data.pack_texts": False, "model.remat": "none",
    "model.attention": "xla",
}  # fmt: skip

# Keys and values of earlier versions, which configs, `--set` and records may have: key of then ->
# (key of now, each value of then -> that of now). Where the key is the same, other values stay.
_EARLIER = {
    "data.cache_pixels": ("data.pixels", {"true": "memory", "false": "decode"}),
    "model.remat": ("model.remat", {"false": "none", "true": "layers"}),
}


def _renamed(key: str, value: Any) -> tuple[str, Any]:
    """A key and its value as they are called now.

    Raises:
      UserError: the key of then never had such a value.
    """
    now, values = _EARLIER.get(key, (key, {}))
    renamed = values.get(str(value).strip().lower())
    if renamed is None and now != key:
        told = ", ".join(f"{now}={new} for {then}" for then, new in values.items())
        raise UserError(f"{key}={value} is unknown, and the key is {now} now; write {told}")
    return now, value if renamed is None else renamed


def _rename(config: ConfigDict) -> None:
    """Gives keys and values of earlier versions in an unlocked config their names of now."""
    values = keys.flat(config)
    for key in _EARLIER.keys() & values.keys():
        now, value = _renamed(key, values[key])
        if now != key:
            section, _, name = key.rpartition(".")
            del config[section][name]
        with config.ignore_type():  # the value of then may be of another type
            config.update_from_flattened_dict({now: value})


def to_json(config: ConfigDict) -> str:
    """The config as JSON, as checkpoints and reports keep it."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`; lists become tuples again, as in configs/base.py.

    A key that a run of an earlier version does not have gets its default: that is what it ran with,
    or what `_BEFORE` says. A value that is called otherwise today has its name of today.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    config = ConfigDict(tuples(json.loads(text)))
    _rename(config)
    if "stage" in config:
        defaults = keys.flat(module("base").get_config())
        known = keys.flat(config)
        missing = {k: _BEFORE.get(k, value) for k, value in defaults.items() if k not in known}
        for section in {key.partition(".")[0] for key in missing if "." in key} - {*config}:
            config[section] = ConfigDict()
        config.update_from_flattened_dict(missing)
    return config.lock()


def parse_argument(
    arg: str, *, datasets: Sequence[str], default_stage: int, flags: Sequence[str] = ()
) -> tuple[str, int, set[str]]:
    """Splits an argument such as "fashioniq,stage=2,positives" into data set, stage and flags.

    Raises:
      UserError: an unknown data set, stage or flag; what exists is listed.
    """
    dataset, stage, chosen = datasets[0], default_stage, set()
    for part in filter(None, arg.split(",")):
        key, equals, value = part.partition("=")
        if equals and key == "stage" and value in ("0", "1", "2"):
            stage = int(value)
        elif not equals and key in datasets:
            dataset = key
        elif part in flags:
            chosen.add(part)
        else:
            choices = [*datasets, "stage=0", "stage=1", "stage=2", *flags]
            raise UserError(
                f"config argument {part!r} is unknown; there are: {', '.join(choices)}."
                f"{nearest(part, choices)}"
            )
    return dataset, stage, chosen


def sibling(file: str, name: str) -> ModuleType:
    """The config module `name` that lies beside `file`, whether it was imported or loaded."""
    beside = Path(file).with_name(f"{name}.py")
    return _from_file(beside) if beside.is_file() else module(name)


def _package() -> ModuleType:
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
    # A checkout that is on the path without being installed: configs/ lies beside the package.
    folder = Path(__file__).resolve().parent.parent / "configs"
    return plugins.run_file(folder / "__init__.py", PACKAGE, [str(folder)])


def module(name: str) -> ModuleType:
    """The config module called `name`, or the file at that path.

    Raises:
      UserError: there is none; what exists is listed.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no config file {name}; by name there are: {', '.join(available())}")
        return _from_file(path)
    _package()
    choices = [*available(), "base"]
    if name not in choices:
        raise UserError(
            f"no config {name!r}; there are: {', '.join(available())}.{nearest(name, choices)} "
            "A config of your own is named by its path, my_config.py"
        )
    return importlib.import_module(f"{PACKAGE}.{name}")


def _from_file(path: Path) -> ModuleType:
    found = plugins.run_file(path.resolve(), f"cir_jax_config_{path.stem}")
    if not hasattr(found, "get_config"):
        raise UserError(f"config file {path} defines no get_config(argument)")
    return found


_NO_NUMBER = ("nan", "inf", "infinity")  # floats all the same: what a key may be refuses them


def _parse(key: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, tuple):
        if isinstance(value, str):  # dress,shirt
            return tuple(filter(None, value.split(",")))
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if isinstance(old, float) and (type(value) is int or text.strip("+-").lower() in _NO_NUMBER):
        return float(text if isinstance(value, str) else value)
    if type(value) is not type(old):
        raise UserError(
            f"{key}={text} is not of type {type(old).__name__}; its value now is {old!r}"
        )
    return value
