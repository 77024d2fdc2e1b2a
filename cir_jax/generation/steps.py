# SPDX-License-Identifier: Apache-2.0
"""The four steps in a row: config -> triplets.

Every step leaves a file in the work folder. What costs (decoding, captions, rewritten texts,
features) is kept and never done twice; what is drawn is drawn again, the same. `config.json`,
`results.json` and the triplets are those of the last run that came to its end.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.config import to_json
from cir_jax.data.pixels import AUTO, RELEASED
from cir_jax.data.refusals import summary
from cir_jax.errors import UserError
from cir_jax.generation import (
    caption,
    dedupe,
    image_hashes,
    images,
    journal,
    modify,
    output,
    pair,
    shared_steps,
    workers,
)
from cir_jax.generation.trained import OpenRun, no_run
from cir_jax.generation.workers import Share

CONFIG, RESULTS = "config.json", "results.json"


def run(
    config: ConfigDict, open_run: OpenRun = no_run, share: Share | None = None
) -> dict[str, Any]:
    """Makes triplets.

    Args:
      config: a locked config of configs/positives.py.
      open_run: folder of a trained run -> its model, for `pair.run`.
      share: does a part of the work, beside other workers, and makes no triplets: see
        `shared_steps.work`, also for what is returned then. Without, what workers have done in the
        work folder is merged.

    Returns:
      What `results.json` holds: {"images", "unusable", "distinct", "captions", "pairs", "triplets",
      "texts", "files", "seconds"}; "unusable" is reason -> how many images were left out.

    Raises:
      UserError: input that cannot be used, or workers have not done their part. What the steps
        before it made is kept.
    """
    if "caption" not in config:
        raise UserError(
            "this config trains a model; triplets are made with one of configs/positives.py, e.g. "
            "--config positives:folder"
        )
    # Before the first step: an hour of captions would be lost before a typo in the last one shows.
    dedupe.check_dedupe(config)
    caption.check_caption(config)
    pair.check_pair(config)
    modify.check_modify(config)
    output.check_output(config)
    if share is not None:
        with _in_memory(config):
            return shared_steps.work(resolve(config), share, open_run)
    workdir = Path(config.workdir)
    with journal.locked(workdir), _in_memory(config):
        return _run(resolve(config), workdir, open_run)


@contextmanager
def _in_memory(config: ConfigDict) -> Iterator[None]:
    """Too little memory of the host becomes an error that says what takes less.

    Not by `cir_jax.runtime.memory`, whose jax no step needs that would fail here.
    """
    try:
        yield
    except MemoryError as error:
        if isinstance(error, UserError):  # which says it already
            raise
        raise UserError(
            f"out of memory while making triplets ({str(error) or 'MemoryError'}). What takes "
            f"less: a smaller data.threads (now {config.data.threads}): images that are decoded at "
            f"a time; a smaller pair.keep (now {config.pair.keep or 'all'}): pairs; fewer images. "
            "What is done is kept, and the same command goes on"
        ) from None


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with `data.loading=auto` decided, see `images.loading_of`; what was begun before
    there was a choice goes on as it was.

    Raises:
      UserError: `data.background` is no colour.
    """
    loading, workdir = images.loading_of(config), Path(config.workdir)
    if config.data.loading != AUTO:
        return config
    if loading.name == "natural" and _was_released(workdir):
        loading = RELEASED
        progress.say(
            f"{config.workdir} was begun before pictures were opened as a person sees them, and "
            "goes on with data.loading=released; set data.loading=natural for photographs that "
            "lie on their side, 16-bit or transparent images"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.loading = loading.name
    return config.lock()


def _was_released(workdir: Path) -> bool:
    hashes = workdir / dedupe.HASHES
    if hashes.is_file():
        return image_hashes.was_released(hashes)
    return caption.was_released(workdir / caption.FILE)  # with dedupe.optimized nothing is hashed


def _run(config: ConfigDict, workdir: Path, open_run: OpenRun) -> dict[str, Any]:
    began = time.monotonic()
    pool, others = images.read(config), workers.begun(workdir)
    if others:
        shared_steps.merge_hashes(config, pool, others)
    pool, groups = dedupe.run(config, pool, workdir)
    if config.dedupe.optimized and images.are_opened(config):  # which have not been looked at
        pool, groups = dedupe.usable(config, pool, groups, workdir)
    progress.say(f"{len(pool.paths)} images, {len(groups.members)} different ones")
    refused = shared_steps.merge_captions(config, groups, others) if others else None
    captions = caption.run(config, pool, groups, workdir, refused)
    if others and config.rewrite.captioner:
        pairs, refused = shared_steps.merge_rewrites(config, captions, others)
    else:
        pairs = pair.run(config, pool, groups, list(captions), workdir, open_run)
        refused = None
    made = modify.run(config, pairs, captions, workdir, refused)
    # Until all is written, no record says that the files belong together.
    before = _files_of_before(workdir)
    (workdir / RESULTS).unlink(missing_ok=True)
    files = output.run(config, made, pool, workdir)
    for old in before - set(files):
        old.unlink(missing_ok=True)
    journal.write_json(workdir / CONFIG, json.loads(to_json(config)), indent=2)
    keep = config.rewrite.keep_templates
    results = {
        "images": len(pool.paths),
        "unusable": summary(pool.unusable),
        "distinct": len(groups.members),
        "captions": len(captions),
        "pairs": len(pairs),
        "triplets": len(made),
        "texts": sum(len(output.training_texts(one, keep)) for one in made),
        "files": [str(file) for file in files],
        "seconds": round(time.monotonic() - began, 1),
    }
    journal.write_json(workdir / RESULTS, results, indent=2)
    return results


def _files_of_before(workdir: Path) -> set[Path]:
    """What an earlier run with other settings may have left."""
    try:
        results = json.loads((workdir / RESULTS).read_bytes())
        return {workdir / Path(file).name for file in results["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
