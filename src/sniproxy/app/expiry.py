"""When certificates are over, wherever they are: in files, in directories, or served by anybody.

For `certs --check`. Whatever cannot be looked at is a finding of its own, never left out.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sniproxy.app.resolve import is_ip_address
from sniproxy.bundle import Leaf, printable, read_certificates
from sniproxy.config.addresses import dial_address
from sniproxy.config.names import host_name
from sniproxy.errors import BundleError, DeliveryError
from sniproxy.haproxy.handshake import served_leaf
from sniproxy.model import CertificateStatus, ProxyProtocol, TcpAddress
from sniproxy.wire.client_hello import is_host_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from cryptography.x509 import Certificate

    from sniproxy.model import Address

MAX_FILE_BYTES: Final = 4 << 20
"""Of a file that is looked into: a system's whole trust store has a quarter of it."""

HANDSHAKES_AT_ONCE: Final = 16
"""Enough for a list of hundreds to be through in seconds, and not so many that one server is flooded by them."""

HANDSHAKE_SECONDS: Final = 10.0
"""For looking up the name, connecting and the handshake."""

WARNING_PART: Final = 1 / 6
"""Of its lifetime is left: it is renewed with a third left, and has been in vain for half of that time."""

CRITICAL_PART: Final = 1 / 20
"""Likewise: where even a CA that asks to wait is no longer listened to."""

LONGEST_WARNING_DAYS: Final = 30.0
LONGEST_CRITICAL_DAYS: Final = 14.0

EXPIRED = "expired"
NOT_YET_VALID = "not yet valid"
SELF_SIGNED = "self-signed"

_BEGINS_CERTIFICATE = (b"-----BEGIN CERTIFICATE-----", b"-----BEGIN X509 CERTIFICATE-----")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One certificate that was looked at, or why it could not be.

    error: why it could not be; the status then has nothing but the target's name. notes: what there is to know beside
    the dates. is_wrong: one of the notes is a mistake that clients see. is_managed: it is one of ours, so that it is
    known when it is renewed, and whether it is deployed.
    """

    status: CertificateStatus
    error: str | None = None
    notes: tuple[str, ...] = ()
    is_wrong: bool = False
    is_managed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A live one: where it is, and the name to ask it for; None to send none."""

    target: str
    address: Address
    server_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Everything that was found, in the order of the targets; `skipped` are files of directories that are none."""

    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]


def check(targets: Sequence[str], *, server_name: str | None, proxy_protocol: ProxyProtocol, now: datetime) -> Checked:
    """Looks at each target: a file, a directory, or a live endpoint.

    A target that is there in the file system is that; all others are endpoints: `HOST:PORT`, `[::1]:443`, `unix:/path`,
    each with `NAME@` before it where another name than HOST is to be asked for. server_name: likewise, for those that
    have none of their own. proxy_protocol: the header that the endpoints want, being HAProxy's own `accept-proxy`.
    """
    skipped: list[str] = []
    parts: list[Endpoint | list[Finding]] = []
    for target in targets:
        try:
            if _is_there(target):
                parts.append(list(_files(Path(target), now, skipped)))
            else:
                parts.append(endpoint(target, server_name))
        except ValueError as error:
            parts.append([unseen(target, str(error))])
    endpoints = [part for part in parts if isinstance(part, Endpoint)]
    served = iter(asyncio.run(_ask_all(endpoints, proxy_protocol, now)) if endpoints else ())
    findings = [finding for part in parts for finding in ([next(served)] if isinstance(part, Endpoint) else part)]
    return Checked(findings=tuple(findings), skipped=tuple(skipped))


def endpoint(target: str, server_name: str | None = None) -> Endpoint:
    """Reads a target as an endpoint. Raises ValueError, which says what it could have been."""
    name, at, address_text = target.partition("@")
    # "unix:@name" is a socket without a file, and a path may have anything in it.
    if not at or ":" in name or "/" in name:
        name, at, address_text = "", "", target
    if not at and (target.startswith(("/", ".", "~")) or ":" not in target):
        hint = f"; for a live endpoint write {target}:443" if is_host_name(target) else ""
        raise ValueError(f"there is no such file{hint}")
    address = dial_address(address_text)
    wanted = host_name(name) if at else server_name
    if wanted is None and isinstance(address, TcpAddress) and not is_ip_address(address.host):
        wanted = address.host  # RFC 6066 section 3: an address is never sent as a name
    return Endpoint(target=target, address=address, server_name=wanted)


def thresholds(status: CertificateStatus) -> tuple[float, float]:
    """With how many days left a certificate is worth a warning, and when it is critical, nobody having said.

    Parts of its lifetime, so that they fit those of six days and those of a year; above that, what check_http and
    ssl-cert-check are usually told.
    """
    if status.not_before is None or status.not_after is None:
        return LONGEST_WARNING_DAYS, LONGEST_CRITICAL_DAYS
    lifetime = (status.not_after - status.not_before) / timedelta(days=1)
    return min(lifetime * WARNING_PART, LONGEST_WARNING_DAYS), min(lifetime * CRITICAL_PART, LONGEST_CRITICAL_DAYS)


def unseen(target: str, error: str) -> Finding:
    """What could not be looked at, and why."""
    return Finding(status=CertificateStatus(name=target, names=()), error=error)


def covers(names: Sequence[str], wanted: str) -> bool:
    """Whether a certificate with these names is one for `wanted`.

    As RFC 9525 section 6.3 has it: a star stands for one whole label, the first, and for no part of an address.
    """
    if is_ip_address(wanted):
        address = ip_address(wanted)
        return any(is_ip_address(name) and ip_address(name) == address for name in names)
    _, _, parent = wanted.partition(".")
    return any(name == wanted or (parent != "" and name == f"*.{parent}") for name in names)


# ---------------------------------------------------------------------- files


def _is_there(target: str) -> bool:
    try:
        return Path(target).exists()
    except PermissionError:
        # A directory on the way that is not for us. What has a slash is meant as a path, and reading it tells why not.
        return "/" in target and "unix:" not in target
    except OSError:
        return False  # too long a name for a file, say


def _files(path: Path, now: datetime, skipped: list[str]) -> Iterator[Finding]:
    try:
        if path.is_socket():
            yield unseen(str(path), f"is a socket; write unix:{path.absolute()}")
            return
        if not path.is_dir():
            yield from _in_content(str(path), _content(path), now)
            return
        entries = sorted(path.iterdir())
    except OSError as error:
        yield unseen(str(path), _words(error))
        return
    found = False
    for entry in entries:
        # HAProxy's `crt DIR` passes over them as well: they are temporary files.
        if entry.name.startswith("."):
            continue
        why_not, findings = _entry(entry, now)
        if why_not:
            skipped.append(f"{entry}: {why_not}")
        found = found or bool(findings)
        yield from findings
    if not found:
        yield unseen(str(path), "there is no certificate in this directory")


def _entry(path: Path, now: datetime) -> tuple[str, list[Finding]]:
    """What a file of a directory has to tell, or why it is passed over. What cannot be read is not passed over."""
    try:
        if path.is_dir():
            return "passed over, is a directory", []
        if path.exists() and not path.is_file():
            return "passed over, is no regular file", []
        content = _content(path)
    except OSError as error:
        return "", [unseen(str(path), _words(error))]
    if not any(begin in content for begin in _BEGINS_CERTIFICATE):
        # Keys and archives are DER, too: one that is no certificate is none that is broken.
        try:
            read_certificates(content, MAX_FILE_BYTES)
        except BundleError:
            return "passed over, no certificate in it", []
    return "", list(_in_content(str(path), content, now))


def _content(path: Path) -> bytes:
    # Not durable.read: a pipe that the shell made, <(…), is as good as a file. One that nobody writes to is empty,
    # where an ordinary open would wait for somebody.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        os.set_blocking(descriptor, True)
        return stream.read(MAX_FILE_BYTES + 1)


def _in_content(target: str, content: bytes, now: datetime) -> Iterator[Finding]:
    try:
        certificates = read_certificates(content, MAX_FILE_BYTES)
    except BundleError as error:
        yield unseen(target, str(error))
        return
    for chain in _chains(certificates):
        yield _finding(target, Leaf(chain[0]), now, more=_chain_notes(chain, now))


def _chains(certificates: Sequence[Certificate]) -> Iterator[list[Certificate]]:
    """A bundle is one: each certificate is by the issuer of the one before. A trust store has as many as it has."""
    chain: list[Certificate] = []
    for certificate in certificates:
        if chain and (chain[-1].issuer != certificate.subject or Leaf(chain[-1]).is_self_signed):
            yield chain
            chain = []
        chain.append(certificate)
    if chain:
        yield chain


def _chain_notes(chain: Sequence[Certificate], now: datetime) -> Iterator[str]:
    for lower, upper in pairwise(map(Leaf, chain)):
        if upper.not_after < Leaf(chain[0]).not_after:
            ends = "is over since" if upper.not_after <= now else "ends before it, at"
            yield f"its issuer {printable(lower.issuer)} {ends} {upper.not_after:%Y-%m-%d %H:%M} UTC"


# ---------------------------------------------------------------------- live endpoints


async def _ask_all(endpoints: Sequence[Endpoint], proxy_protocol: ProxyProtocol, now: datetime) -> list[Finding]:
    at_once = asyncio.Semaphore(HANDSHAKES_AT_ONCE)

    async def one(each: Endpoint) -> Finding:
        async with at_once:
            return await _ask(each, proxy_protocol, now)

    return list(await asyncio.gather(*map(one, endpoints)))


async def _ask(each: Endpoint, proxy_protocol: ProxyProtocol, now: datetime) -> Finding:
    try:
        leaf = await served_leaf(
            each.address, each.server_name, proxy_protocol=proxy_protocol, seconds=HANDSHAKE_SECONDS
        )
    except DeliveryError as error:
        return unseen(each.target, str(error).removeprefix(f"{each.address}: "))
    return _finding(each.target, leaf, now, wanted=each.server_name, more=_chain_notes(leaf.chain, now))


# ---------------------------------------------------------------------- what there is to say


def _finding(target: str, leaf: Leaf, now: datetime, *, wanted: str | None = None, more: Iterable[str] = ()) -> Finding:
    wrong = []
    if leaf.not_after <= now:
        wrong.append(EXPIRED)
    if leaf.not_before > now:
        wrong.append(NOT_YET_VALID)
    if wanted is not None and not covers(leaf.names, wanted):
        wrong.append(f"not for {wanted}")
    status = CertificateStatus(
        name=target,
        names=tuple(map(printable, leaf.names)),
        issuer=printable(leaf.issuer),
        serial=leaf.serial,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
    )
    notes = (*wrong, *([SELF_SIGNED] if leaf.is_self_signed else []), *more)
    return Finding(status=status, notes=notes, is_wrong=bool(wrong))


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
