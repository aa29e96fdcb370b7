"""Validations as CAs make them, through the relay: answered while they are pending, and nobody else at any time."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

import sniproxy.relay.connection
from sniproxy.acme import responder as module
from sniproxy.acme.responder import Responder
from sniproxy.errors import OrderFailed, StartError, StoreError
from sniproxy.model import Outcome
from sniproxy.policy.routing import RESPONDER
from tests.support.acme_validation import (
    CheckFailed,
    check_tls_alpn_01,
    check_tls_sni_01,
    check_tls_sni_02,
    tls_sni_01_names,
    tls_sni_02_names,
)
from tests.support.clients import GNUTLS_CLI, OPENSSL
from tests.support.engine import Relay, open_descriptors
from tests.support.hellos import alpn, client_hello, hello, record, server_name
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sniproxy.acme.responder import Answering
    from sniproxy.model import UnixAddress

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
ANSWER = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
OTHER_TOKEN = "DGyRejmCefe7v4NfDGDKfA"
OTHER_ANSWER = f"{OTHER_TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
NAME = "www.example.com"

REFUSED = r"(?i)unrecognized.name"
UNRECOGNIZED_NAME, NO_APPLICATION_PROTOCOL, DECODE_ERROR = 112, 120, 50


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


async def first_listener() -> None:
    """With its first one libuv opens a descriptor of its own, for good."""
    responder = Responder(report=print, bug=print)
    await responder.start()
    await responder.close()


class Stage:
    """A responder behind a relay that sends everything to it, whatever it is: what is refused, it refuses itself."""

    def __init__(self, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        runner.run(first_listener())
        self.relay = Relay(runner, monkeypatch)
        self.monkeypatch = monkeypatch
        # A machine busy with tests may need longer than any validator gets.
        monkeypatch.setattr(module, "HANDSHAKE_SECONDS", PATIENCE_SECONDS)
        monkeypatch.setattr(sniproxy.relay.connection, "CHALLENGE_SECONDS", PATIENCE_SECONDS)
        self.reports: list[str] = []
        self.bugs: list[BaseException] = []
        self.responder = Responder(report=self.reports.append, bug=self.bugs.append)
        self.address: UnixAddress

    async def start(self) -> None:
        self.address = await self.responder.start()
        self.relay.start(self.address, challenge=self.responder.is_pending, not_tls="haproxy", max_hello=65536)

    async def finish(self) -> None:
        self.relay.engine.cut_all()
        await self.responder.close()
        await self.relay.finish()
        assert not self.bugs

    @property
    def port(self) -> int:
        return self.relay.listener.socket.getsockname()[1]

    @property
    def counts(self) -> Any:
        return self.responder.counts

    def answering(self, challenge_type: str = "tls-alpn-01", identifier: str = NAME, **options: Any) -> Any:
        return self.responder.answering(challenge_type, identifier, TOKEN, ANSWER, **options)

    async def check(self, check: Callable[..., None], *arguments: Any, **options: Any) -> None:
        await asyncio.to_thread(check, LOCALHOST, self.port, *arguments, **options)

    async def run(self, *command: str) -> str:
        """What a program prints whose standard input is empty."""
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS * 2,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout + done.stderr

    async def until(self, condition: Callable[[], object]) -> None:
        """Looks again and again: what happens in the responder's tasks announces itself to nobody."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def served_one(self, challenge_type: str = "tls-alpn-01") -> None:
        assert self.counts.answered[challenge_type] == 1
        assert sum(self.counts.answered.values()) == 1
        assert sum(self.counts.failed.values()) == 0


@pytest.fixture
def stage(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(runner, monkeypatch)
    runner.run(stage.start())
    yield stage
    runner.run(stage.finish())


class Validator:
    """A TLS client whose bytes the test moves itself."""

    def __init__(self, name: str = NAME, *protocols: str, version: ssl.TLSVersion | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(list(protocols or ("acme-tls/1",)))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        self.done = False

    def step(self, received: bytes = b"") -> bytes:
        """What it sends when it has received these bytes."""
        self.incoming.write(received)
        try:
            self.tls.do_handshake()
            self.done = True
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()


# ---------------------------------------------------------------------------------------------- answered

EVERY_VERSION = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.mark.parametrize("identifier", [NAME, "xn--bcher-kva.example", "192.0.2.7", "2001:db8::1"])
async def test_tls_alpn_01(stage: Stage, identifier: str) -> None:
    """RFC 8737 section 3, RFC 8738 section 6, as strict as Boulder's va/tlsalpn.go."""
    with stage.answering(identifier=identifier) as challenge:
        await stage.check(check_tls_alpn_01, identifier, ANSWER)
        await stage.until(lambda: challenge.answered)
    closed = await stage.relay.over()

    assert (closed.outcome, closed.backend_label) == (Outcome.CHALLENGE, RESPONDER)
    stage.served_one()
    assert stage.reports == []


async def test_tls_sni_02(stage: Stage) -> None:
    """draft-ietf-acme-acme-09 section 8.3."""
    with stage.answering("tls-sni-02"):
        await stage.check(check_tls_sni_02, TOKEN, ANSWER)
        await stage.until(lambda: stage.counts.answered["tls-sni-02"])

    assert (await stage.relay.over()).outcome == Outcome.CHALLENGE
    stage.served_one("tls-sni-02")


@pytest.mark.parametrize("iterations", [1, 5])
async def test_tls_sni_01(stage: Stage, iterations: int) -> None:
    """draft-ietf-acme-acme-01 section 7.3: the CA asks for as many of the names as it likes."""
    with stage.answering("tls-sni-01", iterations=iterations):
        await stage.check(check_tls_sni_01, ANSWER, n=iterations)
        await stage.until(lambda: stage.counts.answered["tls-sni-01"] == iterations)

    assert not stage.responder.has_pending


@EVERY_VERSION
async def test_the_last_thing_a_validator_reads_is_a_proper_end(stage: Stage, version: ssl.TLSVersion) -> None:
    """RFC 8446 section 6.1: close_notify, and then the end; no ticket, no byte of application data."""
    validator = Validator(version=version)
    with stage.answering():
        client = await stage.relay.greet(validator.step())
        while not validator.done:
            await client.send(validator.step(await client.receive()))
        validator.incoming.write(await client.receive_to_end())
        assert validator.tls.read() == b""  # without close_notify it would want more
        client.close()

    assert validator.tls.version() == version.name.replace("_", ".", 1)
    assert validator.tls.selected_alpn_protocol() == "acme-tls/1"


@EVERY_VERSION
async def test_openssl(stage: Stage, version: ssl.TLSVersion) -> None:
    """openssl-s_client(1): another TLS library's idea of a validation."""
    assert OPENSSL is not None
    option = "-tls1_2" if version is ssl.TLSVersion.TLSv1_2 else "-tls1_3"
    with stage.answering():
        printed = await stage.run(
            *(OPENSSL, "s_client", "-connect", f"{LOCALHOST}:{stage.port}", "-servername", NAME, option),
            *("-alpn", "acme-tls/1", "-showcerts", "-ign_eof"),
        )
        await stage.until(lambda: stage.counts.answered["tls-alpn-01"])

    assert "ALPN protocol: acme-tls/1" in printed
    certificate = x509.load_pem_x509_certificate(printed.encode())
    certificate.verify_directly_issued_by(certificate)
    assert "New Session Ticket" not in printed
    stage.served_one()


@EVERY_VERSION
async def test_gnutls(stage: Stage, version: ssl.TLSVersion) -> None:
    """gnutls-cli(1): and a third one's."""
    assert GNUTLS_CLI is not None
    priority = "NORMAL:-VERS-ALL:+VERS-TLS1.2" if version is ssl.TLSVersion.TLSv1_2 else "NORMAL:-VERS-ALL:+VERS-TLS1.3"
    with stage.answering():
        printed = await stage.run(
            *(GNUTLS_CLI, "--insecure", "--port", str(stage.port), "--sni-hostname", NAME, "--alpn", "acme-tls/1"),
            *("--priority", priority, "--print-cert", LOCALHOST),
        )
        await stage.until(lambda: stage.counts.answered["tls-alpn-01"])

    assert "Application protocol: acme-tls/1" in printed
    assert "Handshake was completed" in printed
    stage.served_one()


@pytest.mark.parametrize("version", ["-tls1_1", "-tls1"])
async def test_nothing_older_than_tls_1_2(stage: Stage, version: str) -> None:
    """RFC 8737 section 4: "MUST NOT be used for versions earlier than TLS 1.2"."""
    assert OPENSSL is not None
    with stage.answering():
        printed = await stage.run(
            *(OPENSSL, "s_client", "-connect", f"{LOCALHOST}:{stage.port}", "-servername", NAME, version),
            *("-alpn", "acme-tls/1", "-cipher", "DEFAULT@SECLEVEL=0"),
        )
        await stage.until(lambda: stage.counts.failed["tls-alpn-01"])

    assert "alert protocol version" in printed
    assert stage.reports == [f"{NAME}: a tls-alpn-01 validation broke off: UNSUPPORTED_PROTOCOL"]


@pytest.mark.parametrize("pieces", [1, 2, 4, 1000])
async def test_a_hello_in_several_segments(stage: Stage, pieces: int) -> None:
    """Measured: with X25519MLKEM768 the hello of Let's Encrypt's validators takes two segments, or three."""
    validator = Validator()
    first = validator.step()
    size = len(first) // pieces + 1
    with stage.answering():
        client = await stage.relay.connect()
        for start in range(0, len(first), size):
            await stage.relay.send_and_take(client, first[start : start + size])
        while not validator.done:
            await client.send(validator.step(await client.receive()))
        client.close()
        await stage.until(lambda: stage.counts.answered["tls-alpn-01"] == 1)


async def test_several_perspectives_at_once(stage: Stage) -> None:
    """Boulder's va.go: all of them look at the same time, and the answer outlives the first. Pebble has three."""
    with stage.answering() as challenge, stage.answering(identifier="192.0.2.7"):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(stage.check(check_tls_alpn_01, NAME, ANSWER))
                tasks.create_task(stage.check(check_tls_alpn_01, "192.0.2.7", ANSWER))
        await stage.until(lambda: challenge.answered == 5)
        await stage.check(check_tls_alpn_01, NAME, ANSWER)

    await stage.until(lambda: stage.counts.answered["tls-alpn-01"] == 11)
    assert stage.counts.failed["tls-alpn-01"] == 0


async def test_an_order_of_a_hundred_names(stage: Stage) -> None:
    """RFC 8555 section 7.5.1: authorizations may be worked on in any order, all at once."""
    names = [f"n{number}.example.com" for number in range(100)]
    with ExitStack() as pending:
        for name in names:
            pending.enter_context(stage.answering(identifier=name))
        gate = asyncio.Semaphore(20)

        async def look(name: str) -> None:
            async with gate:
                await stage.check(check_tls_alpn_01, name, ANSWER)

        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(look(name))
        await stage.until(lambda: stage.counts.answered["tls-alpn-01"] == 100)

    assert not stage.responder.has_pending


@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_validator_that_resets_right_after_the_handshake(stage: Stage, behind: bytes) -> None:
    """Measured with Pebble and Boulder: who has seen the certificate hangs up, one way or another."""
    validator = Validator()
    with stage.answering():
        client = await stage.relay.greet(validator.step())
        last = b""
        while not validator.done:
            last = validator.step(await client.receive())
        if behind:
            validator.tls.write(behind)
        await client.send(last + validator.outgoing.read())
        client.reset()
        await stage.relay.over()
        await stage.until(lambda: not stage.responder._connections)

    assert stage.reports == []
    assert stage.counts.answered["tls-alpn-01"] + stage.counts.failed["tls-alpn-01"] == 1


# ---------------------------------------------------------------------------------------------- nobody else


async def test_a_name_that_is_not_pending(stage: Stage) -> None:
    """Let's Encrypt gave up tls-sni-01 as certificates were made up for whatever name was asked for."""
    with stage.answering(), pytest.raises(CheckFailed, match=REFUSED):
        await stage.check(check_tls_alpn_01, "other.example.com", ANSWER)

    assert stage.counts.refused == 1
    assert sum(stage.counts.answered.values()) == 0


async def test_a_name_that_is_not_pending_any_more(stage: Stage) -> None:
    """RFC 8737 section 3: the certificate is for the validation, and gone with it."""
    with stage.answering():
        await stage.check(check_tls_alpn_01, NAME, ANSWER)
    with pytest.raises(CheckFailed, match=REFUSED):
        await stage.check(check_tls_alpn_01, NAME, ANSWER)


@pytest.mark.parametrize(
    "protocols",
    [(), (b"h2",), (b"h2", b"acme-tls/1"), (b"acme-tls/1", b"h2"), (b"ACME-TLS/1",), (b"acme-tls/1", b"acme-tls/1")],
)
async def test_a_client_that_does_not_offer_exactly_that_protocol(stage: Stage, protocols: tuple[bytes, ...]) -> None:
    """RFC 8737 section 3, RFC 7301 section 3.2: an alert, and no certificate before it."""
    with stage.answering():
        client = await stage.relay.greet(hello(NAME, *protocols))

        assert await client.receive_to_end() == alert(NO_APPLICATION_PROTOCOL)
    assert stage.counts.refused == 1


async def test_the_second_name_of_tls_sni_02_leads_nowhere(stage: Stage) -> None:
    """draft-ietf-acme-acme-09 section 8.3: who asks for A must not learn B by asking, nor be answered for it."""
    with stage.answering("tls-sni-02"):
        asked, proof = tls_sni_02_names(TOKEN, ANSWER)
        assert stage.responder.is_pending(asked)
        assert not stage.responder.is_pending(proof)
        assert not stage.responder.is_pending(NAME)


async def test_other_names_below_acme_invalid_are_refused(stage: Stage) -> None:
    """google/tcpproxy asked every backend for each such name."""
    with stage.answering("tls-sni-01"):
        client = await stage.relay.greet(hello("0123.4567.acme.invalid"))

        assert await client.receive_to_end() == alert(UNRECOGNIZED_NAME)


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (hello(None, b"acme-tls/1"), alert(UNRECOGNIZED_NAME)),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\x80\x2e\x01\x00\x02", b""),
        (record(client_hello(server_name(NAME, claim=200), alpn(b"acme-tls/1"))), alert(DECODE_ERROR)),
    ],
    ids=["no name", "HTTP", "SSL 2.0", "malformed"],
)
async def test_what_is_no_validation_at_all(stage: Stage, first: bytes, answer: bytes) -> None:
    """The relay sends none of these here; if it did, they would not get far."""
    with stage.answering():
        client = await straight(stage)
        client.sendall(first)

        assert await receive_to_end(client) == answer
        client.close()
    assert stage.counts.refused == 1


@pytest.mark.parametrize("sent", [0, 10])
async def test_who_leaves_before_its_hello_is_complete(stage: Stage, sent: int) -> None:
    """The relay hands over whole hellos only."""
    client = await straight(stage)
    client.sendall(hello(NAME)[:sent])
    client.close()

    await stage.until(lambda: stage.counts.refused == 1)


async def straight(stage: Stage) -> socket.socket:
    """A connection without the relay."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, stage.address.socket_address)
    return client


async def receive_to_end(client: socket.socket) -> bytes:
    received = b""
    try:
        while part := await asyncio.get_running_loop().sock_recv(client, 65536):
            received += part
    except ConnectionResetError:
        pass  # unix(7): closed with bytes unread
    return received


async def test_another_user_of_this_machine(stage: Stage) -> None:
    """unix(7), SO_PEERCRED: an abstract name has no permissions, so the kernel is asked who has connected."""
    stage.monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with stage.answering():
        client = await straight(stage)
        assert await receive_to_end(client) == b""
        client.close()

    assert stage.counts.strangers == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_for_real(stage: Stage) -> None:
    """The same, by a process of that user."""
    program = (
        "import os, socket, sys; os.setuid(65534); c = socket.socket(socket.AF_UNIX);"
        "c.connect(chr(0) + sys.argv[1]); print('got', c.recv(1))"
    )
    with stage.answering():
        printed = await stage.run(sys.executable, "-c", program, stage.address.path[1:])

    assert "got b''" in printed
    assert stage.counts.strangers == 1


# ---------------------------------------------------------------------------------------------- time and number


@pytest.mark.parametrize("sent", ["nothing", "half a hello", "a hello"])
async def test_a_silent_client_is_closed(stage: Stage, sent: str) -> None:
    """CVE-2026-22045: a handshake that stops half-way must end by itself."""
    stage.monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.25)
    first = Validator().step()
    with stage.answering():
        client = await straight(stage)
        client.sendall({"nothing": b"", "half a hello": first[:100], "a hello": first}[sent])
        received = await receive_to_end(client)
        client.close()

    assert bool(received) == (sent == "a hello")
    if sent == "a hello":
        assert stage.reports == [f"{NAME}: a tls-alpn-01 validation broke off: no handshake within 0.25 s"]
        assert stage.counts.failed["tls-alpn-01"] == 1
    else:
        assert (stage.reports, stage.counts.refused) == ([], 1)


async def test_a_validator_that_never_closes(stage: Stage) -> None:
    """The responder lets go of it by itself, whatever it goes on sending."""
    stage.monkeypatch.setattr(module, "SHUTDOWN_SECONDS", 0.05)
    validator = Validator()
    with stage.answering() as challenge:
        client = await straight(stage)
        client.sendall(validator.step())
        while not validator.done:
            client.sendall(validator.step(await asyncio.get_running_loop().sock_recv(client, 65536)))
        await stage.until(lambda: challenge.answered)
        await stage.until(lambda: not stage.responder._connections)
        client.close()

    stage.served_one()


async def test_hundreds_of_silent_clients_do_not_keep_a_validation_out(stage: Stage) -> None:
    """Those above the cap are closed at once; when those below it are gone, there is room again."""
    stage.responder._max_connections = 20
    silent = []
    with stage.answering():
        for _ in range(60):
            silent.append(await straight(stage))
        await stage.until(lambda: stage.counts.over_cap == 40)
        assert stage.reports == ["more than 20 validations at once: those above are closed, and counted"]
        for client in silent:
            client.close()
        await stage.until(lambda: not stage.responder._connections)
        await stage.check(check_tls_alpn_01, NAME, ANSWER)

    assert stage.counts.refused == 20


# ---------------------------------------------------------------------------------------------- pending


async def test_nothing_is_pending_before_and_after(stage: Stage) -> None:
    """What the router asks for, and the relay for clients over their limit."""
    responder = stage.responder

    def now() -> tuple[bool, bool, bool]:
        return responder.has_pending, responder.is_pending(NAME), responder.is_pending("example.com")

    assert now() == (False, False, False)
    with stage.answering():
        assert now() == (True, True, False)
    assert now() == (False, False, False)


async def test_it_ends_when_the_order_fails(stage: Stage) -> None:
    """Whatever ends the block ends the answering, cancelling included."""
    for error in (OrderFailed("no"), asyncio.CancelledError()):
        with pytest.raises(type(error)), stage.answering():
            raise error
        with pytest.raises(type(error)), stage.answering("http-01"):
            raise error

    assert not stage.responder.has_pending
    assert stage.responder.http_answer(TOKEN) is None


@pytest.mark.parametrize("first_to_end", ["older", "newer"])
async def test_two_challenges_for_one_name(stage: Stage, first_to_end: str) -> None:
    """A dry run beside a renewal: the end of one does not take the other away."""
    older, newer = stage.answering(), stage.responder.answering("tls-alpn-01", NAME, OTHER_TOKEN, OTHER_ANSWER)
    older.__enter__()
    newer.__enter__()
    await stage.check(check_tls_alpn_01, NAME, OTHER_ANSWER)
    first, second, left = (older, newer, OTHER_ANSWER) if first_to_end == "older" else (newer, older, ANSWER)
    first.__exit__(None, None, None)
    assert stage.responder.is_pending(NAME)
    await stage.check(check_tls_alpn_01, NAME, left)
    second.__exit__(None, None, None)

    assert not stage.responder.is_pending(NAME)


async def test_the_same_challenge_twice(stage: Stage) -> None:
    """An order that is gone on with, while the attempt before it has not let go yet."""
    with stage.answering():
        with stage.answering():
            pass
        assert stage.responder.is_pending(NAME)
        await stage.check(check_tls_alpn_01, NAME, ANSWER)


async def test_a_name_that_is_pending_both_ways(stage: Stage) -> None:
    """Each kind is answered to those who ask for it."""
    (name,) = tls_sni_01_names(ANSWER)
    with stage.answering("tls-sni-01"), stage.answering("tls-alpn-01", name):
        await stage.check(check_tls_sni_01, ANSWER)
        await stage.check(check_tls_alpn_01, name, ANSWER)
        await stage.until(lambda: sum(stage.counts.answered.values()) == 2)

    assert stage.counts.answered["tls-sni-01"] == stage.counts.answered["tls-alpn-01"] == 1


async def test_it_ends_between_the_hello_and_the_rest(stage: Stage) -> None:
    """Who has been shown the certificate may finish: the CA's last perspective must not fail because others were quicker."""
    validator = Validator()
    with stage.answering() as challenge:
        client = await stage.relay.greet(validator.step())
        flight = await client.receive()
    await client.send(validator.step(flight))
    await stage.until(lambda: challenge.answered == 1)
    client.close()

    stage.served_one()


async def test_it_ends_in_the_midst_of_a_hello(stage: Stage) -> None:
    """What counts is whether it is pending when the hello is complete."""
    first = Validator().step()
    client = await straight(stage)
    with stage.answering():
        client.sendall(first[:100])
        await stage.until(lambda: stage.responder._connections)
    client.sendall(first[100:])

    assert await receive_to_end(client) == alert(UNRECOGNIZED_NAME)
    client.close()


async def test_http_01(stage: Stage) -> None:
    """RFC 8555 section 8.3: by token, while it is pending; each time it is asked for counts."""
    responder = stage.responder
    with stage.answering("http-01") as challenge:
        assert responder.http_answer(TOKEN) == ANSWER
        assert responder.http_answer(TOKEN) == ANSWER
        assert responder.http_answer(OTHER_TOKEN) is None
        assert not responder.has_pending
        with stage.answering("http-01"):
            pass
        assert responder.http_answer(TOKEN) == ANSWER
    assert responder.http_answer(TOKEN) is None

    assert challenge.answered == stage.counts.answered["http-01"] == 3


async def test_too_many_iterations(stage: Stage) -> None:
    """What the CA asks for is not always reasonable; nothing is pending then."""
    with pytest.raises(OrderFailed), stage.answering("tls-sni-01", iterations=1000):
        raise AssertionError("is answered")

    assert not stage.responder.has_pending


# ---------------------------------------------------------------------------------------------- what can fail, secrets


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
async def test_a_machine_without_files_in_memory(stage: Stage, number: int) -> None:
    """memfd_create(2) may be forbidden: said before the CA is asked to look, and nothing is written to a disk."""

    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    stage.monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(StoreError, match=re.escape(os.strerror(number))) as caught, stage.answering():
        raise AssertionError("is answered")

    assert "memfd_create" in str(caught.value)
    assert "http-01" in str(caught.value)
    assert not stage.responder.has_pending


async def test_a_kernel_before_6_3(stage: Stage) -> None:
    """memfd_create(2): MFD_NOEXEC_SEAL is EINVAL there."""
    real = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags != os.MFD_CLOEXEC:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(name, flags)

    stage.monkeypatch.setattr(os, "memfd_create", older)
    with stage.answering():
        await stage.check(check_tls_alpn_01, NAME, ANSWER)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_process_that_was_root_can_still_do_it() -> None:
    """proc(5): after a change of user /proc/self belongs to root, but a process may always open its own descriptors."""
    program = (
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "from sniproxy.acme.responder import Responder\n"
        "with Responder(report=print, bug=print).answering('tls-alpn-01', 'example.com', 'token', 'token.print'):\n"
        "    print('answering')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    assert done.stdout == "answering\n", done.stderr


async def test_no_place_to_listen(stage: Stage) -> None:
    """StartError, and no socket is left."""
    other = Responder(report=stage.reports.append, bug=stage.bugs.append)
    stage.monkeypatch.setattr(module, "token_hex", lambda _: stage.address.path.rpartition("-")[2])
    with pytest.raises(StartError, match=r"cannot listen on unix:@sniproxy-acme-.*: Address already in use"):
        await other.start()

    await other.close()


async def test_a_bug_ends_one_connection(stage: Stage) -> None:
    """It is told of, and the next validation is answered."""

    def broken(_: object) -> None:
        raise LookupError("no such luck")

    with stage.answering():
        with stage.monkeypatch.context() as patch:
            patch.setattr(stage.responder, "_served", broken)
            with pytest.raises(CheckFailed):
                await stage.check(check_tls_alpn_01, NAME, ANSWER)
        await stage.until(lambda: stage.bugs)
        assert [str(bug) for bug in stage.bugs] == ["no such luck"]
        stage.bugs.clear()
        await stage.check(check_tls_alpn_01, NAME, ANSWER)


async def test_closing_cuts_what_is_under_way(stage: Stage) -> None:
    """A handshake that waits for its client does not hold up the end of the program."""
    with stage.answering():
        client = await straight(stage)
        client.sendall(Validator().step())
        await stage.until(lambda: stage.responder._connections)
        await stage.responder.close()

    assert not stage.responder._connections
    await receive_to_end(client)
    client.close()


@contextmanager
def everything_shown() -> Iterator[list[str]]:
    """What the responder's parts look like in a traceback or a log, collected by whoever asks."""
    shown: list[str] = []
    yield shown
    text = "\n".join(shown)
    for secret in (TOKEN, ANSWER, "PRIVATE KEY"):
        assert secret not in text


@pytest.mark.parametrize("challenge_type", ["tls-alpn-01", "tls-sni-01", "tls-sni-02", "http-01"])
async def test_nothing_secret_is_shown(stage: Stage, challenge_type: str) -> None:
    """Traefik#13758: neither key nor token nor key authorization, in no repr and no line."""
    challenge: Answering
    with everything_shown() as shown, stage.answering(challenge_type) as challenge:
        served = [served for pending in stage.responder._tls.values() for served in pending]
        shown.extend(map(repr, (challenge, stage.responder, stage.counts, *served)))


async def test_a_key_is_in_no_file(stage: Stage) -> None:
    """The descriptor it is loaded from is gone before the first validation."""
    with stage.answering():
        await stage.check(check_tls_alpn_01, NAME, ANSWER)
        opened = open_descriptors().values()

    assert not [name for name in opened if "memfd:" in name]
