# SPDX-License-Identifier: Apache-2.0
"""`auto_map` in a config.json: Python beside the weights that transformers would run.

None of it is ever run. What the tensors compute is then taken from this project, which is right
where the code of the folder is known to compute the same, and a user's own decision elsewhere.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from cir_jax import progress
from cir_jax.errors import UserError

FLAG = "--ignore-remote-code (in Python, ignore_remote_code=True)"

_ignored: ContextVar[bool] = ContextVar("ignore_remote_code", default=False)
_said: set[str] = set()  # a file is opened more than once


@contextmanager
def ignoring(decided: bool) -> Iterator[None]:
    """Inside, code that is not known is left out as well, if a user has decided so."""
    token = _ignored.set(decided or _ignored.get())
    try:
        yield
    finally:
        _ignored.reset(token)


def check(
    config: Mapping[str, Any], name: str, plain: str, known: Mapping[str, str] | None = None
) -> None:
    """Says what code of a folder is not run.

    Args:
      config: of the folder.
      name: of the config, for messages.
      plain: the class of transformers whose tensors are looked for.
      known: "module.Class" of models that compute what we compute -> what they are.

    Raises:
      UserError: its model is code that is not known, and nobody has decided to do without.
    """
    auto_map = config.get("auto_map")
    if not auto_map:
        return
    if not isinstance(auto_map, Mapping):
        raise UserError(f"{name} has auto_map={auto_map!r}, no table; correct the config")
    # The model alone computes: transformers' own stands in for a config, and the tokenizer and the
    # image processor beside the weights are compared with those of the tower.
    models = sorted({str(v) for key, v in auto_map.items() if str(key).startswith("AutoModel")})
    names = {one: (known or {}).get(one.rpartition("--")[2], "") for one in models}
    unknown = [one for one, about in names.items() if not about]
    if unknown and not _ignored.get():
        raise UserError(
            f"{name} has auto_map={dict(auto_map)!r}: its model is code of its own "
            f"({', '.join(map(repr, unknown))}), which is never run here. If its tensors are those "
            f"of a plain {plain} and you want them as such, say so with {FLAG}; vectors may differ "
            "from those of that code"
        )
    end = "; vectors may differ from those of that code" if unknown else ""
    what = next(filter(None, names.values()), f"a plain {plain}")
    if name not in _said:
        _said.add(name)
        progress.say(f"{name} names code in auto_map, which is not run: read as {what}{end}")
