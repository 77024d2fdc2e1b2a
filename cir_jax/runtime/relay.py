# SPDX-License-Identifier: Apache-2.0
"""A connection to process 0 that does not break under jax when process 0 dies.

The client of jax's coordination service aborts its process, with a C++ stack and no reason, as soon
as the connection to process 0 is reset. So the client talks to this relay on loopback, which passes
the bytes on: when process 0 is gone the relay keeps its own side open and says that it `is_lost`,
and the thread that watches the run ends it with a sentence.
"""

import contextlib
import socket
import threading
import time

from cir_jax.errors import UserError

CHUNK = 1 << 16  # bytes that are passed on at a time


class Relay:
    """Listens on loopback and passes every connection on to `target`.

    Args:
      target: "host:port" of process 0.
      seconds: how long to wait for it to listen.

    Raises:
      UserError: `target` is no address, or nobody listens there in time.
    """

    def __init__(self, target: str, seconds: float):
        host, _, port = target.rpartition(":")
        if not port.isdigit():
            raise UserError(f"coordinator {target!r} is no host:port; give e.g. 10.0.0.1:1234")
        self._target = (host.strip("[]"), int(port))
        self._lost = threading.Event()
        _wait_for(self._target, target, seconds)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True, name="relay").start()

    def is_lost(self) -> bool:
        """True once process 0 has closed a connection, or refused one."""
        return self._lost.is_set()

    def _accept(self) -> None:
        while True:
            near, _ = self._server.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                self._lost.set()
                continue
            hung_up = threading.Event()
            threading.Thread(target=_up, args=(near, far, hung_up), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near, hung_up), daemon=True).start()

    def _down(self, far: socket.socket, near: socket.socket, hung_up: threading.Event) -> None:
        _pass_on(far, near)
        if not hung_up.is_set():  # `near` stays open: jax must not notice
            self._lost.set()


def _up(near: socket.socket, far: socket.socket, hung_up: threading.Event) -> None:
    _pass_on(near, far)
    hung_up.set()  # jax's client has closed the connection itself, as it does at the end of a run
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_WR)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)


def _wait_for(address: tuple[str, int], name: str, seconds: float) -> None:
    """Returns once somebody listens at `address`."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process 0 cannot be reached at {name} within {seconds:.0f} s ({error}); "
                    "start it too, and let this port through between the hosts"
                ) from None
            time.sleep(0.2)
