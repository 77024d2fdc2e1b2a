# SPDX-License-Identifier: Apache-2.0
"""What each key of a config may be, and the keys that plug-ins add. Nothing here runs a plug-in.

A config file defines beside its keys

    ALLOWED     {key: what it may be}; a key that is not in it takes any value of its type

and a plug-in (model, stage, reader, benchmark, captioner) the keys it adds, as a literal:

    KEYS = {"name": (default, "what it is", what it may be or None)}

A name is of the section of its kind ("dropout" of a model is `model.dropout`), or a whole key with
a dot. The literal is read from the source text, so that a mistyped value is found before jax is
imported and before a file of yours is run. What a key may be is one of

    ("a", "b")                        one of these; of a tuple key, each element
    "[0, inf)", "(0, 1]"              a number in this interval; of a tuple key, each element
    "path", "paths"                   `~` and `$HOME` in it are expanded; "paths" may have commas
    "regexes", "rules"                regular expressions; pairs of one and a number
    "plug-in cir_jax.models"          a plug-in of that package, or an existing .py file
    "plug-in cir_jax.models or none"  the same, or this word
    "size of cir_jax.towers.clip.sizes"  "auto", or what `find` of that module knows
"""

import ast
import functools
import importlib
import math
import os
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import files, plugins
from cir_jax.errors import UserError, nearest

Allowed = tuple | str | None


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: the key that names one, its package, and the section of its keys."""

    key: str
    package: str
    section: str


KINDS = (
    Kind("model.name", "cir_jax.models", "model"),
    Kind("stage", "cir_jax.training.stages", "loss"),
    Kind("data.name", "cir_jax.datasets.readers", "data"),
    Kind("eval.benchmark", "cir_jax.evals.benchmarks", "eval"),
    Kind("caption.captioner", "cir_jax.generation.captioners", "caption"),
    Kind("rewrite.captioner", "cir_jax.generation.captioners", "rewrite"),
)


@dataclass(frozen=True)
class Key:
    """A key that a plug-in adds."""

    default: Any
    about: str
    allowed: Allowed


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Whole key -> value, of all sections."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def add(config: ConfigDict) -> None:
    """Adds the keys of all plug-ins, with their defaults, where a config lacks them.

    The plug-ins are those of this project, and the files that the config names.

    Raises:
      UserError: a file does not exist or its KEYS are no literal.
    """
    known = flat(config)
    for kind in KINDS:
        if kind.key not in known:
            continue
        names = plugins.available(kind.package)
        chosen = known[kind.key]
        for name in [*names, *([chosen] if chosen.endswith(".py") else [])]:
            for key, about in declared(kind, name).items():
                if key not in known:
                    known[key] = about.default
                    config.update_from_flattened_dict({key: about.default})


def declared(kind: Kind, name: str) -> dict[str, Key]:
    """The keys that a plug-in adds, by their whole names.

    Raises:
      UserError: its KEYS are no literal of the form that this module describes.
    """
    source = _source(kind, name)
    found = _literal(source, source.stat().st_mtime_ns) if source else {}
    return {key if "." in key else f"{kind.section}.{key}": Key(*row) for key, row in found.items()}


def check_read(config: ConfigDict, changed: Iterable[str], base: Container[str]) -> None:
    """Raises UserError for a key that only plug-ins read which the config does not name.

    Args:
      config: the names of its plug-ins count.
      changed: the keys to look at.
      base: keys that every run reads, whatever plug-ins say of them.
    """
    values = flat(config)
    for key in (k for k in changed if k not in base):
        owners = [
            (kind, name)
            for kind in KINDS
            if kind.key in values
            for name in plugins.available(kind.package)
            if key in declared(kind, name)
        ]
        chosen = {(kind, values[kind.key]) for kind in KINDS if kind.key in values}
        own = any(key in declared(kind, name) for kind, name in chosen if name)
        if owners and not own:
            of = " and ".join(sorted({f"{kind.key}={name}" for kind, name in owners}))
            now = ", ".join(sorted({f"{kind.key}={values[kind.key]}" for kind, _ in owners}))
            raise UserError(
                f"{key} is read by {of}, but this config has {now}: setting it would do nothing; "
                "leave it out"
            )


def check(config: ConfigDict, allowed: Mapping[str, Allowed]) -> None:
    """Checks every value, and expands `~` and `$HOME` in paths.

    Args:
      config: unlocked.
      allowed: of the config file; what the chosen plug-ins say of a key counts instead.

    Raises:
      UserError: a value that a key may not have: key, value, limit and the nearest choice.
    """
    values = flat(config)
    allowed = dict(allowed)
    for kind in KINDS:
        found = declared(kind, values[kind.key]) if kind.key in values else {}
        allowed |= {key: one.allowed for key, one in found.items()}
    for key, value in values.items():
        if (rule := allowed.get(key)) is None:
            _check_finite(key, value)
            continue
        if rule in ("path", "paths"):
            for place in value if isinstance(value, tuple) else str(value).split(","):
                if not isinstance(place, str):
                    raise UserError(
                        f"{key}={value!r}: {place!r} is no path; a file of that name is ./{place}"
                    )
                files.check_local(key, place)
            config.update_from_flattened_dict({key: _expanded(value)})
        else:
            _check(key, value, rule)


def _check(key: str, value: Any, rule: tuple | str) -> None:
    elements = value if isinstance(value, tuple) else (value,)
    if isinstance(rule, tuple):
        _check_choices(key, value, elements, rule)
    elif rule[0] in "[(":
        _check_interval(key, value, elements, rule)
    elif rule in ("regexes", "rules"):
        for one in elements:
            _check_regex(key, _regex_of(key, one) if rule == "rules" else one)
    elif rule.startswith("plug-in "):
        package, either, other = rule.removeprefix("plug-in ").partition(" or ")
        if not (either and value == other):
            plugins.find(_ours(key, package), value)
    elif rule.startswith("size of "):
        if value != "auto":
            importlib.import_module(_ours(key, rule.removeprefix("size of "))).find(value)
    else:
        raise ValueError(f"{key}: {rule!r} is no way to say what a key may be")


def _ours(key: str, module: str) -> str:
    """A module of this package: a rule may stand in a file of which nothing is to run."""
    if not re.fullmatch(r"cir_jax(\.\w+)+", module, re.ASCII):
        raise UserError(f"{key}: {module!r} is no module of cir_jax, and no other is imported here")
    return module


def _check_finite(key: str, value: Any) -> None:
    """Of a key that takes any value of its type: no number that nothing can be computed with."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, float) and not math.isfinite(one):
            raise UserError(f"{key}={value!r} is no number to compute with; give a finite one")


def _check_choices(key: str, value: Any, elements: tuple, choices: tuple) -> None:
    for one in elements:
        if one not in choices:
            names = [str(choice) or "nothing" for choice in choices]
            said = f"{', '.join(names[:-1])} or {names[-1]}"
            raise UserError(f"{key}={value!r} is unknown; use {said}.{nearest(str(one), choices)}")


def _check_interval(key: str, value: Any, elements: tuple, interval: str) -> None:
    if not all(_inside(one, interval) for one in elements):
        each = "each number " if isinstance(value, tuple) else "it "
        raise UserError(f"{key}={value!r} is out of range; {each}must be {_words(interval)}")


def _regex_of(key: str, pair: Any) -> Any:
    """The regular expression of a pair of one and a factor."""
    if isinstance(pair, tuple | list) and len(pair) == 2 and _inside(pair[1], "[0, inf)"):
        return pair[0]
    raise UserError(
        f"{key}: {pair!r} is no pair of a regular expression and a number of at least 0; write "
        f"{key}=(('text/.*',0.1),)"
    )


def _check_regex(key: str, text: Any) -> None:
    try:
        re.compile(text)
    except (re.error, TypeError) as error:
        raise UserError(f"{key}: {text!r} is no regular expression ({error}); correct it") from None


def _inside(value: Any, interval: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = (float(x) for x in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _words(interval: str) -> str:
    low, high = (float(x) for x in interval[1:-1].split(","))
    said = []
    if low > -math.inf:
        said.append(("at least " if interval[0] == "[" else "above ") + f"{low:,.10g}")
    if high < math.inf or not said:
        said.append(("at most " if interval[-1] == "]" else "below ") + f"{high:,.10g}")
    return " and ".join(said)


def _expanded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if not isinstance(value, str):
        return value
    return ",".join(os.path.expanduser(os.path.expandvars(x)) for x in value.split(","))


def _source(kind: Kind, name: str) -> Path | None:
    """The file whose text holds the KEYS of a plug-in; None where no plug-in is named."""
    if name.endswith(".py"):
        return plugins.existing_file(name, kind.package)
    if name not in plugins.available(kind.package):
        return None
    (folder,) = plugins.folders(kind.package)
    file = folder / f"{name}.py"
    return file if file.is_file() else folder / name / "__init__.py"


@functools.lru_cache(maxsize=256)
def _literal(file: Path, changed: int) -> dict[str, tuple]:
    """The value of KEYS in a file, {} if it has none; `changed` tells versions of it apart."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{file} is no Python file that can be read ({error or type(error).__name__})"
        ) from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "KEYS" for t in node.targets
        ):
            return _rows(file, node)
    return {}


def _rows(file: Path, node: ast.Assign) -> dict[str, tuple]:
    form = '{"name": (default, "what it is", what it may be or None)}'
    try:
        rows = ast.literal_eval(node.value)
        right = isinstance(rows, dict) and all(
            isinstance(name, str) and isinstance(row, tuple) and len(row) == 3
            for name, row in rows.items()
        )
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        right = False
    if not right:
        raise UserError(
            f"{file} line {node.lineno}: KEYS is read without running the file, so it must be a "
            f"literal of the form {form}"
        )
    return rows
