# SPDX-License-Identifier: Apache-2.0
"""A triplet (reference image, text, target image), and a named set of them.

Every reader of `cir_jax.datasets` returns a list of `TripletSet`; nothing downstream knows which
data set a triplet came from.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload


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
      truths: names of all images that answer the query, where that are several (CIRCO, "targets" of
        your own data), the target included; () if the target is the only one.
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


class Triplets(Sequence[Triplet]):
    """Triplets that are not held in memory: each is made when it is asked for."""

    @abstractmethod
    def one(self, place: int) -> Triplet:
        """The triplet at a place from 0 on."""

    @abstractmethod
    def several(self) -> int:
        """How many queries have several right answers."""

    @abstractmethod
    def of_each_target(self) -> "Triplets":
        """A query with several right answers becomes a triplet with each."""

    @overload
    def __getitem__(self, place: int) -> Triplet: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Triplet, ...]: ...
    def __getitem__(self, place: int | slice) -> Triplet | tuple[Triplet, ...]:
        if isinstance(place, slice):
            return tuple(self.one(i) for i in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(f"triplet {place} of {len(self)}")
        return self.one(int(place) % len(self))


@dataclass(frozen=True)
class TripletSet:
    """Triplets of one source, with the file of every image they name.

    Attributes:
      name: the source, as it is logged and weighted.
      triplets: the triplets, in file order: a tuple, or `Triplets` of a file of millions.
      paths: image name -> path of its file, or an object with `read_bytes()` (a packed record).
      by_name: names tell images apart, also where two lead to one file by a link: those of
        published sets, whose numbers count names. Else one file is one image.
    """

    name: str
    triplets: Sequence[Triplet]
    paths: Mapping[str, Any]
    by_name: bool = False

    def of_each_target(self) -> "TripletSet":
        """The set to train on: a query with several right answers is a triplet with each."""
        if isinstance(self.triplets, Triplets):
            return replace(self, triplets=self.triplets.of_each_target())
        triplets = tuple(
            replace(t, target=name) for t in self.triplets for name in t.truths or (t.target,)
        )
        return replace(self, triplets=triplets)

    def several(self) -> int:
        """How many queries have several right answers."""
        if isinstance(self.triplets, Triplets):
            return self.triplets.several()
        return sum(bool(t.truths) for t in self.triplets)
