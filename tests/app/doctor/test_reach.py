"""A validation of our own making, against the answers that a CA gets where something is in the way."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from sniproxy.acme.challenges import tls_answer
from sniproxy.app.control import ControlError, ControlServer, NotRunning, bind_control
from sniproxy.app.doctor import reach as doctor_reach
from sniproxy.app.doctor.diagnosis import Verdict
from sniproxy.app.doctor.reach import Probe, begin_probe, try_probe
from sniproxy.bundle import utc_now
from sniproxy.model import TcpAddress, UnixAddress
from tests.support.bundles import bundle
from tests.support.processes import LOCALHOST, free_port

NAME = "www.example.test"
TOKEN, ANSWER = "0123456789abcdef0123456789", "0123456789abcdef0123456789.probe-0123456789"


def probe(kind="tls-alpn-01", identifier=NAME):
    return Probe(kind=kind, identifier=identifier, answer=ANSWER)


def validation(identifier=NAME, answer=ANSWER):
    """The certificate that proves it."""
    return tls_answer("tls-alpn-01", identifier, TOKEN, answer, now=utc_now()).bundles[0]


@contextlib.asynccontextmanager
async def serving(serve, **options):
    """A server of the test's own; where it listens."""
    writers = []

    async def keep(reader, writer):
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(keep, LOCALHOST, 0, **options)
    try:
        yield TcpAddress(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def tls_server(content, tmp_path, alpn=("acme-tls/1",), names=None):
    """Shows this bundle to everybody; `names` are those asked for."""
    path = tmp_path / "served.pem"
    path.write_bytes(content.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.set_alpn_protocols(list(alpn))
    if names is not None:
        context.sni_callback = lambda tls, name, context: names.append(name)

    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            await reader.read()

    async with serving(serve, ssl=context) as target:
        yield target


# -- tls-alpn-01


async def test_the_proof(runner, tmp_path):
    names: list[str] = []
    async with tls_server(validation(), tmp_path, names=names) as target:
        found = await try_probe(probe(), target)
    assert found.verdict == Verdict.GOOD
    assert str(found) == f"{NAME} at {target}: the proof came back"
    assert names == [NAME]


@pytest.mark.parametrize(("address", "asked"), [("192.0.2.1", "1.2.0.192.in-addr.arpa"), ("::1", "0." * 31)])
async def test_the_proof_for_an_ip_address(runner, tmp_path, address, asked):
    """RFC 8738 section 6: asked for by the name below in-addr.arpa or ip6.arpa."""
    names: list[str] = []
    async with tls_server(validation(address), tmp_path, names=names) as target:
        found = await try_probe(probe(identifier=address), target)
    assert found.verdict == Verdict.GOOD
    assert asked in names[0] or names == ["1." + asked + "ip6.arpa"]


async def failure(content, tmp_path, alpn=("acme-tls/1",), identifier=NAME):
    async with tls_server(content, tmp_path, alpn) as target:
        found = await try_probe(probe(identifier=identifier), target)
    assert found.verdict == Verdict.FAILED
    assert found.advice
    return found, target


async def test_another_server_without_alpn(runner, tmp_path):
    found, target = await failure(bundle("other.test", "more.test"), tmp_path, alpn=())
    assert found.found.startswith("chooses no ACME protocol (ALPN), and shows the certificate of test issuer for other")
    assert found.advice == f"something else listens at {target}, or the address leads to another machine"


async def test_haproxy_itself_listens_there(runner, tmp_path):
    """The switch is not done: the name's own certificate comes, and no validation."""
    found, target = await failure(bundle(NAME), tmp_path, alpn=())
    assert found.advice.startswith(f"does HAProxy itself listen at {target}?")


async def test_a_server_that_knows_other_protocols_only(runner, tmp_path):
    """RFC 7301 section 3.2: no_application_protocol. Python's does not send it, and chooses none."""
    found, _ = await failure(bundle("other.test"), tmp_path, alpn=("h2", "http/1.1"))
    assert "the connection did not come to this proxy" in found.found


async def test_another_acme_client_answers(runner, tmp_path):
    found, _ = await failure(validation(answer=f"{TOKEN}.another"), tmp_path)
    assert found.found.startswith("answers acme-tls/1 with the proof of something else")
    assert "another ACME client" in found.advice


async def test_a_certificate_without_a_proof(runner, tmp_path):
    found, _ = await failure(bundle(NAME), tmp_path)
    assert found.found.startswith("answers acme-tls/1 with a certificate that proves nothing")


async def test_the_proof_of_another_name(runner, tmp_path):
    """RFC 8737 section 3: the name alone."""
    found, _ = await failure(validation("other.test"), tmp_path)
    assert found.found.startswith("answers acme-tls/1 with a certificate that no CA takes")


async def test_nobody_listens(runner):
    target = TcpAddress(LOCALHOST, free_port())
    for kind, option in (("tls-alpn-01", "--connect HOST"), ("http-01", "--connect-http HOST")):
        found = await try_probe(probe(kind), target)
        assert found.verdict == Verdict.FAILED
        assert found.found == "cannot be reached: nobody listens there"
        assert option in found.advice


async def test_a_firewall_that_drops(runner, monkeypatch):
    """What is dropped looks like what never comes."""
    monkeypatch.setattr(doctor_reach, "REACH_SECONDS", 0.05)

    async def never(reader, writer):
        await reader.read()

    async with serving(never) as target:
        for kind in ("tls-alpn-01", "http-01"):
            found = await try_probe(probe(kind), target)
            assert found.verdict == Verdict.FAILED
            assert "a firewall drops it, or it goes nowhere" in found.found


async def test_an_alert(runner):
    """unrecognized_name (RFC 6066 section 3)."""

    async def refuse(reader, writer):
        await reader.read(1000)
        writer.write(b"\x15\x03\x03\x00\x02\x02\x70")
        writer.write_eof()

    async with serving(refuse) as target:
        found = await try_probe(probe(), target)
    assert found.verdict == Verdict.FAILED
    assert found.found.startswith("refuses acme-tls/1 (")
    assert "did not come to this proxy" in found.found


async def test_closed_at_once(runner):
    async def close(reader, writer):
        writer.close()

    async with serving(close) as target:
        tls = await try_probe(probe(), target)
        http = await try_probe(probe("http-01"), target)
    assert tls.verdict == http.verdict == Verdict.FAILED


async def test_what_does_not_speak_tls(runner):
    async def greet(reader, writer):
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.write_eof()

    async with serving(greet) as target:
        found = await try_probe(probe(), target)
        assert "does not speak TLS" in found.found
        assert 'SSH-2.0-OpenSSH_9.2"' in found.found
        assert (await try_probe(probe("http-01"), target)).found == "what answers does not speak HTTP"


# -- http-01


@contextlib.asynccontextmanager
async def http_server(answer, requests=None):
    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(head.decode())
        writer.write(answer)
        writer.write_eof()

    async with serving(serve) as target:
        yield target


def ok(body, *headers):
    lines = [b"HTTP/1.1 200 OK", *headers, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


@pytest.mark.parametrize("after", [b"", b"\n", b" \r\n"])
async def test_the_key_authorization(runner, after):
    """RFC 8555 section 8.3: white space behind it is passed over."""
    requests: list[str] = []
    async with http_server(ok(ANSWER.encode() + after), requests) as target:
        found = await try_probe(probe("http-01"), target)
    assert found.verdict == Verdict.GOOD
    (request,) = requests
    assert request.startswith(f"GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1\r\nHost: {NAME}\r\n")


async def test_an_ipv6_address_is_bracketed_in_host(runner):
    """RFC 9110 section 7.2."""
    requests: list[str] = []
    async with http_server(ok(ANSWER.encode()), requests) as target:
        await try_probe(probe("http-01", "::1"), target)
    assert "\r\nHost: [::1]\r\n" in requests[0]


async def test_a_key_authorization_without_a_length(runner):
    async with http_server(b"HTTP/1.0 200 OK\r\n\r\n" + ANSWER.encode()) as target:
        assert (await try_probe(probe("http-01"), target)).verdict == Verdict.GOOD


REDIRECT = f"HTTP/1.1 301 Moved\r\nServer: nginx\r\nLocation: https://{NAME}/x/{TOKEN}\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (REDIRECT.encode(), f"301 to https://{NAME}/x/… (Server: nginx), where the proof should be"),
        (ok(b"It works!", b"Server: Apache/2.4"), "200 (Server: Apache/2.4), and not the proof"),
        (ok(ANSWER.encode()[:-1]), "200, and not the proof"),
        (ok(b"x" * 200_000), "200, and not the proof"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404, and not the proof"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "503, and not the proof"),
        (b"HTTP/1.1 200 OK\r\nServer: \x1b[31m\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "what answers does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "what answers does not speak HTTP"),
    ],
)
async def test_another_answer(runner, answer, words):
    async with http_server(answer) as target:
        found = await try_probe(probe("http-01"), target)
    assert found.verdict == Verdict.FAILED
    assert found.found.startswith(words)
    assert found.advice
    assert not {TOKEN, "\x1b"} & {found.found, found.advice}
    assert TOKEN not in found.found


async def test_a_name_that_cannot_be_looked_up(runner):
    """--connect HOST:PORT."""
    target = TcpAddress("nowhere.invalid", 80)
    for kind in ("tls-alpn-01", "http-01"):
        found = await try_probe(probe(kind), target)
        assert "cannot be looked up" in found.found


# -- the running proxy


@contextlib.asynccontextmanager
async def control(answer, directory):
    address = UnixAddress(str(directory / "control.sock"))
    asked = []

    async def command(request, step):
        asked.append(request)
        return answer

    server = ControlServer({"probe": command}, pytest.fail)
    await server.listen(bind_control(address))
    try:
        yield address, asked
    finally:
        await server.close()


async def test_the_proxy_is_asked_to_answer(runner, tmp_path):
    async with control(ANSWER, tmp_path) as (address, asked):
        begun = await begin_probe(address, "http-01", NAME)
    assert asked == [{"command": "probe", "type": "http-01", "identifier": NAME}]
    assert begun.token == TOKEN
    assert ANSWER not in repr(begun)


@pytest.mark.parametrize("answer", [None, 7, "no-dot"])
async def test_the_proxy_answers_something_else(runner, tmp_path, answer):
    async with control(answer, tmp_path) as (address, _):
        with pytest.raises(ControlError, match="another version"):
            await begin_probe(address, "http-01", NAME)


async def test_no_proxy_is_running(runner, tmp_path):
    with pytest.raises(NotRunning):
        await begin_probe(UnixAddress(str(tmp_path / "none.sock")), "http-01", NAME)


async def test_a_proxy_that_hangs(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_reach, "ASK_SECONDS", 0.05)

    async def command(request, step):
        await asyncio.Event().wait()

    address = UnixAddress(str(tmp_path / "control.sock"))
    server = ControlServer({"probe": command}, pytest.fail)
    await server.listen(bind_control(address))
    with pytest.raises(ControlError, match=r"nothing for|not answered within"):
        await begin_probe(address, "http-01", NAME)
    await server.close()
