# SPDX-License-Identifier: Apache-2.0
"""A triplet (reference image, text, target image), and a named set of them.

Every reader of `cir_jax.datasets` returns a list of `TripletSet`; nothing downstream knows which
data set a triplet came from.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Triplet:
    """One training or evaluation example.

    Attributes:
      reference: name of the reference image; "" for an image-caption pair (stage zero).
      target: name of the target image; "" where it is unknown (test splits).
      texts: every text the triplet may be shown with in training, joining rules applied.
      eval_text: the text of the query in evaluation.
      source: where it comes from, e.g. "fashioniq" or "generated".
      query_id: names the record in messages and submissions, e.g. "dress/17" or CIRR's pairid.
      category: category of the query in benchmarks that rank per category.
      members: names of the images of CIRR's subset, the reference and the target included; of the
        candidates of a GeneCIS query.
      truths: names of all images that answer the query, where that are several (CIRCO), the target
        included; () if the target is the only one.
    """

    reference: str
    target: str
    texts: tuple[str, ...]
    eval_text: str
    source: str
    query_id: str
    category: str = ""
    members: tuple[str, ...] = ()
    truths: tuple[str, ...] = ()


@dataclass(frozen=True)
class TripletSet:
    """Triplets of one source, with the file of every image they name.

    Attributes:
      name: the source, as it is logged and weighted.
      triplets: the triplets, in file order.
      paths: image name -> path of its file, or an object with `read_bytes()` (a packed record).
      by_name: names tell images apart, also where two lead to one file by a link: those of
        published sets, whose numbers count names. Else one file is one image.
    """

    name: str
    triplets: tuple[Triplet, ...]
    paths: dict[str, Any]
    by_name: bool = False
