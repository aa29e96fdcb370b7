"""The admin listener: what it shows, to whom, and that it changes nothing."""

from __future__ import annotations

import pytest

from sniproxy.http.admin import Admin
from sniproxy.http.server import Request, Response

METRICS = b"# TYPE up gauge\nup 1\n"


class Proxy:
    """What the admin side asks."""

    def __init__(self) -> None:
        self.reason = ""
        self.accepts: list[str] = []

    def metrics(self, accept: str) -> tuple[bytes, str]:
        self.accepts.append(accept)
        return METRICS, "text/plain; version=0.0.4"

    def not_ready(self) -> str:
        return self.reason


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def admin(proxy: Proxy) -> Admin:
    return Admin(metrics=proxy.metrics, not_ready=proxy.not_ready)


def ask(
    admin: Admin, path: str, *, method: str = "GET", host: str | None = "127.0.0.1:8404", **headers: str
) -> Response:
    if host is not None:
        headers["host"] = host
    return admin(Request(method=method, path=path, query="", headers=headers))


def test_metrics(admin: Admin, proxy: Proxy) -> None:
    """Prometheus negotiates the format: its Accept header is passed on."""
    answer = ask(admin, "/metrics", accept="application/openmetrics-text")

    assert (answer.status, answer.body, answer.content_type) == (200, METRICS, "text/plain; version=0.0.4")
    assert proxy.accepts == ["application/openmetrics-text"]


def test_alive(admin: Admin, proxy: Proxy) -> None:
    """/healthz says that the process answers, ready or not."""
    proxy.reason = "draining"

    assert (ask(admin, "/healthz").status, ask(admin, "/healthz").body) == (200, b"ok\n")


def test_ready_or_why_not(admin: Admin, proxy: Proxy) -> None:
    """/readyz: 503 takes it out of a load balancer, and the reason is for people."""
    assert (ask(admin, "/readyz").status, ask(admin, "/readyz").body) == (200, b"ready\n")
    proxy.reason = "draining"

    assert (ask(admin, "/readyz").status, ask(admin, "/readyz").body) == (503, b"draining\n")


@pytest.mark.parametrize(
    "path", ["", "*", "/metrics/", "/Metrics", "//metrics", "/..", "/%6detrics", "/.well-known/acme-challenge/x"]
)
def test_nothing_else_is_there(admin: Admin, path: str) -> None:
    """A path is what it is: nothing is decoded, joined or guessed."""
    assert ask(admin, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get"])
@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/nowhere"])
def test_it_is_read_only(admin: Admin, method: str, path: str) -> None:
    """RFC 9110 section 15.5.6: 405 names what is allowed. What changes something has a socket of its own."""
    answer = ask(admin, path, method=method)

    assert answer.status == 405
    assert ("Allow", "GET, HEAD") in answer.headers


def test_head_is_as_good_as_get(admin: Admin) -> None:
    """RFC 9110 section 9.3.2: the same answer; the server leaves out the body."""
    assert ask(admin, "/healthz", method="HEAD") == ask(admin, "/healthz")


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "localhost",
        "LocalHost:8404",
        "127.0.0.1",
        "127.0.0.1:8404",
        "192.0.2.1:80",
        "[::1]:8404",
        "[::1]",
        "::1",
    ],
)
def test_hosts_that_no_foreign_page_can_name(admin: Admin, host: str | None) -> None:
    """An address or localhost cannot be made to point elsewhere."""
    assert ask(admin, "/metrics", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8404",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost.",
        "[evil.example]:80",
        "127.0.0.1 evil",
        "0x7f000001",
    ],
)
def test_a_name_somebody_else_owns_is_refused(admin: Admin, proxy: Proxy, host: str) -> None:
    """DNS rebinding: a page whose name has been pointed at 127.0.0.1 must not read from here (as Node's inspector,
    CVE-2018-7160)."""
    assert ask(admin, "/metrics", host=host).status == 403
    assert ask(admin, "/metrics", host=host, method="POST").status == 403
    assert proxy.accepts == []


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nowhere"])
def test_no_browser_does_anything_with_an_answer(admin: Admin, path: str) -> None:
    """It is not cached, not framed, not sniffed, and runs nothing."""
    headers = dict(ask(admin, path).headers)

    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_any_name_will_do_where_others_may_ask(proxy: Proxy) -> None:
    """Prometheus asks a container by the name that its network gives it."""
    admin = Admin(metrics=proxy.metrics, not_ready=proxy.not_ready, loopback=False)

    assert ask(admin, "/metrics", host="sniproxy:8404").status == 200
