"""Servers behind the proxies, in threads of the test: one that speaks HTTP, one that says which one it is."""

from __future__ import annotations

import functools
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.support.processes import LOCALHOST, PATIENCE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 1 << 16


@functools.cache
def blob(size: int) -> bytes:
    """So many bytes, the same each time, in which a missing or doubled block shows."""
    count = -(-size // 32)
    return b"".join(hashlib.sha256(number.to_bytes(8)).digest() for number in range(count))[:size]


class HttpOrigin:
    """GET /blob/N answers N bytes of `blob`; POST /digest the SHA-256 of the body; any other path itself."""

    def __init__(self) -> None:
        self._server = _Server((LOCALHOST, 0), _Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = self.path.removeprefix("/blob/")
        self._answer(blob(int(size)) if size.isdecimal() else self.path.encode())

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            digest.update(block)
            left -= len(block)
        self._answer(digest.hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class NamedServer:
    """Answers each connection with its name once something has come, then reads to the end.

    `received` is what each connection has sent. `address` is a unix socket's path, or a port of 127.0.0.1.
    """

    def __init__(self, name: str, address: Path | int) -> None:
        self.name = name
        self.received: list[bytes] = []
        if isinstance(address, int):
            self._socket = socket.create_server((LOCALHOST, address), backlog=512)
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(str(address))
            self._socket.listen(512)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        workers = []
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                break
            worker = threading.Thread(target=self._converse, args=(connection,))
            worker.start()
            workers.append(worker)
        for worker in workers:
            worker.join()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PATIENCE_SECONDS)
            try:
                got = connection.recv(_BLOCK)
                if got:
                    connection.sendall(self.name.encode())
                    connection.shutdown(socket.SHUT_WR)
                    while more := connection.recv(_BLOCK):
                        got += more
                self.received.append(got)
            except OSError:
                pass
