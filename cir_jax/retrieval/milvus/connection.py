# SPDX-License-Identifier: Apache-2.0
"""A client of a Milvus server, or of Milvus Lite, which is a file and a thread of this process."""

import logging
import logging.config
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cir_jax.errors import UserError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TOKEN = "MILVUS_TOKEN"  # environment variable: "user:password", or a key
_CONNECT = 10.0  # seconds
_FORMS = "milvus:FILE.db (Milvus Lite) or milvus:http://HOST:19530 (a server)"

_lock = threading.Lock()
_users: dict[str, int] = {}  # connections of this process to each file of Milvus Lite


def place(text: str) -> str:
    """What stands behind "milvus:" of a store, checked; the path of a file is made absolute.

    Raises:
      UserError: neither a file NAME.db in a folder that is there nor an address of http or https;
        an address with a password in it.
    """
    if text.startswith(("http://", "https://")):
        return _address(text)
    if not text.endswith(".db"):
        raise UserError(f"milvus:{text} is no place of a store; give {_FORMS}")
    path = Path(text).expanduser().absolute()
    if not path.parent.is_dir():
        raise UserError(f"no folder {path.parent} for {path.name}; make it, or give another place")
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{path} is no database of Milvus Lite 3, which is a folder; give the name of a new one"
        )
    return str(path)


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host:
        raise UserError(f"milvus:{text} has no host; give {_FORMS}")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"the address of Milvus at {host} has a user or password in it, and would be kept with "
            f"the index; leave them out and set the environment variable {TOKEN} to USER:PASSWORD"
        )
    return text.rstrip("/")


class Connection:
    """A connection to a place, which `close` ends; usable by several threads.

    Attributes:
      place: see `place`.
      local: True for Milvus Lite.
      client: of pymilvus; call it inside `told`.

    Raises:
      UserError: pymilvus or milvus-lite is not installed, the server does not answer or refuses the
        token, or another process has the file.
    """

    def __init__(self, where: str):
        self.place = place(where)
        self.local = not self.place.startswith(("http://", "https://"))
        self._open = False
        library = _library(self.local)
        with _lock, self.told(), _reason() as reason:
            try:
                self.client: MilvusClient = library.MilvusClient(
                    uri=self.place,
                    token="" if self.local else os.environ.get(TOKEN, ""),
                    timeout=_CONNECT,
                )
            except library.MilvusException as error:
                raise self._away(reason.error or error) from None
            if self.local:
                _users[self.place] = _users.get(self.place, 0) + 1
            self._open = True

    def close(self) -> None:
        """Ends it; with the last of a file, Milvus Lite lets another process have the file."""
        with _lock:
            if not self._open:
                return
            self._open = False
            self.client.close()
            if self.local:
                _users[self.place] -= 1
                if not _users[self.place]:
                    from milvus_lite.server_manager import server_manager_instance

                    server_manager_instance.release_server(self.place)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Turns what Milvus refuses into a UserError that names the place."""
        import grpc
        from pymilvus import MilvusException

        try:
            yield
        except MilvusException as error:
            raise UserError(f"Milvus at {self.place}: {error.message or error}") from error
        except grpc.RpcError as error:
            raise UserError(f"Milvus at {self.place} does not answer: {error}") from error

    def _away(self, error: BaseException) -> UserError:
        if type(error).__name__ == "DataDirLockedError":
            return UserError(
                f"another process has {self.place} open, and Milvus Lite lets one at a time; stop "
                "it (a server of the index, or another `cir-jax index`), or use a server of Milvus"
            )
        if self.local:
            return UserError(f"Milvus Lite cannot open {self.place}: {error}")
        said = getattr(error, "message", "") or str(error)
        return UserError(
            f"no Milvus at {self.place} ({said}); start one, correct the address, or set {TOKEN} "
            "if it asks who you are"
        )


@contextmanager
def _logging_left_alone() -> Iterator[None]:
    """pymilvus configures logging when it is imported, and that ends the handlers of everybody.

    `logging.config.dictConfig` closes all handlers of the program, and some close their stream.
    """
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


def _library(local: bool) -> Any:
    try:
        with _logging_left_alone():
            import pymilvus

        if local:
            import milvus_lite  # noqa: F401
    except ImportError:
        raise UserError(
            "the store milvus needs packages that are not installed: pip install 'cir_jax[milvus]'"
        ) from None
    # They log each failure with its traceback before they raise it; `told` tells it once.
    for name in ("pymilvus", "pymilvus.milvus_client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    lite = logging.getLogger("milvus_lite")
    if not lite.handlers:
        lite.addHandler(logging.NullHandler())
    return pymilvus


class _Reason(logging.Handler):
    error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.error = record.exc_info[1] if record.exc_info else self.error


@contextmanager
def _reason() -> Iterator[_Reason]:
    """Milvus Lite logs why it does not start, and raises that it does not."""
    handler, logger = _Reason(), logging.getLogger("milvus_lite.server_manager")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
