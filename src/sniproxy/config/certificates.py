"""The sections that get certificates and bring them to HAProxy: [acme], [[certificates]], [haproxy] and [hooks]."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import PlainValidator, WithJsonSchema

from sniproxy.config import addresses
from sniproxy.config.fields import (
    AbsolutePath,
    CertificateName,
    Converted,
    Duration,
    OptionalPath,
    RuntimeSocket,
    Section,
    key,
    key_without_default,
)
from sniproxy.config.wording import listed, shown
from sniproxy.model import Address

DIRECTORIES: Final = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
"""The directories that have a name of their own."""

Challenge = Literal["tls-alpn-01", "http-01", "tls-sni-01", "tls-sni-02"]
KeyType = Literal["ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096"]

# NAME.pem, and a temporary name beside it, have to fit into the 255 bytes of a file name.
LONGEST_FILE_NAME = 200
# Not a leading dot: those are the temporary files. ":" for IPv6 addresses.
_is_file_name = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*").fullmatch
_is_email = re.compile(r"[^\s@,<>]+@[^\s@,<>]+").fullmatch
_is_profile = re.compile(r"[\x21-\x7e]*").fullmatch


@dataclass(frozen=True, slots=True)
class BackendRef:
    """A backend, named where an address could stand."""

    name: str

    def __str__(self) -> str:
        return f"backend:{self.name}"


def _directory(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a directory; write {_directory_forms()}")  # noqa: TRY004  pydantic takes a ValueError
    if value in DIRECTORIES:
        return DIRECTORIES[value]
    try:
        url = urlsplit(value)
        host = url.hostname or ""
        _ = url.port
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not host or not value.isprintable() or " " in value:
        raise ValueError(f"{shown(value)} is not a directory; write {_directory_forms()}")
    if url.scheme == "http" and not _is_loopback(host):
        raise ValueError(f"{shown(value)}: without TLS only this machine itself may be asked; write https://")
    return value


def _optional_directory(value: object) -> str:
    return "" if value == "" else _directory(value)


def _directory_forms() -> str:
    return listed([*map(shown, DIRECTORIES), "an https:// URL"])


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _email(value: object) -> str:
    if value == "" or (isinstance(value, str) and _is_email(value) and value.isprintable() and ":" not in value):
        return value
    raise ValueError(f'{shown(value)} is not one e-mail address such as "admin@example.com"')


def _file_name(value: object) -> str:
    if isinstance(value, str) and len(value) <= LONGEST_FILE_NAME and _is_file_name(value):
        return value
    raise ValueError(
        f"{shown(value)} cannot name a file; write up to {LONGEST_FILE_NAME} letters, digits, "
        "dots, hyphens, underscores and colons, not beginning with a dot or hyphen"
    )


def _profile(value: object) -> str:
    if isinstance(value, str) and _is_profile(value):
        return value
    raise ValueError(f'{shown(value)} is not the name of a profile, such as "shortlived"')


def _verify(value: object) -> BackendRef | Address | None:
    if value == "off":
        return None
    if isinstance(value, str) and value.startswith("backend:"):
        return BackendRef(value.removeprefix("backend:"))
    try:
        return addresses.dial_address(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "backend:NAME", or "off"') from None


Profile = Annotated[str, PlainValidator(_profile), WithJsonSchema({"type": "string"})]


class Acme(Section):
    """[acme]: the CA, the account, and what holds for every certificate that does not say otherwise."""

    directory: Annotated[str, PlainValidator(_directory), WithJsonSchema({"type": "string"})] = key(
        default="letsencrypt",
        description='The CA: "letsencrypt", "letsencrypt-staging" (to try things out: its limits are wide and its '
        "certificates untrusted), or a directory's URL (https; http on this machine only).",
    )
    dry_run_directory: Annotated[str, PlainValidator(_optional_directory), WithJsonSchema({"type": "string"})] = key(
        default="",
        description="Where `renew --dry-run` goes: a directory as above; empty: letsencrypt-staging for letsencrypt, "
        "else the directory itself.",
    )
    ca_file: OptionalPath = key(
        default="",
        description="PEM file to trust for a private CA's directory; empty: what the system trusts.",
    )
    email: Annotated[str, PlainValidator(_email), WithJsonSchema({"type": "string"})] = key(
        default="", description="Where the CA may write to; empty: none given."
    )
    agree_to_terms: bool = key(
        default=False,
        description="That you agree to the CA's terms of service. Nobody can agree for you, so it has to be written.",
    )
    state_dir: AbsolutePath = key(
        default="/var/lib/sniproxy",
        description="Account keys, orders and everything issued; mode 0700.",
    )
    challenges: Annotated[tuple[Challenge, ...], Converted] = key(
        default=["tls-alpn-01", "http-01"],
        min_length=1,
        description="How names are proven, in order of preference. tls-alpn-01 comes over the port that is ours "
        "anyway; http-01 needs [http]; tls-sni-01 and tls-sni-02 are for private CAs that still ask for names below "
        "acme.invalid.",
    )
    key_type: KeyType = key(
        default="ecdsa-p256",
        description="Of the certificates' keys: ecdsa-p256 is the quickest handshake, and every client reads it.",
    )
    profile: Profile = key(default="", description="One of the CA's certificate profiles; empty: its default.")
    preferred_chain: str = key(
        default="",
        description="Of several chains that the CA offers, the one whose topmost certificate was issued by this common "
        "name; empty, or where there is none: the CA's first.",
    )
    eab_kid: str = key(default="", description="Key id of an external account binding, for CAs that demand one.")
    eab_hmac_file: OptionalPath = key(
        default="", description="File with the base64url key that belongs to eab_kid; secrets are never in this file."
    )


class Certificate(Section):
    """[[certificates]]: one certificate. What is not written here is as in [acme]."""

    needed: ClassVar[tuple[str, ...]] = ("names",)

    names: Annotated[tuple[CertificateName, ...], Converted] = key_without_default(
        until_set=(),
        min_length=1,
        description="DNS names and IP addresses it is valid for. No wildcards: no challenge made here can prove one.",
    )
    name: Annotated[str, PlainValidator(_file_name), WithJsonSchema({"type": "string"})] = key_without_default(
        until_set="",
        description="What it is called in commands and metrics, and NAME.pem on disk; default: the first of names.",
    )
    # The three below are set from [acme] while loading, so that whoever reads a Certificate finds a value.
    key_type: KeyType = key_without_default(until_set=None, description="Default: as in [acme].")
    challenges: Annotated[tuple[Challenge, ...], Converted] = key_without_default(
        until_set=None,
        min_length=1,
        description="Default: as in [acme].",
    )
    profile: Profile = key_without_default(until_set=None, description="Default: as in [acme].")


class Haproxy(Section):
    """[haproxy]: where certificates go, how HAProxy learns of them, and how that is proven."""

    certificate_dir: AbsolutePath = key(
        default="/srv/certs",
        description="NAME.pem (key, leaf, chain) is written here, by rename. HAProxy's bind … ssl crt DIR.",
    )
    runtime_sockets: Annotated[tuple[RuntimeSocket, ...], Converted] = key(
        default=["/run/haproxy/admin.sock"],
        description="Where new certificates are set while HAProxy runs, one for each HAProxy process: a path, or "
        "HOST:PORT. HAProxy's stats socket … level admin.",
    )
    verify: Annotated[BackendRef | Address | None, PlainValidator(_verify), WithJsonSchema({"type": "string"})] = key(
        default="backend:haproxy",
        description="Where a handshake with the name proves after delivery that the new certificate is served: "
        '"backend:NAME", an address, or "off". When not written, the backend that proxy.default_backend names.',
    )
    reload_command: Annotated[tuple[str, ...], Converted] = key(
        default=[],
        description="The command and its arguments, one string each; no shell. Run only where the runtime API cannot "
        "do it (a new name in a crt-list, say); empty: never.",
    )


class Hooks(Section):
    """[hooks]: programs to run when something happened to a certificate. What happened is in their environment."""

    on_renewed: Annotated[tuple[str, ...], Converted] = key(
        default=[],
        description="Once a new certificate is in place and proven to be served: the command and its arguments, one "
        "string each, no shell; empty: none. certbot's deploy hook.",
    )
    on_failed: Annotated[tuple[str, ...], Converted] = key(
        default=[],
        description="When a certificate could not be obtained, at each attempt, or not be delivered, at the first; "
        "likewise.",
    )
    timeout: Duration = key(default="30s", description="For a hook to end, before it is killed.")
