"""Server names: patterns of routes and names of certificates, brought to the one form that goes over the wire.

Lower case, without a trailing dot, non-ASCII labels as A-labels (RFC 5890). Each function returns that form or raises
ValueError with a text that says what is wrong and what is allowed.
"""

from __future__ import annotations

import ipaddress
import re

from sniproxy.config.wording import shown

_MAX_NAME = 253
_MAX_LABEL = 63

# What the wire accepts as a host name, and nothing else: a pattern outside of it could never match.
_is_host_name = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*"
    r"(?![0-9]+\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
).fullmatch
_foreign_character = re.compile(r"[^a-z0-9_-]").search
_port = re.compile(r":[0-9]+\Z").search

_FORMS = '"git.example.com" (that name), "*.example.com" (one label more) or ".example.com" (it and all below it)'


def name_pattern(value: object) -> str:
    """A pattern of a route: an exact name, `*.` and a name, or `.` and a name."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{shown(value)} is not a name; write {_FORMS}")
    if value in ("*", ".", "*."):
        raise ValueError(f"{shown(value)} names nothing; what no route takes goes to proxy.default_backend")
    prefix = "*." if value.startswith("*.") else "." if value.startswith(".") else ""
    rest = value[len(prefix) :]
    if "*" in rest:
        raise ValueError(f"{shown(value)}: a star stands for one whole label, the first; write {_FORMS}")
    if _as_ip(rest):
        raise ValueError(
            f"{shown(value)} is an IP address; clients send no server name for one, so proxy.no_sni decides"
        )
    pattern = prefix + host_name(rest)
    if prefix == "*." and len(pattern) > _MAX_NAME:
        raise ValueError(f"{shown(value)} can match no name: a name has at most {_MAX_NAME} characters")
    return pattern


def certificate_name(value: object) -> str:
    """A name that goes into a certificate: a DNS name or an IP address, without wildcards."""
    if not isinstance(value, str) or not value:
        raise ValueError(f'{shown(value)} is not a name; write a DNS name such as "www.example.com", or an IP address')
    address = _as_ip(value)
    if address:
        return str(address)
    if "*" in value or value.startswith("."):
        raise ValueError(f"{shown(value)}: no wildcards here, as none of the challenges can prove one; list each name")
    return host_name(value)


def host_name(value: str) -> str:
    """A host name, as RFC 6066 section 3 means it, in the form of the wire."""
    # Nearly all names of a large file end here.
    if _is_host_name(value):
        return value
    try:
        name = _ascii(value).removesuffix(".").lower()
        if not _is_host_name(name):
            _explain(name)
    except ValueError as error:
        raise ValueError(f"{shown(value)} {error}") from None
    return name


def _ascii(name: str) -> str:
    if name.isascii():
        return name
    import idna  # noqa: PLC0415  loads large tables, and few files have such a name

    try:
        # Label by label: an underscore elsewhere in the name is none of IDNA's business.
        mapped = idna.uts46_remap(name, std3_rules=False)
        return ".".join(label if label.isascii() else idna.alabel(label).decode() for label in mapped.split("."))
    except (idna.IDNAError, UnicodeError) as error:
        raise ValueError(f"is not an internationalized name (IDNA 2008): {error}") from None


def _explain(name: str) -> None:
    """Raises with the reason why `name` is no host name."""
    if not name:
        raise ValueError("is empty")
    if "://" in name or "/" in name:
        raise ValueError("is an address of a page or a path; write the host name alone")
    if _port(name):
        raise ValueError("has a port; write the name alone")
    labels = name.split(".")
    for label in labels:
        _explain_label(label)
    if len(name) > _MAX_NAME:
        raise ValueError(f"is longer than {_MAX_NAME} characters")
    raise ValueError(f"ends in the number {labels[-1]}; the last label of a name is never all digits")


def _explain_label(label: str) -> None:
    if not label:
        raise ValueError("has an empty label (two dots, or a dot too many)")
    foreign = _foreign_character(label)
    if foreign:
        raise ValueError(f"has {shown(foreign[0])} in it; labels have letters, digits, hyphens and underscores")
    if len(label) > _MAX_LABEL:
        raise ValueError(f"has a label longer than {_MAX_LABEL} characters")
    if label[0] == "-" or label[-1] == "-":
        raise ValueError("has a label that begins or ends with a hyphen")


def _as_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    # "%": a zone is of one machine, so it is in no name and no certificate.
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
