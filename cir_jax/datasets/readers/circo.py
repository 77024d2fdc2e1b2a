# SPDX-License-Identifier: Apache-2.0
"""CIRCO in its official layout: queries with several right answers in COCO's unlabeled images.

    annotations/{val,test}.json   one object per query; test has no answers
    COCO2017_unlabeled/annotations/image_info_unlabeled2017.json   {"images": [{"id", "file_name"}]}
    COCO2017_unlabeled/unlabeled2017/000000243611.jpg and so on: 123,403 images, all candidates

A benchmark only: there is no training split. Source: arXiv 2303.15247; the layout and the fields
are those of its authors' data set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cir_jax.data import places
from cir_jax.data.annotations import field, not_empty, read_json
from cir_jax.datasets.examination import Examination
from cir_jax.errors import UserError, nearest

SPLITS = ("val", "test")
SOURCE = "circo"
# Of the published files: split -> (queries, right answers), and all images.
OFFICIAL = {"val": (220, 916), "test": (800, None)}
OFFICIAL_IMAGES = 123_403
_IMAGES = "COCO2017_unlabeled"


@dataclass(frozen=True, slots=True)
class Query:
    """One query.

    Attributes:
      query_id: its number, as text.
      reference: image number, as text; so are the others.
      caption: what is different, about the target.
      concept: what reference and target have in common.
      target: the image that the caption was written for; "" in the test split.
      truths: every image that answers the query, the target included; () in the test split.
      aspects: kinds of change the caption asks for, e.g. "negation".
    """

    query_id: str
    reference: str
    caption: str
    concept: str
    target: str = ""
    truths: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()


def queries(root: str | Path, split: str = "val") -> tuple[Query, ...]:
    """The queries of a split, in file order; their images are not looked for.

    Raises:
      UserError: an unknown split, a missing file or field, a query number or an answer that comes
        twice, or a target that is not among its query's answers.
    """
    file = annotation_file(root, split)
    found = tuple(
        _query(record, f"{file} record {number}", split)
        for number, record in enumerate(read_json(file))
    )
    if not found:
        raise UserError(f"{file} holds no query; fetch it again")
    _once([q.query_id for q in found], "id", str(file))
    return found


def candidates(root: str | Path) -> tuple[list[str], dict[str, str]]:
    """Names of all images, in the order of their list, and the file of each. Both splits share it.

    Raises:
      UserError: the list is missing, malformed or empty, names an image twice, or one that
        lies outside of the data set.
    """
    file = image_list(root)
    folder = Path(root) / _IMAGES / "unlabeled2017"
    written = places.Written(places.roots(root))
    paths: list[tuple[str, str]] = []
    listed = field(read_json(file, dict), "images", str(file))
    if not isinstance(listed, list):
        raise UserError(
            f"{file}: 'images' is a {type(listed).__name__}, expected a list; fetch the file again"
        )
    for number, record in enumerate(listed):
        where = f"{file} image {number}"
        name = field(record, "file_name", where)
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{where}: 'file_name' is {name!r}, expected the name of a file; fetch it again"
            )
        paths.append((_number(record, "id", where), written.file(folder, name, where)))
    if not paths:
        raise UserError(f"{file} names no image; fetch it again")
    names = [name for name, _ in paths]
    _once(names, "image id", str(file))
    return names, dict(paths)


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """Counts queries, right answers and images, and finds answers that are no candidates.

    Raises:
      UserError: categories are given, or a file is malformed.
    """
    if categories:
        raise UserError(f"CIRCO has no categories, got {tuple(categories)}; leave them empty")
    names, paths = candidates(root)
    found = Examination(images=paths)
    for split, (official, answers) in OFFICIAL.items():
        if not found.has_files(split, [Path(root) / "annotations" / f"{split}.json"]):
            continue
        asked = queries(root, split)
        found.count(f"{split} queries", len(asked), official)
        if split == "val":
            found.count("val right answers", sum(len(q.truths) for q in asked), answers)
        found.texts += [(f"{split}/{q.query_id}", q.caption) for q in asked]
        found.outside += [
            f"{split}/{q.query_id} ({name})"
            for q in asked
            for name in (q.reference, *q.truths)
            if name not in paths
        ]
    found.count("images, all candidates", len(names), OFFICIAL_IMAGES)
    return found


def annotation_file(root: str | Path, split: str) -> Path:
    """Where the queries of a split lie.

    Raises:
      UserError: CIRCO has no such split.
    """
    if split not in SPLITS:
        raise UserError(
            f"CIRCO has no split {split!r}; there are: {', '.join(SPLITS)}.{nearest(split, SPLITS)}"
        )
    file = Path(root) / "annotations" / f"{split}.json"
    if not file.is_file():
        raise UserError(
            f"no CIRCO annotations {file}; set eval.root (or data.root) to the folder that holds "
            f"annotations/ and {_IMAGES}/"
        )
    return file


def image_list(root: str | Path) -> Path:
    """COCO's list of the unlabeled images."""
    return Path(root) / _IMAGES / "annotations" / "image_info_unlabeled2017.json"


def _query(record: Any, where: str, split: str) -> Query:
    one = Query(
        query_id=_number(record, "id", where),
        reference=_number(record, "reference_img_id", where),
        caption=not_empty(field(record, "relative_caption", where), where)[0],
        concept=not_empty(field(record, "shared_concept", where), where)[0],
    )
    if split == "test":
        return one
    target = _number(record, "target_img_id", where)
    truths = field(record, "gt_img_ids", where)
    if not isinstance(truths, list) or not all(type(n) is int for n in truths):
        raise UserError(
            f"{where}: 'gt_img_ids' is {truths!r}, expected a list of image numbers; correct the "
            "record"
        )
    truths = tuple(map(str, truths))
    _once(truths, "answer", where)
    if target not in truths:
        raise UserError(
            f"{where}: target {target} is not among its {len(truths)} answers gt_img_ids; correct "
            "the record"
        )
    if one.reference in truths:
        raise UserError(
            f"{where}: the reference {one.reference} is one of its own answers gt_img_ids; correct "
            "the record"
        )
    # Earlier files of the data set lack them, and their numbers stay comparable.
    aspects = record.get("semantic_aspects", [])
    if not isinstance(aspects, list) or not all(isinstance(a, str) and a for a in aspects):
        raise UserError(
            f"{where}: 'semantic_aspects' is {aspects!r}, expected a list of words; correct the "
            "record"
        )
    return replace(one, target=target, truths=truths, aspects=tuple(dict.fromkeys(aspects)))


def _number(record: Any, key: str, where: str) -> str:
    """The number `record[key]` as text; image and query numbers are names everywhere else."""
    value = field(record, key, where)
    if type(value) is not int or value < 0:
        raise UserError(
            f"{where}: {key!r} is {value!r}, expected a whole number; correct the record"
        )
    return str(value)


def _once(names: Any, what: str, where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: {what} {twice[0]} comes more than once; fetch the file again")
