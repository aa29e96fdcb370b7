"""Port 80: tokens that are pending are answered, everything else is sent on to https, and nothing is injected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.http.public import CHALLENGE_PREFIX, Public
from sniproxy.http.server import Request, Response
from tests.support.http import Listening

if TYPE_CHECKING:
    import asyncio

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
ANSWER = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"

public = Public(redirect_to_https=True, key_authorization={TOKEN: ANSWER}.get)


def ask(
    path: str, query: str = "", *, host: str = "www.example.com", method: str = "GET", by: Public = public
) -> Response:
    return by(Request(method=method, path=path, query=query, headers={"host": host}))


def location(answer: Response) -> str:
    assert answer.status == 308
    return dict(answer.headers)["Location"]


# ---------------------------------------------------------------------------------------------- challenges


def test_a_pending_token_is_answered() -> None:
    """RFC 8555 section 8.3: the key authorization, as application/octet-stream."""
    answer = ask(CHALLENGE_PREFIX + TOKEN)

    assert (answer.status, answer.body) == (200, ANSWER.encode())
    assert answer.content_type == "application/octet-stream"


def test_it_is_answered_whatever_the_host_header_says() -> None:
    """A validation may come for any name, or for an IP address (RFC 8738)."""
    for host in ("", "192.0.2.1", "[2001:db8::1]", "evil\x00"):
        assert ask(CHALLENGE_PREFIX + TOKEN, host=host).status == 200


@pytest.mark.parametrize(
    "token",
    [
        "",
        "unknown",
        TOKEN + "=",
        TOKEN[:-1],
        TOKEN + "/",
        TOKEN + "%00",
        "../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "x" * 129,
        "a.b",
        TOKEN + "\n",
        "tökén",
    ],
)
def test_any_other_token_is_not_found(token: str) -> None:
    """Also not redirected: a validation that follows to https would find another server's answer."""
    assert ask(CHALLENGE_PREFIX + token).status == 404


def test_what_is_no_token_is_not_even_looked_up() -> None:
    """RFC 8555 section 8.3: a token is base64url, nothing else; a token from the wire is not a key or a path."""
    asked: list[str] = []

    def look_up(token: str) -> None:
        asked.append(token)

    ask(CHALLENGE_PREFIX + "../secret", by=Public(redirect_to_https=True, key_authorization=look_up))
    ask(CHALLENGE_PREFIX + "good-one_", by=Public(redirect_to_https=True, key_authorization=look_up))

    assert asked == ["good-one_"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"])
@pytest.mark.parametrize("token", [TOKEN, "unknown"])
def test_a_challenge_is_there_to_be_read(method: str, token: str) -> None:
    """RFC 8555 section 8.3: a GET; RFC 9110 section 15.5.6: what is allowed is said. Nothing is looked up for others."""
    asked: list[str] = []

    def look_up(token: str) -> str:
        asked.append(token)
        return ANSWER

    by = Public(redirect_to_https=True, key_authorization=look_up)
    answer = ask(CHALLENGE_PREFIX + token, method=method, by=by)

    assert (answer.status, answer.headers, asked) == (405, (("Allow", "GET, HEAD"),), [])
    assert ANSWER.encode() not in answer.body


async def test_a_head_of_a_challenge_on_the_wire(runner: asyncio.Runner) -> None:
    """RFC 9110 section 9.3.2: the same headers, no body."""
    listening = Listening(runner, public)
    await listening.start()
    client = await listening.connect()
    await client.send(f"HEAD {CHALLENGE_PREFIX}{TOKEN} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode())
    await client.send(b"GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: a.example\r\n\r\n")
    head = await client.head()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert f"\r\nContent-Length: {len(ANSWER)}\r\n".encode() in head
    head, _ = await client.response()

    assert head.startswith(b"HTTP/1.1 404 ")
    await listening.stop()


def test_without_challenges_no_token_is_known() -> None:
    """The default."""
    assert ask(CHALLENGE_PREFIX + TOKEN, by=Public(redirect_to_https=True)).status == 404


# ---------------------------------------------------------------------------------------------- to https


@pytest.mark.parametrize(
    ("host", "path", "query", "expected"),
    [
        ("www.example.com", "/", "", "https://www.example.com/"),
        ("www.example.com", "/a/b.html", "x=1&y=%20", "https://www.example.com/a/b.html?x=1&y=%20"),
        ("www.example.com:80", "/", "", "https://www.example.com/"),
        ("WWW.Example.com", "/%C3%BC", "", "https://WWW.Example.com/%C3%BC"),
        ("192.0.2.1", "/", "", "https://192.0.2.1/"),
        ("[2001:db8::1]:8080", "/", "", "https://[2001:db8::1]/"),
        ("www.example.com", "//evil.example/", "", "https://www.example.com//evil.example/"),
        ("www.example.com", "/", "u=https://evil.example/", "https://www.example.com/?u=https://evil.example/"),
        ("www.example.com", "/.well-known/other", "", "https://www.example.com/.well-known/other"),
    ],
)
def test_everything_else_is_sent_on(host: str, path: str, query: str, expected: str) -> None:
    """Host, path and query stay; RFC 9110 section 15.4.9: with 308 the method stays, too."""
    assert location(ask(path, query, host=host)) == expected


def test_another_port() -> None:
    """Where 443 is not the one that clients can reach."""
    by = Public(redirect_to_https=True, https_port=8443)

    assert location(ask("/x", by=by)) == "https://www.example.com:8443/x"


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "DELETE"])
def test_every_method_is_sent_on(method: str) -> None:
    """A form that was posted to http is posted again, to https."""
    assert ask("/form", method=method).status == 308


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/\r\nSet-Cookie: a=b", "www.example.com"),
        ("/\nX: y", "www.example.com"),
        ("/\x00", "www.example.com"),
        ("/ HTTP/1.1", "www.example.com"),
        ("/ü", "www.example.com"),
        ("", "www.example.com"),
        ("*", "www.example.com"),
        ("http://evil.example/", "www.example.com"),
        ("evil.example:443", "www.example.com"),
        ("/", ""),
        ("/", "evil.example/path"),
        ("/", "user@evil.example"),
        ("/", "a\r\nSet-Cookie: b"),
        ("/", "www.example.com:99999999"),
        ("/", "www.example.com:"),
        ("/", "[not an address]"),
        ("/", "a" * 300),
        ("/", "a b"),
        ("/", "a\n"),
    ],
)
def test_what_cannot_be_a_location_is_refused(path: str, host: str) -> None:
    """CWE-113 and CWE-601: nothing from a request begins another header or names another host."""
    answer = ask(path, host=host)

    assert answer.status == 400
    assert answer.headers == ()


def test_a_query_that_cannot_be_in_a_location_is_refused() -> None:
    """Also behind a path that is fine."""
    assert ask("/", "a=b\r\nSet-Cookie: c").status == 400


@given(st.text(), st.text(), st.text())
def test_any_request_gets_an_answer_whose_headers_are_headers(path: str, query: str, host: str) -> None:
    """Whatever is asked: one line, printable, and on to the host that was named."""
    answer = ask("/" + path, query, host=host)
    assert answer.status in (308, 400, 404)
    for _, value in answer.headers:
        assert value.isascii()
        assert value.isprintable()
        assert value.startswith((f"https://{host.rpartition(':')[0] or host}/", f"https://{host}/"))


def test_without_redirects_nothing_is_there() -> None:
    """`redirect_to_https = false`: challenges only."""
    by = Public(redirect_to_https=False, key_authorization={TOKEN: ANSWER}.get)

    assert ask("/", by=by).status == 404
    assert ask(CHALLENGE_PREFIX + TOKEN, by=by).status == 200


async def test_through_the_server(runner: asyncio.Runner) -> None:
    """The whole way: a redirect as it is on the wire, and nothing of the admin side."""
    listening = Listening(runner, public)
    await listening.start()
    client = await listening.connect()
    await client.send(b"GET /a?b=c HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
    head, body = await client.response()
    assert head.startswith(b"HTTP/1.1 308 ")
    assert b"\r\nLocation: https://www.example.com/a?b=c\r\n" in head
    assert body == b""
    await client.send(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    head, _ = await client.response()

    assert b"\r\nLocation: https://127.0.0.1/metrics\r\n" in head
    await listening.stop()
