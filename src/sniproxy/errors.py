"""Every error the program raises on purpose, on one page.

    SniproxyError
    ├── ConfigError          the operator's file is wrong; carries every mistake at once
    ├── WireError            a peer's bytes can never become valid
    │   ├── NotTls           the stream does not begin with a TLS handshake record
    │   ├── MalformedHello   begins like a ClientHello and breaks a rule; carries the alert to answer
    │   ├── HelloTooLarge    a possible ClientHello above our cap; carries the alert to answer
    │   └── BadProxyHeader   a sender that must send a PROXY header did not, or sent a broken one
    ├── StartError           the program cannot start: an address in use, a right missing
    ├── AcmeError            the CA and we did not come to a certificate
    │   ├── CaUnreachable    no answer that could be used: refused, too slow, too large, not trusted, not ACME
    │   ├── Problem          the CA refused, in words of its own
    │   ├── OrderFailed      the order took its course and ended without a certificate
    │   │   └── ValidationFailed   because the CA could not validate a name
    │   └── BadCertificate   the CA issued something else than what was ordered
    ├── BundleError          a PEM file is not a key with its certificates
    ├── StoreError           our own files cannot be read or written
    ├── DeliveryError        a certificate did not get into HAProxy, or is not what is served
    └── StepFailed           a step of the demo did not work (app/demo/programs.py)

The class says whose fault it is: ConfigError and StartError are the operator's to mend, WireError the peer's, AcmeError
the CA's or between it and us, StoreError this machine's, DeliveryError HAProxy's or the way to it. Anything else that
escapes is a bug in sniproxy. None of their texts holds a key, a token or a key authorization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class SniproxyError(Exception):
    """Root of all errors raised on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing wrong with a configuration file.

    `line` counts from 1; 0 where the file as a whole is meant. `key` is the dotted path, lists counted
    from 0 (`routes[0].sni`), or empty. `message` says what is wrong and what is allowed.
    """

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """`FILE:LINE: key.path: message`, the parts that are unknown left out."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(SniproxyError):
    """The configuration is wrong; `mistakes` holds all of them, in the order of the file."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class StartError(SniproxyError):
    """The program cannot start; the text says what to do."""


class WireError(SniproxyError):
    """A peer's bytes can never become valid, whatever follows them."""


class NotTls(WireError):
    """Not a TLS handshake record, or an SSL 2.0 ClientHello, which cannot carry a server name.

    `sslv2` tells the two apart.
    """

    def __init__(self, message: str, *, sslv2: bool = False) -> None:
        super().__init__(message)
        self.sslv2 = sslv2


class MalformedHello(WireError):
    """Begins like a ClientHello and breaks a rule. `alert` is the AlertDescription code to answer with."""

    def __init__(self, message: str, *, alert: int) -> None:
        super().__init__(message)
        self.alert = alert


class HelloTooLarge(WireError):
    """May be a ClientHello, but is longer than the cap. `alert` is the AlertDescription code to answer with."""

    def __init__(self, message: str, *, alert: int) -> None:
        super().__init__(message)
        self.alert = alert


class BadProxyHeader(WireError):
    """The PROXY header is missing or broken."""


class AcmeError(SniproxyError):
    """The CA and we did not come to a certificate.

    retry_after: seconds for which the CA has asked to be left alone (RFC 8555 section 6.6), None where it has not.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CaUnreachable(AcmeError):
    """No answer that could be used: refused, too slow, too large, a certificate that is not trusted, not ACME."""


class Problem(AcmeError):
    """The CA's problem document (RFC 8555 section 6.7, RFC 7807), whole.

    type: the URN, `urn:ietf:params:acme:error:rateLimited`. status: of HTTP, 0 where it came inside an object.
    identifier: the name a subproblem is about, empty for none. The text is the CA's own words, made printable.
    """

    def __init__(
        self,
        *,
        type: str,  # noqa: A002  the document's own word
        detail: str,
        status: int = 0,
        identifier: str = "",
        subproblems: Sequence[Problem] = (),
        retry_after: float | None = None,
    ) -> None:
        self.type = type
        self.detail = detail
        self.status = status
        self.identifier = identifier
        self.subproblems = tuple(subproblems)
        super().__init__(self._words(), retry_after=retry_after)

    @property
    def code(self) -> str:
        """The last part of the type: `rateLimited`."""
        return self.type.rpartition(":")[2]

    def _words(self) -> str:
        about = f"{self.identifier}: " if self.identifier else ""
        own = f"{about}{self.code}: {self.detail}" if self.detail else f"{about}{self.code}"
        inner = "; ".join(str(problem) for problem in self.subproblems)
        text = f"{own} ({inner})" if inner else own
        return "".join(char if char.isprintable() else "?" for char in text)


class OrderFailed(AcmeError):
    """The order took its course and ended without a certificate: invalid, expired, never done."""


class ValidationFailed(OrderFailed):
    """The CA could not validate a name. `challenge` is the type of the challenge that failed, "" where none was."""

    def __init__(self, message: str, *, challenge: str = "") -> None:
        super().__init__(message)
        self.challenge = challenge


class BadCertificate(AcmeError):
    """The CA issued something else than what was ordered: other names, another key, a time that is over."""


class BundleError(SniproxyError):
    """A PEM file is not a private key with its certificate and chain."""


class StoreError(SniproxyError):
    """Our own files cannot be read or written."""


class DeliveryError(SniproxyError):
    """A certificate did not get into HAProxy, or is not what is served there. The text says which step and what to do.

    reload_helps: HAProxy reads its files again on a reload, and that would cure it.
    """

    def __init__(self, message: str, *, reload_helps: bool = False) -> None:
        super().__init__(message)
        self.reload_helps = reload_helps
