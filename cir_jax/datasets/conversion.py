# SPDX-License-Identifier: Apache-2.0
"""Files of generated triplets -> columns, see `cir_jax.data.triplet_columns`.

Records are read and checked as those of small files are, one after the other, so that a fault is
told with the file and the line. What depends on the run (which images the data set knows, where
names may lead, what is held out) is asked when the columns are opened.
"""

from array import array
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cir_jax import files, progress
from cir_jax.data import beside, places
from cir_jax.data import triplet_columns as columns
from cir_jax.data.triplets import Triplet

LEAST = 16 * 10**6  # bytes of a file from which on it is worth a converted one beside it
WHAT = "triplets"
_VERSION = 1
_LONGEST_PART = 255  # bytes of a name, of every usual file system
_UNUSUAL = ("\\", "%", ":", ".tar@")  # other separators, encoded, an address, in a shard


class Record(NamedTuple):
    """A record of a file.

    Attributes:
      triplet: what it says.
      paths: of reference and target; None for none, "" if the names are paths.
      called: the name of a record that has none of its own: the file, and a number.
      named: it has a name of its own.
    """

    triplet: Triplet
    paths: tuple[str | None, str | None]
    called: str
    named: bool


def is_large(file: Path) -> bool:
    """Whether a file is worth a converted one."""
    return file.stat().st_size >= LEAST


def part(
    file: Path, llm_captions: bool, records: Callable[[Path], Iterable[Record]]
) -> columns.Part:
    """The triplets of a file as columns; of a large one they are kept beside it.

    Args:
      file: as messages call it.
      llm_captions: which texts `records` takes.
      records: reads the file; called only if that is needed.

    Raises:
      UserError: a record is wrong, or there is no room.
    """
    if not file.is_file() or not is_large(file):
        with beside.passing() as folder:
            noted = _write(folder, file, records(file)) | {"what": "", "identity": ""}
            return columns.Part(folder, noted, file)
    key = {"version": _VERSION, "llm_captions": llm_captions}

    def make(folder: Path) -> dict[str, Any]:
        progress.say(f"converting {file} once, for this start and later ones ...")
        noted = _write(folder, file, records(file))
        return noted | {"what": what, "identity": files.checksum(folder / columns.ROWS)[1]}

    what = f"llm-{WHAT}" if llm_captions else WHAT
    return beside.kept(
        file, what, key, make, lambda folder, noted: columns.Part(folder, noted, file)
    )


def _write(folder: Path, file: Path, records: Iterable[Record]) -> dict[str, Any]:
    """Writes the files of a `columns.Part`; what is to be noted of it."""
    import pyarrow as pa

    names, sources = _Names(), dict[str, int]()
    schema, numbered = _schema(), ""
    several, count = False, 0
    path = folder / columns.ROWS
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, schema) as writer:
        rows: dict[str, list[Any]] = {name: [] for name in schema.names}
        for record in progress.bar(records, title="converting"):
            names.add(record, count)
            numbered = numbered or columns.numbered(file, record.called)
            called = columns.numbering(file, numbered)
            rows["number"].append(int(record.called.removeprefix(called)))
            _append(rows, record, names, sources)
            several = several or bool(record.triplet.truths)
            count += 1
            if count % columns.BLOCK == 0:
                writer.write_batch(pa.record_batch(rows, schema))
                rows = {name: [] for name in schema.names}
        if rows["number"]:
            writer.write_batch(pa.record_batch(rows, schema))
    names.write(folder)
    return {
        "sources": list(sources),
        "several": several,
        "prefixes": list(names.prefixes),
        "numbered": numbered,
        "count": count,
    }


def _schema() -> Any:
    import pyarrow as pa

    names = pa.large_list(pa.int32())
    return pa.schema(
        [
            ("reference", pa.int32()),
            ("target", pa.int32()),
            ("source", pa.int32()),
            ("number", pa.int64()),
            ("id", pa.large_string()),
            ("texts", pa.large_list(pa.large_string())),
            ("keys", pa.large_list(pa.uint64())),
            ("members", names),
            ("truths", names),
        ]
    )


def _append(
    rows: dict[str, list[Any]], record: Record, names: "_Names", sources: dict[str, int]
) -> None:
    one = record.triplet
    rows["reference"].append(names.number(one.reference))
    rows["target"].append(names.number(one.target))
    rows["source"].append(sources.setdefault(one.source, len(sources)))
    rows["id"].append(one.query_id if record.named else None)
    rows["texts"].append(one.texts)
    rows["keys"].append([columns.key_of(text) for text in one.texts])
    rows["members"].append([*map(names.number, one.members)] or None)
    rows["truths"].append([*map(names.number, one.truths)] or None)


class _Names:
    """Numbers the names of a file, and keeps what its records say of where their images lie."""

    def __init__(self) -> None:
        self.prefixes: dict[str, int] = {}
        self._written: list[str] = []  # the same
        self._numbers: dict[str, int] = {}
        self._prefix = array("i")
        self._flags = bytearray()
        self._own: dict[int, list[tuple[str, int]]] = {}  # name -> its paths, with the records

    def number(self, name: str) -> int:
        """The number of a name, a new one if it comes for the first time."""
        found = self._numbers.setdefault(name, len(self._prefix))
        if found == len(self._prefix):
            self._prefix.append(columns.NO_PREFIX)
            self._flags.append(0)
        return found

    def add(self, record: Record, row: int) -> None:
        """Takes in the names of a record, in the order in which images get their numbers."""
        one = record.triplet
        for name, path in zip((one.reference, one.target), record.paths, strict=True):
            self._placed(self.number(name), name, path, row)
        for name in one.truths[1:]:
            self._placed(self.number(name), name, None, row)

    def _placed(self, number: int, name: str, path: str | None, row: int) -> None:
        before = self._prefix[number]
        if not path:
            if path is not None:
                self._flags[number] |= columns.IS_PATH
            if before == columns.NO_PREFIX:
                self._flags[number] |= columns.UNPLACED_FIRST
        elif before == columns.NO_PREFIX:
            first = not self._flags[number] & columns.UNPLACED_FIRST
            if first and path.endswith(name):
                self._prefix[number] = self._prefix_number(path[: len(path) - len(name)])
            else:
                self._prefix[number] = columns.OWN_PATH
                self._own[number] = [(path, row)]
        else:
            self._again(number, name, path, row)

    def _prefix_number(self, prefix: str) -> int:
        if prefix not in self.prefixes:
            self.prefixes[prefix] = len(self._written)
            self._written.append(prefix)
        return self.prefixes[prefix]

    def _again(self, number: int, name: str, path: str, row: int) -> None:
        """Of a name that has a path, and is given one once more."""
        before = self._prefix[number]
        if before >= 0 and self._written[before] + name == path:
            return
        first = [(self._written[before] + name, -1)] if before >= 0 else []
        own = self._own.setdefault(number, first)
        if all(path != other for other, _ in own):
            own.append((path, row))
            self._flags[number] |= columns.SEVERAL

    def write(self, folder: Path) -> None:
        """Writes the file of names."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = pa.array(list(self._numbers), pa.large_string())
        plain = [_is_plain(prefix, True) for prefix in self._written]
        keys = np.empty(len(names), np.uint64)
        folders: dict[str, int] = {}
        folder_of = np.empty(len(names), np.int32)
        for number, name in enumerate(self._numbers):
            keys[number] = columns.key_of(name)
            cut = name.rfind("/") + 1
            folder_of[number] = folders.setdefault(name[:cut], len(folders))
            if _is_plain(name):
                prefix = self._prefix[number]
                fits = prefix == columns.NO_PREFIX or (prefix >= 0 and plain[prefix])
                self._flags[number] |= columns.PLAIN | (columns.PLAIN_PATH * fits)
        own = [self._own.get(number) for number in range(len(names))]
        paths = [[path for path, _ in said] if said else None for said in own]
        rows = [[row for _, row in said] if said else None for said in own]
        table = {
            "name": names,
            "key": pa.array(keys),
            "by_key": pa.array(np.argsort(keys).astype(np.int32)),
            "order": pc.array_sort_indices(names).cast(pa.int32()),
            "flags": pa.array(np.frombuffer(self._flags, np.uint8)),
            "prefix": pa.array(np.frombuffer(self._prefix, np.int32)),
            "folder": pa.array(folder_of),
            "by_folder": pa.array(np.argsort(folder_of, kind="stable").astype(np.int32)),
            "paths": pa.array(paths, pa.large_list(pa.large_string())),
            "records": pa.array(rows, pa.large_list(pa.int64())),
        }
        _write_one(folder / columns.NAMES, pa.record_batch(table))
        listed = pa.array(list(folders), pa.large_string())
        _write_one(folder / columns.FOLDERS, pa.record_batch({"folder": listed}))


def _write_one(path: Path, batch: Any) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _is_plain(name: str, prefix: bool = False) -> bool:
    """Whether the path of a name in a folder is the folder, "/", and the name as it is written.

    Also that nothing is wrong with its spelling, and that no other spelling of it has to be looked
    for. Names that are not are treated one by one.

    Args:
      name: as it is written.
      prefix: it is what stands before names, "" or a folder with "/" behind it, and may lead up.
    """
    if prefix and not name:
        return True
    path = name.removesuffix("/") if prefix else name
    if prefix and (path == name or path == ""):
        return False
    if not (path.isascii() and path.isprintable() and len(path) <= _LONGEST_PART):
        return False
    if any(letter in path for letter in _UNUSUAL) or path[0] in ("~" if prefix else "/~"):
        return False
    if str(PurePosixPath(path)) != path or places.never_an_image(path):
        return False
    return prefix or ".." not in path.split("/")
