"""A control socket that gives a scripted answer, and keeps what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path


class ScriptedControl:
    """Answers each request with the same lines of JSON, in a thread of its own, until `with` ends."""

    def __init__(self, path: Path, *answers: dict[str, Any]) -> None:
        self._answer = b"".join(json.dumps(answer).encode() + b"\n" for answer in answers)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.requests: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                self.requests.append(json.loads(lines.readline()))
                connection.sendall(self._answer)
