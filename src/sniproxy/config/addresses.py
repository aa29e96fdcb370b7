"""Addresses to listen on or to dial, as the file writes them.

Each function takes the value as TOML gave it and returns an Address, or raises ValueError with a text that says what
is wrong and what is allowed. IP addresses come out in their shortest form, so that equal ones are equal.
"""

from __future__ import annotations

import ipaddress
import re

from sniproxy.config.names import host_name
from sniproxy.config.wording import shown
from sniproxy.model import Address, TcpAddress, UnixAddress

# sun_path of sockaddr_un is 108 bytes, the closing zero included (unix(7)).
_MAX_SOCKET_PATH = 107

_FORMS = '"192.0.2.1:443", "[2001:db8::1]:443", "host.example:443" or "unix:/path"'

_tcp = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,9})").fullmatch
_haproxy_prefix = re.compile(r"(unix|abns|abnsz|ipv4|ipv6|uxst)@").match


def listen_address(value: object) -> Address:
    """An address to bind: "HOST:PORT", "[::]:443", ":443" (all addresses), "unix:/path", "unix:@abstract"."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{shown(value)} is not an address; write ":443" (all addresses), {_FORMS}')
    if value.startswith("unix:"):
        return _unix(value.removeprefix("unix:"), value)
    match = _tcp(value)
    if match is None:
        raise ValueError(f"{shown(value)} {_explain(value)}")
    v6, host, digits = match.groups()
    port = int(digits)
    if not 1 <= port <= 65535:
        raise ValueError(f"{shown(value)}: port {port} does not exist; it may be 1 to 65535")
    return TcpAddress(_ipv6(v6, value) if v6 is not None else _host(host, value), port)


def dial_address(value: object) -> Address:
    """An address to connect to: as `listen_address`, but of one machine."""
    address = listen_address(value)
    if isinstance(address, TcpAddress) and is_wildcard(address.host):
        raise ValueError(f"{shown(value)} can only be listened on; name the machine to connect to, such as 127.0.0.1")
    return address


def socket_path(value: object) -> UnixAddress:
    """The absolute path of a unix socket, with or without "unix:" before it."""
    text = value.removeprefix("unix:") if isinstance(value, str) else ""
    if not text.startswith("/"):
        raise ValueError(
            f'{shown(value)} is not a socket\'s path; write an absolute path such as "/run/sniproxy/control.sock"'
        )
    return _unix(text, text)


def runtime_socket(value: object) -> Address:
    """Where HAProxy's `stats socket` listens: an absolute path, or an address to dial."""
    return socket_path(value) if isinstance(value, str) and value.startswith("/") else dial_address(value)


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for all addresses of a family, or of both."""
    return host in ("", "0.0.0.0", "::")  # noqa: S104  looked for, not bound


def _unix(path: str, value: str) -> UnixAddress:
    if path[:1] not in ("/", "@") or len(path) < 2 or "\0" in path:
        raise ValueError(
            f'{shown(value)} is not a unix socket; write "unix:/path" (absolute) or "unix:@name" (abstract)'
        )
    if len(path.encode()) > _MAX_SOCKET_PATH:
        raise ValueError(f"{shown(value)} is too long; the path of a unix socket has at most {_MAX_SOCKET_PATH} bytes")
    return UnixAddress(path)


def _ipv6(text: str, value: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError(f'{shown(value)}: only an IPv6 address goes in brackets, as in "[2001:db8::1]:443"') from None


def _host(text: str, value: str) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        pass
    if text == "*":
        raise ValueError(f'{shown(value)}: all addresses is written without the star, ":{value.rpartition(":")[2]}"')
    if text.replace(".", "").isdigit():
        raise ValueError(f"{shown(value)}: {shown(text)} is neither an IPv4 address nor a host name")
    try:
        return host_name(text)
    except ValueError as error:
        raise ValueError(f"{shown(value)}: {error}") from None


def _explain(text: str) -> str:
    """Why `text` is no address, and what was probably meant."""
    if text.startswith("/"):
        return f"is a bare path; write {shown(f'unix:{text}')}"
    if _haproxy_prefix(text):
        return f"is HAProxy's notation; write {_FORMS}"
    host, _, port = text.rpartition(":")
    if port.isdecimal() and _is_ipv6(host):
        return f"is an IPv6 address without brackets; write {shown(f'[{host}]:{port}')}"
    if _is_ipv6(text):
        return f"is an IPv6 address without brackets and port; write {shown(f'[{text}]:443')}"
    if ":" not in text or text.endswith("]"):
        return f"has no port; write {shown(f'{text}:443')}"
    return f"is not an address; write {_FORMS}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
