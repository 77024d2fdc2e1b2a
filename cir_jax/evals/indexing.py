# SPDX-License-Identifier: Apache-2.0
"""Images and queries of a benchmark, for an index whose page marks the right answers."""

import os
from collections.abc import Iterator
from typing import Any

from cir_jax import config as configs
from cir_jax.errors import UserError
from cir_jax.evals import benchmark
from cir_jax.evals.benchmark import Task
from cir_jax.retrieval.index.options import Gallery


def gallery(name: str, root: str, split: str = "") -> tuple[str, Gallery]:
    """(folder of the images, which of them and what is asked about them) of a benchmark.

    Args:
      name: of the benchmark.
      root: folder of its data set.
      split: of it; "" for its own.

    Raises:
      UserError: no such benchmark, what is wrong with its data, or its candidates are parts of
        images.
    """
    changes = [f"eval.benchmark={name}", f"eval.root={root}"]
    changes += [f"eval.split={split}"] if split else []
    built: Any = benchmark.build(configs.load("base", changes))
    several = getattr(built, "tasks", {})
    tasks: list[Task] = [built.task] if hasattr(built, "task") else [*several.values()]
    if not tasks:
        raise UserError(f"benchmark {name!r} has no queries that an index could hold; name another")
    listed = [path for one in tasks for path in one.paths]
    files = [path for path in listed if isinstance(path, str)]
    if len(files) < len(listed):
        raise UserError(
            f"the candidates of {name!r} are parts of images, and an index has whole ones; name "
            "another benchmark"
        )
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    below = {path: _name(path, folder) for path in files}
    queries = [line for one in tasks for line in _queries(one, below, folder)]
    return folder, Gallery(name, tuple(dict.fromkeys(below.values())), tuple(queries))


def _queries(one: Task, below: dict[Any, str], folder: str) -> Iterator[dict[str, Any]]:
    """The queries of a task whose right answers are known, by names below the folder."""
    for triplet, reference in zip(one.triplets, one.references, strict=True):
        rows = [one.row_of.get(name, -1) for name in triplet.truths or (triplet.target,) if name]
        targets = [below[one.paths[row]] for row in rows if row >= 0]
        name = below.get(reference) or _name(str(reference), folder)
        if targets:
            yield {"reference": name, "text": triplet.eval_text, "targets": targets}


def _name(path: str, folder: str) -> str:
    return os.path.relpath(os.path.abspath(path), folder).replace(os.sep, "/")
