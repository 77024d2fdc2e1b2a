# SPDX-License-Identifier: Apache-2.0
"""What somebody who searches says of the results: triplets to train on, and pairs that are none.

    clicks/triplets.jsonl   the neutral records of a data set of one's own, of the source "clicks";
                            `data.generated` takes the file
    clicks/excluded.jsonl   {"reference", "text", "excluded"}: the image is no answer; no such pair
                            is made where `pair.excluded` names the file

Both hold at every moment what stands, and nothing that was undone. What is evaluated with never
gets in: no image of a held-out set, under whatever name or as a copy.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from cir_jax import files
from cir_jax.data import places
from cir_jax.data.annotations import read_lines
from cir_jax.data.pixels import ImageFile
from cir_jax.datasets import held_out
from cir_jax.datasets.readers import folder as neutral
from cir_jax.errors import UserError

SOURCE = "clicks"
FOLDER = "clicks"
TRIPLETS, EXCLUDED = "triplets.jsonl", "excluded.jsonl"
_TEXT = 2000  # characters; no text encoder reads as many
_PATIENCE = 10.0  # seconds that another server may take to write


class Refused(UserError):
    """What was asked for is well-formed and may not be saved."""


class HeldOut:
    """The pictures that somebody evaluates with.

    Beside what training leaves out, other names and links of a file (`cir_jax.datasets.held_out`),
    copies are found: files of the same size are compared byte by byte.

    Args:
      pictures: files, or objects with `read_bytes()`.
      what: names the set in messages.
    """

    def __init__(self, pictures: Iterable[ImageFile], what: str):
        self.what = what
        self._identity = places.Identity()
        self._files: set[Any] = set()
        self._sizes: dict[int, list[str]] = {}
        for picture in pictures:
            self._files.add(self._identity.of(picture))
            if isinstance(picture, str) and os.path.isfile(picture):
                self._sizes.setdefault(os.path.getsize(picture), []).append(picture)

    def __len__(self) -> int:
        return len(self._files)

    def holds(self, picture: str) -> bool:
        """Whether a file is one of them, or a copy of one."""
        if self._identity.of(picture) in self._files:
            return True
        try:
            alike = self._sizes.get(os.path.getsize(picture), ())
            return any(_same_bytes(picture, other) for other in alike)
        except OSError as error:
            raise Refused(
                f"{picture} cannot be compared with what {self.what} holds out "
                f"({error.strerror or error}); put the file back, or index again"
            ) from None


def held_out_of(name: str, root: str | Path, splits: Iterable[str] = ("val", "test")) -> HeldOut:
    """What a data set holds out: the images of its gallery and of its evaluated queries.

    Args:
      name: of a reader, e.g. "folder".
      root: folder of the data set.
      splits: that are evaluated.

    Raises:
      UserError: no such reader, or a malformed file.
    """
    images = held_out.of_reader(name, str(root), tuple(splits)).images
    return HeldOut(images.values(), str(root))


class Clicks:
    """The clicks of one index; several threads, and several servers, may use one folder.

    Args:
      folder: of the index.
      path_of: name of an image -> its file.
      evaluated: sets whose pictures never get in.

    Raises:
      UserError: a file of clicks is malformed; it and the record are named.
    """

    def __init__(
        self,
        folder: str | Path,
        path_of: Callable[[str], str],
        evaluated: Iterable[HeldOut] = (),
    ):
        self.folder = Path(folder) / FOLDER
        self._path_of, self._evaluated = path_of, tuple(evaluated)
        self._threads = threading.Lock()
        self._servers = FileLock(self.folder / "lock", timeout=_PATIENCE, thread_local=False)
        self.counts()  # says now what cannot be read

    def counts(self) -> dict[str, int]:
        """{"triplets", "excluded"}: how many stand."""
        return {"triplets": len(self._read(TRIPLETS)), "excluded": len(self._read(EXCLUDED))}

    def save(
        self, reference: str, text: str, target: str, meta: Mapping[str, Any] | None = None
    ) -> str:
        """Saves a chosen result as a triplet.

        Args:
          reference, target: names of images of the index.
          text: that was typed.
          meta: more of it, JSON, e.g. the rank of the target; training does not read it.

        Returns:
          Its key. The same triplet again is the same key, and stands once.

        Raises:
          Refused: it may not be saved; why is said.
        """
        return self._keep(TRIPLETS, EXCLUDED, reference, text, "target", target, meta)

    def exclude(
        self, reference: str, text: str, excluded: str, meta: Mapping[str, Any] | None = None
    ) -> str:
        """Saves that a result is no answer; as `save`."""
        return self._keep(EXCLUDED, TRIPLETS, reference, text, "excluded", excluded, meta)

    def undo(self, key: str) -> bool:
        """Takes a triplet or an excluded pair back; whether there was one."""
        with self._held():
            for name in (TRIPLETS, EXCLUDED):
                records = self._read(name)
                if records.pop(key, None) is not None:
                    self._write(name, records)
                    return True
        return False

    def _keep(
        self,
        name: str,
        opposite: str,
        reference: str,
        text: str,
        role: str,
        other: str,
        meta: Mapping[str, Any] | None,
    ) -> str:
        text = " ".join(text.split())
        self._check(reference, text, role, other)
        record: dict[str, Any] = {"reference": reference, role: other, "text": text}
        key = xxhash.xxh3_64_hexdigest("\0".join((reference, text, other)).encode())
        record |= {"id": key, "source": SOURCE}
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record["meta"] = {"time": made, **(meta or {})}
        with self._held():
            if key in self._read(opposite):
                was = "as no answer" if name == TRIPLETS else "as the answer"
                raise Refused(f"{other} stands {was} to this question; undo that first")
            records = self._read(name)
            if key not in records:
                self._write(name, records | {key: record})
        return key

    def _check(self, reference: str, text: str, role: str, other: str) -> None:
        if not text:
            raise Refused("a triplet needs the text of the change; type one, and search again")
        if len(text) > _TEXT:
            raise Refused(f"the text has {len(text):,} characters, the limit is {_TEXT:,}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused("the text holds half a character; type it again") from None
        if reference == other:
            raise Refused(f"{reference} is the reference itself; choose another image")
        for what, image in (("reference", reference), (role, other)):
            path = self._path_of(image)
            for one in self._evaluated:
                if one.holds(path):
                    raise Refused(
                        f"the {what} {image} is one of the pictures that {one.what} is evaluated "
                        "with; a model that trained on it would be scored on what it has seen"
                    )

    def _read(self, name: str) -> dict[str, dict[str, Any]]:
        """Key -> record, in the order in which they were saved."""
        path, found = self.folder / name, {}
        if not path.is_file():
            return {}
        for where, record in read_lines(path):
            if name == TRIPLETS:
                neutral.triplet(record, where)
            key = record.get("id")
            if not isinstance(key, str) or not key:
                raise UserError(f"{where} has no id; give each record one of its own")
            found[key] = record
        return found

    def _write(self, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records.values()]
        files.put(self.folder / name, "".join(lines).encode())

    @contextmanager
    def _held(self) -> Iterator[None]:
        """While nobody else writes."""
        with self._threads:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._servers.acquire()
            except Timeout:
                raise Refused(f"another server writes to {self.folder}; try again") from None
            except OSError as error:
                raise Refused(
                    f"{self.folder} cannot be written ({error.strerror or error}); nothing is saved"
                ) from None
            try:
                yield
            finally:
                self._servers.release()


def _same_bytes(one: str, other: str) -> bool:
    size = 1 << 20
    with open(one, "rb") as a, open(other, "rb") as b:
        while block := a.read(size):
            if block != b.read(size):
                return False
        return not b.read(1)
