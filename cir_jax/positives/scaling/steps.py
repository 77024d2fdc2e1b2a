# SPDX-License-Identifier: Apache-2.0
"""The four steps in a row: config -> triplets.

Every step leaves a file in the work folder. What costs (decoding, captions, rewritten texts,
features) is kept and never done twice; what is drawn is drawn again, the same.
"""

import json
import time
from pathlib import Path
from typing import Any

from cir_jax.config import to_json
from cir_jax.errors import UserError
from cir_jax.positives.scaling import caption, dedupe, images, journal, modify, output, pair
from cir_jax.runtime import progress

CONFIG, RESULTS = "config.json", "results.json"


def run(config: Any) -> dict[str, Any]:
    """Makes triplets.

    Args:
      config: a locked config of configs/positives.py.

    Returns:
      What `results.json` holds: {"images", "distinct", "captions", "pairs", "triplets", "texts",
      "files", "seconds"}.

    Raises:
      UserError: input that cannot be used. What the steps before it made is kept.
    """
    if "caption" not in config:
        raise UserError(
            "this config trains a model; triplets are made with one of configs/positives.py, e.g. "
            "--config positives:folder"
        )
    output.check(config)
    began = time.monotonic()
    workdir = Path(config.workdir)
    pool = images.read(config)
    workdir.mkdir(parents=True, exist_ok=True)
    journal.write_json(workdir / CONFIG, json.loads(to_json(config)), indent=2)
    pool, groups = dedupe.run(config, pool, workdir)
    progress.say(f"{len(pool.paths)} images, {len(groups.members)} different ones")
    captions = caption.run(config, pool, groups, workdir)
    pairs = pair.run(config, pool, groups, list(captions), workdir)
    made = modify.run(config, pairs, captions, workdir)
    files = output.run(config, made, pool, workdir)
    results = {
        "images": len(pool.paths),
        "distinct": len(groups.members),
        "captions": len(captions),
        "pairs": len(pairs),
        "triplets": len(made),
        "texts": sum(len(one.texts) + len(one.rewritten) for one in made),
        "files": [str(file) for file in files],
        "seconds": round(time.monotonic() - began, 1),
    }
    journal.write_json(workdir / RESULTS, results, indent=2)
    return results
