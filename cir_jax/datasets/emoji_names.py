# SPDX-License-Identifier: Apache-2.0
"""Parses OpenMoji names, and writes the difference between two names as modification texts.

"woman judge: dark skin tone" is a kind (judge), a gender (woman) and skin tones (dark). Two names
that differ in one of these give a triplet: its text says the difference, so the reference and the
text together determine the target.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_TONE = re.compile(r"\b(light|medium-light|medium|medium-dark|dark) skin tone\b")
_GENDERS = {"man": "man", "woman": "woman", "person": "person"}
_PLURALS = {"men": "man", "women": "woman", "people": "person"}

# Two phrasings of a triplet are drawn from these, as FashionIQ has two captions per triplet.
_GENDER_TEXTS = (
    "make it a {0}", "change the person to a {0}", "a {0} instead", "now it is a {0}",
)  # fmt: skip
_TONE_TEXTS = (
    "with {0} skin tone", "give it {0} skin tone", "change the skin to {0}", "{0} skin instead",
)  # fmt: skip
_PLAIN_TEXTS = (
    "without a skin tone", "in plain yellow", "take the skin tone away", "the default yellow skin",
)  # fmt: skip
_KIND_TEXTS = (
    "now {0}", "change it to {0}", "the same but {0}", "{0} instead",
)  # fmt: skip
_WORD_TEXTS = (
    "make it {1}, not {0}", "change {0} to {1}", "replace {0} by {1}", "{1} instead of {0}",
)  # fmt: skip


@dataclass(frozen=True)
class Emoji:
    """A named image.

    Attributes:
      slug: its name as a file name.
      name: the Unicode name, e.g. "woman judge: dark skin tone".
      codes: code points in hexadecimal, as OpenMoji names its files.
      kind: the name without gender and skin tone, e.g. "judge".
      gender: "man", "woman", "person" or "".
      tones: skin tones in the order of the name.
      category: "people" (has a gender), "hands" (has skin tones only) or "things".
    """

    slug: str
    name: str
    codes: str
    kind: str
    gender: str
    tones: tuple[str, ...]
    category: str


def parse(names: dict[str, str]) -> list[Emoji]:
    """Code points -> name, to emoji in the order of their code points."""
    split = {codes: _split(name) for codes, name in names.items()}
    kinds = {kind for kind, gender, _ in split.values() if gender in ("man", "woman")}
    toned = {kind for kind, gender, tones in split.values() if kind and tones and not gender}
    said = {kind for kind, gender, _ in split.values() if gender == "person"}
    emoji: list[Emoji] = []
    used: Counter[str] = Counter()
    for codes in sorted(names):
        kind, gender, tones = split[codes]
        if not gender and kind in kinds - said:  # "judge" is the neutral one of "man judge"
            gender = "person"
        category = "people" if gender else "hands" if kind in toned else "things"
        if not kind and not gender:  # a swatch: the name is the tone
            kind, tones = f"{tones[0]} skin tone", ()
        # Names are cut where tones were, so spaces and marks are put in order.
        base = " ".join(_TONE.sub(" ", names[codes]).replace(",", " ").split()).strip(" :") or kind
        name = f"{base}: {', '.join(f'{t} skin tone' for t in tones)}" if tones else base
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or codes.lower()
        used[slug] += 1
        slug = slug if used[slug] == 1 else f"{slug}-{codes.lower()}"
        emoji.append(Emoji(slug, name, codes, kind, gender, tones, category))
    return emoji


def difference(a: Emoji, b: Emoji, rng: random.Random) -> list[str] | None:
    """Two modification texts that turn `a` into `b`; None if they differ in too much for one."""
    if a.category != b.category or a == b:
        return None
    if a.category == "things":
        words = _one_word(a.name, b.name)
        return words and [t.format(*words) for t in rng.sample(_WORD_TEXTS, 2)]
    same = (a.kind == b.kind, a.gender == b.gender, a.tones == b.tones)
    if same == (False, True, True):
        return [t.format(b.kind or "nothing special") for t in rng.sample(_KIND_TEXTS, 2)]
    if not same[0]:
        return None
    genders = [t.format(b.gender) for t in rng.sample(_GENDER_TEXTS, 2)]
    if same[2]:
        return genders
    spoken = " and ".join(b.tones)
    templates = _TONE_TEXTS if b.tones else _PLAIN_TEXTS
    tones = [t.format(spoken) for t in rng.sample(templates, 2)]
    if same[1]:
        return tones
    return [f"{genders[0]}, {tones[0]}", f"{tones[1]}, {genders[1]}"]


def captions_of(emoji: Emoji) -> list[str]:
    """Descriptions of one image, for image-text pretraining."""
    base = " ".join(w for w in (emoji.gender, emoji.kind) if w)
    tones = " and ".join(emoji.tones)
    if not tones:
        return [base, f"an emoji of {base}", f"{emoji.name}, drawn"]
    return [
        emoji.name,
        f"{base} with {tones} skin tone",
        f"an emoji of {base}, {tones} skin",
        f"{tones} skin tone, {base}",
    ]


def by_likeness(emoji: Iterable[Emoji]) -> dict[tuple, list[Emoji]]:
    """Groups of emoji in which `difference` may find texts; between groups it never does."""
    groups: dict[tuple, list[Emoji]] = {}
    for one in emoji:
        if one.category == "things":
            words = one.name.split()
            keys: list[tuple] = [
                ("word", *words[:i], "*", *words[i + 1 :])
                for i in range(len(words))
                if len(words) > 1
            ]
        else:
            keys = [("kind", one.kind), ("look", one.category, one.gender, one.tones)]
        for key in keys:
            groups.setdefault(key, []).append(one)
    return {key: members for key, members in groups.items() if len(members) > 1}


def _split(name: str) -> tuple[str, str, tuple[str, ...]]:
    tones = tuple(_TONE.findall(name))
    rest = " ".join(_TONE.sub(" ", name).replace(":", " ").replace(",", " ").split())
    first, _, kind = rest.partition(" ")
    if first in _GENDERS:
        return kind, first, tones
    if first in _PLURALS:
        return f"together {kind}", _PLURALS[first], tones
    return rest, "", tones


def _one_word(a: str, b: str) -> tuple[str, str] | None:
    """The words that differ, if the names are equal but for one word."""
    first, second = a.split(), b.split()
    if len(first) != len(second) or len(first) < 2:
        return None
    changed = [(x, y) for x, y in zip(first, second, strict=True) if x != y]
    return changed[0] if len(changed) == 1 else None
