"""HAProxy, as deliveries find it: each runtime socket, and what is served where the proof is made. Only questions."""

from __future__ import annotations

import asyncio
import os.path
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from sniproxy.app.doctor.diagnosis import Diagnosis, failed, good, printable, warning
from sniproxy.app.resolve import is_ip_address
from sniproxy.app.threads import in_own_thread
from sniproxy.bundle import PLACEHOLDER
from sniproxy.errors import DeliveryError
from sniproxy.haproxy.handshake import HandshakeFailed, served_leaf
from sniproxy.haproxy.names import find_certificate, find_directory
from sniproxy.haproxy.proof import in_words, unproven
from sniproxy.haproxy.runtime import RuntimeApi, RuntimeUnreachable
from sniproxy.model import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sniproxy.bundle import Bundle
    from sniproxy.haproxy.delivery import DeliverySettings
    from sniproxy.haproxy.proof import VerifyTarget
    from sniproxy.haproxy.runtime import CertificateNames
    from sniproxy.model import Address

SOCKET_SECONDS: Final = 30.0
"""For all questions to one HAProxy: a question for each certificate of ours, of some milliseconds."""

VERIFY_SECONDS: Final = 30.0
"""For the handshakes of one certificate, eight of its names at a time."""

TRANSACTION_SECONDS: Final = 1.0
"""After which a transaction is looked at again: the running proxy's own ones are over in milliseconds."""

DISK_SECONDS: Final = 10.0

_SHOWN = 3

SOCKET, VERIFY = "socket", "verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What one HAProxy has of ours, by what is to be said of it."""

    served: int
    placeholders: tuple[str, ...]
    others: tuple[str, ...]
    unused: tuple[str, ...]
    addable: tuple[str, ...]
    unknown: tuple[str, ...]


async def check_socket(
    address: Address, settings: DeliverySettings, bundles: Mapping[str, Bundle | None]
) -> list[Diagnosis]:
    """One of haproxy.runtime_sockets: it answers, lets us change certificates, nobody else does, and it has ours.

    bundles: by the name of the certificate; None where the store has none.
    """
    try:
        async with asyncio.timeout(SOCKET_SECONDS):
            return await _check_socket(address, settings, bundles)
    except RuntimeUnreachable as error:
        advice = f"start HAProxy, with {_socket_line(address)} in its global section, which this user may connect to"
        return [failed(SOCKET, _without(error, address), advice, about=str(address))]
    except DeliveryError as error:
        advice = f"in haproxy.cfg, in its global section: {_socket_line(address)}; then reload HAProxy"
        return [failed(SOCKET, _without(error, address), advice, about=str(address))]
    except TimeoutError:
        found = f"its answers take more than {SOCKET_SECONDS:g} s"
        return [failed(SOCKET, found, "see whether HAProxy hangs: `show info`", about=str(address))]


async def _check_socket(
    address: Address, settings: DeliverySettings, bundles: Mapping[str, Bundle | None]
) -> list[Diagnosis]:
    api, about = RuntimeApi(address), str(address)
    process = await api.process()
    level = await api.level()
    who = f"HAProxy {printable(process.version, 40)}, level {printable(level, 20)}"
    if level != "admin":
        advice = f"in haproxy.cfg: {_socket_line(address)}; then reload HAProxy"
        return [failed(SOCKET, f"{who}: changing certificates takes level admin", advice, about=about)]
    found: list[Diagnosis] = []
    if process.is_stopping:
        advice = "wait for its connections to end, or see why its successor does not take the socket over"
        found.append(warning(SOCKET, "the old process of a reload answers", advice, about=about))
    known = await api.certificate_names()
    if not known.names and not await api.crt_lists():
        advice = f"`bind … ssl crt {settings.certificate_dir}` in haproxy.cfg, as haproxy-config prints it"
        return [failed(SOCKET, f"{who}: it has no certificate, and no bind line reads any", advice, about=about)]
    if known.transaction is not None:
        await asyncio.sleep(TRANSACTION_SECONDS)
        again = await api.certificate_names()
        if again.transaction == known.transaction:
            found.append(_left_open(known.transaction, settings, bundles, about))
        known = again
    ours = await _known(api, known, settings, bundles)
    found += _about_ours(ours, settings, about)
    return found or [good(SOCKET, f"{who}; {_summary(ours)}", about=about)]


def _left_open(
    transaction: str, settings: DeliverySettings, bundles: Mapping[str, Bundle | None], about: str
) -> Diagnosis:
    name = printable(transaction)
    if any(transaction == str(settings.certificate_dir / f"{each}.pem") for each in bundles):
        advice = "nothing to do: the next delivery aborts it"
        return warning(SOCKET, f"a transaction is open about {name}, which is ours", advice, about=about)
    advice = f"if no other program is at it, tell HAProxy: `abort ssl cert {name}`"
    return failed(SOCKET, f"another program has a transaction open, about {name}", advice, about=about)


async def _known(
    api: RuntimeApi, known: CertificateNames, settings: DeliverySettings, bundles: Mapping[str, Bundle | None]
) -> _Known:
    found: dict[str, list[str]] = {kind: [] for kind in ("served", "placeholders", "others", "unused", "unknown")}
    for each, bundle in bundles.items():
        path = settings.certificate_dir / f"{each}.pem"
        name = await in_own_thread(partial(find_certificate, path, known.names), DISK_SECONDS)
        held = await api.certificate(name) if name is not None else None
        if held is None:
            kind = "unknown"
        elif not held.is_used:
            kind = "unused"
        elif held.issuer == PLACEHOLDER:
            kind = "placeholders"
        else:
            kind = "served" if bundle is None or held.sha1 == bundle.leaf.sha1 else "others"
        found[kind].append(each)
    takes_new = bool(found["unknown"] or found["unused"]) and await _takes_new(api, known, settings)
    return _Known(
        served=len(found["served"]),
        placeholders=tuple(found["placeholders"]),
        others=tuple(found["others"]),
        unused=() if takes_new else tuple(found["unused"]),
        addable=tuple(found["unknown"] + found["unused"]) if takes_new else (),
        unknown=() if takes_new else tuple(found["unknown"]),
    )


async def _takes_new(api: RuntimeApi, known: CertificateNames, settings: DeliverySettings) -> bool:
    """Whether names that it does not know can be added at run time: a `crt DIR`, or a crt-list with some of ours."""
    directory = settings.certificate_dir
    lists = await api.crt_lists()
    if await in_own_thread(partial(find_directory, directory, lists), DISK_SECONDS) is not None:
        return True
    for crt_list in lists:
        used = {os.path.dirname(entry) for entry in await api.crt_list(crt_list, known.names)} - {""}  # noqa: PTH120  HAProxy's text
        if await in_own_thread(partial(find_directory, directory, used), DISK_SECONDS) is not None:
            return True
    return False


def _about_ours(ours: _Known, settings: DeliverySettings, about: str) -> list[Diagnosis]:
    found = []
    missing = ours.unknown + ours.unused
    if missing:
        text = f"does not have {_listed(missing)}, and no bind line has `crt {settings.certificate_dir}`"
        if settings.reload_command:
            advice = "nothing to do: haproxy.reload_command does it, as long as HAProxy's files name them"
            found.append(warning(SOCKET, f"{text}, so that new names take a reload", advice, about=about))
        else:
            advice = f"`bind … ssl crt {settings.certificate_dir}` in haproxy.cfg, as haproxy-config prints it"
            found.append(failed(SOCKET, text, advice, about=about))
    if ours.others:
        advice = "the running proxy sets it right within two minutes, or says in its log why not"
        text = f"has another certificate for {_listed(ours.others)} than the store"
        found.append(warning(SOCKET, text, advice, about=about))
    return found


def _summary(ours: _Known) -> str:
    parts = [
        f"has {ours.served} of ours" if ours.served else "",
        f"a placeholder for {_listed(ours.placeholders)}" if ours.placeholders else "",
        f"{_listed(ours.addable)} can be added" if ours.addable else "",
    ]
    return ", ".join(filter(None, parts)) or "has none of ours yet"


async def check_served(
    name: str, names: Sequence[str], bundle: Bundle | None, settings: DeliverySettings
) -> list[Diagnosis]:
    """haproxy.verify: whether a handshake there shows the certificate that the store has.

    name: of the certificate. names: in it; without a bundle, the first is asked for.
    """
    path = settings.certificate_dir / f"{name}.pem"
    if bundle is None:
        return [await _whatever(target, name, names[0]) for target in settings.verify]
    try:
        async with asyncio.timeout(VERIFY_SECONDS):
            failures = await unproven(settings.verify, bundle, 0.0)
        words = await in_own_thread(partial(in_words, path, bundle, failures), DISK_SECONDS) if failures else ""
    except TimeoutError:
        return [
            failed(VERIFY, f"no end of handshakes within {VERIFY_SECONDS:g} s", "see whether HAProxy hangs", about=name)
        ]
    if words:
        advice = "`sniproxy renew` delivers it again, and says what keeps it from being served"
        return [failed(VERIFY, words, advice, about=name)]
    targets = ", ".join(str(target.address) for target in settings.verify)
    return [good(VERIFY, f"serial {bundle.leaf.serial} is served at {targets}", about=name)]


async def _whatever(target: VerifyTarget, certificate: str, name: str) -> Diagnosis:
    """There is none of ours to compare with: that somebody answers is all there is to find out."""
    at = str(target.address)
    try:
        leaf = await served_leaf(target.address, _server_name(name), proxy_protocol=target.proxy_protocol)
    except HandshakeFailed as error:
        advice = "deliveries are proven by a handshake there: see haproxy.verify, and HAProxy's bind line"
        return failed(VERIFY, str(error), advice, about=certificate)
    if leaf.issuer == PLACEHOLDER:
        return good(VERIFY, f"{at} answers, with the placeholder that stands in for the certificate", about=certificate)
    issuer = printable(leaf.issuer) or "nobody"
    return good(VERIFY, f"{at} answers, with a certificate of {issuer}", about=certificate)


def _server_name(name: str) -> str | None:
    """Clients that want an IP address ask for no name (RFC 6066 section 3)."""
    return None if is_ip_address(name) else name


def _without(error: Exception, address: Address) -> str:
    return str(error).removeprefix(f"HAProxy at {address}: ")


def _socket_line(address: Address) -> str:
    if isinstance(address, UnixAddress):
        return f"`stats socket {address.path} mode 660 level admin`"
    return f"`stats socket {address} level admin`"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
