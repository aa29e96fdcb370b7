"""The proof that a bundle is served: handshakes with its names, and the very certificate in all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import rsa

from sniproxy.haproxy import disk
from sniproxy.haproxy.handshake import HandshakeFailed, served_leaf
from sniproxy.model import Address, ProxyProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from sniproxy.bundle import Bundle, Leaf

VERIFIED_NAMES: Final = 100
"""Of a bundle, the first ones: as many as public CAs put into one (Let's Encrypt's limit)."""

HANDSHAKES_AT_ONCE: Final = 8
"""A bundle of many names is soon done, and HAProxy's clients do not notice."""

_SHOWN_NAMES = 3
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTarget:
    """Where HAProxy serves what it was given, and the PROXY header that its bind line wants there."""

    address: Address
    proxy_protocol: ProxyProtocol = ProxyProtocol.OFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproven:
    """A handshake that did not show the bundle. `leaf` is what it showed; None where it failed, as `words` say."""

    address: Address
    server_name: str | None
    leaf: Leaf | None
    words: str = ""


def server_names(bundle: Bundle) -> Sequence[str | None]:
    """The names to ask for: at most VERIFIED_NAMES; one under a wildcard; no name, where all are IP addresses.

    A client that wants an IP address asks for none (RFC 6066 section 3).
    """
    names = [name.replace("*", "any", 1) for name in bundle.leaf.names if not _is_ip_address(name)]
    return names[:VERIFIED_NAMES] or [None]


async def unproven(targets: Iterable[VerifyTarget], bundle: Bundle, patience: float) -> list[Unproven]:
    """The handshakes, at each target with each name, that do not show `bundle` though tried for `patience` seconds.

    Empty if it is proven, or there are no targets. When one has failed for good, the rest are not begun.
    """
    wanted = [(target, name) for target in targets for name in server_names(bundle)]
    left = iter(wanted)
    failures: list[Unproven] = []
    deadline = asyncio.get_running_loop().time() + patience

    async def work() -> None:
        for target, name in left:
            if failures:
                return
            failure = await _patient_handshake(target, name, bundle, deadline)
            if failure is not None:
                failures.append(failure)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(HANDSHAKES_AT_ONCE, len(wanted))):
            tasks.create_task(work())
    return failures


def in_words(path: Path, bundle: Bundle, failures: Sequence[Unproven]) -> str:
    """What was served instead, and where that may come from. Reads files beside `path`: for a thread."""
    first, *others = failures
    likewise = ", ".join(str(other.server_name) for other in others[: _SHOWN_NAMES - 1])
    more = f" (and {likewise})" if likewise else ""
    if first.leaf is None:
        return first.words + more
    leaf = first.leaf
    asked = first.server_name or "clients without a name"
    issuer = "".join(char if char.isprintable() else "?" for char in leaf.issuer)
    return (
        f"{first.address}: for {asked}{more} it serves the certificate of {issuer}"
        f" with serial {leaf.serial}, until {leaf.not_after:%Y-%m-%d %H:%M} UTC, instead of serial"
        f" {bundle.leaf.serial}: {_origin(path, first.server_name, leaf)}"
    )


async def _patient_handshake(
    target: VerifyTarget, name: str | None, bundle: Bundle, deadline: float
) -> Unproven | None:
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE_SECONDS
    while (failure := await _handshake(target, name, bundle)) is not None and loop.time() < deadline:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
    return failure


async def _handshake(target: VerifyTarget, name: str | None, bundle: Bundle) -> Unproven | None:
    try:
        leaf = await served_leaf(target.address, name, proxy_protocol=target.proxy_protocol)
    except HandshakeFailed as error:
        asked = f" (asked for {name})" if name is not None else ""
        return Unproven(address=target.address, server_name=name, leaf=None, words=f"{error}{asked}")
    if leaf.der == bundle.leaf.der:
        return None
    # An ECDSA one for the same name goes before it with all clients that can read both.
    if isinstance(bundle.key, rsa.RSAPrivateKey) and await _serves_rsa(target, name, bundle):
        return None
    return Unproven(address=target.address, server_name=name, leaf=leaf)


async def _serves_rsa(target: VerifyTarget, name: str | None, bundle: Bundle) -> bool:
    try:
        leaf = await served_leaf(target.address, name, proxy_protocol=target.proxy_protocol, rsa_only=True)
    except HandshakeFailed:
        return False
    return leaf.der == bundle.leaf.der


def _origin(path: Path, server_name: str | None, leaf: Leaf) -> str:
    """Where a certificate comes from that should not be served."""
    found = disk.file_with(path.parent, leaf)
    if found == path:
        return f"that is what {path} holds now, as somebody has replaced it"
    if found is not None and server_name in leaf.names:
        return f"that is {found}, which has the same name; of two, HAProxy serves the one it has had for longer"
    if server_name is None:
        return "clients that ask for no name get the first certificate of a bind line"
    if server_name in leaf.names:
        return "another file that HAProxy reads has the same name, or an old process of HAProxy answers"
    return (
        f"does the bind line there read {path.parent}? For names that it does not have it serves its first certificate"
    )


def _is_ip_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
