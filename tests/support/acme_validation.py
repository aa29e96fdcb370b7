"""What a CA looks at to believe that a name is ours: tls-alpn-01, http-01, and the old tls-sni-01 and tls-sni-02.

Each check is one connection (http-01: one for each redirect) from one perspective; several may run in threads at once.
They are as strict as Boulder, Let's Encrypt's CA (va/tlsalpn.go, va/http.go), which is stricter than the RFCs. None of
our own code is used here. CheckFailed says what was wrong, with the error type of RFC 8555 section 6.7.
"""

from __future__ import annotations

import socket
import ssl
from hashlib import sha256
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from urllib.parse import urljoin, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

ACME_TLS_1 = "acme-tls/1"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
"""id-pe-acmeIdentifier (RFC 8737 section 3)."""

CHECK_SECONDS = 20.0
"""For connecting and for each answer. Boulder takes 10; a machine busy with tests may need more."""

MAX_BODY_BYTES = 127
"""Boulder reads 128 bytes of an http-01 answer, and takes 128 for too many."""

MAX_REDIRECTS = 10

_SAN_OID = bytes.fromhex("0603551d11")
_CRITICAL = bytes.fromhex("0101ff")


class CheckFailed(Exception):
    """The challenge is not answered as it should be. `type` is `connection`, `tls` or `unauthorized`."""

    def __init__(self, type: str, detail: str) -> None:  # noqa: A002  the problem document's own word
        super().__init__(f"{type}: {detail}")
        self.type = type
        self.detail = detail


def check_tls_alpn_01(
    host: str, port: int, identifier: str, key_authorization: str, *, seconds: float = CHECK_SECONDS
) -> None:
    """RFC 8737 section 3, and RFC 8738 section 6 for an IP address. Raises CheckFailed."""
    address = _address(identifier)
    server_name = identifier if address is None else address.reverse_pointer
    der, alpn = _handshake(host, port, server_name, seconds, alpn=ACME_TLS_1, minimum=ssl.TLSVersion.TLSv1_2)
    if alpn != ACME_TLS_1:
        raise CheckFailed("unauthorized", f"the protocol is {alpn or 'none'}, not {ACME_TLS_1}")
    certificate = _read(der)
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise CheckFailed("unauthorized", "the certificate is not self-signed") from None
    if certificate.subject.public_bytes() != certificate.issuer.public_bytes():
        raise CheckFailed("unauthorized", "the certificate's subject and issuer are not the same bytes")
    extensions = _extensions(certificate)
    _check_only_name(certificate, extensions, identifier)
    try:
        extension = extensions.get_extension_for_oid(ACME_IDENTIFIER)
    except x509.ExtensionNotFound:
        raise CheckFailed("unauthorized", "the certificate has no acmeIdentifier extension") from None
    if not extension.critical:
        raise CheckFailed("unauthorized", "the acmeIdentifier extension is not critical")
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    encoded = extension.value.value
    if len(encoded) != 34 or encoded[:2] != b"\x04\x20":
        raise CheckFailed("unauthorized", "the acmeIdentifier extension is not an OCTET STRING of 32 bytes")
    if encoded[2:] != sha256(key_authorization.encode()).digest():
        raise CheckFailed("unauthorized", "the acmeIdentifier extension has the digest of something else")


def check_http_01(
    host: str,
    port: int,
    identifier: str,
    token: str,
    key_authorization: str,
    *,
    tls_port: int | None = None,
    seconds: float = CHECK_SECONDS,
) -> None:
    """RFC 8555 section 8.3. All names of redirects are at `host`, their port 443 at `tls_port`. Raises CheckFailed."""
    authority = f"[{identifier}]" if ":" in identifier else identifier
    url = f"http://{authority}/.well-known/acme-challenge/{token}"
    for _ in range(MAX_REDIRECTS + 1):
        status, location, body = _fetch(host, {"http": port, "https": tls_port}, url, seconds)
        if status not in {301, 302, 303, 307, 308} or location is None:
            break
        url = _redirected(url, location, {80, 443, port, tls_port})
    else:
        raise CheckFailed("connection", "too many redirects")
    if len(body) > MAX_BODY_BYTES:
        raise CheckFailed("unauthorized", f"{url}: more than {MAX_BODY_BYTES} bytes")
    if status != 200:
        raise CheckFailed("unauthorized", f"{url}: {status}")
    if body.rstrip(b" \t\r\n") != key_authorization.encode():
        raise CheckFailed("unauthorized", f"{url}: not the key authorization")


def tls_sni_01_names(key_authorization: str, n: int = 1) -> list[str]:
    """The names of tls-sni-01 (draft-ietf-acme-acme-01 section 7.3): Z0, and n - 1 more, each the hash of the last."""
    digests = [sha256(key_authorization.encode()).hexdigest()]
    while len(digests) < n:
        digests.append(sha256(digests[-1].encode()).hexdigest())
    return [f"{digest[:32]}.{digest[32:]}.acme.invalid" for digest in digests]


def tls_sni_02_names(token: str, key_authorization: str) -> tuple[str, str]:
    """SAN A and SAN B of tls-sni-02 (draft-ietf-acme-acme-09 section 8.3)."""
    a, b = (sha256(text.encode()).hexdigest() for text in (token, key_authorization))
    return f"{a[:32]}.{a[32:]}.token.acme.invalid", f"{b[:32]}.{b[32:]}.ka.acme.invalid"


def check_tls_sni_01(
    host: str, port: int, key_authorization: str, *, n: int = 1, seconds: float = CHECK_SECONDS
) -> None:
    """As Boulder did it until 2019: asked for the name, the certificate has it among others. Raises CheckFailed."""
    for name in tls_sni_01_names(key_authorization, n):
        der, _ = _handshake(host, port, name, seconds)
        if name not in map(str.lower, _dns_names(_read(der))):
            raise CheckFailed("unauthorized", f"asked for {name}, the certificate is for other names")


def check_tls_sni_02(
    host: str, port: int, token: str, key_authorization: str, *, seconds: float = CHECK_SECONDS
) -> None:
    """Asked for SAN A, the certificate has A and B and nothing else, in any order and case. Raises CheckFailed."""
    names = tls_sni_02_names(token, key_authorization)
    der, _ = _handshake(host, port, names[0], seconds)
    if sorted(map(str.lower, _dns_names(_read(der)))) != sorted(names):
        raise CheckFailed("unauthorized", f"asked for {names[0]}, the certificate is not for exactly the two names")


def _handshake(
    host: str,
    port: int,
    server_name: str,
    seconds: float,
    *,
    alpn: str | None = None,
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
) -> tuple[bytes, str | None]:
    """The certificate as DER, and the protocol that was chosen. Nothing is sent after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = minimum
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    try:
        with (
            socket.create_connection((host, port), timeout=seconds) as connection,
            context.wrap_socket(connection, server_hostname=server_name) as tls,
        ):
            der = tls.getpeercert(binary_form=True)
            chosen = tls.selected_alpn_protocol()
    except ssl.SSLError as error:
        raise CheckFailed("tls", f"{server_name}: {error.reason or error}") from error
    except OSError as error:
        raise CheckFailed("connection", f"{server_name}: {error}") from error
    if der is None:
        raise CheckFailed("unauthorized", "no certificate was shown")
    return der, chosen


def _read(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CheckFailed("unauthorized", f"the certificate cannot be read: {error}") from error


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except x509.DuplicateExtension as error:
        raise CheckFailed("unauthorized", f"the certificate has an extension twice: {error.oid}") from error
    except ValueError as error:
        raise CheckFailed("unauthorized", f"an extension cannot be read: {error}") from error


def _check_only_name(certificate: x509.Certificate, extensions: x509.Extensions, identifier: str) -> None:
    """The subjectAltName has the identifier and nothing else, in these very bytes."""
    try:
        extension = extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        raise CheckFailed("unauthorized", "the certificate has no subjectAltName") from None
    address = _address(identifier)
    name = b"\x82" + _counted(identifier.encode()) if address is None else b"\x87" + _counted(address.packed)
    alternatives = b"\x30" + _counted(name)
    # The parser does not keep the bytes that were sent, so they are looked for where they have to be.
    sent = _SAN_OID + (_CRITICAL if extension.critical else b"") + b"\x04" + _counted(alternatives)
    if sent not in certificate.tbs_certificate_bytes:
        raise CheckFailed("unauthorized", f"the certificate is not for exactly {identifier}")


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _counted(content: bytes) -> bytes:
    """Length and content in DER; names have up to 253 bytes, so two bytes of length will do."""
    size = len(content)
    if size < 0x80:
        return bytes([size]) + content
    return (bytes([0x81, size]) if size <= 0xFF else b"\x82" + size.to_bytes(2, "big")) + content


def _address(identifier: str):
    try:
        return ip_address(identifier)
    except ValueError:
        return None


def _fetch(host: str, ports: dict[str, int | None], url: str, seconds: float) -> tuple[int, str | None, bytes]:
    """Status, Location and the beginning of the body. No certificate is checked, and none asked for."""
    parts = urlsplit(url)
    port = ports[parts.scheme]
    if port is None:
        raise CheckFailed("connection", f"{url}: nothing is known to listen there")
    connection = HTTPConnection(host, port, timeout=seconds)
    try:
        connection.connect()
        if parts.scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path or "/"
        headers = {"User-Agent": "test CA", "Accept": "*/*", "Connection": "close", "Host": parts.netloc}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Location"], response.read(MAX_BODY_BYTES + 1)
    except (OSError, HTTPException) as error:
        raise CheckFailed("connection", f"{url}: {error}") from error
    finally:
        connection.close()


def _redirected(url: str, location: str, ports: set[int | None]) -> str:
    """Where a redirect leads, if that is a place to go."""
    target = urljoin(url, location)
    parts = urlsplit(target)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise CheckFailed("connection", f"redirected to {target}, which is neither http nor https")
    if parts.port is not None and parts.port not in ports:
        raise CheckFailed("connection", f"redirected to port {parts.port}; only 80 and 443 are allowed")
    if _address(parts.hostname) is not None:
        raise CheckFailed("connection", f"redirected to {parts.hostname}; only names are allowed")
    return target
