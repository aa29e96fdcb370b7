"""What the load generator sends first: a ClientHello of this Python's OpenSSL, and in it what the backend is to do.

The order for the backend stands in the 32 bytes of the hello's `random`, so that the first flight is a real one to the
byte, and no other channel is needed.
"""

from __future__ import annotations

import enum
import ssl
from struct import Struct

SERVER_NAME = "www.example.com"
PROTOCOLS = ("h2", "http/1.1")

_ORDER = Struct("!8sBQ")
_MARK = b"bench\0\0\1"
_RANDOM_AT = 5 + 4 + 2  # behind record header, handshake header and legacy_version


class Task(enum.IntEnum):
    """What the backend does with a connection.

    All but ANSWER begin with one byte back, which tells the client that its connection stands.
    """

    ANSWER = 1  # sends `size` bytes at once
    ECHO = 2  # sends back whatever comes
    SEND = 3  # sends `size` bytes when one byte has come
    SINK = 4  # sends one byte when `size` bytes have come


def client_hello(server_name: str = SERVER_NAME) -> bytes:
    """The first flight of a TLS 1.3 client: 517 bytes, because OpenSSL pads it to that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(list(PROTOCOLS))
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(received, sent, server_hostname=server_name)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


def first_flight(task: Task, size: int = 0) -> bytes:
    """A hello with this order for the backend in it."""
    hello = bytearray(client_hello())
    _ORDER.pack_into(hello, _RANDOM_AT, _MARK, task, size)
    return bytes(hello)


def read_order(flight: bytes) -> tuple[Task, int]:
    """The order in a hello that `first_flight` has made."""
    mark, task, size = _ORDER.unpack_from(flight, _RANDOM_AT)
    if mark != _MARK:
        raise ValueError("a hello that is not from this benchmark")
    return Task(task), size
