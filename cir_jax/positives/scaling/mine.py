# SPDX-License-Identifier: Apache-2.0
"""Mined pairs: for each annotated query, the images that a trained model takes for its target.

Such a pair (reference, wrong image) with a text of its own shows the model, side by side with the
annotated triplet, what sets the two apart. ReCALL (CVPR 2026) reports far more from pairs that the
model at hand confuses than from random ones; this is its mining step, without its verification by
a language model.
"""

from typing import Any

import numpy as np

from cir_jax import build
from cir_jax.errors import UserError
from cir_jax.positives.scaling.dedupe import Groups
from cir_jax.positives.scaling.images import Pool
from cir_jax.runtime import progress


def confused(
    run: str, pool: Pool, groups: Groups, names: list[str], top: int, each: int
) -> list[dict[str, Any]]:
    """Pairs of a query's reference and an image that ranks before its target.

    Args:
      run: folder of a trained run; its best parameters rank.
      pool: images and annotated triplets.
      groups: duplicates: an image that is the target under another name is no mistake.
      names: images that may be paired; also the gallery.
      top: how far down each ranking to look.
      each: pairs per query at most, the highest ranks first.

    Returns:
      [{"reference", "target", "rank", "similarity", "instead_of"}], a pair once.

    Raises:
      UserError: no such run, or `top` is more than there are candidates.
    """
    if not 1 <= top < len(names):
        raise UserError(f"pair.mined_top={top} of {len(names)} images; use 1 to {len(names) - 1}")
    row_of = {name: row for row, name in enumerate(names)}
    queries = [
        t
        for t in pool.triplets
        if groups.first(t.reference) in row_of and groups.first(t.target) in row_of
    ]
    if not queries:
        raise UserError("no annotated triplet is about images that have a caption; none to mine")
    _, retriever = build.restore(run)
    paths = [pool.paths[n] for n in names]
    references = [pool.paths[groups.first(t.reference)] for t in queries]
    gallery = retriever.encode_gallery(paths, references=references)
    composed = retriever.encode_queries(references, [t.eval_text for t in queries])
    own = np.asarray([row_of[groups.first(t.reference)] for t in queries], np.int32)
    rows, scores = retriever.top(composed, gallery, top, own)
    positives: dict[str, set[str]] = {}
    for t in pool.triplets:
        targets = positives.setdefault(groups.first(t.reference), set())
        targets.add(groups.first(t.target))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for t, candidates, similarities in zip(queries, rows, scores, strict=True):
        reference, target = groups.first(t.reference), groups.first(t.target)
        taken = 0
        for rank, (row, score) in enumerate(zip(candidates, similarities, strict=True)):
            name = names[row]
            if name == target or taken == each:
                break
            if name in positives[reference]:
                continue
            taken += 1
            found.setdefault(
                (reference, name),
                {
                    "reference": reference, "target": name, "rank": rank,
                    "similarity": round(float(score), 4), "instead_of": target,
                },
            )  # fmt: skip
    progress.say(
        f"mined {len(found)} pairs from {len(queries)} queries whose target is not ranked first"
    )
    return list(found.values())
