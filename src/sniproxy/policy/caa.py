"""Whether CAA records let a CA issue for a name (RFC 8659), to an account and by a challenge (RFC 8657).

For names without a wildcard, as no others can be proven here: `issuewild` properties are ignored for them (RFC 8659
section 4.3). Who looks records up is elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KNOWN_TAGS: Final = frozenset(("issue", "issuewild", "iodef"))
"""What every CA knows; a critical property with another tag stops those who do not (RFC 8659 section 4.1)."""

CRITICAL: Final = 128 | 1
"""RFC 8659 has the first bit only. So many took it for the last one that Let's Encrypt heeds both (Boulder's
va/caa.go)."""

_LABEL = "[A-Za-z0-9](?:-*[A-Za-z0-9])*"
# RFC 8659 section 4.2, `issuer-domain-name` and `parameter`; spaces around them are taken off before.
_is_domain = re.compile(rf"{_LABEL}(?:\.{_LABEL})*").fullmatch
_parameter = re.compile(rf"({_LABEL})[ \t]*=[ \t]*([\x21-\x3a\x3c-\x7e]*)").fullmatch
# RFC 8657 section 4.
_is_method = re.compile(r"[A-Za-z0-9-]+").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CaaRecord:
    """One record: its flags, its property's tag, and the value, which may hold anything."""

    flags: int
    tag: str
    value: str

    def __str__(self) -> str:
        value = "".join(char if char.isprintable() else "?" for char in self.value)
        return f'{self.flags} {self.tag} "{value}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant:
    """Who wants a certificate, from whom, and how names can be proven.

    identities: the issuer domain names of the CA (`caaIdentities` of its directory). challenges: in order of
    preference. account_url: None while there is no account.
    """

    identities: tuple[str, ...]
    challenges: tuple[str, ...]
    account_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """By which challenges the CA may issue, of those that were asked about; with none, `obstacle` says why not."""

    challenges: tuple[str, ...] = ()
    obstacle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issuer:
    """An `issue` property: a CA, empty for none at all, and with what parameters (tags in lower case)."""

    domain: str
    parameters: tuple[tuple[str, str], ...] = ()

    def values(self, tag: str) -> list[str]:
        return [value for name, value in self.parameters if name == tag]


def domains(name: str) -> Iterator[str]:
    """Where to look for records, until there are some: the name, then each domain above it (RFC 8659 section 3)."""
    labels = name.split(".")
    for start in range(len(labels)):
        yield ".".join(labels[start:])


def permission(records: Sequence[CaaRecord], applicant: Applicant) -> Permission:
    """What the records that were found first, on the way up, allow. None at all allow everything."""
    for record in records:
        if record.flags & CRITICAL and record.tag.lower() not in KNOWN_TAGS:
            return Permission(obstacle=f"{record} is critical, and nothing that CAs know")
    issuers = [_issuer(record.value) for record in records if record.tag.lower() == "issue"]
    if not issuers:
        return Permission(challenges=applicant.challenges)
    identities = {identity.lower() for identity in applicant.identities}
    ours = [issuer for issuer in issuers if issuer.domain.lower() in identities and issuer.domain]
    if not ours:
        allowed = ", ".join(sorted({issuer.domain for issuer in issuers} - {""})) or "nobody"
        return Permission(obstacle=f"{allowed} may issue, and this CA is {' or '.join(applicant.identities)}")
    obstacles = []
    challenges: set[str] = set()
    for issuer in ours:
        obstacle = _why_not_account(issuer, applicant.account_url)
        methods = _methods(issuer, applicant.challenges)
        if obstacle:
            obstacles.append(obstacle)
        elif not methods:
            wanted = " and ".join(issuer.values("validationmethods"))
            obstacles.append(f"validationmethods={wanted} has none of {', '.join(applicant.challenges)}")
        else:
            challenges.update(methods)
    if not challenges:
        return Permission(obstacle="; ".join(dict.fromkeys(obstacles)))
    return Permission(challenges=tuple(kind for kind in applicant.challenges if kind in challenges))


def _issuer(value: str) -> _Issuer:
    """What breaks the grammar stands for nobody (RFC 8659 section 4.2)."""
    domain, *parts = (part.strip(" \t") for part in value.split(";"))
    if domain and not _is_domain(domain):
        return _Issuer(domain="")
    if parts == [""]:
        parts = []
    parameters = []
    for part in parts:
        match = _parameter(part)
        if match is None:
            return _Issuer(domain="")
        parameters.append((match[1].lower(), match[2]))
    return _Issuer(domain=domain, parameters=tuple(parameters))


def _why_not_account(issuer: _Issuer, account_url: str | None) -> str:
    """RFC 8657 section 3; empty where the account may."""
    wanted = issuer.values("accounturi")
    if len(wanted) > 1:
        return "a property has two of accounturi, which nobody can satisfy"
    if not wanted or wanted[0] == account_url:
        return ""
    return f"accounturi={wanted[0]} is asked for, and {f'ours is {account_url}' if account_url else 'we have none yet'}"


def _methods(issuer: _Issuer, challenges: Sequence[str]) -> Sequence[str]:
    """Those of our challenges that the property allows (RFC 8657 section 4)."""
    wanted = issuer.values("validationmethods")
    if not wanted:
        return challenges
    if len(wanted) > 1:
        return ()
    methods = wanted[0].split(",")
    if not all(map(_is_method, methods)):
        return ()
    return [kind for kind in challenges if kind in methods]
