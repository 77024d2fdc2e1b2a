# SPDX-License-Identifier: Apache-2.0
"""Whose Python a run folder names, and whether it may run; and which server it names.

A config that a user gives runs the files that it names: models, readers, benchmarks, stages,
captioners. The config *in a run folder* may be a stranger's, and so may the files. They run where
this user has trained with the same file on this machine, which is noted by its SHA-256 in

    $XDG_STATE_HOME/cir_jax/own_code/<sha256>     (~/.local/state where that is not set)

where the command names the file itself, and where the user says that the folder is trusted. What
is noted lies outside of every run folder, so that no folder can bring it along.

A run of a served model names the server that is sent images, texts and the user's key for it. It is
asked where this user has named it before, in a training or an import, which is noted likewise.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import keys, progress
from cir_jax.errors import UserError

FLAG = "--trust-code (in Python, trust_code=True)"

_trusting: ContextVar[bool] = ContextVar("trust_code", default=False)


@contextmanager
def trusting(decided: bool) -> Iterator[None]:
    """Inside, the code that run folders name may run, if a user has decided so."""
    token = _trusting.set(decided or _trusting.get())
    try:
        yield
    finally:
        _trusting.reset(token)


def check(config: ConfigDict, place: str | Path, overrides: Iterable[str] = ()) -> None:
    """Checks the config of a run folder, before anything that it names is opened.

    Args:
      config: as the folder has it.
      place: the folder, for the message.
      overrides: "key=value" strings of the user, whose files are the user's own choice.

    Raises:
      UserError: it names a file of Python that is not known to be this user's own, or a server that
        this user has never named.
    """
    if _trusting.get():
        return
    chosen = {item.partition("=")[0].strip() for item in overrides}
    for key, address in _addresses(config).items():
        if key not in chosen and not _noted(address):
            raise UserError(
                f"{place} names a server, {key}={address!r}, and nothing notes that you have ever "
                "named it on this machine: images, texts and your key would be sent there. Nothing "
                f"was sent. If that is where they are to go, give --set {key}={address}"
            )
    strange = {
        key: name
        for key, name in _named(config).items()
        if key not in chosen and not _is_own(Path(name))
    }
    if strange:
        said = ", ".join(f"{key}={name!r}" for key, name in strange.items())
        own = " ".join(f"--set {key}=FILE.py" for key in strange)
        raise UserError(
            f"{place} names code of its own, {said}, and nothing notes that you have trained with "
            "it, as it is now, on this machine. Nothing of it was run. If the folder is a "
            f"stranger's, read that code first; if you trust it, give {FLAG}, or name a file of "
            f"yours, {own}"
        )


def remember(config: ConfigDict) -> None:
    """Notes files and servers that a config of this user names, for what comes after training."""
    named: dict[Path, Any] = {
        _folder() / _hash(Path(name)): Path(name).resolve() for name in _named(config).values()
    }
    named |= {_place_of(address): address for address in _addresses(config).values()}
    for place, name in named.items():
        if place.exists():
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place.write_text(f"{name}\n", encoding="utf-8")
        except OSError as error:
            progress.say(
                f"{place} cannot be written ({error.strerror or error}): commands that use this "
                f"run will ask for {FLAG} because of {name}"
            )


def _named(config: ConfigDict) -> dict[str, str]:
    """Key -> file of Python, of every key that a config has one for."""
    return {
        key: value
        for key, value in keys.flat(config).items()
        if isinstance(value, str) and value.endswith(".py")
    }


def _addresses(config: ConfigDict) -> dict[str, str]:
    """Key -> address, of the server that a served model is asked of."""
    model = config.get("model", {})
    url = model.get("url", "") if model.get("name") == "served" else ""
    return {"model.url": url} if url else {}


def _noted(address: str) -> bool:
    try:
        return _place_of(address).is_file()
    except OSError:
        return False


def _place_of(address: str) -> Path:
    return _folder() / hashlib.sha256(f"server {address.rstrip('/')}".encode()).hexdigest()


def _is_own(file: Path) -> bool:
    try:
        return (_folder() / _hash(file)).is_file()
    except OSError:  # there is no such file: who looks for it says so
        return not file.exists()


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "cir_jax" / "own_code"
