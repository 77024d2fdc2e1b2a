# SPDX-License-Identifier: Apache-2.0
"""Contents in memory, up to a number of bytes; what was not used for longest goes first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable


class Kept:
    """Keeps contents by their keys; any thread may use it.

    Args:
      most: bytes of all together. The newest is kept whatever its size.
    """

    def __init__(self, most: int):
        self._most = most
        self._bytes = 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> bytes | None:
        """What is kept under a key, which counts as used now; None if nothing is."""
        with self._lock:
            content = self._kept.get(key)
            if content is not None:
                self._kept.move_to_end(key)
            return content

    def put(self, key: Hashable, content: bytes) -> None:
        """Keeps a content; what was there under the key goes."""
        with self._lock:
            self._bytes += len(content) - len(self._kept.get(key, b""))
            self._kept[key] = content
            self._kept.move_to_end(key)
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
