# SPDX-License-Identifier: Apache-2.0
"""How large a data set is: nothing is read, its published counts are known."""

from dataclasses import dataclass

from ml_collections import ConfigDict

from cir_jax.datasets.readers import circo, cirr, fashioniq
from cir_jax.errors import UserError

# Longest text of a batch in tokens. An assumption: captions have about ten words, FashionIQ joins
# two, and the longest of a batch counts. It is rounded up to one of `data.text_lengths`.
TEXT = 40


@dataclass(frozen=True)
class Counts:
    """What a run reads.

    Attributes:
      triplets: of an epoch.
      images: different ones that they name: rows of the bank.
      references: different reference images.
      texts: phrasings of a triplet.
      queries: of an evaluation; 0 without one.
      gallery: images of an evaluation.
      source: where the numbers are from.
    """

    triplets: int
    images: int
    references: int
    texts: int
    queries: int
    gallery: int
    source: str


def find(
    config: ConfigDict, triplets: int = 0, images: int = 0, queries: int = 0, gallery: int = 0
) -> Counts:
    """The counts of the data set and the benchmark of a config.

    Args:
      config: of the run.
      triplets, images, queries, gallery: what is given goes before what is known.

    Raises:
      UserError: a data set whose size is not known, and is not given.
    """
    known = {"fashioniq": _fashioniq, "cirr": _cirr}.get(config.data.name)
    # What changes the number of triplets or of images has to be counted by the user.
    more = [k for k in ("generated", "unlabelled", "categories") if config.data[k]]
    missing = [
        flag
        for flag, given in (("--triplets", triplets), ("--images", images))
        if not given and (known is None or more or config.stage == "zero_image_text")
    ]
    if missing:
        why = f"data.{more[0]}={config.data[more[0]]!r}" if more else f"stage {config.stage}"
        if known is None:
            why = f"data.name={config.data.name!r}"
        raise UserError(
            f"how many triplets and images {why} has is not known here; give "
            f"{' and '.join(missing)}"
        )
    base = known() if known else Counts(0, 0, 0, 1, 0, 0, "the command line")
    if config.data.annotated >= 0 and not triplets:
        triplets = min(config.data.annotated, base.triplets)
    one = triplets or base.triplets
    several = images or min(base.images, 2 * one)
    asked, ranked = _evaluation(config)
    given = triplets or images or queries or gallery
    return Counts(
        one,
        several,
        min(base.references or several, several, one),
        base.texts,
        queries or asked,
        gallery or ranked,
        base.source + ("; with what the command line gives" if given and known else ""),
    )


def _fashioniq() -> Counts:
    triplets = sum(split["train"][0] for split in fashioniq.OFFICIAL.values())
    # 12,525 references are different, counted in the published caption files.
    return Counts(
        triplets, fashioniq.OFFICIAL_TRAIN_IMAGES, 12_525, 4, 0, 0, "published files of FashionIQ"
    )


def _cirr() -> Counts:
    triplets, images = cirr.OFFICIAL["train"]
    return Counts(triplets, images, images, 1, 0, 0, "published files of CIRR")


def _evaluation(config: ConfigDict) -> tuple[int, int]:
    """(queries, gallery) of an evaluation while training; (0, 0) where they are not known."""
    if config.eval.benchmark == "fashioniq":
        splits = [split["val"] for split in fashioniq.OFFICIAL.values()]
        return sum(n for n, _ in splits), sum(n for _, n in splits)
    if config.eval.benchmark == "cirr":
        return cirr.OFFICIAL["val"]
    if config.eval.benchmark == "circo":
        return circo.OFFICIAL["val"][0], circo.OFFICIAL_IMAGES
    return 0, 0
