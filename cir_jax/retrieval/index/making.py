# SPDX-License-Identifier: Apache-2.0
"""An index from Python: `Model.index`."""

import os
import tempfile
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
    folder = temporary.name if temporary is not None else os.path.expanduser(str(out))
    update.update(folder, Options(place=place, **options), model=model)
    # Removed with the last of the generations that were opened.
    return Index(folder, model=model, check=False, keep=temporary)
