"""What DNS says of a name: where its CA would look, and whether it may issue for it.

The name servers are asked themselves, not the system: a CA knows nothing of this machine's /etc/hosts. Still it may see
other answers than these, so they are shown.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

from sniproxy.app.doctor.diagnosis import Diagnosis, failed, good, printable, skipped, warning
from sniproxy.app.threads import in_own_thread
from sniproxy.errors import SniproxyError
from sniproxy.policy.caa import Applicant, CaaRecord, domains, permission

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sniproxy.model import TcpAddress

SERVER_SECONDS: Final = 2.0
"""For one name server, before the next is asked: resolv.conf has 5 s, and three servers that do not answer."""

LOOKUP_SECONDS: Final = 6.0
"""For one look-up at all of them. Let's Encrypt gives its resolvers ten for everything."""

CACHED_ANSWERS: Final = 2000
"""The names of one domain share what is above them."""

SHOWN_ADDRESSES: Final = 6

IpAddress = IPv4Address | IPv6Address

DNS, CAA = "dns", "caa"


class LookupFailed(SniproxyError):
    """No answer that could be used, which is not the same as the answer that there is nothing."""


class Resolver:
    """Asks the name servers of /etc/resolv.conf, or one that is given; its host is an IP address.

    Every method raises LookupFailed.
    """

    def __init__(self, nameserver: TcpAddress | None = None) -> None:
        self.reads_hosts = nameserver is None
        self._why_not = ""
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
        except (dns.resolver.NoResolverConfiguration, OSError, dns.exception.DNSException):
            self._resolver = dns.asyncresolver.Resolver(configure=False)
            self._why_not = "there is no name server in /etc/resolv.conf"
        if nameserver is not None:
            self._resolver.nameservers = [nameserver.host]
            self._resolver.port = nameserver.port
        self._resolver.timeout, self._resolver.lifetime = SERVER_SECONDS, LOOKUP_SECONDS
        self._resolver.cache = dns.resolver.LRUCache(CACHED_ANSWERS)

    async def addresses(self, name: str, kind: str) -> tuple[IpAddress, ...]:
        """Its A or AAAA records; none is an answer, too."""
        records = await self._records(name, kind)
        return tuple(ip_address(record.address) for record in records)

    async def caa(self, name: str) -> tuple[CaaRecord, ...]:
        """The CAA records of this very name, or of what it is an alias of."""
        records = await self._records(name, "CAA")
        return tuple(
            CaaRecord(flags=record.flags, tag=_text(record.tag), value=_text(record.value)) for record in records
        )

    async def _records(self, name: str, kind: str) -> Sequence[Any]:
        if self._why_not:
            raise LookupFailed(self._why_not)
        try:
            answer = await self._resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN:
            return ()
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise LookupFailed(f"{kind} of {name}: {_why(error)}") from None
        # Servers and the library turn them round as they like; people compare.
        return () if answer.rrset is None else sorted(answer.rrset)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _why(error: Exception) -> str:
    """Who answered what, out of what the library has collected."""
    tried: list[tuple[Any, ...]] = getattr(error, "kwargs", {}).get("errors") or []
    said: dict[str, str] = {}
    for server, _, port, answer, *_ in tried:
        host = str(server).partition(":")[2].rpartition("@")[0] or str(server)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        said[where] = "no answer" if isinstance(answer, dns.exception.Timeout) else printable(str(answer), 80)
    words = ", ".join(f"{answer} from {where}" for where, answer in said.items())
    if words:
        return words
    if isinstance(error, dns.exception.Timeout):
        return f"no answer within {LOOKUP_SECONDS:g} s"
    return printable(str(error), 120) or type(error).__name__


# ---------------------------------------------------------------------- where a CA would look


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a name's addresses are judged by.

    is_public: the CA is somewhere in the internet, so that it cannot reach private addresses. has_ipv6: the proxy
    listens on it.
    """

    is_public: bool
    has_ipv6: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The addresses a CA would connect to, IPv6 first as CAs do.

    if_heard: what to say instead, where connections over IPv6 turn out to come in all the same.
    """

    addresses: tuple[IpAddress, ...]
    diagnosis: Diagnosis
    if_heard: Diagnosis | None = None


async def look_up(name: str, resolver: Resolver, around: Surroundings) -> Found:
    """The addresses of a name, or the one that it is."""
    try:
        return _judged(name, (ip_address(name),), around, notes=["an IP address, which is not looked up"])
    except ValueError:
        pass
    addresses: list[IpAddress] = []
    failures: list[str] = []
    for kind in ("AAAA", "A"):
        try:
            addresses += await resolver.addresses(name, kind)
        except LookupFailed as error:
            failures.append(str(error))
    if addresses:
        return _judged(name, tuple(addresses), around, failures=failures)
    if failures:
        advice = "a CA gets no further either: see to the zone's name servers, and to DNSSEC if it is signed"
        return Found(addresses=(), diagnosis=failed(DNS, "; ".join(failures), advice, about=name))
    return await _from_hosts(name, resolver, around)


async def _from_hosts(name: str, resolver: Resolver, around: Surroundings) -> Found:
    """DNS has nothing. With a private CA, /etc/hosts may be all there is to it."""
    nothing = "neither an A nor an AAAA record"
    advice = f"add one for {name}, with the public address that leads to this proxy"
    here = await _in_hosts(name) if resolver.reads_hosts else ()
    if not here:
        return Found(addresses=(), diagnosis=failed(DNS, nothing, advice, about=name))
    found = f"{nothing}; this machine alone has {_listed(here)}, from /etc/hosts"
    if around.is_public:
        return Found(addresses=here, diagnosis=failed(DNS, found, advice, about=name))
    diagnosis = warning(DNS, found, "the CA has to know the name in a way of its own", about=name)
    return Found(addresses=here, diagnosis=diagnosis)


async def _in_hosts(name: str) -> tuple[IpAddress, ...]:
    try:
        entries = await in_own_thread(
            lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM), seconds=LOOKUP_SECONDS
        )
    except (OSError, UnicodeError):  # and TimeoutError
        return ()
    return tuple(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries))


def _judged(
    name: str,
    addresses: tuple[IpAddress, ...],
    around: Surroundings,
    *,
    failures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Found:
    found = "; ".join((_listed(addresses), *notes, *failures))
    private = [address for address in addresses if not address.is_global]
    ipv6 = [address for address in addresses if address.version == 6]
    if ipv6 and not around.has_ipv6:
        diagnosis = failed(
            DNS,
            f"{found}: there is an AAAA record, and the proxy does not listen on IPv6, where CAs try first",
            f'add "[::]:443" to proxy.listen, or remove the AAAA record of {name}',
            about=name,
        )
        advice = "nothing to do: what listens on IPv6 passes connections on to the proxy"
        if_heard = warning(DNS, f"{found}: the proxy itself does not listen on IPv6", advice, about=name)
        return Found(addresses=addresses, diagnosis=diagnosis, if_heard=if_heard)
    if private and around.is_public:
        which = "only private addresses" if len(private) == len(addresses) else f"{_listed(private)} is private"
        advice = "a public CA cannot reach these; fine if its view of DNS is another, as with a split horizon"
        diagnosis = warning(DNS, f"{found}: {which}", advice, about=name)
    elif failures:
        diagnosis = warning(DNS, found, "a CA that gets no answer either may give up: see to the zone", about=name)
    else:
        diagnosis = good(DNS, found, about=name)
    return Found(addresses=addresses, diagnosis=diagnosis)


def _listed(addresses: Sequence[IpAddress]) -> str:
    more = f" and {len(addresses) - SHOWN_ADDRESSES} more" if len(addresses) > SHOWN_ADDRESSES else ""
    return ", ".join(map(str, addresses[:SHOWN_ADDRESSES])) + more


# ---------------------------------------------------------------------- who may issue


async def check_caa(name: str, resolver: Resolver, applicant: Applicant | None) -> Diagnosis:
    """Whether CAA records let the CA issue for a name.

    applicant: None where the CA did not tell who it is; then only a look-up that fails, and no records, mean anything.
    """
    records: tuple[CaaRecord, ...] = ()
    domain = name
    try:
        for domain in domains(name):
            records = await resolver.caa(domain)
            if records:
                break
    except LookupFailed as error:
        advice = "CAs refuse to issue without an answer (RFC 8659): see to the zone's name servers, and to DNSSEC"
        return failed(CAA, str(error), advice, about=name)
    if not records:
        return good(CAA, "no record here or above, so every CA may issue", about=name)
    shown = f"at {domain}: {', '.join(map(str, records))}"
    if applicant is None:
        return skipped(CAA, f"{shown}; the CA could not be asked which of these it is", about=name)
    return _permitted(name, domain, records, applicant, shown)


def _permitted(name: str, domain: str, records: Sequence[CaaRecord], applicant: Applicant, shown: str) -> Diagnosis:
    answer = permission(records, applicant)
    if answer.challenges == applicant.challenges:
        return good(CAA, shown, about=name)
    if answer.challenges:
        first, allowed = applicant.challenges[0], ", ".join(answer.challenges)
        advice = f"CAs would refuse {first} for this name: put {answer.challenges[0]} first in challenges"
        if first in answer.challenges:
            return good(CAA, f"{shown}; of our challenges {allowed} alone may prove it", about=name)
        return warning(CAA, f"{shown}; of our challenges {allowed} alone may prove it", advice, about=name)
    others = [record for record in records if record.tag.lower() != "issue"]
    if not applicant.identities and not permission(others, applicant).obstacle:
        advice = "see in the CA's documents by which name it goes in CAA records; its directory does not say"
        return warning(CAA, shown, advice, about=name)
    account = f"; accounturi={applicant.account_url}" if applicant.account_url else ""
    ca = applicant.identities[0] if applicant.identities else "…"
    advice = f'{domain} needs a record: 0 issue "{ca}"' + (f' (or "{ca}{account}")' if account else "")
    return failed(CAA, f"{shown}: {answer.obstacle}", advice, about=name)
