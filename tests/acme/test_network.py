"""Requests on the wire: whom they trust, which way they go, how much they read, and that they can be cut short."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from acme import jws
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.json_util import decode_b64jose, encode_b64jose
from josepy.jwa import ES256, ES384, HS256, RS256
from josepy.jwk import JWK, JWKEC, JWKRSA, JWKOct
from requests.adapters import HTTPAdapter

from sniproxy import __version__
from sniproxy.acme import network as module
from sniproxy.acme.network import Line, Network
from sniproxy.bundle import generate_key
from sniproxy.errors import AcmeError, CaUnreachable
from tests.support.pki import Authority
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sniproxy.bundle import PrivateKey

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
LIMIT = 1 << 16
KEYS: dict[str, PrivateKey] = {kind: generate_key(kind) for kind in ("ecdsa-p256", "ecdsa-p384", "rsa-2048")}


class Server:
    """Answers every connection with `converse`, in a thread for each; `heads` are those of the requests."""

    def __init__(self, converse: Callable[[Server, socket.socket], None], trust: ssl.SSLContext | None) -> None:
        self.heads: list[str] = []
        self.is_waiting = threading.Event()
        self.is_over = threading.Event()
        self._converse = converse
        self._tls = trust
        self._listening = socket.create_server((LOCALHOST, 0))
        self.port = self._listening.getsockname()[1]
        scheme = "http" if trust is None else "https"
        self.url = f"{scheme}://{LOCALHOST}:{self.port}/x"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def head(self, connection: socket.socket) -> str:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = connection.recv(1)
            if not byte:
                return ""
            head += byte
        self.heads.append(head.decode())
        return head.decode()

    def close(self) -> None:
        self.is_over.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listening.accept()[0]
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_SECONDS)
        with connection:
            try:
                if self._tls is not None:
                    with self._tls.wrap_socket(connection, server_side=True) as secured:
                        self._converse(self, secured)
                else:
                    self._converse(self, connection)
            except OSError:
                pass  # the client has gone


def answer(content: bytes) -> Callable[[Server, socket.socket], None]:
    """Answers each request of a connection with these bytes."""

    def converse(server: Server, connection: socket.socket) -> None:
        while server.head(connection):
            connection.sendall(content)

    return converse


@contextmanager
def serving(converse: Callable[[Server, socket.socket], None], trust: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(converse, trust)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def network(ca_file: Path | None = None) -> Iterator[Network]:
    made = Network(ca_file)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls(authority: Authority, directory: Path, *names: str) -> ssl.SSLContext:
    pem = directory / "server.pem"
    pem.write_bytes(authority.issue(*names))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    return context


# --------------------------------------------------------------------------------------------------------------- trust


def test_the_ca_of_ca_file_is_trusted(authority, tmp_path):
    with serving(answer(OK), tls(authority, tmp_path, LOCALHOST)) as server, network(authority.root) as ours:
        assert ours.get(server.url, limit=LIMIT).body == b"{}"


def test_no_other_ca_is(authority, tmp_path):
    """Neither that of the system, nor the list that comes with `requests`."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")

    with (
        serving(answer(OK), tls(other, tmp_path, LOCALHOST)) as server,
        network(authority.root) as ours,
        pytest.raises(CaUnreachable, match=r"its certificate is not trusted, .*; acme\.ca_file says whom to trust"),
    ):
        ours.get(server.url, limit=LIMIT)


def test_a_certificate_for_another_name_is_not_trusted(authority, tmp_path):
    """RFC 9110 section 4.3.4."""
    with (
        serving(answer(OK), tls(authority, tmp_path, "other.test")) as server,
        network(authority.root) as ours,
        pytest.raises(CaUnreachable, match=r"its certificate is not trusted, .*127\.0\.0\.1"),
    ):
        ours.get(server.url, limit=LIMIT)


def test_without_ca_file_the_system_says_whom_to_trust(authority, tmp_path, monkeypatch):
    """OpenSSL's SSL_CERT_FILE is how a system, or who runs it, says so."""
    with serving(answer(OK), tls(authority, tmp_path, LOCALHOST)) as server:
        with network() as ours, pytest.raises(CaUnreachable, match="not trusted"):
            ours.get(server.url, limit=LIMIT)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
        with network() as ours:
            assert ours.get(server.url, limit=LIMIT).status == 200


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environment_of_requests_adds_nobody(authority, tmp_path, monkeypatch, name):
    """`requests` would trust them in place of what it is told."""
    monkeypatch.setenv(name, str(authority.root))

    with (
        serving(answer(OK), tls(authority, tmp_path, LOCALHOST)) as server,
        network() as ours,
        pytest.raises(CaUnreachable, match="not trusted"),
    ):
        ours.get(server.url, limit=LIMIT)


def test_certifi_adds_nobody(authority, tmp_path, monkeypatch):
    """`requests` would load its list into whatever context it is given."""
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(authority.root))

    with (
        serving(answer(OK), tls(authority, tmp_path, LOCALHOST)) as server,
        network() as ours,
        pytest.raises(CaUnreachable, match="not trusted"),
    ):
        ours.get(server.url, limit=LIMIT)


def test_a_ca_file_that_is_not_there(tmp_path):
    with pytest.raises(AcmeError, match=r"^acme\.ca_file: .*/root\.pem cannot be read: No such file or directory$"):
        Network(tmp_path / "root.pem")


def test_a_ca_file_that_is_no_certificate(tmp_path):
    path = tmp_path / "root.pem"
    path.write_text("nothing")

    with pytest.raises(AcmeError, match=r"^acme\.ca_file: .*/root\.pem has no certificate in PEM$"):
        Network(path)


# ----------------------------------------------------------------------------------------------------------- the request


def test_what_a_request_says_of_us():
    """RFC 8555 section 6.1: User-Agent with the client and its HTTP library, and Accept-Language."""
    with serving(answer(OK)) as server, network() as ours:
        ours.get(server.url, limit=LIMIT)

    head = server.heads[0].splitlines()
    assert head[0] == "GET /x HTTP/1.1"
    assert f"User-Agent: sniproxy/{__version__} python-requests/{version('requests')}" in head
    assert "Accept-Language: en" in head
    assert "Accept-Encoding: identity" in head


def test_no_password_of_netrc_is_sent(tmp_path, monkeypatch):
    """`requests` would take it for any host it knows."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {LOCALHOST} login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))

    with serving(answer(OK)) as server, network() as ours:
        ours.get(server.url, limit=LIMIT)

    assert "Authorization" not in server.heads[0]


def test_cookies_are_not_kept():
    """RFC 8555 has none, and they would tell who asks where no account does."""
    with serving(answer(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"))) as server, network() as ours:
        ours.get(server.url, limit=LIMIT)
        ours.get(server.url, limit=LIMIT)

    assert "Cookie" not in server.heads[1]


def test_a_connection_is_used_again(authority, tmp_path):
    """A handshake with TLS costs more than all the rest."""
    connections = []

    def converse(server: Server, connection: socket.socket) -> None:
        connections.append(connection)
        answer(OK)(server, connection)

    with serving(converse, tls(authority, tmp_path, LOCALHOST)) as server, network(authority.root) as ours:
        for _ in range(3):
            ours.get(server.url, limit=LIMIT)

    assert len(connections) == 1


def test_a_connection_that_the_ca_has_closed_meanwhile():
    """RFC 9112 section 9.5: it is noticed, and another is made."""
    has_closed = threading.Event()

    def converse(server: Server, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(OK)
        connection.close()
        has_closed.set()

    with serving(converse) as server, network() as ours:
        ours.get(server.url, limit=LIMIT)
        assert has_closed.wait(PATIENCE_SECONDS)
        assert ours.get(server.url, limit=LIMIT).status == 200


def test_a_connection_that_the_ca_may_be_about_to_close(monkeypatch):
    """A POST that crosses with the closing is lost, and nobody knows whether it was carried out."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.0)
    connections = []

    def converse(server: Server, connection: socket.socket) -> None:
        connections.append(connection)
        answer(OK)(server, connection)

    with serving(converse) as server, network() as ours:
        for _ in range(3):
            ours.get(server.url, limit=LIMIT)

    assert len(connections) == 3


@pytest.mark.parametrize("location", ["/y", "//["])
def test_redirects_are_for_the_caller(location):
    redirect = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()

    with serving(answer(redirect)) as server, network() as ours:
        reply = ours.get(server.url, limit=LIMIT)

    assert (reply.status, reply.location, len(server.heads)) == (302, location, 1)


# ------------------------------------------------------------------------------------------------------------ the answer


def test_what_is_read_off_an_answer():
    date = datetime(2026, 11, 25, 12, tzinfo=UTC)
    head = (
        "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        f"Date: {format_datetime(date, usegmt=True)}\r\n"
        f"Retry-After: {format_datetime(date + timedelta(seconds=90), usegmt=True)}\r\n"
        'Replay-Nonce: abcd\r\nLocation: /1\r\nLink: <a>;rel="up"\r\nLink: <b>;rel="alternate"\r\n\r\n'
    )

    with serving(answer(head.encode() + b"{}")) as server, network() as ours:
        reply = ours.get(server.url, limit=LIMIT)

    assert (reply.status, reply.body, reply.content_type) == (201, b"{}", "application/json")
    assert (reply.location, reply.nonce) == ("/1", "abcd")
    assert reply.links == ('<a>;rel="up"', '<b>;rel="alternate"')
    assert reply.retry_after == 90.0
    assert reply.clock_skew == pytest.approx((date - datetime.now(UTC)).total_seconds(), abs=PATIENCE_SECONDS)
    assert "abcd" not in repr(reply)


def test_the_clock_is_not_compared_with_what_comes_out_of_a_cache():
    """RFC 9111 section 5.1: Age is what a cache adds, and Date is when the answer went in."""
    with (
        serving(
            answer(OK.replace(b"\r\n\r\n", b"\r\nAge: 5\r\nDate: Wed, 25 Nov 2015 12:00:00 GMT\r\n\r\n"))
        ) as server,
        network() as ours,
    ):
        assert ours.get(server.url, limit=LIMIT).clock_skew is None


@pytest.mark.parametrize("status", [200, 302, 500])
@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 70000", b"Transfer-Encoding: chunked", b"Connection: close"],
    ids=["length", "chunks", "end"],
)
def test_no_more_is_read_than_the_limit(head, status):
    """Nor of a redirect, which the session of `requests` reads to its end, however far that is."""

    def converse(server: Server, connection: socket.socket) -> None:
        server.head(connection)
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n" if b"chunked" in head else b" " * 4096
        connection.sendall(b"HTTP/1.1 %d x\r\nLocation: /y\r\n" % status + head + b"\r\n\r\n")
        while not server.is_over.is_set():
            connection.sendall(chunk)

    with (
        serving(converse) as server,
        network() as ours,
        pytest.raises(CaUnreachable, match=f"^the CA's answer has more than {LIMIT} bytes$"),
    ):
        ours.get(server.url, limit=LIMIT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it has closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "what it answers is not HTTP, or not all of it"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what it answers is not HTTP, or not all of it"),
    ],
    ids=["nothing", "half", "SSH"],
)
def test_what_is_no_answer(content, words):
    def converse(server: Server, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(content)

    with serving(converse) as server, network() as ours, pytest.raises(CaUnreachable) as caught:
        ours.get(server.url, limit=LIMIT)

    assert str(caught.value) == f"the CA at {LOCALHOST}:{server.port} cannot be reached: {words}"


def test_nobody_listens():
    with network() as ours, pytest.raises(CaUnreachable, match=r"cannot be reached: Connection refused$"):
        ours.get(f"http://{LOCALHOST}:{free_port()}/", limit=LIMIT)


def test_a_name_that_cannot_be_found(monkeypatch):
    def unknown(*arguments: Any, **named: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with network() as ours, pytest.raises(CaUnreachable) as caught:
        ours.get("https://ca.test/", limit=LIMIT)

    assert str(caught.value) == "the CA at ca.test cannot be reached: Name or service not known"


def test_no_tls_where_tls_should_be():
    def converse(server: Server, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.recv(65536)

    with (
        serving(converse) as server,
        network() as ours,
        pytest.raises(CaUnreachable, match="cannot be reached: TLS failed, "),
    ):
        ours.get(server.url.replace("http:", "https:"), limit=LIMIT)


# --------------------------------------------------------------------------------------------------------------- proxies


def forward(server: Server, connection: socket.socket) -> None:
    """A proxy for CONNECT (RFC 9110 section 9.3.6) that finds every name on this machine."""
    target = server.head(connection).split()[1]
    with socket.create_connection((LOCALHOST, int(target.rpartition(":")[2]))) as onward:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        back = threading.Thread(target=pump, args=(onward, connection))
        back.start()
        pump(connection, onward)
        back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while content := source.recv(65536):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_the_proxy_of_the_environment(authority, tmp_path, monkeypatch):
    """HTTPS_PROXY is how the only way out of many networks is named. Inside, it is our TLS, and whom we trust."""
    with serving(answer(OK), tls(authority, tmp_path, "ca.test")) as server, serving(forward) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:password@{LOCALHOST}:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        with network(authority.root) as ours:
            reply = ours.get(f"https://ca.test:{server.port}/x", limit=LIMIT)

    assert reply.status == 200
    assert proxy.heads[0].startswith(f"CONNECT ca.test:{server.port} ")
    assert "Proxy-Authorization: Basic " in proxy.heads[0]
    assert "Proxy-Authorization" not in server.heads[0]


def test_behind_a_proxy_nobody_else_is_trusted(authority, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with serving(answer(OK), tls(other, tmp_path, "ca.test")) as server, serving(forward) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{LOCALHOST}:{proxy.port}")
        with network(authority.root) as ours, pytest.raises(CaUnreachable, match="its certificate is not trusted"):
            ours.get(f"https://ca.test:{server.port}/x", limit=LIMIT)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_not_asked_through_a_proxy(monkeypatch, name):
    monkeypatch.setenv(name, f"http://{LOCALHOST}:{free_port()}")

    with serving(answer(OK)) as server, network() as ours:
        assert ours.get(server.url, limit=LIMIT).status == 200


def test_a_proxy_that_is_down_and_its_password(monkeypatch):
    """Whose fault it is, and not with which password."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass-word@{LOCALHOST}:{free_port()}")

    with network() as ours, pytest.raises(CaUnreachable) as caught:
        ours.get("https://ca.test/x", limit=LIMIT)

    assert (
        str(caught.value) == "the CA at ca.test cannot be reached: through the proxy of HTTPS_PROXY: Connection refused"
    )


# --------------------------------------------------------------------------------------------------------- cut short


def silent(server: Server, connection: socket.socket) -> None:
    server.head(connection)
    server.is_waiting.set()
    server.is_over.wait(PATIENCE_SECONDS)


def drip(start: bytes) -> Callable[[Server, socket.socket], None]:
    """Sends these bytes, and then one more now and again, so that no wait for one is long."""

    def converse(server: Server, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(start)
        server.is_waiting.set()
        while not server.is_over.wait(0.01):
            connection.sendall(b" ")

    return converse


@pytest.mark.parametrize("secured", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    "converse",
    [silent, drip(b"HTTP/1.1 200 OK\r\nX-Head: "), drip(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{")],
    ids=["no answer", "a head in drips", "a body in drips"],
)
def test_a_request_is_cut_from_another_thread(authority, tmp_path, converse, secured):
    """A read has a time limit, but one that begins anew with each byte: only a cut ends an answer that never does."""
    context = tls(authority, tmp_path, LOCALHOST) if secured else None

    def ask() -> None:
        with suppress(CaUnreachable):  # a head that ends in the middle is one that `http.client` takes
            ours.get(server.url, limit=LIMIT)

    with serving(converse, context) as server, network(authority.root) as ours:
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        assert server.is_waiting.wait(PATIENCE_SECONDS)
        ours.cut()
        asking.join(PATIENCE_SECONDS)

    assert not asking.is_alive()


def test_nothing_is_sent_after_a_cut(monkeypatch):
    """A look-up that takes for ever and ends in a connection after all must not order what nobody waits for."""
    looking_up, found = threading.Event(), threading.Event()
    getaddrinfo = socket.getaddrinfo

    def slow(*arguments: Any, **named: Any) -> Any:
        looking_up.set()
        found.wait(PATIENCE_SECONDS)
        return getaddrinfo(*arguments, **named)

    def ask() -> None:
        with pytest.raises(CaUnreachable):
            ours.get(server.url, limit=LIMIT)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with serving(answer(OK)) as server, network() as ours:
        asking = threading.Thread(target=ask)
        asking.start()
        assert looking_up.wait(PATIENCE_SECONDS)
        ours.cut()
        found.set()
        asking.join(PATIENCE_SECONDS)

    assert not asking.is_alive()
    assert server.heads == []


def test_a_line_that_is_cut_takes_no_connection():
    line = Line()
    line.cut()

    with pytest.raises(ConnectionAbortedError):
        line.use(object())


# ------------------------------------------------------------------------------------------------------------ signatures


def posted(kind: str, **options: Any) -> tuple[dict[str, Any], Any]:
    """The protected header and the payload of a request that was signed with this key, once its signature is checked."""
    bodies: list[bytes] = []

    def converse(server: Server, connection: socket.socket) -> None:
        head = server.head(connection)
        length = int(next(line for line in head.splitlines() if line.startswith("Content-Length: ")).split()[1])
        body = b""
        while len(body) < length:
            body += connection.recv(length - len(body))
        bodies.append(body)
        connection.sendall(OK)

    arguments = {"account_url": "https://ca.test/1", "nonce": "YWJj", "accept": "application/json", "limit": LIMIT}
    with serving(converse) as server, network() as ours:
        ours.post(server.url, options.pop("payload", {"a": 1}), key=KEYS[kind], **{**arguments, **options})
    assert "Content-Type: application/jose+json" in server.heads[0]
    signed = jws.JWS.from_json(json.loads(bodies[0]))
    jwk = JWKRSA(key=KEYS[kind]) if kind.startswith("rsa") else JWKEC(key=KEYS[kind])
    assert signed.verify(jwk.public_key())
    header = json.loads(signed.signature.protected)
    assert header.pop("url") == server.url
    return header, signed.payload


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("ecdsa-p256", "ES256"), ("ecdsa-p384", "ES384"), ("rsa-2048", "RS256")]
)
def test_a_request_is_signed(kind, algorithm):
    """RFC 8555 section 6.2; RFC 7518 section 3.1. Certbot's accounts have RSA keys."""
    header, payload = posted(kind)

    assert header == {"alg": algorithm, "kid": "https://ca.test/1", "nonce": "YWJj"}
    assert json.loads(payload) == {"a": 1}


def test_a_request_without_an_account_has_the_public_key():
    """Section 6.2: jwk for newAccount; and nothing of the private one."""
    header, _ = posted("ecdsa-p256", account_url=None)

    assert JWK.from_json(header["jwk"]) == JWKEC(key=KEYS["ecdsa-p256"].public_key())
    assert set(header["jwk"]) == {"kty", "crv", "x", "y"}
    assert "kid" not in header


def test_a_post_as_get_has_an_empty_payload():
    """Section 6.3: of zero length, not {}."""
    assert posted("ecdsa-p256", payload=None)[1] == b""


def test_an_external_account_binding():
    """Section 7.3.4: HS256 over the account's public key; kid and url, and no nonce."""
    key = KEYS["rsa-2048"]

    binding = Network.external_account(key, "https://ca.test/new", kid="me", mac_key=b"k" * 32)

    signed = jws.JWS.from_json(binding)
    assert signed.verify(JWKOct(key=b"k" * 32))
    assert json.loads(signed.signature.protected) == {"alg": "HS256", "kid": "me", "url": "https://ca.test/new"}
    assert set(json.loads(signed.payload)) == {"kty", "n", "e"}


def test_a_key_change():
    """Section 7.3.5: the new key signs for which account, and in the place of which key."""
    old, new = KEYS["rsa-2048"], KEYS["ecdsa-p256"]

    change = jws.JWS.from_json(Network.key_change(old, new, "https://ca.test/change", "https://ca.test/1"))

    header = json.loads(change.signature.protected)
    assert change.verify(JWKEC(key=new.public_key()))
    assert set(header) == {"alg", "jwk", "url"}
    payload = json.loads(change.payload)
    assert payload["account"] == "https://ca.test/1"
    assert JWK.from_json(payload["oldKey"]) == JWKRSA(key=old.public_key())
    assert set(payload["oldKey"]) == {"kty", "n", "e"}


def test_a_key_that_no_ca_takes():
    with pytest.raises(AcmeError, match="P-256, P-384 or RSA, and this one is secp521r1"):
        Network.key_change(
            ec.generate_private_key(ec.SECP521R1()), KEYS["rsa-2048"], "https://ca.test/", "https://ca.test/1"
        )


# ------------------------------------------------------------------------------------------------------------- libraries


def test_what_we_lean_on_in_acme_and_josepy():
    """A contract: whoever changes one of these in a new version is found here, and not at a renewal."""
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = JWKEC(key=key)
    signed = jws.JWS.sign(b"{}", key=jwk, alg=ES256, nonce=b"abc", url="https://ca.test/", kid=None)
    document = signed.to_json()

    assert set(document) == {"protected", "payload", "signature"}
    assert all(isinstance(value, str) for value in document.values())
    assert json.loads(decode_b64jose(document["protected"])) == {
        "alg": "ES256",
        "nonce": encode_b64jose(b"abc"),
        "url": "https://ca.test/",
        "jwk": jwk.public_key().to_json(),
    }
    assert isinstance(jwk.public_key().to_json(), dict)
    assert [str(algorithm) for algorithm in (ES256, ES384, RS256, HS256)] == ["ES256", "ES384", "RS256", "HS256"]


@pytest.mark.parametrize(
    "name", ["init_poolmanager", "proxy_manager_for", "cert_verify", "get_connection_with_tls_context"]
)
def test_what_we_override_in_requests(name):
    """They are there `for use when subclassing`, says its documentation."""
    assert callable(getattr(HTTPAdapter, name))


def test_the_libraries_keep_their_log_lines_to_themselves():
    """urllib3 writes every URL at debug; the client of acme whole requests and answers."""
    records: list[logging.LogRecord] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    listening = Listening()
    loggers = [
        logging.getLogger(name) for name in ("acme.client", "josepy.jwa", "urllib3.connectionpool", "requests.x")
    ]
    before = [logger.level for logger in loggers]
    logging.getLogger().addHandler(listening)
    try:
        with serving(answer(OK)) as server, network() as ours:
            for logger in loggers:
                logger.setLevel(logging.DEBUG)
            ours.get(server.url, limit=LIMIT)
            for logger in loggers:
                logger.warning("to nobody")
    finally:
        logging.getLogger().removeHandler(listening)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

    assert records == []


def test_it_is_not_imported_before_it_is_needed():
    """A third of a second and 30 MiB, for whom ACME is off, and for every command."""
    code = "import sys, sniproxy.acme.client; print({'acme', 'josepy', 'requests', 'urllib3'} & set(sys.modules))"

    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    assert done.stdout == "set()\n", done.stderr
