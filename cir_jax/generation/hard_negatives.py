# SPDX-License-Identifier: Apache-2.0
"""Mined pairs: for each annotated query, the images that a trained model takes for its target.

Such a pair (reference, wrong image) with a text of its own shows the model, side by side with the
annotated triplet, what sets the two apart. ReCALL (CVPR 2026) reports far more from pairs that the
model at hand confuses than from random ones; this is its mining step, without its verification by
a language model.
"""

from typing import Any

import numpy as np

from cir_jax import progress
from cir_jax.data.triplets import Triplet
from cir_jax.errors import UserError
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from cir_jax.generation.trained import OpenRun, TrainedModel


def mine(
    run: str,
    pool: Pool,
    groups: Groups,
    names: list[str],
    top: int,
    each: int,
    open_run: OpenRun,
) -> list[dict[str, Any]]:
    """Pairs of a query's reference and an image that ranks before its target.

    Args:
      run: folder of a trained run; its best parameters rank.
      pool: images and annotated triplets.
      groups: duplicates: an image that is the target under another name is no mistake.
      names: images that may be paired; also the gallery.
      top: how far down each ranking to look.
      each: pairs per query at most, the highest ranks first.
      open_run: opens the run.

    Returns:
      [{"reference", "target", "rank", "similarity", "instead_of"}], a pair once; never a pair that
      annotators know, in whatever text. Rank 0 is the image that the model likes best, the
      reference left out.

    Raises:
      UserError: no such run, `top` is more than there are candidates, a text of an annotated
        triplet is over the run's context, or no triplet is about `names`.
    """
    if not 1 <= top < len(names):
        raise UserError(f"pair.mined_top={top} of {len(names)} images; use 1 to {len(names) - 1}")
    row_of = {name: row for row, name in enumerate(names)}
    known: dict[str, set[str]] = {}
    queries: list[tuple[str, str, Triplet]] = []
    for t in pool.triplets:
        reference, target = groups.first(t.reference), groups.first(t.target)
        known.setdefault(reference, set()).update(map(groups.first, t.truths or (target,)))
        # An image that is its own target is left out of the ranking, as references are.
        if reference in row_of and target in row_of and reference != target:
            queries.append((reference, target, t))
    if not queries:
        raise UserError("no annotated triplet is about images that have a caption; none to mine")
    rows, scores = _ranked(open_run(run), pool, names, queries, top)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    confusing = 0
    for (reference, target, _), candidates, similarities in zip(queries, rows, scores, strict=True):
        ranked = [names[row] for row in candidates]
        ahead = ranked[: ranked.index(target)] if target in ranked else ranked
        wrong = [(rank, name) for rank, name in enumerate(ahead) if name not in known[reference]]
        confusing += bool(wrong)
        for rank, name in wrong[:each]:
            pair = {"reference": reference, "target": name, "rank": rank}
            pair |= {"similarity": round(float(similarities[rank]), 4), "instead_of": target}
            found.setdefault((reference, name), pair)
    progress.say(
        f"mined {len(found)} pairs; {confusing} of {len(queries)} queries have a wrong image "
        f"ahead of their target, among the first {top}"
    )
    return list(found.values())


def _ranked(
    model: TrainedModel,
    pool: Pool,
    names: list[str],
    queries: list[tuple[str, str, Triplet]],
    top: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `names` and similarities [Q, top] of every query, the reference left out."""
    references = [pool.paths[reference] for reference, _, _ in queries]
    gallery = model.encode_gallery([pool.paths[n] for n in names])
    composed = model.encode_queries(
        references,
        [t.eval_text for _, _, t in queries],
        where=lambda i: f"{queries[i][2].source} triplet {queries[i][2].query_id}",
    )
    row_of = {name: row for row, name in enumerate(names)}
    own = np.asarray([row_of[reference] for reference, _, _ in queries], np.int32)
    return model.top(composed, gallery, top, own)
