"""The HTTP side of the ACME stub: a thread for each connection, and replies that go out as broken as they are to be."""

from __future__ import annotations

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any

from tests.support.processes import LOCALHOST

if TYPE_CHECKING:
    from tests.support.acme_faults import Reply
    from tests.support.acme_stub import AcmeStub

MAX_REQUEST_BYTES = 1 << 20
"""No client sends that much."""


class Server(ThreadingTCPServer):
    """Listens, and knows its connections, so that it can end them all."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, stub: AcmeStub) -> None:
        self.stub = stub
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__((LOCALHOST, stub.port), Connection)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="acme stub")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        with self._connections_lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self.server_close()  # which waits for the threads

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):  # clients come and go
            self.stub.bugs.append(error)


class Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[mutable-override]

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(min(length, MAX_REQUEST_BYTES))
        reply, calls = self.server.stub.respond(self.command, self.path, dict(self.headers.items()), body)
        if self.server.stub.closing:  # what hung until now gets no reply
            self.close_connection = True
            return
        self._send(reply)
        for call in calls:
            call()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _send(self, reply: Reply) -> None:
        if reply.cut == -1:
            self.close_connection = True
            return
        headers = dict(reply.headers)
        length = str(len(reply.body)) if reply.length is None else reply.length
        if length and reply.status != 204:
            headers["Content-Length"] = length
        elif not length:
            headers["Connection"] = "close"
            self.close_connection = True
        lines = [f"HTTP/1.1 {reply.status} {self.responses.get(reply.status, ('',))[0]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        body = b"" if self.command == "HEAD" or reply.status == 204 else reply.body
        if reply.cut is not None:
            body = body[: reply.cut]
            self.close_connection = True
        if not reply.drip:
            self.wfile.write(head + body)
            for _ in range(reply.repeat - 1):
                self.wfile.write(body)
            return
        self.wfile.write(head)
        for byte in body:
            self.wfile.write(bytes([byte]))
            if self.server.stub.pause(reply.drip):
                self.close_connection = True
                return

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """It says nothing: what came is in `requests`."""
