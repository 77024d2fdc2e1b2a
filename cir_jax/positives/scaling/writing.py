# SPDX-License-Identifier: Apache-2.0
"""Asks a captioner for texts until each is good, and keeps every good one at once.

Captions and rewritten texts are both made here: what is in the journal is never asked for again,
what was bad is asked for again and then listed, with the reply and the reason.
"""

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cir_jax.errors import UserError
from cir_jax.positives.scaling import journal, replies
from cir_jax.positives.scaling.captioners.contract import Reply, Request
from cir_jax.runtime import progress


@dataclass
class Written:
    """What there is after a run.

    Attributes:
      texts: key -> text.
      refused: key -> {"problem", "reply", "attempts"}.
      new: how many texts this run asked for and kept.
    """

    texts: dict[str, str]
    refused: dict[str, dict[str, Any]]
    new: int = 0


def check(section: Any, name: str, fields: Iterable[str]) -> None:
    """Raises UserError if the section's prompt cannot be filled in, or a number makes no sense."""
    sample = {f: "x" for f in fields}
    try:
        section.prompt.format(**sample, words=section.words)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{name}.prompt={section.prompt!r} cannot be filled in ({error!r}); it may name "
            f"{', '.join('{' + f + '}' for f in (*sample, 'words'))}"
        ) from None
    for key in ("words", "attempts"):
        if section[key] < 1:
            raise UserError(f"{name}.{key}={section[key]} is below 1")
    if section.max_words < 0:
        raise UserError(f"{name}.max_words={section.max_words} is negative; 0 is 4 x words")


def write(
    file: Path,
    captioner: Any,
    wanted: Mapping[str, Request],
    section: Any,
    *,
    key: str,
    seed: int,
    title: str,
) -> Written:
    """A text for every request, as far as there are good ones.

    Args:
      file: the journal; its records are {key: ..., "text": ..., "prompt": ..., "words": ...,
        "seed": ..., "date": ...} and the captioner's identity.
      captioner: see `captioners.contract`.
      wanted: key -> request.
      section: `config.caption` or `config.rewrite`.
      key: what a record calls its request, "image" or "pair".
      seed: recorded.
      title: of the progress bar.

    Raises:
      UserError: the journal was written with other settings, the captioner gives up, or the disk
        is full. What was written is kept in every case.
    """
    prompted = getattr(captioner, "prompted", True)
    identity = {**captioner.identity, "words": section.words if prompted else None, "seed": seed}
    # Texts that were not asked for in so many words are as long as their writers wanted.
    limit = replies.most_words(section) if prompted or section.max_words else math.inf
    refused: dict[str, dict[str, Any]] = {}
    with journal.Journal(file) as kept:
        texts = _earlier(kept, wanted, identity, key)
        new = 0
        todo = {k: r for k, r in wanted.items() if k not in texts}
        with progress.counter(len(wanted), title, len(texts)) as bar:
            for attempt in range(section.attempts):
                if not todo:
                    break
                requests = (replace(r, attempt=attempt) for r in todo.values())
                again: dict[str, Request] = {}
                with closing(captioner.generate(requests)) as answers:
                    for reply in answers:
                        text, problem = _judged(reply, limit)
                        if not problem:
                            record = {key: reply.key, "text": text}
                            record |= {"prompt": wanted[reply.key].prompt, **identity}
                            kept.add(record | {"date": _now()})
                            texts[reply.key] = text
                            new += 1
                            bar.update(1)
                            continue
                        refused[reply.key] = {
                            "problem": problem, "reply": reply.text, "attempts": attempt + 1,
                        }  # fmt: skip
                        if not reply.final:
                            again[reply.key] = wanted[reply.key]
                todo = again
    return Written(texts, {k: v for k, v in refused.items() if k not in texts}, new)


def _judged(reply: Reply, max_words: float) -> tuple[str, str]:
    text = replies.tidy(reply.text)
    return text, reply.problem or replies.fault(text, max_words)


def _earlier(
    kept: journal.Journal, wanted: Mapping[str, Request], identity: dict[str, Any], key: str
) -> dict[str, str]:
    """Texts of an earlier run, if they are what this one would ask for."""
    texts: dict[str, str] = {}
    for number, record in enumerate(kept.records(), start=1):
        name = record.get(key)
        if name not in wanted:
            continue
        for what, value in ({"prompt": wanted[name].prompt} | identity).items():
            if record.get(what) != value:
                raise UserError(
                    f"{kept.path}:{number} was written with {what}={record.get(what)!r}, and this "
                    f"run asks for {value!r}; set it back, use another workdir, or remove the file"
                )
        texts[name] = record["text"]
    return texts


def list_refused(file: Path, refused: Mapping[str, dict[str, Any]], key: str) -> None:
    """Writes the refused ones, or removes an old list if there are none."""
    if not refused:
        file.unlink(missing_ok=True)
        return
    journal.write_lines(file, ({key: k, **v} for k, v in refused.items()))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def reasons(refused: Mapping[str, dict[str, Any]]) -> str:
    """The commonest reasons, for a message."""
    counts: dict[str, int] = {}
    for entry in refused.values():
        kind = entry["problem"].split(":")[0].split(",")[0][:60]
        counts[kind] = counts.get(kind, 0) + 1
    ranked: Iterator[tuple[str, int]] = iter(sorted(counts.items(), key=lambda item: -item[1]))
    return "; ".join(f"{count} x {kind}" for kind, count in list(ranked)[:4])
