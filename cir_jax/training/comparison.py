# SPDX-License-Identifier: Apache-2.0
"""What has to be the same on all processes of a run beside the data: config, code, packages."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ml_collections import ConfigDict

from cir_jax import config as configs
from cir_jax import keys
from cir_jax.config import from_json, to_json
from cir_jax.runtime.comparison import check

__all__ = ["check", "of_run"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "pillow")
# Keys that name places or threads of a host: what is there is compared, not where it lies.
_OF_A_HOST = ("workdir", "init_from", "data.threads", "data.generated", "data.unlabelled")


def of_run(config: ConfigDict) -> dict[str, str]:
    """Config, code and packages; each key names itself in the message that says what differs."""
    found = {}
    places = _places(config)
    for key, value in keys.flat(from_json(to_json(config))).items():
        if key in places:
            continue
        file = Path(value) if isinstance(value, str) and value.endswith(".py") else None
        found[f"config {key}"] = _digest(file.read_bytes()) if file else repr(value)
    found["code of cir_jax"] = _code()
    for name in PACKAGES:
        try:
            found[f"version of {name}"] = version(name)
        except PackageNotFoundError:
            found[f"version of {name}"] = "none"
    return found


def _places(config: ConfigDict) -> set[str]:
    rules = dict(configs.module("base").ALLOWED)
    for kind in keys.KINDS[:4]:  # those that a run names
        chosen = keys.flat(config).get(kind.key, "none")
        if chosen != "none":
            rules |= {k: about.allowed for k, about in keys.declared(kind, chosen).items()}
    return {*_OF_A_HOST, *(key for key, rule in rules.items() if rule in ("path", "paths"))}


def _code() -> str:
    """Of the package's own files: what runs, whether it was committed or not."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
