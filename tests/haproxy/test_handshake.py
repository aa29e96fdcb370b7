"""The handshake that looks: at the real HAProxy, at OpenSSL's oldest settings, and at what does not speak TLS."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.haproxy import handshake as handshake_module
from sniproxy.haproxy.handshake import Failure, HandshakeFailed, served_leaf
from sniproxy.model import ProxyProtocol, TcpAddress, UnixAddress
from tests.support.bundles import ISSUER, bundle, write
from tests.support.haproxy import HAPROXY, MISSING, Haproxy
from tests.support.processes import LOCALHOST, Programs, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sniproxy.bundle import Bundle
    from sniproxy.model import Address

with_haproxy = pytest.mark.skipif(HAPROXY is None, reason=MISSING)

OFF, V1, V2 = ProxyProtocol.OFF, ProxyProtocol.V1, ProxyProtocol.V2

SECTIONS = """
    log stderr format raw local0

defaults
    mode http
    log global
    timeout connect 10s
    timeout client 60s
    timeout server 60s

frontend https
    bind unix@{directory}/accept.sock accept-proxy ssl crt {certificates} alpn h2,http/1.1
    bind unix@{directory}/bare.sock ssl crt {certificates}
    bind {localhost}:{accept_port} accept-proxy ssl crt {certificates}
    bind {localhost}:{bare_port} ssl crt {certificates}
    bind unix@{directory}/strict.sock ssl crt {certificates} strict-sni
    bind unix@{directory}/old.sock ssl crt {certificates} ssl-max-ver TLSv1.2
    bind unix@{directory}/both.sock ssl crt {directory}/both
    bind unix@{directory}/client.sock ssl crt {certificates} verify required ca-file {certificates}/a.pem
    bind unix@{directory}/plain.sock
"""


class Site:
    def __init__(self, programs: Programs) -> None:
        self.directory = programs.directory
        certificates, both = self.directory / "certs", self.directory / "both"
        certificates.mkdir()
        both.mkdir()
        self.a = write(certificates / "a.pem", bundle("a.test"))
        self.b = write(certificates / "b.pem", bundle("b.test", rsa=True))
        self.ecdsa = write(both / "ecdsa.pem", bundle("both.test"))
        self.rsa = write(both / "rsa.pem", bundle("both.test", rsa=True))
        self.ports = {"accept": free_port(), "bare": free_port()}
        values = {f"{name}_port": port for name, port in self.ports.items()}
        text = SECTIONS.format(directory=self.directory, certificates=certificates, localhost=LOCALHOST, **values)
        self.haproxy = programs.start(Haproxy(text, self.directory))

    def unix(self, name: str) -> UnixAddress:
        return UnixAddress(f"{self.directory}/{name}.sock")

    def tcp(self, name: str) -> TcpAddress:
        return TcpAddress(LOCALHOST, self.ports[name])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        programs = Programs(Path(name))
        try:
            yield Site(programs)
        finally:
            programs.end()


async def failure_of(address: Address, name: str | None = "a.test", **options: Any) -> HandshakeFailed:
    with pytest.raises(HandshakeFailed) as caught:
        await served_leaf(address, name, **options)
    assert str(caught.value).startswith(f"{address}: ")
    return caught.value


# ---------------------------------------------------------------------------------------------------- HAProxy


@with_haproxy
@pytest.mark.parametrize(
    ("where", "header"),
    [("bare", OFF), ("accept", V1), ("accept", V2)],
    ids=["off", "v1", "v2"],
)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_the_certificate_for_a_name(
    runner: asyncio.Runner, site: Site, transport: str, where: str, header: ProxyProtocol
) -> None:
    address = site.unix(where) if transport == "unix" else site.tcp(where)

    assert (await served_leaf(address, "a.test", proxy_protocol=header)).der == site.a.leaf.der
    assert (await served_leaf(address, "b.test", proxy_protocol=header)).der == site.b.leaf.der


@with_haproxy
async def test_without_a_name_it_is_the_first_of_the_bind_line(runner: asyncio.Runner, site: Site) -> None:
    assert (await served_leaf(site.unix("bare"), None)).der == site.a.leaf.der


@with_haproxy
async def test_an_ip_address_is_not_sent_as_a_name(runner: asyncio.Runner, site: Site) -> None:
    """RFC 6066 section 3: literal addresses are not permitted in HostName; strict-sni refuses whoever sends none."""
    error = await failure_of(site.unix("strict"), "192.0.2.1")

    assert error.failure is Failure.ALERT


@with_haproxy
async def test_all_that_was_seen(runner: asyncio.Runner, site: Site) -> None:
    leaf = await served_leaf(site.unix("accept"), "a.test", proxy_protocol=V2, alpn=("http/1.1", "h2"))

    assert leaf.names == ("a.test",)
    assert leaf.issuer == ISSUER
    assert leaf.chain == site.a.chain
    assert leaf.alpn == "h2"  # HAProxy's preference
    assert leaf.version == "TLSv1.3"
    assert leaf.cipher.startswith("TLS_")


@with_haproxy
async def test_no_protocol_is_agreed_on_where_none_is_offered(runner: asyncio.Runner, site: Site) -> None:
    assert (await served_leaf(site.unix("accept"), "a.test", proxy_protocol=V2)).alpn is None


@with_haproxy
@pytest.mark.parametrize("rsa_only", [False, True])
async def test_the_rsa_certificate_beside_an_ecdsa_one(runner: asyncio.Runner, site: Site, rsa_only: bool) -> None:
    """HAProxy gives ECDSA to whoever can read it."""
    leaf = await served_leaf(site.unix("both"), "both.test", rsa_only=rsa_only)

    assert leaf.der == (site.rsa if rsa_only else site.ecdsa).leaf.der


@with_haproxy
async def test_tls_12(runner: asyncio.Runner, site: Site) -> None:
    assert (await served_leaf(site.unix("old"), "b.test")).version == "TLSv1.2"


@with_haproxy
async def test_a_server_that_wants_to_see_a_certificate_has_shown_its_own_first(
    runner: asyncio.Runner, site: Site
) -> None:
    """RFC 8446 section 4.4: the server's comes before it can be refused."""
    assert (await served_leaf(site.unix("client"), "a.test")).der == site.a.leaf.der


@with_haproxy
async def test_a_name_that_it_has_no_certificate_for(runner: asyncio.Runner, site: Site) -> None:
    """Configuration manual, section 5.1, strict-sni: alert 112 (RFC 6066 section 3)."""
    error = await failure_of(site.unix("strict"), "nobody.test")

    assert 'alert "unrecognized name"; it has no certificate for nobody.test' in str(error)
    assert (error.failure, error.alert) == (Failure.ALERT, "unrecognized name")
    assert "ask for no name" in str(await failure_of(site.unix("strict"), None))


@with_haproxy
async def test_a_proxy_header_is_missing(runner: asyncio.Runner, site: Site) -> None:
    error = await failure_of(site.unix("accept"))

    assert "a bind line with accept-proxy does that to whoever sends no PROXY header" in str(error)
    assert error.failure is Failure.CLOSED


@with_haproxy
@pytest.mark.parametrize("header", [V1, V2])
async def test_a_proxy_header_too_many(runner: asyncio.Runner, site: Site, header: ProxyProtocol) -> None:
    error = await failure_of(site.unix("bare"), proxy_protocol=header)

    assert "a bind line without accept-proxy does that to whoever sends a PROXY header" in str(error)


@with_haproxy
async def test_a_bind_line_without_ssl(runner: asyncio.Runner, site: Site) -> None:
    error = await failure_of(site.unix("plain"))

    assert 'does not speak TLS, but says "HTTP/1.1 400 Bad request"' in str(error)
    assert error.failure is Failure.NOT_TLS


# ---------------------------------------------------------------------------------------------------- other servers


class TlsServer:
    """Python's own TLS server on a unix socket: what it gets after the handshake, and how that ends."""

    def __init__(self, directory: Path, content: Bundle, configure: Callable[[ssl.SSLContext], None]) -> None:
        self.address = UnixAddress(f"{directory}/server.sock")
        pem = directory / "server.pem"
        pem.write_bytes(content.pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        configure(self._context)
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.address.path, ssl=self._context)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.ended.set_result(await reader.read())
        except OSError as error:
            self.ended.set_exception(error)
        writer.close()


async def test_the_goodbye_is_a_proper_one(runner: asyncio.Runner, directory: Path) -> None:
    """RFC 8446 section 6.1: close_notify, without which the server sees a truncation; and no byte before it."""
    server = TlsServer(directory, bundle("a.test"), lambda _: None)
    await server.start()
    try:
        await served_leaf(server.address, "a.test")
        async with asyncio.timeout(20):
            assert await server.ended == b""
    finally:
        server.close()


async def test_a_server_that_knows_nothing_newer_than_tls_10(runner: asyncio.Runner, directory: Path) -> None:
    """Nothing is trusted, so what is old and weak may be looked at as well."""

    def old(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.options |= ssl.OP_NO_TLSv1_3 | ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_1

    with pytest.warns(DeprecationWarning, match="OP_NO_TLS"):
        server = TlsServer(directory, bundle("a.test", rsa=True), old)
    await server.start()
    try:
        leaf = await served_leaf(server.address, "a.test")
    finally:
        server.close()

    assert leaf.version == "TLSv1"


class Saying:
    """A server that sends these bytes to whoever has sent something, and then closes, or stays."""

    def __init__(self, directory: Path, words: bytes, *, then: str = "close") -> None:
        self.address = UnixAddress(f"{directory}/saying.sock")
        self._words, self._then = words, then
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> UnixAddress:
        self._server = await asyncio.start_unix_server(self._serve, self.address.path)
        return self.address

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        await reader.read(1)
        try:
            writer.write(self._words)
            if self._then == "stay":
                await asyncio.Event().wait()
        except OSError:
            pass
        finally:
            writer.close()


SERVER_HELLO_CUT = bytes.fromhex("160303004a0200")

SAYINGS: dict[str, tuple[bytes, str, Failure]] = {
    "nothing": (b"", "closes without a word", Failure.CLOSED),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", 'says "SSH-2.0-OpenSSH_9.2"', Failure.NOT_TLS),
    "binary": (b"\x00\x1b[1m\x80", 'says "?', Failure.NOT_TLS),
    "one byte": (b"\x16", "in the middle of the handshake", Failure.CLOSED),
    "half a record": (SERVER_HELLO_CUT, "in the middle of the handshake", Failure.CLOSED),
    "sslv2": (b"\x16\x02\x00\x00\x00", "does not speak TLS", Failure.NOT_TLS),
    "garbage in a record": (b"\x16\x03\x03\x00\x04\xff\x00\x00\x00", "the handshake fails: ", Failure.BROKEN),
    "alert": (bytes.fromhex("15030100020228"), 'alert "handshake failure"', Failure.ALERT),
    "version": (bytes.fromhex("15030100020246"), 'alert "protocol version"', Failure.ALERT),
}


@pytest.mark.parametrize(("words", "told", "failure"), SAYINGS.values(), ids=SAYINGS)
async def test_what_is_no_handshake(
    runner: asyncio.Runner, directory: Path, words: bytes, told: str, failure: Failure
) -> None:
    async with Saying(directory, words) as address:
        error = await failure_of(address)

    assert told in str(error)
    assert error.failure is failure
    assert str(error).isprintable()


@pytest.mark.parametrize("words", [b"", SERVER_HELLO_CUT], ids=["silent", "half"])
async def test_a_server_that_never_gets_done(runner: asyncio.Runner, directory: Path, words: bytes) -> None:
    async with Saying(directory, words, then="stay") as address:
        error = await failure_of(address, seconds=0.2)

    assert "no TLS handshake within 0.2 s" in str(error)
    assert error.failure is Failure.TIMEOUT


async def test_the_cap_on_a_servers_handshake(
    runner: asyncio.Runner, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake_module, "MAX_FLIGHT_BYTES", 100)
    server = TlsServer(directory, bundle("a.test"), lambda _: None)
    await server.start()
    try:
        error = await failure_of(server.address)
    finally:
        server.close()

    assert "without end" in str(error)


# ---------------------------------------------------------------------------------------------------- nobody


async def test_no_socket(runner: asyncio.Runner, directory: Path) -> None:
    error = await failure_of(UnixAddress(f"{directory}/nothing.sock"))

    assert "there is no such socket" in str(error)
    assert error.failure is Failure.UNREACHABLE


async def test_nobody_listens(runner: asyncio.Runner) -> None:
    assert "nobody listens there" in str(await failure_of(TcpAddress(LOCALHOST, free_port())))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "join HAProxy's group"),
        (OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)), "no way to that address"),
        (OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)), os.strerror(errno.ENOBUFS)),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "cannot be looked up (Name or"),
    ],
    ids=["denied", "unreachable", "other", "unknown host"],
)
async def test_why_there_is_no_connection(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", fails)

    assert words in str(await failure_of(TcpAddress("host.example", 443)))


async def test_a_connection_that_is_not_made_in_time(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", for_ever)

    assert "no connection within 0.05 s" in str(await failure_of(TcpAddress("host.example", 443), seconds=0.05))


@pytest.mark.parametrize("name", ["a" * 64 + ".test", ".test", "a..test", ""], ids=["long", "dot", "dots", "empty"])
async def test_names_that_cannot_be_asked_for(runner: asyncio.Runner, name: str) -> None:
    """Before anything is connected to."""
    assert (await failure_of(UnixAddress("/nowhere"), name)).failure is Failure.BAD_NAME


async def test_cancelling_it_closes_the_connection(runner: asyncio.Runner, directory: Path) -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()
        writer.close()
        closed.set()

    server = await asyncio.start_unix_server(serve, f"{directory}/server.sock")
    task = asyncio.get_running_loop().create_task(served_leaf(UnixAddress(f"{directory}/server.sock"), "a.test"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await closed.wait()
    server.close()
