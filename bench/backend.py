"""What stands behind the fronts: one process that answers, echoes, sends or swallows, as the client's hello orders.

    python -m bench.backend UNIX_SOCKET IP...

Listens on the unix socket and on one port of each of the IP addresses, and prints that port. A PROXY v2 header is
skipped. One thread, level-triggered epoll, ends when its standard input does.
"""

from __future__ import annotations

import select
import socket
import sys
from typing import TYPE_CHECKING

from bench.first_flight import Task, read_order

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK = 256 * 1024
_BACKLOG = 4096
_ACCEPTS_PER_TURN = 64
_PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_RECORD_HEADER_BYTES = 5

_poll = select.epoll()
_handlers: dict[int, Callable[[], None]] = {}
_buffer = bytearray(_BLOCK)
_view = memoryview(_buffer)
_block = memoryview(bytes(range(256)) * (_BLOCK // 256))


class _Session:
    """One connection; its state is the method that gets the next event."""

    __slots__ = ("_head", "_left", "fd", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self._head = b""
        self._left = 0
        _handlers[self.fd] = self.greet
        _poll.register(self.fd, select.EPOLLIN)

    def close(self) -> None:
        del _handlers[self.fd]
        self.sock.close()

    def read(self) -> int:
        """Reads into the shared buffer; 0 when there is nothing to do, and closed when that was the end."""
        try:
            count = self.sock.recv_into(_buffer)
        except BlockingIOError:
            return 0
        except OSError:
            count = 0
        if not count:
            self.close()
        return count

    def greet(self) -> None:
        count = self.read()
        if not count:
            return
        data = self._head + bytes(_view[:count])
        flight = data
        if data.startswith(_PROXY_V2):
            flight = data[16 + int.from_bytes(data[14:16]) :] if len(data) >= 16 else b""
        end = _RECORD_HEADER_BYTES + int.from_bytes(flight[3:5])
        if len(flight) < max(end, _RECORD_HEADER_BYTES + 1):
            self._head = data
            return
        task, self._left = read_order(flight)
        if task is Task.ANSWER:
            self.sock.send(_block[: self._left])
            _handlers[self.fd] = self.drain
            return
        self.sock.send(b"+")
        _handlers[self.fd] = {Task.ECHO: self.echo, Task.SEND: self.wait, Task.SINK: self.sink}[task]
        if len(flight) > end:
            raise RuntimeError("more than the hello before its answer")

    def drain(self) -> None:
        self.read()

    def echo(self) -> None:
        count = self.read()
        if count:
            self.sock.send(_view[:count])

    def wait(self) -> None:
        if self.read():
            _poll.modify(self.fd, select.EPOLLOUT)
            _handlers[self.fd] = self.send

    def send(self) -> None:
        try:
            self._left -= self.sock.send(_block[: min(self._left, _BLOCK)])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._left:
            _poll.modify(self.fd, select.EPOLLIN)
            _handlers[self.fd] = self.drain

    def sink(self) -> None:
        count = self.read()
        self._left -= count
        if count and not self._left:
            self.sock.send(b".")
            _handlers[self.fd] = self.drain


def _accept(listener: socket.socket) -> None:
    for _ in range(_ACCEPTS_PER_TURN):
        try:
            sock, _address = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Session(sock)


def _listen(family: int, address: str | tuple[str, int]) -> socket.socket:
    listener = socket.socket(family)
    if family != socket.AF_UNIX:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.setblocking(False)
    listener.listen(_BACKLOG)
    _handlers[listener.fileno()] = lambda: _accept(listener)
    _poll.register(listener.fileno(), select.EPOLLIN)
    return listener


def serve(path: str, hosts: list[str]) -> None:
    """Serves until standard input ends."""
    listeners = [_listen(socket.AF_UNIX, path)]
    port = 0
    for host in hosts:
        listeners.append(_listen(socket.AF_INET, (host, port)))
        port = listeners[-1].getsockname()[1]
    print(port, flush=True)
    stdin = sys.stdin.fileno()
    _poll.register(stdin, select.EPOLLIN)
    while True:
        for fd, _ in _poll.poll():
            if fd == stdin:
                return
            handler = _handlers.get(fd)
            if handler is not None:
                handler()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
