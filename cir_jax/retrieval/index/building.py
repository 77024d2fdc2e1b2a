# SPDX-License-Identifier: Apache-2.0
"""What an update has encoded so far: it goes on from there when it was stopped at any moment.

    building/state.json     how much of the rest is certainly on disk; replaced every few seconds
    building/lines.jsonl    one line per image: [name, id, segment, row, size, time, content], or
                            [name, file, reason, why] of one that cannot be read
    building/sample.npz     of rows that are not float32, see `sample`

Rows go into new segments (`segments`), of which the record of a generation knows nothing yet. An
update that has made a generation removes the folder.
"""

import json
import os
import shutil
import time
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cir_jax import files, progress
from cir_jax.data.unusable import Problem
from cir_jax.retrieval.index import records, segments
from cir_jax.retrieval.index.catalogue import SCHEMA
from cir_jax.retrieval.index.sample import Sample
from cir_jax.runtime import checksums

STATE, LINES, SAMPLE = "state.json", "lines.jsonl", "sample.npz"
COMMIT = 30.0  # seconds between two moments at which what was written is made certain


class Building:
    """What was encoded since the last generation. Use it in a `with`.

    Args:
      folder: of the index.
      base: the generation that it goes on from.
      dtype, rows_per_image, embedding: of the index.

    Attributes:
      next_id: id of the next new image.
      unreadable: name -> why.
      sample: of the rows as the model gave them; of float32 it stays empty.

    Raises:
      UserError: by all methods: the disk is full or fails.
    """

    def __init__(
        self,
        folder: str | Path,
        base: records.Generation,
        dtype: str,
        rows_per_image: int,
        embedding: int,
    ):
        self.folder, self._base = Path(folder), base
        self._shape = dtype, rows_per_image, embedding
        self._place = self.folder / records.BUILDING
        self.next_id, self._next_segment = base.next_id, base.next_segment
        self.finished: dict[int, dict[str, Any]] = {}
        self.unreadable: dict[str, Problem] = {}
        self.sample = Sample(rows_per_image, embedding)
        self._names: list[str] = []
        self._columns = {name: array("q") for name in ("id", "segment", "row", "size", "time")}
        self._contents: list[bytes] = []
        self._fresh: list[str] = []  # lines that are not written yet
        self._segment: segments.Writer | None = None
        self._lines: BinaryIO | None = None
        self._bytes = 0
        self._committed = time.monotonic()

    def __enter__(self) -> "Building":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._segment is not None:
            self._segment.close()
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()

    def __len__(self) -> int:
        return len(self._names)

    def resume(self) -> None:
        """Takes up what was begun, if it was begun from the same generation and is as written."""
        state = self._state()
        if state is None or not self._take(state):
            self.discard()

    def discard(self) -> None:
        """Drops what was begun."""
        self._close()
        self.next_id, self._next_segment = self._base.next_id, self._base.next_segment
        self.finished, self.unreadable, self._names, self._contents = {}, {}, [], []
        self._columns = {name: array("q") for name in self._columns}
        self._fresh, self._bytes, self._segment, self._lines = [], 0, None, None
        self.sample = Sample(*self._shape[1:])
        shutil.rmtree(self._place, ignore_errors=True)

    def add(
        self,
        names: list[str],
        stamps: list[tuple[int, int]],
        contents: list[bytes],
        rows: NDArray[np.float32],
    ) -> None:
        """Takes encoded images.

        Args:
          names: of the images; each gets the next id.
          stamps: (size, time) of their files.
          contents: checksums of their files.
          rows: [n, K, D].
        """
        if self._shape[0] != "float32":
            self.sample.add(contents, rows)
        taken = 0
        while taken < len(names):
            writer = self._writer()
            most = writer.most
            part = slice(taken, taken + min(len(names) - taken, most - writer.rows))
            first = writer.rows
            writer.add(rows[part])
            for offset, at in enumerate(range(part.start, part.stop)):
                place = self.next_id, writer.number, first + offset, *stamps[at]
                self.next_id += 1
                self._note(names[at], place, contents[at])
                self._fresh.append(json.dumps([names[at], *place, contents[at].hex()]))
            taken = part.stop
            if writer.rows >= most:
                self.finished[writer.number] = writer.finish()
                self._segment = None
                self.commit(every=0.0)

    def cannot_read(self, name: str, problem: Problem) -> None:
        """Takes an image that cannot be read."""
        self.unreadable[name] = problem
        self._fresh.append(json.dumps([name, problem.file, problem.reason, problem.why]))

    def commit(self, every: float | None = None) -> None:
        """Notes that all that was taken is on disk, every few seconds."""
        if time.monotonic() - self._committed < (COMMIT if every is None else every):
            return
        tails = {} if self._segment is None else self._segment.flush()
        self._write_lines()
        if self._shape[0] != "float32":
            self.sample.write(self._place / SAMPLE)
        state = {
            "base": self._base.number,
            "next_id": self.next_id,
            "next_segment": self._next_segment,
            "finished": {str(number): entry for number, entry in self.finished.items()},
            "segment": None if self._segment is None else self._segment.number,
            "rows": 0 if self._segment is None else self._segment.rows,
            "tails": tails,
            "bytes": self._bytes,
        }
        files.put(self._place / STATE, checksums.sealed(state))
        self._committed = time.monotonic()

    def finish(self) -> dict[int, dict[str, Any]]:
        """Closes the segments; their entries in the record of a generation."""
        if self._segment is not None:
            self.commit(every=0.0)
            self.finished[self._segment.number] = self._segment.finish()
            self._segment = None
        return self.finished

    @property
    def numbers(self) -> list[int]:
        """Numbers of its segments."""
        return [*self.finished, *([] if self._segment is None else [self._segment.number])]

    @property
    def next_segment(self) -> int:
        """Number of the next segment."""
        return self._next_segment

    def table(self) -> pa.Table:
        """The images that were encoded, as lines of a catalogue."""
        numbers = {name: np.frombuffer(x, np.int64) for name, x in self._columns.items()}
        columns = {**numbers, "name": self._names, "content": self._contents}
        return pa.table(
            {
                field.name: pa.array(columns[field.name]).cast(field.type)
                if len(self._names)
                else pa.array([], field.type)
                for field in SCHEMA
            },
            schema=SCHEMA,
        )

    def _note(self, name: str, place: tuple[int, ...], content: bytes) -> None:
        self._names.append(name)
        for column, value in zip(self._columns.values(), place, strict=True):
            column.append(value)
        self._contents.append(content)

    def _writer(self) -> segments.Writer:
        if self._segment is None:
            self._segment = segments.Writer(self.folder, self._next_segment, *self._shape)
            self._segment.start()
            self._next_segment += 1
        return self._segment

    def _write_lines(self) -> None:
        content = "".join(f"{line}\n" for line in self._fresh).encode()
        try:
            if self._lines is None:
                self._place.mkdir(parents=True, exist_ok=True)
                path = self._place / LINES
                self._lines = path.open("r+b" if path.exists() else "w+b")
                self._lines.truncate(self._bytes)
                self._lines.seek(self._bytes)
            self._lines.write(content)
            self._lines.flush()
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise files.full(self._place / LINES, error, len(content)) from None
        self._bytes += len(content)
        self._fresh = []

    def _state(self) -> dict[str, Any] | None:
        """What `state.json` says; None where there is none, or it is of another generation."""
        path = self._place / STATE
        try:
            state = checksums.opened(path.read_bytes(), STATE)
        except FileNotFoundError:
            return None
        except (checksums.Damaged, OSError) as error:
            progress.say(f"{path} cannot be used ({error}): what was begun there is encoded anew")
            return None
        return state if state.get("base") == self._base.number else None

    def _take(self, state: dict[str, Any]) -> bool:
        """Takes up what a state says; False if something of it is not as it was written."""
        try:
            with (self._place / LINES).open("rb") as file:
                content = file.read(state["bytes"])
        except OSError:
            return False
        if len(content) != state["bytes"]:
            return False
        self._bytes, self.next_id = state["bytes"], state["next_id"]
        self._next_segment = state["next_segment"]
        self.finished = {int(number): entry for number, entry in state["finished"].items()}
        for line in content.splitlines():
            self._read(json.loads(line))
        self.sample.read(self._place / SAMPLE)
        if state["segment"] is None:
            return True
        self._segment = segments.Writer(self.folder, state["segment"], *self._shape)
        if self._segment.start(state["rows"], state["tails"]):
            return True
        progress.say(f"rows in {self.folder} are damaged: what was begun there is encoded anew")
        return False

    def _read(self, line: list[Any]) -> None:
        if isinstance(line[1], int):
            name, *place, content = line
            self._note(name, tuple(place), bytes.fromhex(content))
        else:
            name, file, reason, why = line
            self.unreadable[name] = Problem(file, reason, why)
