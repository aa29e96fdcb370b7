"""The sections of certificates: defaults and ranges (contract section 2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sniproxy.config.certificates import Acme, BackendRef, Certificate, Haproxy
from sniproxy.model import TcpAddress, UnixAddress


def test_acme_has_these_defaults():
    """Section 2: [acme]. Terms are agreed to by writing it, and by nothing else."""
    assert dict(Acme()) == {
        "directory": "https://acme-v02.api.letsencrypt.org/directory",
        "dry_run_directory": "",
        "ca_file": None,
        "email": "",
        "agree_to_terms": False,
        "state_dir": Path("/var/lib/sniproxy"),
        "challenges": ("tls-alpn-01", "http-01"),
        "key_type": "ecdsa-p256",
        "profile": "",
        "preferred_chain": "",
        "eab_kid": "",
        "eab_hmac_file": None,
    }


def test_haproxy_has_these_defaults():
    """Section 2: [haproxy]."""
    assert dict(Haproxy()) == {
        "certificate_dir": Path("/srv/certs"),
        "runtime_sockets": (UnixAddress("/run/haproxy/admin.sock"),),
        "verify": BackendRef("haproxy"),
        "reload_command": (),
    }


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
        ("https://ca.example/acme/directory", "https://ca.example/acme/directory"),
        ("http://127.0.0.1:14000/dir", "http://127.0.0.1:14000/dir"),
        ("http://[::1]/dir", "http://[::1]/dir"),
        ("http://localhost/dir", "http://localhost/dir"),
    ],
)
def test_a_directory_is_a_name_or_a_url(value, url):
    """Section 2: "letsencrypt", "letsencrypt-staging", or a directory URL."""
    assert Acme.model_validate({"directory": value}).directory == url


@pytest.mark.parametrize(
    ("value", "verify"),
    [
        ("off", None),
        ("backend:web", BackendRef("web")),
        ("127.0.0.1:4443", TcpAddress("127.0.0.1", 4443)),
        ("unix:/run/haproxy/sniproxy.sock", UnixAddress("/run/haproxy/sniproxy.sock")),
    ],
)
def test_verify_is_a_backend_an_address_or_off(value, verify):
    """Section 2: `verify`: handshake here; or an address, or "off"."""
    assert Haproxy.model_validate({"verify": value}).verify == verify


def test_a_backend_prints_as_it_is_written():
    """Section 2: `verify` = "backend:haproxy"."""
    assert str(BackendRef("haproxy")) == "backend:haproxy"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (Acme, "directory", "letsencypt"),
        (Acme, "directory", "http://ca.example/dir"),
        (Acme, "directory", "ftp://ca.example/dir"),
        (Acme, "directory", "https://"),
        (Acme, "directory", "https://a b/"),
        (Acme, "directory", "https://[::/"),
        (Acme, "directory", 5),
        (Acme, "ca_file", "ca.pem"),
        (Acme, "email", "admin"),
        (Acme, "email", "mailto:a@example.com"),
        (Acme, "email", "a@example.com, b@example.com"),
        (Acme, "agree_to_terms", "yes"),
        (Acme, "state_dir", ""),
        (Acme, "challenges", ["dns-01"]),
        (Acme, "challenges", []),
        (Acme, "key_type", "ed25519"),
        (Acme, "profile", "a b"),
        (Certificate, "names", ["*.example.com"]),
        (Certificate, "names", []),
        (Certificate, "name", "../x"),
        (Certificate, "name", ".x"),
        (Certificate, "name", ""),
        (Certificate, "name", "x" * 201),
        (Certificate, "challenges", []),
        (Haproxy, "certificate_dir", ""),
        (Haproxy, "runtime_sockets", ["admin.sock"]),
        (Haproxy, "verify", "haproxy"),
        (Haproxy, "verify", ":443"),
        (Haproxy, "reload_command", "systemctl reload haproxy"),
    ],
)
def test_values_out_of_range_are_refused(section, key, value):
    """Section 2: what each key allows."""
    with pytest.raises(ValidationError) as caught:
        section.model_validate({key: value})
    assert caught.value.errors()[0]["loc"][0] == key


@pytest.mark.parametrize("section", [Acme, Certificate, Haproxy])
def test_every_key_is_described(section):
    """The reference is made from these."""
    for name, field in section.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
