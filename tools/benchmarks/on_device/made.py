# SPDX-License-Identifier: Apache-2.0
"""A data set that is made in a few seconds: photographs, and triplets whose texts have words."""

import json
from pathlib import Path

import numpy as np

from tools.benchmarks import pixels
from tools.benchmarks.stage2_models import texts

# Each is one token of CLIP's vocabulary and of BERT's.
_WORDS = (
    "a red blue dark small round dress shirt car dog with without more of the same style in front "
    "wooden table bright sky behind street person holding two other show me similar"
).split()


def write(root: Path, images: int, triplets: int) -> Path:
    """A folder of JPEGs of 500 x 400 and train.jsonl, as the reader "folder" takes it.

    Args:
      root: of the folder, which is made.
      images: their number.
      triplets: theirs; their texts are as long as those of FashionIQ.
    """
    (root / "images").mkdir(parents=True)
    names = [Path(path).name for path in pixels.photographs(root / "images", images)]
    rng = np.random.default_rng(0)
    lengths, lines = texts.lengths("FashionIQ", triplets), []
    for length in lengths:
        reference, target = rng.choice(len(names), 2, replace=False)
        words = rng.choice(_WORDS, length - 2)  # a text has a start and an end
        lines.append(
            json.dumps(
                {
                    "reference": names[reference],
                    "target": names[target],
                    "text": " ".join(words.tolist()),
                }
            )
        )
    (root / "train.jsonl").write_text("\n".join(lines))
    return root
