"""Clients: curl, openssl, gnutls-cli and our own socket, each through `127.0.0.1:PORT` with a server name."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.processes import LOCALHOST, PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GNUTLS_CLI = shutil.which("gnutls-cli")
OPENSSL = shutil.which("openssl")
CURL = shutil.which("curl")


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where clients come in, and the root they trust."""

    port: int
    root: Path
    host: str = LOCALHOST

    def curl(self, *urls: str, arguments: tuple[str | Path, ...] = ()) -> bytes:
        """The bodies of these URLs of `https://NAME/…`, by one curl and without any proxy or setting of the user's."""
        assert CURL is not None
        host = f"[{self.host}]" if ":" in self.host else self.host
        command = [
            *(CURL, "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"),
            *("--cacert", self.root, "--connect-to", f"::{host}:{self.port}", *arguments, *urls),
        ]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS * 2)
        assert done.returncode == 0, f"curl exits with {done.returncode}: {done.stderr.decode()}"
        return done.stdout

    def json(self, url: str, arguments: tuple[str | Path, ...] = ()) -> dict[str, Any]:
        """What curl gets, read as JSON."""
        answer: dict[str, Any] = json.loads(self.curl(url, arguments=arguments))
        return answer

    def openssl(self, name: str, request: str, *arguments: str) -> str:
        """What `openssl s_client` prints for a request that makes the server close."""
        assert OPENSSL is not None
        command = [
            *(OPENSSL, "s_client", "-connect", f"{self.host}:{self.port}", "-servername", name, "-ign_eof"),
            *("-CAfile", self.root, "-verify_return_error", "-verify_hostname", name, *arguments),
        ]
        return self._conversation(command, request)

    def gnutls(self, name: str, request: str, *arguments: str) -> str:
        """What `gnutls-cli` prints for a request that makes the server close."""
        assert GNUTLS_CLI is not None
        command = [
            *(GNUTLS_CLI, "--port", str(self.port), "--sni-hostname", name, "--verify-hostname", name),
            *("--x509cafile", str(self.root), *arguments, self.host),
        ]
        return self._conversation(command, request)

    def _conversation(self, command: list[Any], request: str) -> str:
        # Standard input stays open until the server has closed: at its end they would go away at once.
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            try:
                client.stdin.write(request.replace("\n", "\r\n"))
                client.stdin.flush()
                printed = client.stdout.read()
                status = client.wait(PATIENCE_SECONDS)
            finally:
                client.kill()
            assert status == 0, f"{command[0]} exits with {status}:\n{printed}"
            return printed

    @contextmanager
    def tls(self, name: str, *alpn: str, source: str = "") -> Iterator[ssl.SSLSocket]:
        """A TLS connection with Python's own client."""
        context = ssl.create_default_context(cafile=str(self.root))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        with (
            connected(self.host, self.port, source=source) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            yield connection


def connected(host: str, port: int, *, source: str = "") -> socket.socket:
    """A plain connection, from a certain address if that matters."""
    return socket.create_connection((host, port), PATIENCE_SECONDS, source_address=(source, 0) if source else None)


def everything(connection: socket.socket) -> bytes:
    """All that still comes, to the end of the stream. A reset raises."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes."""
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 16))
        assert part, f"{count} bytes short"
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
