# SPDX-License-Identifier: Apache-2.0
"""JSON arrays and JSON lines of any size, one record in memory at a time.

Python's parser wants the whole text. Here it is given a window that moves along an array; where it
fails, quotes and brackets tell a malformed record, which is skipped, from one that is not read to
its end yet. A streaming parser such as ijson stops at the first malformed record, keeps the last of
two equal keys, and (its C backend) reads half of a surrogate pair as a question mark.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cir_jax.data import json_files, text_files
from cir_jax.errors import UserError

Found = tuple[str, dict[str, Any] | str]  # ("file:number", record or what is wrong with it)

CHUNK = 1 << 20  # characters read at once
LONGEST = 16 << 20  # characters; in a longer record, its end was not found
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],"]', re.DOTALL)
_SPACE = re.compile(r"[\s,]*")


class _Array:
    """A window on the text of a JSON array; `number` counts its records from 1."""

    def __init__(self, stream: io.TextIOBase, path: Path):
        self.stream, self.path = stream, path
        self.text, self.at, self.number = "", 0, 0

    def grow(self) -> bool:
        """Drops what was parsed and reads on; False at the end of the file."""
        if len(self.text) - self.at > LONGEST:
            raise UserError(
                f"{self.path}:{self.number} has no end within {LONGEST} characters; a quote or a "
                "bracket is missing there"
            )
        chunk = self.stream.read(CHUNK)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is neither space nor comma; "" at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def value(self) -> dict[str, Any] | str:
        """The object that begins here, or what is wrong with what stands here instead.

        Raises:
          UserError: the file ends within it.
        """
        while True:
            problem = "expected an object"
            if self.text[self.at] == "{":
                try:
                    value, self.at = json_files.decode(self.text, self.at, printable=True)
                    return value
                except ValueError as error:
                    problem = _problem(error)
            # Malformed, or not read to its end? Brackets tell, and where the next record begins.
            end = _end(self.text, self.at)
            if end is not None:
                self.at = end
                return problem
            if not self.grow():
                raise UserError(
                    f"{self.path}:{self.number} ends too early: the file is cut; fetch it again"
                )


def array(stream: io.TextIOBase, path: Path) -> Iterator[Found]:
    """("path:record", object or what is wrong with it) of every element of a JSON array.

    Raises:
      UserError: the text ends before the array does.
    """
    with stream:
        window = _Array(stream, path)
        window.peek()
        window.at += 1  # behind the [
        while window.peek() != "]":
            window.number += 1
            if not window.peek():
                raise UserError(
                    f"{path}:{window.number} is missing: the file ends without the ] of its list, "
                    "so it is cut; fetch it again"
                )
            yield f"{path}:{window.number}", window.value()


def _end(text: str, start: int) -> int | None:
    """Where the JSON value at `start` ends by its quotes and brackets; None: not in this text."""
    depth = 0
    for match in _TOKEN.finditer(text, start):
        token = match[0]
        if token == '"':  # a string without its end
            return None
        if token in "{[":
            depth += 1
        elif token in "}]" and depth:
            depth -= 1
            if not depth:
                return match.end()
        elif token in "}]," and not depth:
            return max(match.start(), start + 1)
    return None


def lines(stream: io.TextIOBase, path: Path) -> Iterator[Found]:
    """("path:line", object or what is wrong with it) of every line that is not blank.

    Raises:
      UserError: the last line is cut.
    """
    good = 0
    with stream:
        for number, line in text_files.numbered(stream, path):
            if not line.strip():
                continue
            try:
                record = json_files.loads(line, printable=True)
            except ValueError as error:
                # A key that comes twice may be found before the end that is missing.
                malformed = isinstance(error, json.JSONDecodeError) or _end(line, 0) is None
                if good and malformed and not line.endswith("\n"):
                    raise UserError(
                        f"{path}:{number} ends too early: the file is cut; fetch it again"
                    ) from None
                record = _problem(error)
            else:
                good += 1
                if not isinstance(record, dict):
                    record = "expected an object"
            yield f"{path}:{number}", record


def _problem(error: ValueError) -> str:
    return f"no JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)
