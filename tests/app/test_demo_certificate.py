"""The certificate of the demo."""

from __future__ import annotations

import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sniproxy.app.demo_certificate import private_ca

NAMES = ("www.demo.test", "internal.demo.test")


@pytest.fixture
def issued(tmp_path):
    directory = tmp_path / "certs"
    directory.mkdir()
    return private_ca(NAMES, directory)


def test_the_bundle_is_what_haproxy_reads(issued):
    pem = issued.bundle.read_bytes()
    key, leaf = load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert key.public_key() == leaf.public_key()
    assert issued.bundle.name == "www.demo.test.pem"
    assert stat.S_IMODE(issued.bundle.stat().st_mode) == 0o600
    assert list(issued.bundle.parent.iterdir()) == [issued.bundle], "crt DIR reads everything in there"


@pytest.mark.parametrize("name", NAMES)
def test_a_strict_client_takes_it(issued, name):
    """Also with what newer versions of Python ask for by default (RFC 5280, to the letter)."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(issued.bundle)
    client = ssl.create_default_context(cafile=issued.ca_file)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname=name),
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
    assert ("DNS", name) in certificate["subjectAltName"]


def test_the_key_of_the_ca_is_nowhere(issued):
    assert b"PRIVATE" not in issued.ca_file.read_bytes()


def test_no_two_are_the_same(issued, tmp_path):
    other = tmp_path / "other" / "certs"
    other.mkdir(parents=True)
    assert private_ca(NAMES, other).ca_file.read_bytes() != issued.ca_file.read_bytes()
