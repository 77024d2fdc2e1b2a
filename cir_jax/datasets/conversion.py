# SPDX-License-Identifier: Apache-2.0
"""Files of generated triplets -> columns, see `cir_jax.data.triplet_columns`.

Records are read and checked as those of small files are, one after the other, so that a fault is
told with the file and the line. What depends on the run (which images the data set knows, where
names may lead, what is held out) is asked when the columns are opened.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cir_jax import files, progress
from cir_jax.data import beside, places, text_files
from cir_jax.data import foreign_columns as foreign
from cir_jax.data import triplet_columns as columns
from cir_jax.data.beside import Damaged
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
    load = lambda folder, noted: columns.Part(folder, noted, file)
    return beside.kept(file, what, key, make, load, _check)


# What is noted of a file, and what it is.
_NOTED = {
    "sources": list, "several": bool, "prefixes": list, "numbered": str, "count": int,
    "what": str, "identity": str,
}  # fmt: skip


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


def _schema_of_names() -> Any:
    import pyarrow as pa

    whole, text = pa.int32(), pa.large_string()
    return pa.schema(
        [
            ("name", text),
            ("key", pa.uint64()),
            *((name, whole) for name in ("by_key", "order")),
            ("flags", pa.uint8()),
            *((name, whole) for name in ("prefix", "folder", "by_folder")),
            ("paths", pa.large_list(text)),
            ("records", pa.large_list(pa.int64())),
        ]
    )


def _schema_of_folders() -> Any:
    import pyarrow as pa

    return pa.schema([("folder", pa.large_string())])


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

        names = list(self._numbers)
        follows, folders = _follows(names, self._written, self._prefix)
        flags = np.frombuffer(self._flags, np.uint8) | follows.pop("plain")
        own = [self._own.get(number) for number in range(len(names))]
        paths = [[path for path, _ in said] if said else None for said in own]
        rows = [[row for _, row in said] if said else None for said in own]
        table: dict[str, Any] = {
            "name": names,
            **follows,
            "flags": flags,
            "prefix": np.frombuffer(self._prefix, np.int32),
            "paths": paths,
            "records": rows,
        }
        schema = _schema_of_names()
        arrays = [pa.array(table[one.name], one.type) for one in schema]
        _write_one(folder / columns.NAMES, pa.record_batch(arrays, schema))
        listed = pa.array(folders, pa.large_string())
        _write_one(folder / columns.FOLDERS, pa.record_batch([listed], _schema_of_folders()))


def _follows(
    names: Sequence[str], prefixes: Sequence[str], prefix: Sequence[int]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(columns that follow from the names of a file and the prefixes of their paths, by name, and
    "plain", the flags of plain names; the folders).

    Args:
      names: all, each once.
      prefixes: what stands before names in paths.
      prefix: number of the one of each name, or why there is none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = [_is_plain(one, True) for one in prefixes]
    keys, folder_of = np.empty(len(names), np.uint64), np.empty(len(names), np.int32)
    flags, folders = np.zeros(len(names), np.uint8), dict[str, int]()
    for number, name in enumerate(names):
        keys[number] = columns.key_of(name)
        cut = name.rfind("/") + 1
        folder_of[number] = folders.setdefault(name[:cut], len(folders))
        if _is_plain(name):
            own = prefix[number]
            fits = own == columns.NO_PREFIX or (own >= 0 and plain[own])
            flags[number] = columns.PLAIN | (columns.PLAIN_PATH * fits)
    order = pc.array_sort_indices(pa.array(names, pa.large_string())).to_numpy()
    found = {
        "key": keys,
        "by_key": np.argsort(keys, kind="stable").astype(np.int32),
        "order": order.astype(np.int32),
        "folder": folder_of,
        "by_folder": np.argsort(folder_of, kind="stable").astype(np.int32),
        "plain": flags,
    }
    return found, list(folders)


def _check(folder: Path, noted: Mapping[str, Any]) -> None:
    """Raises Damaged unless `_write` may have written the columns of a folder."""
    try:
        wrong = [key for key, kind in _NOTED.items() if type(noted[key]) is not kind]
        if wrong or noted["numbered"] not in columns.NUMBERED:
            raise Damaged(f"{folder}: {', '.join(wrong) or 'numbered'} cannot have been noted")
        sources, prefixes = noted["sources"], noted["prefixes"]
        if any(text_files.fault(one) for one in (*sources, *prefixes)) or not sources:
            raise Damaged(f"{folder}: {sources} and {prefixes} are no names")
        blocks = foreign.checked(folder / columns.ROWS, _schema(), ("id", "members", "truths"))
        [names] = foreign.checked(folder / columns.NAMES, _schema_of_names(), ("paths", "records"))
        [folders] = foreign.checked(folder / columns.FOLDERS, _schema_of_folders())
        _check_names(names, prefixes, folders.column(0).to_pylist(), sum(map(len, blocks)))
        for block in blocks:
            _check_block(block, len(names), len(sources))
        several = any(block.column("truths").null_count < len(block) for block in blocks)
        rows = sum(map(len, blocks)), several, files.checksum(folder / columns.ROWS)[1]
        if rows != (noted["count"], noted["several"], noted["identity"]):
            raise Damaged(f"{folder}: what is noted of its rows is not so")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder}: {error}") from None


def _check_names(batch: Any, prefixes: Sequence[str], folders: Sequence[str], rows: int) -> None:
    names, prefix = batch.column("name").to_pylist(), batch.column("prefix").to_numpy()
    foreign.check_text(batch.column("name"), foreign.CONTROL)
    foreign.check_within(prefix, len(prefixes), columns.OWN_PATH)
    follows, own_folders = _follows(names, prefixes, prefix)
    plain, flags = follows.pop("plain"), batch.column("flags").to_numpy()
    wrong = [n for n, own in follows.items() if not np.array_equal(batch.column(n).to_numpy(), own)]
    if ((flags ^ plain) & (columns.PLAIN | columns.PLAIN_PATH)).any() or folders != own_folders:
        wrong.append("flags or folders")
    if wrong or len(set(names)) < len(names) or not all(names):
        raise Damaged(f"{', '.join(wrong) or 'names'} are not those of these names")
    counts, _ = foreign.of_lists(batch.column("paths"))
    others, records = foreign.of_lists(batch.column("records"))
    if not np.array_equal(counts, others) or not counts[prefix == columns.OWN_PATH].all():
        raise Damaged("names lack their paths")
    foreign.check_within(records.to_numpy(), rows, -1)


def _check_block(block: Any, names: int, sources: int) -> None:
    for column, end in (("reference", names), ("target", names), ("source", sources)):
        foreign.check_within(block.column(column).to_numpy(), end)
    for column in ("members", "truths"):
        foreign.check_within(foreign.of_lists(block.column(column))[1].to_numpy(), names)
    counts, texts = foreign.of_lists(block.column("texts"))
    if not counts.all() or not np.array_equal(counts, foreign.of_lists(block.column("keys"))[0]):
        raise Damaged("triplets lack texts, or keys of them")
    foreign.check_text(texts, foreign.NO_TEXT)
    foreign.check_text(block.column("id"), foreign.CONTROL)


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
