"""An ACME client that is not ours, to try CAs out with: requests are signed and sent by the `acme` package.

And what answers for it: a TLS and an HTTP server that show what the test has made, right or wrong.
"""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self, TypeVar

from acme import client, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from josepy.b64 import b64encode
from josepy.interfaces import JSONDeSerializable
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from tests.support.processes import LOCALHOST, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import requests
    from acme.errors import ConflictError

ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
"""id-pe-acmeIdentifier (RFC 8737 section 3)."""

ACME_TLS_1 = "acme-tls/1"
T = TypeVar("T")
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_REQUEST_SECONDS = 20


@dataclass(frozen=True)
class Asked:
    """A challenge as the client has to answer it."""

    type: str
    url: str
    identifier: str
    token: str
    key_authorization: str = field(repr=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False)


class _Json(JSONDeSerializable):
    """A payload, as it is."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._payload = payload

    def to_partial_json(self) -> Any:
        return dict(self._payload)

    @classmethod
    def from_json(cls, jobj: Any) -> _Json:
        return cls(jobj)


class AcmeClient:
    """One account at one CA. Raises the `acme` package's errors: `messages.Error`, and ConflictError for any 409."""

    def __init__(self, directory_url: str, *, ca_file: Path | None = None, retries: int = 20) -> None:
        self.key = JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        self._retries = retries
        trust: Any = str(ca_file) if ca_file else True
        self.net = client.ClientNetwork(self.key, alg=ES256, verify_ssl=trust, timeout=_REQUEST_SECONDS)
        self.net.session.trust_env = False
        self.directory = client.ClientV2.get_directory(directory_url, self.net)
        self.acme = client.ClientV2(self.directory, self.net)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.net.session.close()

    def register(self, *, eab: tuple[str, str] | None = None, contact: Sequence[str] = ()) -> str:
        """A new account; returns its URL. `eab` is a key id and its MAC key, base64url."""
        binding = None
        if eab is not None:
            binding = messages.ExternalAccountBinding.from_data(self.key.public_key(), *eab, self.directory)
        account = messages.NewRegistration(
            contact=tuple(contact), terms_of_service_agreed=True, external_account_binding=binding
        )
        return str(self._retried(lambda: self.acme.new_account(account)).uri)

    def post(self, url: str, payload: Mapping[str, Any] | None) -> requests.Response:
        """One signed request, again with another nonce as long as it is badNonce; None is POST-as-GET."""
        signed = _Json(payload) if payload is not None else None
        return self._retried(lambda: self.acme._post(url, signed))

    def _retried(self, call: Callable[[], T]) -> T:
        for _ in range(self._retries):
            try:
                return call()
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        raise AssertionError(f"badNonce {self._retries} times")

    def get(self, url: str) -> dict[str, Any]:
        """An object of the CA, by POST-as-GET."""
        return dict(self.post(url, None).json())

    def new_order(self, names: Iterable[str], **fields: Any) -> tuple[str, dict[str, Any]]:
        """The URL of a new order, and the order. `fields` are more of its fields: `profile`, `replaces`."""
        identifiers = [
            {"type": "ip" if isinstance(general_name(name), x509.IPAddress) else "dns", "value": name} for name in names
        ]
        response = self.post(self.directory["newOrder"], {"identifiers": identifiers, **fields})
        assert response.status_code == 201, response.status_code
        return response.headers["Location"], response.json()

    def challenges(self, order: Mapping[str, Any], type: str) -> list[Asked]:  # noqa: A002  the challenge's own word
        """The challenges of this type of all authorizations that are pending."""
        asked = []
        for authorization in map(self.get, order["authorizations"]):
            if authorization["status"] != "pending":
                continue
            (found,) = (challenge for challenge in authorization["challenges"] if challenge["type"] == type)
            token = found["token"]
            thumbprint = b64encode(self.key.thumbprint()).decode()
            identifier = authorization["identifier"]["value"]
            asked.append(Asked(type, found["url"], identifier, token, f"{token}.{thumbprint}", found))
        return asked

    def settled(self, url: str, *statuses: str) -> dict[str, Any]:
        """An order or authorization once it has one of these statuses."""

        def found() -> dict[str, Any] | None:
            fetched = self.get(url)
            return fetched if fetched["status"] in statuses else None

        return until(found, f"{url} is {' or '.join(statuses)}")

    def finalize(self, url: str, names: Sequence[str], key: PrivateKey | None = None) -> str:
        """The chain of a certificate, as PEM, for an order that is ready."""
        request = signing_request(key or new_key(), names)
        self.post(self.get(url)["finalize"], {"csr": b64encode(request).decode()})
        order = self.settled(url, "valid", "invalid")
        assert order["status"] == "valid", order
        return self.post(order["certificate"], None).text

    def obtain(
        self,
        names: Sequence[str],
        *,
        type: str = "tls-alpn-01",  # noqa: A002  the challenge's own word
        show: Callable[[Asked], object] = lambda asked: None,
        key: PrivateKey | None = None,
        **fields: Any,
    ) -> str:
        """From a new order to a chain in PEM. `show` makes the answer visible before the CA is told to look."""
        url, order = self.new_order(names, **fields)
        for asked in self.challenges(order, type):
            show(asked)
            self.post(asked.url, {})
        # Not every CA makes the order invalid with its authorization, though it should (RFC 8555 section 7.1.6).
        authorizations = [self.settled(url, "valid", "invalid") for url in order["authorizations"]]
        if any(authorization["status"] == "invalid" for authorization in authorizations):
            raise OrderInvalid(authorizations)
        self.settled(url, "ready")
        return self.finalize(url, names, key)


class OrderInvalid(Exception):
    """An authorization failed; they are all in `authorizations`."""

    def __init__(self, authorizations: list[dict[str, Any]]) -> None:
        self.authorizations = authorizations
        challenges = (challenge for found in authorizations for challenge in found["challenges"])
        self.errors = [challenge["error"] for challenge in challenges if "error" in challenge]
        super().__init__(json.dumps(self.errors))


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def signing_request(key: PrivateKey, names: Sequence[str]) -> bytes:
    """A CSR as DER."""
    alternatives = x509.SubjectAlternativeName(list(map(general_name, names)))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Its DNS names and addresses, in its own order."""
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in alternatives)


def problem_type(error: messages.Error | ConflictError) -> str:
    """The last part of a problem's type: `rateLimited`."""
    return str(error.typ).rpartition(":")[2] if isinstance(error, messages.Error) else "conflict"


def challenge_certificate(
    names: Sequence[str],
    key_authorization: str | None = None,
    *,
    critical: bool = True,
    issuer: str | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> bytes:
    """Key and certificate in PEM, as tls-alpn-01 wants it (RFC 8737 section 3) unless told otherwise."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_common_name("challenge"))
        .issuer_name(_common_name(issuer or "challenge"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(list(map(general_name, names))), critical=False)
    )
    if key_authorization is not None:
        digest = b"\x04\x20" + sha256(key_authorization.encode()).digest()
        builder = builder.add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, digest), critical)
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    certificate = builder.sign(signer or key, hashes.SHA256())
    return _pem(key, certificate.public_bytes(Encoding.DER))


class TlsAnswers:
    """A TLS server of its own thread that shows each server name the certificate it was given for it.

    A name without one gets an alert.
    """

    def __init__(self, port: int = 0, *, host: str = LOCALHOST, alpn: Sequence[str] = (ACME_TLS_1,)) -> None:
        self._alpn = alpn
        self._contexts: dict[str | None, ssl.SSLContext] = {}
        self._socket = socket.create_server((host, port))
        self.host, self.port = self._socket.getsockname()[:2]
        self.seen: list[str | None] = []
        """The server names of its connections, as they came."""
        self._front = self._context()
        self._front.sni_callback = self._choose
        self._thread = threading.Thread(target=self._serve, name="tls answers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def show(self, pem: bytes, *names: str) -> None:
        """The key and certificate for these server names."""
        context = self._context()
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # mode 0600
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
        self._contexts.update(dict.fromkeys(names, context))

    def answer(self, asked: Asked) -> None:
        """Shows what tls-alpn-01 wants to see."""
        name = general_name(asked.identifier)
        server_name = name.value.reverse_pointer if isinstance(name, x509.IPAddress) else asked.identifier
        self.show(challenge_certificate([asked.identifier], asked.key_authorization), server_name)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        self.seen.append(name)
        if name not in self._contexts:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = self._contexts[name]
        return None

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            accepted.settimeout(_REQUEST_SECONDS)
            try:
                with self._front.wrap_socket(accepted, server_side=True) as connection:
                    connection.recv(1)
            except OSError:  # whoever has seen the certificate leaves as it likes
                accepted.close()


class HttpAnswers:
    """An HTTP server of its own thread: `pages` by path, and `redirects` to other URLs; all else is 404."""

    def __init__(self, port: int = 0, *, host: str = LOCALHOST) -> None:
        self.pages: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.seen: list[tuple[str, str]] = []
        """The Host header and the path of its requests."""
        answers = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers.seen.append((self.headers["Host"], self.path))
                redirect, page = answers.redirects.get(self.path), answers.pages.get(self.path)
                self.send_response(302 if redirect else 404 if page is None else 200)
                if redirect:
                    self.send_header("Location", redirect)
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
                """It says nothing."""

        self._server = ThreadingHTTPServer((host, port), Answer)
        self.host, self.port = self._server.server_address[0], self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, asked: Asked) -> None:
        """Shows what http-01 wants to see (RFC 8555 section 8.3)."""
        self.pages[f"/.well-known/acme-challenge/{asked.token}"] = asked.key_authorization.encode()


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey, certificate: bytes) -> bytes:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + ssl.DER_cert_to_PEM_cert(certificate).encode()
