"""A HAProxy that serves certificates from a directory `certs`: over a unix socket and TCP, with PROXY header and without."""

from __future__ import annotations

import re
import socket
import ssl
from typing import TYPE_CHECKING

from sniproxy.model import ProxyProtocol, TcpAddress, UnixAddress
from tests.support.bundles import bundle, write
from tests.support.haproxy import Haproxy
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, free_port, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from sniproxy.bundle import Bundle, Leaf
    from tests.support.processes import Programs

DEFAULTS = """
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
"""

FRONTEND = """
frontend https
    bind unix@{directory}/bare.sock ssl {crt}
    bind unix@{directory}/accept.sock accept-proxy ssl {crt}
    bind {localhost}:{bare} ssl {crt}
    bind {localhost}:{accept} accept-proxy ssl {crt}
    http-request return status 200
"""


class TlsSite:
    """One HAProxy process, and what it has and serves in words of its own.

    crt: what its bind lines have, `crt DIRECTORY` by default. In all options, `{directory}` and `{certificates}` are
    what they are here. It begins with one certificate, for first.test.
    """

    def __init__(
        self,
        programs: Programs,
        *,
        crt: str = "crt {certificates}",
        global_lines: Sequence[str] = (),
        more: str = "",
        files: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.directory = programs.directory
        self.certificates = self.directory / "certs"
        self.certificates.mkdir()
        self.first = write(self.certificates / "0first.pem", bundle("first.test"))
        ports = {"bare": free_port(), "accept": free_port()}
        values = {"directory": self.directory, "certificates": self.certificates, "localhost": LOCALHOST, **ports}
        for name, content in (files or {}).items():
            (self.directory / name).write_text(content.format(**values))
        values["crt"] = crt.format(**values)
        text = "".join(f"    {line}\n" for line in global_lines) + DEFAULTS + FRONTEND + more
        self.haproxy = programs.start(Haproxy(text.format(**values), self.directory, **options))
        self.bare = UnixAddress(f"{self.directory}/bare.sock")
        self.accept = UnixAddress(f"{self.directory}/accept.sock")
        self.tcp_bare, self.tcp_accept = TcpAddress(LOCALHOST, ports["bare"]), TcpAddress(LOCALHOST, ports["accept"])

    @property
    def runtime(self) -> UnixAddress:
        return UnixAddress(str(self.haproxy.runtime))

    @property
    def doors(self) -> tuple[tuple[UnixAddress | TcpAddress, ProxyProtocol], ...]:
        """Every way in, and the header that is wanted there."""
        off, v1, v2 = ProxyProtocol.OFF, ProxyProtocol.V1, ProxyProtocol.V2
        return (
            *((self.bare, off), (self.accept, v1), (self.accept, v2)),
            *((self.tcp_bare, off), (self.tcp_accept, v1), (self.tcp_accept, v2)),
        )

    def path(self, name: str) -> Path:
        return self.certificates / f"{name}.pem"

    def names(self) -> list[str]:
        return [line for line in self.haproxy.ask("show ssl cert").splitlines() if line and line[0] not in "#*"]

    def sha1(self, name: str) -> str:
        """What is in memory under a name of HAProxy's."""
        found = re.search(r"(?m)^SHA1 FingerPrint: (\w+)$", self.haproxy.ask(f"show ssl cert {name}"))
        return found[1] if found else ""

    def transaction(self) -> str | None:
        found = re.search(r"(?m)^\*(.+)$", self.haproxy.ask("show ssl cert"))
        return found[1] if found else None

    def connect(self, name: str) -> ssl.SSLSocket:
        """A client with Python's own TLS, which trusts anybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(PATIENCE_SECONDS)
        plain.connect(self.bare.path)
        return context.wrap_socket(plain, server_hostname=name)

    def serves(self, name: str, leaf: Leaf) -> bool:
        with self.connect(name) as connection:
            return connection.getpeercert(binary_form=True) == leaf.der

    def await_serving(self, name: str, content: Bundle) -> None:
        until(lambda: self.serves(name, content.leaf), f"{name} is served", self.haproxy)


def get(connection: ssl.SSLSocket) -> bytes:
    """A request and its answer, on a connection that stays open (RFC 9112 section 9.3)."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        part = connection.recv(4096)
        assert part, answer
        answer += part
    return answer
