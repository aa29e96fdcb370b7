"""What certbot keeps in its directory: accounts, lineages, and what it was told to do around them.

    accounts/SERVER/ID/        SERVER is the directory's host and path; private_key.json, regr.json, meta.json
    renewal/NAME.conf          how a lineage is renewed, in ConfigObj's format
    live/NAME/                 privkey.pem, fullchain.pem: symlinks to the newest of
    archive/NAME/              privkeyN.pem, fullchainN.pem
    renewal-hooks/             pre, deploy, post: programs for all lineages

All of it is read only, and may be a copy in which links lead nowhere. (certbot's account.py, storage.py, renewal.py,
as of version 4.)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sniproxy import durable
from sniproxy.bundle import MAX_PEM_BYTES, Bundle, PrivateKey, load_key, read_certificates
from sniproxy.errors import BundleError, SniproxyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_TEXT_BYTES: Final = 256 * 1024
"""Of a renewal configuration, or of an account's file: they have a few thousand."""

DEFAULT_SERVER: Final = "https://acme-v02.api.letsencrypt.org/directory"
"""certbot's own, for lineages from before it wrote that down."""

_V1_SERVER = "https://acme-v01.api.letsencrypt.org/directory"  # gone since 2021; certbot takes it for the default

# Where certbot links accounts from, when it first uses the second version of the protocol (constants.LE_REUSE_SERVERS).
_EARLIER = {
    "acme-v02.api.letsencrypt.org/directory": "acme-v01.api.letsencrypt.org/directory",
    "acme-staging-v02.api.letsencrypt.org/directory": "acme-staging.api.letsencrypt.org/directory",
}

_HOOKS = {"pre": "pre_hook", "deploy": "renew_hook", "post": "post_hook"}

_QUOTES = " \t\"'"
_quoted = re.compile(r"""("{3}|'{3}|"|')(.*?)\1\s*,?\s*(?:#.*)?""", re.DOTALL).fullmatch
_inline_comment = re.compile(r"\s+#").search
_is_version = re.compile(r"fullchain([0-9]+)\.pem").fullmatch


class CertbotError(SniproxyError):
    """What certbot has left cannot be read, or makes no sense. The text shows nothing of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertbotAccount:
    """An account at one ACME directory. `url` is what the CA calls it, None where that is not known for sure."""

    identity: str
    directory: str
    key: PrivateKey = field(repr=False)
    url: str | None
    contact: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """One certificate and its successors, as certbot calls it.

    bundle: the newest. parameters: of its renewal, as written, lists with their commas; empty where there is no such
    file.
    """

    name: str
    bundle: Bundle
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def server(self) -> str:
        """The ACME directory it was ordered at."""
        server = self.parameters.get("server", "")
        return DEFAULT_SERVER if server in ("", "None", _V1_SERVER) else server

    @property
    def is_staging(self) -> bool:
        """Whether it is one to try things out, that nobody trusts (certbot's util.is_staging)."""
        return "staging" in self.server

    @property
    def account(self) -> str:
        """The account's id, which is its directory's name; empty where it is not known."""
        return self.parameters.get("account", "").replace("None", "")

    @property
    def authenticator(self) -> str:
        """The plugin that proved its names: standalone, webroot, dns-cloudflare."""
        return self.parameters.get("authenticator", "")

    @property
    def installer(self) -> str:
        """The plugin that put it into a server's configuration: nginx, apache; empty for none."""
        return self.parameters.get("installer", "")

    @property
    def uses_dns(self) -> bool:
        """Whether its names were proven by DNS, and need not point here at all."""
        preferred = self.parameters.get("pref_challs", "").split(",")[0].strip()
        return preferred.startswith("dns") or bool(re.match(r"(certbot[-_]dns[-_:]|dns[-_])", self.authenticator))

    def hook(self, kind: str) -> str:
        """Its own pre, deploy or post hook, a shell's command; empty for none."""
        value = self.parameters.get(_HOOKS[kind], "")
        if kind == "deploy":
            value = value or self.parameters.get("deploy_hook", "")
        return "" if value == "None" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenLineage:
    """One that cannot be used, and why."""

    name: str
    trouble: str


def lineages(root: Path) -> list[Lineage | BrokenLineage]:
    """All there are, in alphabetical order.

    Raises CertbotError where there is nothing of certbot's, or it is not ours to read.
    """
    if not {path.name for path in _listed(root)} & {"renewal", "live", "archive", "accounts"}:
        raise CertbotError(f"{root} is not certbot's: there is no live, renewal or accounts in it")
    names = {path.name.removesuffix(".conf") for path in _listed(root / "renewal") if path.name.endswith(".conf")}
    names |= {path.name for path in _listed(root / "live") if path.is_dir()}
    return [_lineage(root, name) for name in sorted(names)]


def hook_programs(root: Path) -> dict[str, list[Path]]:
    """The programs that certbot runs for every lineage, by kind: pre, deploy, post. Raises CertbotError."""
    return {
        kind: [
            path for path in _listed(root / "renewal-hooks" / kind) if path.is_file() and not path.name.endswith("~")
        ]
        for kind in _HOOKS
    }


def account_identities(root: Path, directory: str) -> list[str]:
    """The ids of the accounts at an ACME directory, the newest first. Raises CertbotError."""
    found = {path.name: path for place in _account_places(root, directory) for path in _listed(place) if path.is_dir()}
    return sorted(found, key=lambda identity: _created(found[identity]), reverse=True)


def account(root: Path, directory: str, identity: str) -> CertbotAccount:
    """The account of this id. Raises CertbotError."""
    places = [place / identity for place in _account_places(root, directory)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise CertbotError(f"there is no account {identity} in {places[0].parent}")
    try:
        registration = _json(found / "regr.json")
    except CertbotError:
        registration = {}
    key = _account_key(found / "private_key.json")
    body = registration.get("body")
    contact = body.get("contact") if isinstance(body, dict) else None
    url = registration.get("uri")
    # The URL of an account that was made by the first version of the protocol is none that the second knows.
    is_url = isinstance(url, str) and urlsplit(url).hostname == urlsplit(directory).hostname
    return CertbotAccount(
        identity=identity,
        directory=directory,
        key=key,
        url=url if is_url else None,
        contact=tuple(map(str, contact)) if isinstance(contact, list) else (),
    )


def read_renewal(text: str) -> dict[str, dict[str, str]]:
    """A renewal configuration as sections of texts, by the section's own name; "" has what stands before the first.

    Only as much of ConfigObj's format as certbot writes; lists stay one text, with their commas. Lines that make no
    sense are passed over.
    """
    sections: dict[str, dict[str, str]] = {"": {}}
    current = sections[""]
    lines = iter(text.splitlines())
    for line in map(str.strip, lines):
        key, equals, value = line.partition("=")
        if line.startswith("["):
            current = sections.setdefault(line.partition("]")[0].lstrip("[").strip(_QUOTES), {})
        elif equals and not line.startswith("#"):
            current[key.strip(_QUOTES)] = _value(value.strip(), lines)
    return sections


# ---------------------------------------------------------------------- lineages


def _lineage(root: Path, name: str) -> Lineage | BrokenLineage:
    try:
        sections = _renewal(root / "renewal" / f"{name}.conf")
        archive = Path(sections[""].get("archive_dir", name)).name
        bundle = _bundle(root / "live" / name, root / "archive" / archive)
    except OSError as error:
        return BrokenLineage(name=name, trouble=f"{error.filename}: {error.strerror}")
    except (BundleError, CertbotError) as error:
        return BrokenLineage(name=name, trouble=str(error))
    return Lineage(name=name, bundle=bundle, parameters=MappingProxyType(sections.get("renewalparams", {})))


def _renewal(path: Path) -> dict[str, dict[str, str]]:
    """Empty where there is none: the certificate is as good without. Raises OSError."""
    try:
        return read_renewal(_content(path, MAX_TEXT_BYTES).decode("utf-8", "replace"))
    except FileNotFoundError:
        return {"": {}}


def _bundle(live: Path, archive: Path) -> Bundle:
    """The newest of a lineage. Raises OSError, BundleError, CertbotError."""
    key_path, chain_path = live / "privkey.pem", live / "fullchain.pem"
    if not (key_path.exists() and chain_path.exists()):
        key_path, chain_path = _newest(archive) or (key_path, chain_path)
    key = load_key(_content(key_path, MAX_PEM_BYTES))
    return Bundle(key, read_certificates(_content(chain_path, MAX_PEM_BYTES)))


def _newest(archive: Path) -> tuple[Path, Path] | None:
    """For a copy whose links lead nowhere. With a key that is used again, a number has a link to the one before."""
    numbers = sorted(
        (int(match[1]) for path in _listed(archive) if (match := _is_version(path.name)) and path.is_file()),
        reverse=True,
    )
    if not numbers:
        return None
    keys = (archive / f"privkey{number}.pem" for number in numbers)
    key = next((path for path in keys if path.is_file()), archive / f"privkey{numbers[0]}.pem")
    return key, archive / f"fullchain{numbers[0]}.pem"


def _value(text: str, lines: Iterator[str]) -> str:
    """One value; in three quotes it may go on over the lines that follow."""
    for quotes in ('"""', "'''"):
        if text.startswith(quotes):
            while text.count(quotes) < 2 and (more := next(lines, None)) is not None:
                text += f"\n{more}"
    if match := _quoted(text):
        return match[2]
    if comment := _inline_comment(text):
        text = text[: comment.start()]
    return text.strip()


# ---------------------------------------------------------------------- accounts


def _account_places(root: Path, directory: str) -> list[Path]:
    url = urlsplit(directory)
    server = f"{url.netloc}{url.path}"
    places = [server, _EARLIER.get(server, "")]
    return [root / "accounts" / place for place in places if place]


def _account_key(path: Path) -> PrivateKey:
    # Takes a third of a second, and few need it.
    from josepy.errors import Error  # noqa: PLC0415
    from josepy.jwk import JWK, JWKEC, JWKRSA  # noqa: PLC0415

    document = _json(path)
    try:
        jwk = JWK.from_json(document)
        if not isinstance(jwk, JWKRSA | JWKEC):
            raise TypeError  # noqa: TRY301  one message for all of it
        key = load_key(jwk.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except (Error, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm, BundleError):
        # From None: the library's text may show what it choked on.
        raise CertbotError(f"{path} is no private key (RFC 7517)") from None
    if not isinstance(key, rsa.RSAPrivateKey) and key.curve.name not in ("secp256r1", "secp384r1"):
        raise CertbotError(f"{path} has a key on the curve {key.curve.name}, which is not used here")
    return key


def _created(path: Path) -> datetime:
    """When an account was made; those that do not say are the oldest."""
    try:
        created = datetime.fromisoformat(_json(path / "meta.json")["creation_dt"])
    except (CertbotError, KeyError, TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return created if created.tzinfo is not None else created.replace(tzinfo=UTC)


# ---------------------------------------------------------------------- files


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_content(path, MAX_TEXT_BYTES))
    except OSError as error:
        raise CertbotError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CertbotError(f"{path} is not JSON") from None
    if not isinstance(document, dict):
        raise CertbotError(f"{path} is not a JSON object")
    return document


def _content(path: Path, max_bytes: int) -> bytes:
    try:
        return durable.read(path, max_bytes)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CertbotError(f"{directory} cannot be read: {error.strerror}; certbot's files are root's") from None
