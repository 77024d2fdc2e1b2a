# SPDX-License-Identifier: Apache-2.0
"""What a server is told when it starts: where it listens, who may ask, and how much."""

import ipaddress
from dataclasses import dataclass, field

MB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
      host: address to listen at.
      port: port to listen at; 0 takes a free one.
      token: what a client must show, `Authorization: Bearer TOKEN`; "" asks nobody for it.
      names: further names that the `Host` of a request may have, beside those of `host`.
      batch: most questions that are put onto the device at once.
      gather: seconds to wait for other questions that are on their way; none is waited for that is
        not there yet.
      queue: most requests under way that need the device; the next one gets 503.
      timeout: seconds after which a request that needs the device gets 503.
      rate: requests a second that one client may make of the device, with bursts of twice as many;
        0 for no limit. The next one gets 429.
      upload_bytes: largest image file.
      body_bytes: largest body of a request.
      pixels: largest image, width times height, which its header says before it is decoded.
      text: longest text of a query, in characters.
      k: most results of a query.
      images: most images of a query, and inputs or documents of one request of `/v1`.
      kept_bytes: uploads that are kept; the oldest are forgotten.
      thumbnail_bytes: thumbnails that are kept.
      poll: seconds between two looks for a new generation of an index.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    batch: int = 32
    gather: float = 0.003
    queue: int = 48
    timeout: float = 30.0
    rate: float = 100.0
    upload_bytes: int = 25 * MB
    body_bytes: int = 48 * MB
    pixels: int = 50_000_000
    text: int = 2_000
    k: int = 1_000
    images: int = 8
    inputs: int = 256
    kept_bytes: int = 256 * MB
    thumbnail_bytes: int = 64 * MB
    poll: float = 2.0

    @property
    def local(self) -> bool:
        """Whether only programs on this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is of this machine alone."""
    address = literal(host)
    return host == "localhost" if address is None else address.is_loopback


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` writes out, in brackets or not; None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
