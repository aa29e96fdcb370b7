"""A validation of our own making, the way a CA does it: from outside to :443 and :80, and back with the proof.

The running proxy is asked to answer as if a CA had asked it to. Whether it is the one that answers shows in what comes
back, which nobody else can know.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import h11
from cryptography import x509

from sniproxy.acme.challenges import ACME_IDENTIFIER, ChallengeType, server_name
from sniproxy.app.control import ControlError, ask
from sniproxy.app.doctor.diagnosis import Diagnosis, failed, good, printable
from sniproxy.app.threads import in_own_thread
from sniproxy.haproxy.handshake import Failure, HandshakeFailed, ServedLeaf, served_leaf
from sniproxy.http.public import CHALLENGE_PREFIX
from sniproxy.policy.routing import ACME_TLS_1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sniproxy.model import TcpAddress, UnixAddress

REACH_SECONDS: Final = 10.0
"""For one connection and its answer: as long as Let's Encrypt gives a validation (Boulder's va.go)."""

ASK_SECONDS: Final = 5.0
"""For the running proxy to begin to answer: it makes a key and a certificate, in a millisecond."""

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Of an HTTP answer. A key authorization has a hundred; what is longer is a page of another server."""

TLS_PORT: Final = 443
HTTP_PORT: Final = 80
"""RFC 8737 section 3, RFC 8555 section 8.3: these, whatever the proxy listens on behind them."""

_SHOWN_NAMES = 3
# An OCTET STRING of 32 bytes.
_DER_OF_DIGEST = b"\x04\x20"

_NO_WAY = (
    "is the port open in the firewall and forwarded to this machine? A machine that cannot reach its own public address"
    " (NAT without hairpin) can be told where to connect: {option} HOST:PORT"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A validation to try: of which identifier, and what has to come back, which is for nobody else's eyes."""

    kind: str
    identifier: str
    answer: str

    def __repr__(self) -> str:
        return f"Probe({self.kind!r}, {self.identifier!r})"

    @property
    def token(self) -> str:
        """What http-01 asks for (RFC 8555 section 8.1)."""
        return self.answer.partition(".")[0]


async def begin_probe(control: UnixAddress, kind: str, identifier: str) -> Probe:
    """Has the running proxy answer a challenge for half a minute. Raises ControlError."""
    request = {"command": "probe", "type": kind, "identifier": identifier}
    try:
        answer = await in_own_thread(partial(ask, control, request, seconds=ASK_SECONDS), ASK_SECONDS * 2)
    except TimeoutError:
        raise ControlError(f"the running sniproxy has not answered within {ASK_SECONDS * 2:g} s") from None
    if not isinstance(answer, str) or "." not in answer:
        raise ControlError("the running sniproxy's answer is none; is it of another version?")
    return Probe(kind=kind, identifier=identifier, answer=answer)


async def try_probe(probe: Probe, target: TcpAddress) -> Diagnosis:
    """What a CA that connects to this address would see."""
    look = _try_tls if probe.kind == ChallengeType.TLS_ALPN_01 else _try_http
    return await look(probe, target, f"{probe.identifier} at {target}")


# ---------------------------------------------------------------------- tls-alpn-01


async def _try_tls(probe: Probe, target: TcpAddress, about: str) -> Diagnosis:
    """RFC 8737 section 3: only acme-tls/1 is offered, and it is to be chosen."""
    protocols = [protocol.decode("ascii") for protocol in ACME_TLS_1]
    try:
        leaf = await served_leaf(target, server_name(probe.identifier), alpn=protocols, seconds=REACH_SECONDS)
    except HandshakeFailed as error:
        return _no_handshake(probe.kind, error, target, about)
    if leaf.alpn != protocols[0]:
        found = f"chooses no ACME protocol (ALPN), and shows {_shown(leaf)}: the connection did not come to this proxy"
        return failed(probe.kind, found, _elsewhere(leaf, probe.identifier, target), about=about)
    wrong = _why_no_proof(leaf, probe)
    if wrong:
        advice = "another ACME client answers validations there; one of the two has to give way for this name"
        return failed(probe.kind, f"{wrong}: {_shown(leaf)}", advice, about=about)
    return good(probe.kind, "the proof came back", about=about)


def _why_no_proof(leaf: ServedLeaf, probe: Probe) -> str:
    """Empty if the certificate proves it (RFC 8737 section 3)."""
    try:
        extension = leaf.certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
    except (x509.ExtensionNotFound, ValueError):
        return "answers acme-tls/1 with a certificate that proves nothing"
    value = extension.value
    digest = sha256(probe.answer.encode("ascii")).digest()
    if not isinstance(value, x509.UnrecognizedExtension) or value.value != _DER_OF_DIGEST + digest:
        return "answers acme-tls/1 with the proof of something else"
    if not extension.critical or leaf.names != (_canonical(probe.identifier),):
        return "answers acme-tls/1 with a certificate that no CA takes"
    return ""


def _no_handshake(kind: str, error: HandshakeFailed, target: TcpAddress, about: str) -> Diagnosis:
    match error.failure:
        case Failure.UNREACHABLE:
            found = f"cannot be reached: {_without_address(error, target)}"
            advice = _NO_WAY.format(option="--connect")
        case Failure.TIMEOUT:
            found = f"{_without_address(error, target)}: a firewall drops it, or it goes nowhere"
            advice = _NO_WAY.format(option="--connect")
        case Failure.ALERT:
            found = f"refuses acme-tls/1 ({_without_address(error, target)}): the connection did not come to this proxy"
            advice = f"another TLS server listens at {target}, or something before the proxy ends TLS itself"
        case Failure.CLOSED:
            found = "closed without an answer: the connection did not come to this proxy, or it refuses this client"
            advice = "see the proxy's log for a connection at this moment; if there is none, what is before it"
        case _:
            found = _without_address(error, target)
            advice = f"something else listens at {target}"
    return failed(kind, found, advice, about=about)


def _without_address(error: HandshakeFailed, target: TcpAddress) -> str:
    return printable(str(error).removeprefix(f"{target}: "))


def _shown(leaf: ServedLeaf) -> str:
    more = f" and {len(leaf.names) - _SHOWN_NAMES} more" if len(leaf.names) > _SHOWN_NAMES else ""
    names = ", ".join(leaf.names[:_SHOWN_NAMES]) + more
    return printable(f"the certificate of {leaf.issuer or 'nobody'} for {names or 'no name'}")


def _elsewhere(leaf: ServedLeaf, identifier: str, target: TcpAddress) -> str:
    if identifier in leaf.names:
        return f"does HAProxy itself listen at {target}? The proxy has to be the one in front"
    if ":" in target.host:
        return f"something else listens at {target}, or the AAAA record leads to another machine"
    return f"something else listens at {target}, or the address leads to another machine"


def _canonical(identifier: str) -> str:
    try:
        return str(ip_address(identifier))
    except ValueError:
        return identifier.lower()


# ---------------------------------------------------------------------- http-01


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


async def _try_http(probe: Probe, target: TcpAddress, about: str) -> Diagnosis:
    """RFC 8555 section 8.3: the key authorization, and white space behind it."""
    advice = _NO_WAY.format(option="--connect-http")
    try:
        async with asyncio.timeout(REACH_SECONDS):
            answer = await _get(target, probe.identifier, f"{CHALLENGE_PREFIX}{probe.token}")
    except TimeoutError:
        found = f"no answer within {REACH_SECONDS:g} s: a firewall drops it, or it goes nowhere"
        return failed(probe.kind, found, advice, about=about)
    except OSError as error:
        return failed(probe.kind, f"cannot be reached: {_os_words(error)}", advice, about=about)
    except h11.ProtocolError:
        advice = f"something else listens at {target}"
        return failed(probe.kind, "what answers does not speak HTTP", advice, about=about)
    if answer.status == HTTPStatus.OK and answer.body.rstrip() == probe.answer.encode("ascii"):
        return good(probe.kind, "the proof came back", about=about)
    return _another_answer(probe, answer, target, about)


def _another_answer(probe: Probe, answer: _Answer, target: TcpAddress, about: str) -> Diagnosis:
    by = answer.header(b"server")
    server = f" (Server: {printable(by, 60)})" if by else ""
    location = answer.header(b"location").replace(probe.token, "…")
    if location and 300 <= answer.status < 400:
        found = f"{answer.status} to {printable(location, 120)}{server}, where the proof should be"
        advice = f"leave {CHALLENGE_PREFIX} out of the redirect, and pass it on to [http] of this proxy"
    else:
        found = f"{answer.status}{server}, and not the proof: the request did not come to this proxy"
        advice = (
            f"{target} has to be [http] of this proxy, or pass {CHALLENGE_PREFIX} on to it: `sniproxy haproxy-config`"
            " prints HAProxy's lines for that"
        )
    return failed(probe.kind, found, advice, about=about)


async def _get(target: TcpAddress, identifier: str, path: str) -> _Answer:
    """One GET, whose answer is read up to a cap. Raises OSError and h11.ProtocolError."""
    host = f"[{identifier}]" if ":" in identifier else identifier
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
    request = h11.Request(
        method="GET",
        target=path,
        headers=[("Host", host), ("User-Agent", "sniproxy-doctor"), ("Accept", "*/*"), ("Connection", "close")],
    )
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return await _read_answer(connection, reader)
    finally:
        writer.transport.abort()


async def _read_answer(connection: h11.Connection, reader: asyncio.StreamReader) -> _Answer:
    head: h11.Response | None = None
    body = bytearray()
    while True:
        event: Any = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(16 * 1024))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        # Interim answers are passed over.
        is_over = isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or len(body) > MAX_ANSWER_BYTES
        if is_over:
            if head is None:
                raise h11.RemoteProtocolError("no answer")
            return _Answer(status=head.status_code, body=bytes(body), headers=list(head.headers))


def _os_words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name cannot be looked up ({error.strerror})"
    words = {
        errno.ECONNREFUSED: "nobody listens there",
        errno.EHOSTUNREACH: "there is no way to that address",
        errno.ENETUNREACH: "there is no way to that address",
        errno.ECONNRESET: "the connection was reset",
    }
    return words.get(error.errno or 0) or error.strerror or str(error)
