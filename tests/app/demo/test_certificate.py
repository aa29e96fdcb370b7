"""The certificate of the demo's ACME CA."""

from __future__ import annotations

import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sniproxy.app.demo.certificate import private_ca

ADDRESS = "127.0.0.1"


@pytest.fixture
def issued(tmp_path):
    return private_ca(ADDRESS, tmp_path)


def test_one_file_has_key_and_certificate(issued):
    pem = issued.certificate_file.read_bytes()
    key, leaf = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert key.public_key() == leaf.public_key()
    assert stat.S_IMODE(issued.certificate_file.stat().st_mode) == 0o600


def test_a_strict_client_takes_it(issued):
    """Also with what newer versions of Python ask for by default (RFC 5280, to the letter)."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(issued.certificate_file)
    client = ssl.create_default_context(cafile=issued.ca_file)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname=ADDRESS),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    certificate = ends[0].getpeercert()
    assert certificate is not None
    assert ("IP Address", ADDRESS) in certificate["subjectAltName"]


def test_the_key_of_the_ca_is_nowhere(issued, tmp_path):
    assert b"PRIVATE" not in issued.ca_file.read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(issued)


def test_no_two_are_the_same(issued, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    assert private_ca(ADDRESS, other).ca_file.read_bytes() != issued.ca_file.read_bytes()
