# SPDX-License-Identifier: Apache-2.0
"""A server as a process: its port, its signals, and the line that says where it is."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn

from cir_jax import progress
from cir_jax.errors import UserError
from cir_jax.serving.settings import Settings

_LAST_ANSWERS = 10  # seconds that requests under way have when the server is told to stop
_KEEP_ALIVE = 30  # seconds that an idle connection is kept
_LEAST_TOKEN = 16  # characters


def check(settings: Settings) -> None:
    """Raises UserError for settings that would let in whoever comes by."""
    if settings.token and (
        len(settings.token) < _LEAST_TOKEN
        or not settings.token.isascii()
        or not settings.token.isprintable()
        or " " in settings.token
    ):
        raise UserError(
            f"the token has {len(settings.token)} characters; take at least {_LEAST_TOKEN} letters "
            "and digits without a space, e.g. of `openssl rand -hex 32`"
        )
    if not settings.local and not settings.token:
        raise UserError(
            f"--host={settings.host} lets other machines in, and there is no token; write one to a "
            "file that only you can read (`(umask 077; openssl rand -hex 32 > token)`) and give "
            "--token-file token, or leave --host away to serve this machine alone"
        )


def bound(settings: Settings) -> socket.socket:
    """The port, taken but not open yet: whoever connects is refused until the server listens.

    Raises:
      UserError: it is in use, may not be taken, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host={settings.host} is no name or address ({error}); 127.0.0.1 is this machine, "
            "0.0.0.0 all its addresses"
        ) from None
    taken = socket.socket(family, kind, protocol)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise UserError(_unbound(settings, error)) from None
    return taken


def serve(app: Any, settings: Settings, port: socket.socket) -> None:
    """Answers until SIGTERM or Ctrl-C; requests under way are answered then.

    A second signal does not wait for them.
    """
    app.state.server.served.warm_up()  # here, where Ctrl-C still ends it at once
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client says of itself what it likes
        ws="none",
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_LAST_ANSWERS,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config, port, settings)
    asyncio.run(server.serve([port]))
    if not server.started:
        raise UserError("the server could not start; see above")


class _Server(uvicorn.Server):
    """Ends in peace on a signal: its own handler would raise it again once all is done."""

    def __init__(self, config: uvicorn.Config, port: socket.socket, settings: Settings):
        super().__init__(config)
        self._address = address(port, settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port once all is warm, and says so."""
        await super().startup(sockets)
        progress.say(f"ready: {self._address} (Ctrl-C stops)")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server, not the process."""
        before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        print("stopping; requests under way are answered first", file=sys.stderr, flush=True)


def address(port: socket.socket, settings: Settings) -> str:
    """Where a browser finds the server."""
    host, number = settings.host, port.getsockname()[1]
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{number}/"


def _unbound(settings: Settings, error: OSError) -> str:
    where = f"port {settings.port} of {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is in use, perhaps by another server of this kind; give another one, --port "
            f"{settings.port + 1 if settings.port < 65535 else 8000}, or --port 0 for any free one"
        )
    if error.errno == errno.EACCES:
        return f"{where} may not be taken by you; give one from 1024, --port 8000"
    return f"{where} cannot be taken ({error.strerror or error}); give another --host or --port"
