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
    spec = importlib.util.find_spec(package)
    return sorted(m.name for m in pkgutil.iter_modules(spec.submodule_search_locations))


def load(package: str, name: str, marker: str) -> ModuleType:
    """Imports the plug-in `name` of `package`.

    Args:
      package: e.g. "cir_jax.models".
      name: module name in that package, or path of a Python file.
      marker: attribute that makes a module a plug-in of this kind, e.g. "Model".

    Raises:
      UserError: no such module or file, or it lacks `marker`; the message lists what exists.
    """
    kind = package.rsplit(".", 1)[-1]
    if name.endswith(".py"):
        module = _load_file(Path(name), kind)
    else:
        names = available(package)
        if name not in names:
            raise UserError(
                f"no {name!r} in {kind}; there are: {', '.join(names)}."
                f"{nearest(name, names)} A file of your own is named by its path, my_file.py."
            )
        module = importlib.import_module(f"{package}.{name}")
    if not hasattr(module, marker):
        raise UserError(f"{module.__file__} is no plug-in of {kind}: it defines no {marker!r}")
    return module


def _load_file(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no file {path} for {kind}; give the path of an existing .py file")
    path = path.resolve()
    name = f"cir_jax_plugin_{path.stem}_{abs(hash(str(path))) % 10**8}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pickling and dataclasses look their module up by name
        spec.loader.exec_module(module)
    return sys.modules[name]
