"""Durations, sizes and client networks: from what the file says to plain values.

Each function takes the value as TOML gave it and returns the plain value, or raises ValueError with a text that says
what is wrong and what is allowed. `addresses` and `names` do the same for their kinds.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from sniproxy.config.wording import shown

if TYPE_CHECKING:
    from sniproxy.policy.routing import IPNetwork

_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

# Shorter is a slip of the unit rather than a timeout: a TCP handshake across a country takes longer.
_SHORTEST = 0.010
# Longer is a slip too: nothing waits for more than a year.
_LONGEST = 365 * 86400.0
_RANGE = "10ms to 365d"

_DURATION_HELP = 'write a whole number and ms, s, m, h or d, such as "5s" or "10m"'
_SIZE_HELP = 'write bytes, or a whole number and KiB, MiB or GiB, such as "16KiB"'

_duration = re.compile(r"([0-9]{1,15}) ?(ms|s|m|h|d)").fullmatch
_size = re.compile(r"([0-9]{1,15}) ?(|B|KiB|MiB|GiB)").fullmatch
_is_number = re.compile(r"[0-9]+").fullmatch
_prefix = re.compile(r"/[0-9]{1,3}\Z").search


def duration(value: object, *, zero_is_off: bool = False) -> float:
    """Seconds of "5s", "10m", "200ms", "1h" or "2d"; from 10ms to 365d, or 0 where `zero_is_off`.

    A bare number is refused: HAProxy reads it as milliseconds, most others as seconds.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError(f"{shown(value)} is not a duration; {_DURATION_HELP}")  # noqa: TRY004  pydantic takes a ValueError
    if zero_is_off and text == "0":
        return 0.0
    match = _duration(text)
    if match is None:
        what = "has no unit" if _is_number(text) else "is not a duration"
        raise ValueError(f"{shown(value)} {what}; {_DURATION_HELP}")
    number, unit = int(match[1]), match[2]
    # Milliseconds are divided, not multiplied by 0.001: 300ms is then exactly 0.3.
    seconds = number / 1000 if unit == "ms" else number * _SECONDS[unit]
    if not (_SHORTEST <= seconds <= _LONGEST or (zero_is_off and not seconds)):
        off = ", or 0 for off" if zero_is_off else ""
        raise ValueError(f"{shown(value)} is out of range; it may be {_RANGE}{off}")
    return seconds


def size(value: object, *, smallest: str, largest: str) -> int:
    """Bytes of "16KiB", "1MiB", "4096" or 4096, between two bounds written the same way.

    KB and MB are refused: they mean two things.
    """
    count = _bytes_of(value)
    if not _bytes_of(smallest) <= count <= _bytes_of(largest):
        raise ValueError(f"{shown(value)} is out of range; it may be {smallest} to {largest}")
    return count


def _bytes_of(value: object) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _size(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{shown(value)} is not a size; {_SIZE_HELP}")
    return int(match[1]) * _BYTES[match[2]]


def network(value: object) -> IPNetwork:
    """A CIDR such as "192.0.2.0/24" or "2001:db8::/32"; a bare address is the network of itself alone.

    Bits set after the prefix are refused: whether the network or the one address was meant, only the writer knows.
    """
    text = value if isinstance(value, str) else ""
    # ipaddress takes netmasks too, in two readings; a prefix length has one.
    if "/" not in text or _prefix(text):
        try:
            return ipaddress.ip_network(text)
        except ValueError:
            pass
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            pass
        else:
            raise ValueError(f'{shown(value)} has bits set after the prefix; the network is "{meant}"')
    raise ValueError(f'{shown(value)} is not a network; write "192.0.2.0/24", "2001:db8::/32" or a single address')
