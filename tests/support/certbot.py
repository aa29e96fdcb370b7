"""A directory as certbot 5.8 leaves it, made by hand: accounts, lineages with their links, renewal configurations."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import urlsafe_b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sniproxy.bundle import Bundle, generate_key
from tests.support.certificates import NOW, Signer, certificate, pem

if TYPE_CHECKING:
    from datetime import timedelta
    from pathlib import Path
    from typing import Any

    from sniproxy.bundle import PrivateKey

SERVER = "https://acme-v02.api.letsencrypt.org/directory"

README = "This directory contains your keys and certificates.\n"


class CertbotTree:
    """`root` is what certbot calls --config-dir."""

    def __init__(self, root: Path, *, now: datetime = NOW) -> None:
        self.root = root
        self.now = now
        self.intermediate = Signer("R10", Signer("ISRG Root X1"))
        root.mkdir(mode=0o755, exist_ok=True)
        for name, mode in (("accounts", 0o700), ("archive", 0o700), ("live", 0o700), ("renewal", 0o755)):
            (root / name).mkdir(mode)
        for kind in ("pre", "deploy", "post"):
            (root / "renewal-hooks" / kind).mkdir(parents=True)
        (root / "live" / "README").write_text(README)

    def account(
        self,
        key: PrivateKey | None = None,
        *,
        server: str = SERVER,
        uri: str | None = "https://acme-v02.api.letsencrypt.org/acme/acct/1234567",
        created: str = "2024-03-01T12:00:00Z",
        body: dict[str, Any] | None = None,
    ) -> str:
        """Adds an account; returns its id."""
        key = key or generate_key("ecdsa-p256")
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        identity = hashlib.md5(public).hexdigest()
        url = urlsplit(server)
        place = self.root / "accounts" / f"{url.netloc}{url.path}" / identity
        place.mkdir(mode=0o700, parents=True)
        registration = {"body": body or {}} | ({"uri": uri} if uri is not None else {})
        for name, document, mode in (
            ("private_key.json", jwk(key), 0o400),
            ("regr.json", registration, 0o644),
            ("meta.json", {"creation_dt": created, "creation_host": "web1.example.com"}, 0o644),
        ):
            (place / name).write_text(json.dumps(document))
            (place / name).chmod(mode)
        return identity

    def lineage(
        self,
        name: str,
        names: tuple[str, ...] = (),
        *,
        key_type: str = "ecdsa-p256",
        age: timedelta | None = None,
        lifetime: timedelta | None = None,
        server: str | None = SERVER,
        account: str = "0" * 32,
        absolute: bool = False,
        other_key: PrivateKey | None = None,
        **parameters: str,
    ) -> Bundle:
        """Adds a lineage, or a successor to one that is there; returns what it is now.

        age: since it was issued. absolute: links as certbot before 0.2 made them. other_key: what stands in privkey.pem
        in place of its own. parameters: of [renewalparams]; None for one that should not be there.
        """
        begins = self.now - age if age is not None else self.now
        key = generate_key(key_type)
        options = {} if lifetime is None else {"ends": begins + lifetime}
        leaf = certificate(names or (name,), key=key, signer=self.intermediate, begins=begins, **options)
        bundle = Bundle(key, (leaf, *self.intermediate.chain))
        archive, live = self.root / "archive" / name, self.root / "live" / name
        for directory in (archive, live):
            directory.mkdir(mode=0o755, exist_ok=True)
        (live / "README").write_text(README)
        version = len(list(archive.glob("cert*.pem"))) + 1
        for kind, content in (
            ("cert", pem(leaf)),
            ("privkey", pem(other_key or key)),
            ("chain", pem(*self.intermediate.chain)),
            ("fullchain", pem(leaf, *self.intermediate.chain)),
        ):
            target = archive / f"{kind}{version}.pem"
            target.write_bytes(content)
            target.chmod(0o600 if kind == "privkey" else 0o644)
            link = live / f"{kind}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(target if absolute else os.path.relpath(target, live))
        known = {
            "account": account,
            "authenticator": "standalone",
            "server": server,
            "key_type": "rsa" if key_type.startswith("rsa") else "ecdsa",
        }
        self.renewal(name, **(known | parameters))
        return bundle

    def renewal(self, name: str, **parameters: str | None) -> Path:
        """Writes renewal/NAME.conf."""
        path = self.root / "renewal" / f"{name}.conf"
        four = "".join(
            f"{kind} = {self.root}/live/{name}/{kind}.pem\n" for kind in ("cert", "privkey", "chain", "fullchain")
        )
        written = "".join(f"{key} = {value}\n" for key, value in parameters.items() if value is not None)
        path.write_text(
            f"# renew_before_expiry = 30 days\nversion = 5.8.0\narchive_dir = {self.root}/archive/{name}\n{four}\n"
            f"# Options used in the renewal process\n[renewalparams]\n{written}"
        )
        return path


def jwk(key: PrivateKey) -> dict[str, str]:
    """A private key as RFC 7517 has it, without the library's help; josepy writes its members in this order."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        public = numbers.public_numbers
        members = {
            "n": public.n,
            "e": public.e,
            "d": numbers.d,
            "p": numbers.p,
            "q": numbers.q,
            "dp": numbers.dmp1,
            "dq": numbers.dmq1,
            "qi": numbers.iqmp,
        }
        return {name: _number(value) for name, value in members.items()} | {"kty": "RSA"}
    size = (key.key_size + 7) // 8
    point = key.public_key().public_numbers()
    curve = {ec.SECP256R1: "P-256", ec.SECP384R1: "P-384", ec.SECP521R1: "P-521"}[type(key.curve)]
    return {
        "crv": curve,
        "d": _number(key.private_numbers().private_value, size),
        "kty": "EC",
        "x": _number(point.x, size),
        "y": _number(point.y, size),
    }


def utc_now() -> datetime:
    """For trees that a command looks at, which has the real time."""
    return datetime.now(UTC).replace(microsecond=0)


def snapshot(root: Path) -> dict[str, tuple[int, bytes, int]]:
    """Everything there is, with contents, modes and times: to see that nothing was touched."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            bytes(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
            path.lstat().st_mtime_ns,
        )
        for path in sorted(root.rglob("*"))
    }


def _number(value: int, size: int = 0) -> str:
    """Base64urlUInt, and for coordinates as many bytes as the curve has (RFC 7518 sections 2 and 6.2.1)."""
    return urlsafe_b64encode(value.to_bytes(size or (value.bit_length() + 7) // 8)).decode().rstrip("=")
