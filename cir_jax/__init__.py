# SPDX-License-Identifier: Apache-2.0
"""Composed image retrieval in JAX: train, evaluate and search with an image and a text.

    import cir_jax

    model = cir_jax.load("best.pt")                       # a run, or weights of other projects
    rows = model.encode_images(["a.jpg", "b.jpg"])        # numpy [N, K, D]
    query = model.encode_queries(["a.jpg"], ["but red"])  # numpy [Q, D]
    order, scores = model.rank(query, rows, k=1)

The names are looked up when they are used: importing this package imports no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cir_jax import moved
from cir_jax.version import VERSION

if TYPE_CHECKING:
    from cir_jax.api import Evaluation, Model, Picture, evaluate, load, open_index, train
    from cir_jax.errors import UserError

__version__ = VERSION
__all__ = [
    "Evaluation", "Model", "Picture", "UserError", "evaluate", "load", "open_index", "train",
]  # fmt: skip

moved.answer()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cir_jax' has no attribute {name!r}")
    module = "cir_jax.errors" if name == "UserError" else "cir_jax.api"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
