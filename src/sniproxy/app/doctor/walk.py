"""The whole way a certificate takes, walked before it has to be: which step would fail, and what to do about it.

    proxy → store → directory, account, clock → for each name: dns → caa → a validation of our own making
          → the certificate there is → HAProxy: bundles, sockets, what is served

Nothing is changed by it: no order, no account, no file, no command that HAProxy would act on. Every step has a
deadline, so it comes to an end whatever hangs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from sniproxy.acme.challenges import ChallengeType
from sniproxy.acme.store import Store
from sniproxy.app.certificate_json import from_json
from sniproxy.app.certificates import Plan, UnknownCertificate, plan, stored_statuses
from sniproxy.app.control import ControlError, NotRunning, ask
from sniproxy.app.doctor.ca import DIRECTORY, CaReport, ask_ca, is_public
from sniproxy.app.doctor.diagnosis import Diagnosis, Verdict, failed, good, printable, skipped, warning
from sniproxy.app.doctor.dns_records import DNS, Found, IpAddress, Resolver, Surroundings, check_caa, look_up
from sniproxy.app.doctor.haproxy import SOCKET, VERIFY, check_served, check_socket
from sniproxy.app.doctor.reach import ASK_SECONDS, HTTP_PORT, TLS_PORT, begin_probe, try_probe
from sniproxy.app.doctor.store import BUNDLES, STORE, check_bundles, check_store, user_name
from sniproxy.app.resolve import is_ip_address
from sniproxy.app.rights import Identity, acting_as, identity
from sniproxy.app.threads import in_own_thread
from sniproxy.bundle import utc_now
from sniproxy.errors import SniproxyError, StartError, StoreError
from sniproxy.model import TcpAddress
from sniproxy.policy.caa import Applicant
from sniproxy.relay.listener import has_ipv6

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from sniproxy.acme.ordering import Wanted
    from sniproxy.acme.store import StoredAccount
    from sniproxy.bundle import Bundle
    from sniproxy.config import Config
    from sniproxy.model import CertificateStatus, UnixAddress

AT_ONCE: Final = 8
"""Names, sockets and certificates that are looked at at the same time: a hundred names with a DNS that does not answer
take minutes, and not half an hour."""

DISK_SECONDS: Final = 10.0

MAX_ADDRESSES: Final = 8
"""Of a name that are tried. CAs try one or two."""

PROXY, CERTIFICATE = "proxy", "certificate"

_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7))
_PROBED = (ChallengeType.TLS_ALPN_01, ChallengeType.HTTP_01)


class Show(Protocol):
    """Whom to tell, as it happens."""

    def section(self, title: str) -> None:
        """What follows is about this."""

    def doing(self, title: str) -> AbstractContextManager[object]:
        """A step is waited for."""

    def found(self, diagnosis: Diagnosis) -> None:
        """What it has come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where to look instead of where a CA would: for machines that cannot reach themselves, and for labs.

    connect: in place of port 443 of each of a name's addresses. connect_http: likewise of port 80. nameserver: in place
    of those in /etc/resolv.conf; its host is an IP address.
    """

    connect: TcpAddress | None = None
    connect_http: TcpAddress | None = None
    nameserver: TcpAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One step, or some that go together; `step` is the first of them. title: what is waited for, in a word."""

    section: str
    step: str
    title: str
    certificate: str
    look: Callable[[], Awaitable[Sequence[Diagnosis]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """What is on disk. unreadable: why it is not known whether there is an account."""

    account: StoredAccount | None = None
    unreadable: str = ""
    bundles: dict[str, Bundle | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


async def examine(config: Config, names: Sequence[str], options: Options, show: Show) -> list[Diagnosis]:
    """Walks the way of these certificates, or those with these names in them; of all without any.

    The configuration has certificates. Raises UnknownCertificate.
    """
    this = plan(config)
    assert this is not None
    return await _Doctor(config, this, chosen(this.wanted, names), options, show).walk()


def chosen(wanted: Sequence[Wanted], names: Sequence[str]) -> tuple[Wanted, ...]:
    """The certificates that are called so, whole; else those that have such a name in them, with no other.

    Raises UnknownCertificate.
    """
    if not names:
        return tuple(wanted)
    whole = {each.name for each in wanted if each.name in names}
    rest = [name for name in names if name not in whole]
    unknown = [name for name in rest if not any(name in each.names for each in wanted)]
    if unknown:
        known = ", ".join(each.name for each in wanted)
        raise UnknownCertificate(f"there is no certificate called {', '.join(unknown)}, nor for it; there is {known}")
    narrowed = (
        each if each.name in whole else replace(each, names=tuple(name for name in each.names if name in rest))
        for each in wanted
    )
    return tuple(each for each in narrowed if each.names)


class _Doctor:
    def __init__(self, config: Config, this: Plan, wanted: tuple[Wanted, ...], options: Options, show: Show) -> None:
        self._config = config
        self._plan = this
        self._wanted = wanted
        self._options = options
        self._show = show
        self._resolver = Resolver(options.nameserver)
        self._around = Surroundings(is_public=is_public(this.account), has_ipv6=_listens_on_ipv6(config))
        self._found: list[Diagnosis] = []
        self._no_proxy = ""
        self._statuses: dict[str, CertificateStatus] = {}
        self._no_statuses = "the store could not be read"
        self._stored = _Stored()
        self._ca = CaReport(directory=None, account_url=None, diagnoses=())
        self._identity: Identity | None = None
        self._made_by_root = os.geteuid() == 0

    async def walk(self) -> list[Diagnosis]:
        await self._in_order([_general(PROXY, self._look_for_proxy)])
        # From here on as the user who has to be able to do it all.
        with acting_as(self._identity):
            await self._in_order([_general(STORE, self._look_at_store)])
            await self._in_order([_general(DIRECTORY, self._look_at_ca)])
            await self._in_order([*self._of_certificates(), *self._of_haproxy()])
        return self._found

    async def _in_order(self, works: Sequence[_Work]) -> None:
        """Several at the same time; shown one after the other."""
        room = asyncio.Semaphore(AT_ONCE)
        section = ""
        loop = asyncio.get_running_loop()
        # No group of tasks: that would wrap what `show` raises, and a pipe that is closed is nothing special.
        looks = [loop.create_task(_look(work, room)) for work in works]
        try:
            for work, look in zip(works, looks, strict=True):
                if work.section != section:
                    section = work.section
                    self._show.section(section)
                with self._show.doing(work.title):
                    diagnoses = await look
                for diagnosis in diagnoses:
                    found = replace(diagnosis, certificate=work.certificate)
                    self._found.append(found)
                    self._show.found(found)
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    # ------------------------------------------------------------------ proxy

    async def _look_for_proxy(self) -> list[Diagnosis]:
        proxy, control = self._config.proxy, self._config.admin.control_socket
        found = []
        try:
            self._identity = identity(proxy.user, proxy.group)
        except StartError as error:
            found.append(failed(PROXY, str(error), "make it, or name another one; the proxy does not start without"))
        if control is None:
            self._no_proxy = "admin.control_socket is off, so nobody can be asked to answer"
            advice = "without it, no validation can be tried from here"
            return [*found, warning(PROXY, "admin.control_socket is off: it cannot be asked", advice)]
        try:
            statuses = await self._ask_for_statuses(control)
        except NotRunning as error:
            self._no_proxy = "no proxy is running, so nobody would answer"
            return [*found, failed(PROXY, str(error), "start it with this configuration: `sniproxy run`, or its unit")]
        except (ControlError, TimeoutError) as error:
            self._no_proxy = "the running proxy cannot be asked to answer"
            words = str(error) or f"no answer within {ASK_SECONDS * 2:g} s"
            return [*found, failed(PROXY, words, f"see the proxy's log, and the rights of {control.path}")]
        if self._identity is None and os.geteuid() == 0 and not found:
            # A service manager may have chosen the user.
            self._identity = await in_own_thread(partial(_identity_of, control), ASK_SECONDS)
            self._made_by_root = self._identity is None
        self._statuses = {status.name: status for status in statuses}
        return found or [self._is_same(statuses)]

    async def _ask_for_statuses(self, control: UnixAddress) -> list[CertificateStatus]:
        request = {"command": "certificates"}
        answer = await in_own_thread(partial(ask, control, request, seconds=ASK_SECONDS), ASK_SECONDS * 2)
        try:
            return [from_json(document) for document in answer]
        except (KeyError, ValueError, TypeError):
            raise ControlError("its answer is not a list of certificates; is it of another version?") from None

    def _is_same(self, statuses: Sequence[CertificateStatus]) -> Diagnosis:
        """Whether the running proxy goes by this configuration, as far as certificates show it."""
        ours, theirs = {each.name for each in self._plan.wanted}, {status.name for status in statuses}
        if ours == theirs:
            rights = ""
            if self._identity is not None and self._identity.uid is not None:
                rights = f"; what follows is tried with the rights of {user_name(self._identity.uid)}"
            return good(PROXY, f"running, and keeps {len(ours)} certificate{'s' if len(ours) != 1 else ''}{rights}")
        advice = "reload it (HUP, `systemctl reload sniproxy`), if the file was changed since"
        if not theirs:
            return warning(PROXY, "running, and keeps no certificates (yet)", advice)
        odd = ", ".join(sorted(ours ^ theirs))
        return warning(PROXY, f"running, with other certificates than this file has: {odd}", advice)

    # ------------------------------------------------------------------ store and CA

    async def _look_at_store(self) -> list[Diagnosis]:
        directory = self._plan.state_dir
        look = partial(check_store, directory, made_by_root=self._made_by_root)
        found = await in_own_thread(look, DISK_SECONDS)
        self._stored = await in_own_thread(partial(_read_store, self._plan), DISK_SECONDS)
        if any(each.name not in self._statuses for each in self._wanted):
            try:
                stored = await in_own_thread(partial(stored_statuses, self._config), DISK_SECONDS)
                self._statuses = {status.name: status for status in stored} | self._statuses
            except StoreError as error:
                self._no_statuses = str(error)
        for text in self._stored.warnings:
            advice = "it is set aside and done without; a copy can be put back while the proxy is stopped"
            found.append(warning(STORE, text, advice))
        if len(found) > 1:
            found = [each for each in found if each.verdict != Verdict.GOOD]
        return found

    async def _look_at_ca(self) -> Sequence[Diagnosis]:
        stored = self._stored
        self._ca = await ask_ca(self._plan.account, self._wanted, stored.account, stored.unreadable)
        return self._ca.diagnoses

    # ------------------------------------------------------------------ certificates

    def _of_certificates(self) -> Iterable[_Work]:
        for each in self._wanted:
            make = partial(_Work, section=each.name, certificate=each.name)
            yield make(step=CERTIFICATE, title=CERTIFICATE, look=partial(self._look_at_certificate, each))
            for name in each.names:
                yield make(step=DNS, title=name, look=partial(self._look_at_name, each, name))

    async def _look_at_certificate(self, each: Wanted) -> list[Diagnosis]:
        status = self._statuses.get(each.name)
        if status is None:
            return [failed(CERTIFICATE, self._no_statuses, "see the store, above")]
        whole = next(wanted for wanted in self._plan.wanted if wanted.name == each.name)
        return [judged(status, whole.names, utc_now(), is_delivered=self._plan.delivery is not None)]

    async def _look_at_name(self, each: Wanted, name: str) -> list[Diagnosis]:
        where = await look_up(name, self._resolver, self._around)
        caa = [] if is_ip_address(name) else [await check_caa(name, self._resolver, self._applicant(each))]
        validations: list[Diagnosis] = []
        proven = False
        for kind in each.challenges:
            tried = await self._try(kind, name, where)
            validations += [_second_choice(one) if proven else one for one in tried]
            proven = proven or all(one.verdict == Verdict.GOOD for one in tried)
        return [_dns(where, validations, self._options), *caa, *validations]

    def _applicant(self, each: Wanted) -> Applicant | None:
        directory = self._ca.directory
        if directory is None:
            return None
        return Applicant(
            identities=directory.caa_identities, challenges=each.challenges, account_url=self._ca.account_url
        )

    async def _try(self, kind: str, name: str, where: Found) -> list[Diagnosis]:
        if kind not in _PROBED:
            return [skipped(kind, "only a CA can try it: it asks for names that nobody else knows", about=name)]
        if self._no_proxy:
            return [skipped(kind, self._no_proxy, about=name)]
        targets = self._targets(kind, where.addresses)
        if not targets:
            return [skipped(kind, "there is no address to connect to", about=name)]
        control = self._config.admin.control_socket
        assert control is not None
        try:
            probe = await begin_probe(control, kind, name)
        except ControlError as error:
            advice = "reload the running proxy, or start it again: it has to be the one of this configuration"
            return [failed(kind, str(error), advice, about=name)]
        return list(await asyncio.gather(*(try_probe(probe, target) for target in targets)))

    def _targets(self, kind: str, addresses: Sequence[IpAddress]) -> list[TcpAddress]:
        is_tls = kind == ChallengeType.TLS_ALPN_01
        instead = self._options.connect if is_tls else self._options.connect_http
        if instead is not None:
            return [instead]
        port = TLS_PORT if is_tls else HTTP_PORT
        return [TcpAddress(str(address), port) for address in addresses[:MAX_ADDRESSES]]

    # ------------------------------------------------------------------ HAProxy

    def _of_haproxy(self) -> Iterable[_Work]:
        delivery = self._plan.delivery
        if delivery is None:
            why = skipped("haproxy", "there is no [haproxy]: certificates stay in the store")
            yield _of_haproxy(why.step, partial(_already, why))
            return
        bundles = {each.name: self._stored.bundles.get(each.name) for each in self._wanted}
        look = partial(check_bundles, delivery.certificate_dir, bundles, made_by_root=self._made_by_root)
        yield _of_haproxy(BUNDLES, partial(in_own_thread, look, DISK_SECONDS))
        for address in delivery.runtime_sockets:
            yield _of_haproxy(SOCKET, partial(check_socket, address, delivery, bundles))
        if not delivery.verify:
            yield _of_haproxy(VERIFY, partial(_already, skipped(VERIFY, "haproxy.verify is off")))
            return
        for each in self._wanted:
            look_there = partial(check_served, each.name, each.names, bundles[each.name], delivery)
            yield replace(_of_haproxy(VERIFY, look_there), title=f"{VERIFY} {each.name}", certificate=each.name)


def _general(step: str, look: Callable[[], Awaitable[Sequence[Diagnosis]]]) -> _Work:
    return _Work(section="", step=step, title=step, certificate="", look=look)


def _of_haproxy(step: str, look: Callable[[], Awaitable[Sequence[Diagnosis]]]) -> _Work:
    return replace(_general(step, look), section="HAProxy")


def judged(status: CertificateStatus, names: Sequence[str], now: datetime, *, is_delivered: bool) -> Diagnosis:
    """The certificate there is, or is not. names: it should have. is_delivered: it should be in HAProxy."""
    about = status.name
    error, attempt = status.last_error, _instant(status.next_attempt)
    if status.not_after is None:
        if error:
            advice = f"mend what fails below, then `sniproxy renew {about}`; else it is tried again at {attempt}"
            return failed(CERTIFICATE, f"none yet: {error}", advice)
        return warning(CERTIFICATE, "none yet", f"it is ordered at {attempt}; `sniproxy renew {about}` does it now")
    left = status.days_left(now) or 0.0
    issuer = printable(status.issuer or "nobody")
    found = f"by {issuer}, until {_instant(status.not_after)}, {_span(left)} left"
    if left <= 0:
        why = f": {error}" if error else ""
        advice = f"mend what fails below, then `sniproxy renew {about}`; else it is tried again at {attempt}"
        return failed(CERTIFICATE, f"over since {_instant(status.not_after)}{why}", advice)
    if set(status.names) != set(names):
        advice = f"nothing to do: another one is ordered at {attempt}"
        return warning(CERTIFICATE, f"{found}; for other names: {', '.join(status.names)}", advice)
    if error:
        return warning(
            CERTIFICATE, f"{found}; {error}", f"it is tried again at {attempt}, or by `sniproxy renew {about}`"
        )
    if is_delivered and not status.deployed:
        advice = f"see HAProxy below; `sniproxy renew {about}` delivers it now, and says what is in the way"
        return warning(CERTIFICATE, f"{found}; not proven to be served", advice)
    return good(CERTIFICATE, f"{found}; the next one at {_instant(status.renew_at)} ({status.reason})")


def _instant(instant: datetime | None) -> str:
    return "a time that is not known" if instant is None else f"{instant:%Y-%m-%d %H:%M} UTC"


def _span(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.1f} hours"


def _dns(where: Found, validations: Sequence[Diagnosis], options: Options) -> Diagnosis:
    """What DNS has come to, now that it is known whether IPv6 leads here."""
    if where.if_heard is None or options.connect is not None:
        return where.diagnosis
    over_ipv6 = [one for one in validations if "at [" in one.about]
    heard = bool(over_ipv6) and all(one.verdict == Verdict.GOOD for one in over_ipv6)
    return where.if_heard if heard else where.diagnosis


def _second_choice(diagnosis: Diagnosis) -> Diagnosis:
    """A challenge that is not needed, as one before it works: should that fail one day, nothing takes its place."""
    if diagnosis.verdict != Verdict.FAILED:
        return diagnosis
    advice = f"it is only the second choice, so this may wait: {diagnosis.advice}"
    return replace(diagnosis, verdict=Verdict.WARNING, advice=advice)


def _read_store(this: Plan) -> _Stored:
    """All that is needed of it, at once. What cannot be read is for `check_store` to tell of."""
    warnings: list[str] = []
    store = Store(this.state_dir, warn=warnings.append, sets_aside=False)
    account, unreadable = None, ""
    try:
        account = store.account(this.account.directory).load()
    except StoreError as error:
        unreadable = str(error)
    bundles: dict[str, Bundle | None] = {}
    for each in this.wanted:
        try:
            files = store.certificate(each.name)
            bundles[each.name] = files.current()
            files.state()
        except StoreError:
            bundles.setdefault(each.name, None)
    return _Stored(account=account, unreadable=unreadable, bundles=bundles, warnings=tuple(warnings))


async def _look(work: _Work, room: asyncio.Semaphore) -> Sequence[Diagnosis]:
    """What this machine does not let us find out is a failure of the step, and not the end of all."""
    async with room:
        try:
            return await work.look()
        except TimeoutError:
            return [failed(work.step, "took too long", "does a disk hang, or is this machine very busy?")]
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return [failed(work.step, f"{where}{error.strerror or error}", "see to the rights of this user")]
        except SniproxyError as error:
            return [failed(work.step, str(error), "see to the rights of this user")]


async def _already(diagnosis: Diagnosis) -> list[Diagnosis]:
    return [diagnosis]


def _listens_on_ipv6(config: Config) -> bool:
    hosts = [address.host for address in config.proxy.listen if isinstance(address, TcpAddress)]
    return any(":" in host or not host for host in hosts) and has_ipv6()


def _identity_of(control: UnixAddress) -> Identity | None:
    """Whose rights the process has that made this socket; None if root's, or if that cannot be found out."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ASK_SECONDS)
            connection.connect(control.socket_address)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid = _PEER_CREDENTIALS.unpack(credentials)[0]
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        # Real, effective, saved, of the file system (proc(5)).
        uid, gid = (int(facts[key].split()[1]) for key in ("Uid", "Gid"))
        groups = tuple(map(int, facts["Groups"].split()))
    except (OSError, ValueError, KeyError):
        return None
    return Identity(uid, gid, groups) if uid else None
