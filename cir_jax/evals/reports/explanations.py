# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a report mean, in words, of those that it shows."""

import re
from collections.abc import Mapping
from typing import Any

# name of a score -> (shown as, what it is)
_SCORES = (
    (
        r"(?:.+_)?recall_at(\d+)",
        "R@{} (recall at {})",
        "of every 100 queries, how many have their target among the first {} images of the ranking",
    ),
    (
        r"(?:.+_)?recall_subset_at(\d+)",
        "Rsub@{} (subset recall at {})",
        "the same, but only the few images that CIRR groups with the query's reference are ranked, "
        "which look alike: it asks for the text to be understood",
    ),
    (
        r"(?:.+_)?map_at(\d+)",
        "mAP@{} (mean average precision at {})",
        "for queries with several right answers: the more of them are among the first {} images, "
        "and the further ahead, the higher; 100 if all that fit there come first",
    ),
)
_MEANS = {
    "average_recall": "the mean of all recalls of the table; it selects the best step of a run",
    "recall_mean": "the mean of R@5 and Rsub@1; it selects the best step of a run",
    "arithmetic_mean": "the plain mean of all recalls, those of subsets included",
    "harmonic_mean": "the harmonic mean of the same recalls: one that is low pulls it down",
    "geometric_mean": "the geometric mean of the same recalls, between the other two",
}
_RULES = {
    "gallery": "the images that are searched: the same query is harder to answer among more of "
    "them. Numbers are comparable only where size and hash of the gallery are the same",
    "hash": "a short sum over the names of the gallery's images, the same where these are the same",
    "reference": "removed: the image of the query itself is taken out of the ranking, where it "
    "often comes first; kept: it stays in",
    "split": "which part of the data set the queries are of; no image of a test or validation "
    "split should have been trained on",
}


def of_scores(scores: Mapping[str, float], protocol: Mapping[str, Any]) -> dict[str, str]:
    """Name as the report shows it -> what it means, of the scores and rules that there are.

    Args:
      scores: metric -> per cent.
      protocol: that they were measured under.
    """
    found: dict[str, str] = {}
    for pattern, shown, meaning in _SCORES:
        matches = (m for m in (re.fullmatch(pattern, name) for name in scores) if m)
        places = sorted({int(match[1]) for match in matches})
        if places:
            listed = ", ".join(map(str, places))
            found[shown.format("K", "K")] = meaning.format("K") + f"; here K is {listed}"
    if any(name.startswith("average_recall_at") for name in scores):
        found["average"] = "the plain mean over the rows above it, however many queries each has"
    found |= {k.replace("_", " "): about for k, about in _MEANS.items() if k in scores}
    galleries = {"gallery", "hash"} if protocol.get("galleries") else set()
    return found | {k: about for k, about in _RULES.items() if k in galleries or k in protocol}
