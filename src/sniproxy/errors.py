"""Every error the program raises on purpose, on one page.

    SniproxyError
    ├── ConfigError          the operator's file is wrong; carries every mistake at once
    ├── WireError            a peer's bytes can never become valid
    │   ├── NotTls           the stream does not begin with a TLS handshake record
    │   ├── MalformedHello   begins like a ClientHello and breaks a rule; carries the alert to answer
    │   ├── HelloTooLarge    a possible ClientHello above our cap; carries the alert to answer
    │   └── BadProxyHeader   a sender that must send a PROXY header did not, or sent a broken one
    ├── StartError           the program cannot start: an address in use, a right missing
    └── StepFailed           a step of the demo did not work (app/demo_programs.py)

The class says whose fault it is: ConfigError and StartError are the operator's to mend, WireError the peer's.
Anything else that escapes is a bug in sniproxy.
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
