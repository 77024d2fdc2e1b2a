# SPDX-License-Identifier: Apache-2.0
"""GeneCIS: four tasks, every query with a gallery of its own. A benchmark only.

    genecis/{task}.json or {task}.json   [{"reference", "target", "condition", "gallery": [...]}]
    VG_100K_all/ (or VG_100K/ and VG_100K_2/)   Visual Genome, for the tasks about attributes
    val2017/                                    COCO 2017 validation images, for those about objects

An image of a task about attributes is one object: {"image_id", "instance_bbox": [left, top, width,
height]}, cut out as `cir_jax.data.pixels.Crop` says with DILATION; of a task about objects it is
the whole {"val_image_id"}. The target of a query is not in its "gallery"; it is a candidate beside
it. Source: Vaze et al., CVPR 2023 (arXiv 2306.07969), and the annotations of its authors.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_jax.data.annotations import field, not_empty, read_json
from cir_jax.data.pixels import Crop, ImageFile
from cir_jax.data.triplets import Triplet, TripletSet
from cir_jax.datasets.examination import Examination
from cir_jax.datasets.stem_files import StemFiles
from cir_jax.errors import UserError, nearest

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
SOURCE = "genecis"
OFFICIAL = {"focus_object": 1_960, "change_object": 1_960}  # queries of the published files
DILATION = 0.7  # of the authors' evaluation
_FOLDERS = {"attribute": ("VG_100K_all", "VG_100K", "VG_100K_2"), "object": ("val2017",)}


def read_task(root: str | Path, task: str) -> TripletSet:
    """The queries of a task: the condition is their text, the candidates their `members`.

    A query that lists its target among its gallery (one official query does), or an image twice,
    has it as one candidate: it could not be ranked before itself. Names are the number of an
    image, and its box after a colon. `paths` holds a path or a `Crop` for every name; where the
    file is missing, the one that was expected.

    Raises:
      UserError: an unknown task, or a missing file or field.
    """
    file = task_file(root, task)
    there = located(root, task)
    triplets: list[Triplet] = []
    paths: dict[str, ImageFile] = {}
    for number, record in enumerate(read_json(file)):
        where = f"{file} record {number}"
        others = field(record, "gallery", where)
        if not isinstance(others, list) or not others:
            raise UserError(
                f"{where}: 'gallery' is {others!r}, expected a list of images; correct the record"
            )
        items = [field(record, "reference", where), field(record, "target", where), *others]
        named = [_item(root, task, there, item, where) for item in items]
        paths |= dict(named)
        reference, target, *gallery = (name for name, _ in named)
        texts = not_empty(field(record, "condition", where), where)
        members = tuple(dict.fromkeys((target, *gallery)))
        if len(members) < 2:
            raise UserError(f"{where}: its gallery holds nothing but the target; correct it")
        triplets.append(
            Triplet(reference, target, texts, texts[0], SOURCE, f"{task}/{number}", task, members)
        )
    if not triplets:
        raise UserError(f"{file} holds no query; fetch it again")
    return TripletSet(task, tuple(triplets), paths, by_name=True)


def find_tasks(wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """`wanted`, or all tasks.

    Raises:
      UserError: one is unknown.
    """
    for task in wanted:
        if task not in TASKS:
            raise UserError(
                f"GeneCIS has no task {task!r}; there are: {', '.join(TASKS)}."
                f"{nearest(task, TASKS)}"
            )
    return tuple(dict.fromkeys(wanted)) or TASKS


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """Counts the queries and images of every task; `categories` are tasks.

    Raises:
      UserError: no task is there, one is unknown, or a file is malformed.
    """
    found = Examination()
    paths: dict[str, ImageFile] = {}
    parts: dict[str, Crop] = {}
    for task in find_tasks(categories):
        if not has_task(root, task):
            found.problems.append(f"no annotation file genecis/{task}.json in {root}; fetch it")
            continue
        read = read_task(root, task)
        items = {n for t in read.triplets for n in (t.reference, *t.members)}
        found.count(f"{task} queries", len(read.triplets), OFFICIAL.get(task))
        found.look_over(read.triplets, "val")
        found.count(f"{task} images and parts of images", len(items))
        paths |= {str(file_of(p)): file_of(p) for p in read.paths.values()}
        parts |= {str(p): p for p in read.paths.values() if isinstance(p, Crop)}
    if not paths:
        raise UserError(f"no task of GeneCIS in {root}: {found.problems[0]}")
    found.count("image files", len(paths))
    found.images, found.parts = paths, parts
    return found


def task_file(root: str | Path, task: str) -> Path:
    """Where the queries of a task lie.

    Raises:
      UserError: an unknown task, or no such file.
    """
    find_tasks((task,))
    file = next((path for path in _choices(root, task) if path.is_file()), None)
    if file is None:
        raise UserError(
            f"no GeneCIS annotations {_choices(root, task)[0]}; set eval.root (or data.root) to "
            "the folder that holds genecis/, VG_100K_all/ and val2017/, or name the tasks you have "
            "with eval.tasks"
        )
    return file


def has_task(root: str | Path, task: str) -> bool:
    """Whether the queries of a task are there."""
    return any(path.is_file() for path in _choices(root, task))


def located(root: str | Path, task: str) -> Mapping[str, str]:
    """Image number -> file, for all images of a task's source that are there."""
    folders = _FOLDERS[_kind(task)]
    return ChainMap(*(dict(StemFiles(Path(root) / f, depth=0, root=root)) for f in folders))


def file_of(path: ImageFile) -> ImageFile:
    """The image file of one of `read_task`'s paths."""
    return path.source if isinstance(path, Crop) else path


def _choices(root: str | Path, task: str) -> list[Path]:
    return [Path(root) / "genecis" / f"{task}.json", Path(root) / f"{task}.json"]


def _kind(task: str) -> str:
    return task.rsplit("_", 1)[1]


def _item(
    root: str | Path, task: str, there: Mapping[str, str], item: Any, where: str
) -> tuple[str, ImageFile]:
    """(name, path or crop) of an image of a record."""
    key = "image_id" if _kind(task) == "attribute" else "val_image_id"
    number = field(item, key, where)
    if type(number) is not int or number < 0:
        raise UserError(
            f"{where}: {key!r} is {number!r}, expected a whole number; correct the record"
        )
    stem = str(number) if _kind(task) == "attribute" else f"{number:012d}"
    path = there.get(stem, str(Path(root) / _FOLDERS[_kind(task)][0] / f"{stem}.jpg"))
    if _kind(task) == "object":
        return str(number), path
    box = field(item, "instance_bbox", where)
    if not _is_box(box):
        raise UserError(
            f"{where}: 'instance_bbox' is {box!r}, expected [left, top, width, height] in pixels; "
            "correct the record"
        )
    return f"{number}:{','.join(f'{x:g}' for x in box)}", Crop(path, tuple(box), DILATION)


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and all(type(x) in (int, float) for x in box)
    return numbers and len(box) == 4 and box[2] > 0 and box[3] > 0
