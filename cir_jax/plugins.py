# SPDX-License-Identifier: Apache-2.0
"""A name in a config is a module in a folder: no registry, no decorator, no table.

`load("cir_jax.models", "clip_sum")` imports `cir_jax.models.clip_sum`. A name that ends in `.py` is
a file anywhere on disk, so a new model needs no change to the package. A folder of plug-ins holds
nothing else, so that what there is can be listed without importing any of it.
"""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from cir_jax.errors import UserError, nearest


def available(package: str) -> list[str]:
    """Names of the plug-ins in `package`, sorted; none is imported."""
    return sorted(m.name for m in pkgutil.iter_modules(map(str, folders(package))))


def folders(package: str) -> list[Path]:
    """Where the modules of `package` lie; it is not imported."""
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


def find(package: str, name: str) -> Path | str:
    """The file or the module name of a plug-in, which is not imported.

    Args:
      package: e.g. "cir_jax.models".
      name: module name in that package, or path of a Python file.

    Raises:
      UserError: no such module or file; the message lists what exists.
    """
    if name.endswith(".py"):
        return existing_file(name, package)
    names = available(package)
    if name not in names:
        raise UserError(
            f"no {name!r} in {_kind(package)}; there are: {', '.join(names)}."
            f"{nearest(name, names)} A file of your own is named by its path, my_file.py."
        )
    return f"{package}.{name}"


def load(package: str, name: str, marker: str) -> ModuleType:
    """Imports the plug-in `name` of `package`, see `find`.

    Args:
      package, name: as `find` takes them.
      marker: attribute that makes a module a plug-in of this kind, e.g. "Model".

    Raises:
      UserError: no such module or file, or it lacks `marker`; the message lists what exists.
    """
    found = find(package, name)
    module = importlib.import_module(found) if isinstance(found, str) else _load_file(found)
    if not hasattr(module, marker):
        raise UserError(
            f"{module.__file__} is no plug-in of {_kind(package)}: it defines no {marker!r}"
        )
    return module


def existing_file(name: str, package: str) -> Path:
    """The resolved path of a plug-in that is a file.

    Raises:
      UserError: there is no such file.
    """
    if not Path(name).is_file():
        raise UserError(
            f"no file {name} for {_kind(package)}; give the path of an existing .py file"
        )
    return Path(name).resolve()


def _kind(package: str) -> str:
    return package.rsplit(".", 1)[-1]


def _load_file(path: Path) -> ModuleType:
    name = f"cir_jax_plugin_{path.stem}_{abs(hash(str(path))) % 10**8}"
    return sys.modules[name] if name in sys.modules else run_file(path, name)


def run_file(path: Path, name: str, folders: list[str] | None = None) -> ModuleType:
    """Imports the file `path` as the module `name`; `folders` are those of a package."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half of a module is none: the next call tries again
        raise
    return module
