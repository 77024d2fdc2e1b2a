# SPDX-License-Identifier: Apache-2.0
"""Opens an index with the model that it was made by."""

import os
from collections.abc import Sequence
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


def model_of(
    record: dict[str, Any],
    places: Sequence[StrPath] = (),
    trust_code: bool = False,
    ignore_remote_code: bool = False,
) -> Model:
    """The model of an index, from where its weights were.

    Args:
      record: of the index.
      places: where its weights are now; () for where they were.
      trust_code, ignore_remote_code: see `cir_jax.load`.

    Raises:
      UserError: they are not there any more; or see `loading.load`.
    """
    weights = record["weights"]
    if weights is None and not places:
        raise UserError(
            "the index does not say where the weights of its model are, because the model was not "
            "loaded from any; give it, cir_jax.open_index(path, model=...)"
        )
    said = {key: weights[key] for key in ("model", "tower", "pad", "loading")} if weights else {}
    places = places or weights["places"]
    missing = [place for place in places if not os.path.exists(place)]
    if missing:
        raise UserError(
            f"the weights of the index's model are not there ({missing[0]}); say where they are "
            "now: --model WEIGHTS, of `cir-jax search` for once, of `cir-jax index` for good"
        )
    arguments = loading.Arguments(
        **said,
        dtype=record["model"]["compute"],
        trust_code=trust_code,
        ignore_remote_code=ignore_remote_code,
    )
    return loading.load(places, arguments)
