# SPDX-License-Identifier: Apache-2.0
"""Opens an index with the model that it was made by."""

import os
from typing import Any

from cir_jax.errors import UserError
from cir_jax.retrieval import loading
from cir_jax.retrieval.index.opened import Index
from cir_jax.retrieval.model import Model

StrPath = str | os.PathLike[str]


def open_index(path: StrPath, model: Model | None = None, *, check: bool = True) -> Index:
    """Opens an index.

    Args:
      path: folder of the index.
      model: the model of the index, if it is loaded already; None loads it when it is first needed.
      check: compare all rows with their checksums.

    Raises:
      UserError: there is no index, it is damaged, or it is of another model.
    """
    return Index(os.path.expanduser(path), model_of, model=model, check=check)


def model_of(record: dict[str, Any]) -> Model:
    """The model of an index, from where its weights were.

    Raises:
      UserError: they are not there any more; or see `loading.load`.
    """
    weights = record["weights"]
    if weights is None:
        raise UserError(
            "the index does not say where the weights of its model are, because the model was not "
            "loaded from any; give it, cir_jax.open_index(path, model=...)"
        )
    said = {key: weights[key] for key in ("model", "tower", "pad", "loading")}
    places = weights["places"]
    missing = [place for place in places if not os.path.exists(place)]
    if missing:
        raise UserError(
            f"the weights of the index's model are not there any more ({missing[0]}); bring them "
            "back, or say where they are now: `cir-jax index --model WEIGHTS --out INDEX`"
        )
    return loading.load(places, loading.Arguments(dtype=record["model"]["compute"], **said))
