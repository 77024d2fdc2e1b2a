# SPDX-License-Identifier: Apache-2.0
"""Asks a captioner for texts until each is good, and keeps every good one at once.

Captions and rewritten texts are both made here: what is in the journal is never asked for again,
what was bad is asked for again and then listed, with the reply and the reason.
"""

import datetime
import json
import math
import string
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.generation import captioner as contract
from cir_jax.generation import journal, replies
from cir_jax.generation.captioner import Reply, Request

LOADING = "loading"  # of a record: see `RequestImages`
_CHECKED = 5.0  # seconds between two looks whether another process has taken over


@dataclass
class Texts:
    """What there is after a run.

    Attributes:
      texts: key -> text.
      refused: key -> {"problem", "reply", "attempts"}.
      new: how many texts this run asked for and kept.
    """

    texts: dict[str, str]
    refused: dict[str, dict[str, Any]]
    new: int = 0

    def keep(self, name: str, text: str) -> None:
        """Takes a new text."""
        self.texts[name] = text
        self.new += 1

    def refuse(self, name: str, reply: Reply, problem: str, attempts: int) -> None:
        """Notes why there is no text after so many attempts."""
        self.texts.pop(name, None)
        self.refused[name] = {"problem": problem, "reply": reply.text, "attempts": attempts}


@dataclass(frozen=True)
class RequestImages:
    """The images that requests are about: which of them share a text, and what they show.

    Attributes:
      stands_for: name -> key of the request that a text of it answers, of duplicates the same.
      pixels: name -> hash of what the image shows, as far as it is known. It is noted beside each
        text, which goes with the picture: not with the name of one that was replaced, and with the
        new name of one that was renamed.
      loading: how files become pictures, as `Loading.fingerprint` says it; "" for "released". It is
        noted of images whose pixels are not known: opened otherwise they are other pictures.
    """

    stands_for: Mapping[str, str]
    pixels: Mapping[str, str]
    loading: str = ""

    def of(self, name: str) -> dict[str, str]:
        """What a record of `name` says of it."""
        if name in self.pixels:
            return {"pixels": self.pixels[name]}
        return {LOADING: self.loading} if self.loading else {}

    def answered_by(self, record: Mapping[str, Any], name: str, keys: Mapping[str, str]) -> str:
        """Key of the request that a record of `name` answers; `keys` as `keys()` gives it."""
        then = record.get("pixels")
        if then and keys and self.pixels.get(name) != then:
            return keys.get(then, "")
        return self.stands_for.get(name, name)

    def opened_otherwise(self, record: Mapping[str, Any]) -> bool:
        """Whether a record without pixels is of files that were opened in another way."""
        return "pixels" not in record and record.get(LOADING, "") != self.loading

    def keys(self) -> dict[str, str]:
        """Hash -> key of the request for a picture that shows this."""
        return {hashed: self.stands_for.get(name, name) for name, hashed in self.pixels.items()}


@dataclass(frozen=True)
class Shared:
    """A part of requests that several processes share, each with a journal of its own.

    Attributes:
      mine: key -> whether this process asks for it.
      journals: all journals, with that of this process. Of two texts for one request the one that
        comes later counts, so all processes must name them in one order.
      check: called now and then before a text is kept; raises UserError where another process has
        taken over this part.
    """

    mine: Callable[[str], bool]
    journals: Sequence[Path]
    check: Callable[[], object] = lambda: None


def check_section(section: ConfigDict, name: str, fields: Iterable[str]) -> None:
    """Checks `config.caption` or `config.rewrite`, called `name` in messages.

    Raises:
      UserError: no such captioner, or a prompt that cannot be filled in.
    """
    contract.load(section.captioner)
    sample = {f: "x" for f in fields}
    try:
        section.prompt.format(**sample, words=section.words)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{name}.prompt={section.prompt!r} cannot be filled in ({error!r}); it may name "
            f"{', '.join('{' + f + '}' for f in (*sample, 'words'))}"
        ) from None
    if not section.prompt.strip():
        raise UserError(f"{name}.prompt is empty; say what to write")
    contract.check(section, name)


def is_free(captioner: Any) -> bool:
    """Whether a captioner, or the class of one, only looks texts up."""
    return bool(getattr(captioner, "free", False))


def names_field(prompt: str, field: str) -> bool:
    """Whether a prompt that can be filled in names {field}."""
    return any(name == field for _, name, _, _ in string.Formatter().parse(prompt))


def generate(
    file: Path,
    captioner: contract.Captioner,
    wanted: Mapping[str, Request],
    section: ConfigDict,
    *,
    key: str,
    seed: int,
    title: str,
    images: RequestImages | None = None,
    shared: Shared | None = None,
) -> Texts:
    """A text for every request, as far as there are good ones.

    Args:
      file: the journal; its records are {key: ..., "text": ..., "prompt": ..., "words": ...,
        "seed": ..., "date": ...} and the captioner's identity, and "pixels" of an image.
      captioner: see `captioner`.
      wanted: key -> request.
      section: `config.caption` or `config.rewrite`.
      key: what a record calls its request, "image" or "pair".
      seed: recorded.
      title: of the progress bar.
      images: what the requests are about.
      shared: the part that this process asks for; what others have written is returned, too.

    Raises:
      UserError: the journal was written with other settings, the captioner gives up, or the disk
        is full. What was written is kept in every case.
    """
    images = images or RequestImages({}, {})
    identity = _identity(captioner, section, seed)
    with journal.Journal(file) as kept:
        texts = _earlier(
            *(_records(kept, shared), file, wanted, identity, key, images, captioner, section)
        )
        written = Texts(texts, {})
        mine = {k: r for k, r in wanted.items() if shared is None or shared.mine(k)}
        todo = {k: r for k, r in mine.items() if k not in texts or is_free(captioner)}
        check = _now_and_then(shared.check) if shared else lambda: None
        with (
            progress.counter(len(mine), title, len(mine) - len(todo)) as bar,
            closing(_attempts(captioner, todo, section.attempts)) as attempts,
        ):
            for attempt, request, reply in attempts:
                name = request.key
                text, problem = _judged(reply, captioner, section)
                if problem:
                    written.refuse(name, reply, problem, attempt + 1)
                else:
                    if texts.get(name) != text:
                        check()
                        said = {key: name, "text": text, "prompt": request.prompt}
                        kept.add({**said, **identity, **images.of(name), "date": _now()})
                        written.keep(name, text)
                    written.refused.pop(name, None)
                    bar.update(1)
                if reply.final or not problem:
                    del todo[name]
    return written


def _records(kept: journal.Journal, shared: Shared | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of all journals."""
    if shared is None:
        yield from kept.records()
        return
    for file in shared.journals:
        yield from kept.records() if file == kept.path else journal.read(file)


def _now_and_then(check: Callable[[], object]) -> Callable[[], None]:
    """Calls `check` unless that, or this, was a moment ago."""
    last = time.monotonic()

    def checked() -> None:
        nonlocal last
        if time.monotonic() - last >= _CHECKED:
            check()
            last = time.monotonic()

    return checked


def _identity(captioner: contract.Captioner, section: ConfigDict, seed: int) -> dict[str, Any]:
    """What is recorded beside every text, as JSON gives it back."""
    prompted = getattr(captioner, "prompted", True)
    identity = {**captioner.identity, "words": section.words if prompted else None, "seed": seed}
    return json.loads(json.dumps(identity, default=str))


def _attempts(
    captioner: contract.Captioner, todo: Mapping[str, Request], attempts: int
) -> Generator[tuple[int, Request, Reply], None, None]:
    """(attempt, request, reply) of what is still to be done when an attempt begins."""
    for attempt in range(attempts):
        if not todo:
            return
        with closing(_answers(captioner, todo, attempt)) as answers:
            for request, reply in answers:
                yield attempt, request, reply


def _answers(
    captioner: contract.Captioner, todo: Mapping[str, Request], attempt: int
) -> Generator[tuple[Request, Reply], None, None]:
    """Every request once, with its reply."""
    waiting = dict(todo)
    answers = captioner.generate(replace(r, attempt=attempt) for r in list(todo.values()))
    try:
        for reply in answers:
            request = waiting.pop(reply.key, None)
            if request is None:
                raise UserError(
                    f"captioner {captioner.identity.get('captioner')!r} answered {reply.key!r}, "
                    "which it was not asked, or twice; it must give one reply to each request"
                )
            yield request, reply
    finally:
        if hasattr(answers, "close"):  # not every iterator of a plug-in is a generator
            answers.close()
    for request in waiting.values():
        yield request, Reply(request.key, "", "no reply")


def _judged(reply: Reply, captioner: contract.Captioner, section: ConfigDict) -> tuple[str, str]:
    # Texts that are looked up answer no prompt: they may be long, and one that reads like a model's
    # excuse is a text like any other.
    if getattr(captioner, "prompted", True):
        text, limit = replies.tidy(reply.text), replies.most_words(section)
        return text, reply.problem or replies.fault(text, limit)
    text, most = replies.one_line(reply.text), section.max_words or math.inf
    over = f"over {most} words" if len(text.split()) > most else ""
    return text, reply.problem or replies.broken(text) or over


def _earlier(
    records: Iterable[tuple[str, dict[str, Any]]],
    file: Path,
    wanted: Mapping[str, Request],
    identity: dict[str, Any],
    key: str,
    images: RequestImages,
    captioner: contract.Captioner,
    section: ConfigDict,
) -> dict[str, str]:
    """Texts of an earlier run, if they are what this one would ask for and accept."""
    free = is_free(captioner)
    texts: dict[str, str] = {}
    shared: dict[str, str] = {}
    keys, otherwise = images.keys(), 0
    for where, record in records:
        name, text = record.get(key), record.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(f"{where} has no {key} or no text; remove that line")
        request = wanted.get(images.answered_by(record, name, keys))
        if request is None:
            continue
        if images.opened_otherwise(record):
            otherwise += 1
            continue
        asked = {"captioner": "", **identity, "prompt": request.prompt}
        if identity.get("temperature") == 0:
            del asked["seed"]  # other pairs may be drawn from the same captions
        other = next((what for what, value in asked.items() if record.get(what) != value), "")
        if not other:
            if _judged(Reply(name, text), captioner, section)[1]:
                continue  # max_words was lowered
            (texts if name == request.key else shared)[request.key] = text
        elif name == request.key and (other == "captioner" or not free):
            raise UserError(
                f"{where} was written with {other}={record.get(other)!r}, and this run asks for "
                f"{asked[other]!r}; set it back, use another workdir, or remove the file"
            )
    if otherwise and not free:
        progress.say(
            f"{otherwise:,} texts of {file} are of pictures that were opened otherwise "
            "(data.loading): they are asked for again, and what is there is kept"
        )
    return shared | texts


def list_refused(file: Path, refused: Mapping[str, dict[str, Any]], key: str) -> None:
    """Writes the refused ones, or removes an old list if there are none."""
    if not refused:
        file.unlink(missing_ok=True)
        return
    journal.write_lines(file, ({key: k, **v} for k, v in refused.items()))


def again(merged: Mapping[str, Any] | None) -> str:
    """Who asks again for what was refused; `merged`: see `caption.run`."""
    who = "The same command asks" if merged is None else "Workers that are started again ask"
    return f"{who} for them again"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def reasons(refused: Mapping[str, dict[str, Any]]) -> str:
    """The commonest reasons, for a message."""
    counts: dict[str, int] = {}
    for entry in refused.values():
        kind = entry["problem"].split(":")[0].split(",")[0][:60]
        counts[kind] = counts.get(kind, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return "; ".join(f"{count} x {kind}" for kind, count in ranked[:4])
