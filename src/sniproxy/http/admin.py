"""The admin listener: read only, for operators and Prometheus.

/metrics · /healthz the process is alive · /readyz it accepts connections and is not draining
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sniproxy.http.server import Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

_SECURITY = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """Answers the admin listener's requests.

    metrics: the body and content type for an Accept header. not_ready: why the proxy is not ready, empty when it is.
    loopback: it listens on this machine's loopback alone, and answers nobody who calls it by another name.
    """

    metrics: Callable[[str], tuple[bytes, str]]
    not_ready: Callable[[], str]
    loopback: bool = True

    def __call__(self, request: Request) -> Response:
        """The answer to one request."""
        if self.loopback and not _names_this_machine(request.headers.get("host", "")):
            # A web page whose own name has been made to resolve to 127.0.0.1 must not read from here (DNS rebinding).
            return _plain(403, "the Host header must be an IP address or localhost\n")
        if request.method not in ("GET", "HEAD"):
            return _plain(405, "read only\n", ("Allow", "GET, HEAD"))
        if request.path == "/metrics":
            body, content_type = self.metrics(request.headers.get("accept", ""))
            return Response(status=200, body=body, content_type=content_type, headers=_SECURITY)
        if request.path == "/healthz":
            return _plain(200, "ok\n")
        if request.path == "/readyz":
            reason = self.not_ready()
            return _plain(503, f"{reason}\n") if reason else _plain(200, "ready\n")
        return _plain(404, "not found\n")


def _plain(status: int, text: str, *headers: tuple[str, str]) -> Response:
    return Response(status=status, body=text.encode(), headers=(*_SECURITY, *headers))


def _names_this_machine(host: str) -> bool:
    """Whether a Host header is an IP address or localhost, the port aside; absent is fine (HTTP/1.0, unix)."""
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    name = name.partition("]")[0].lstrip("[") if name.startswith("[") else name
    if name.lower() in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
