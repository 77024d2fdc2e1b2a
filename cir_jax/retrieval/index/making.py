# SPDX-License-Identifier: Apache-2.0
"""An index from Python: `Model.index`."""

import os
import tempfile
import weakref
from typing import Any

from cir_jax.retrieval.index import update
from cir_jax.retrieval.index.opened import Index
from cir_jax.retrieval.index.options import Options


def index(
    model: Any,
    place: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Index:
    """See `Model.index`."""
    temporary = None if out is not None else tempfile.TemporaryDirectory(prefix="cir_jax-")
    folder = os.path.expanduser(out) if out is not None else temporary.name  # type: ignore[union-attr]
    update.update(folder, Options(place=place, **options), model=model)
    found = Index(folder, lambda record: model, model=model, check=False)
    if temporary is not None:
        weakref.finalize(found, temporary.cleanup)
    return found
