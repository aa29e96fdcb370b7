"""The demo's ACME CA: a real Pebble, and what is said of one that does not come."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import stat
from http.client import HTTPSConnection

import dns.message
import dns.query
import pytest
from cryptography import x509

from sniproxy.app.demo.acme_ca import AcmeCa, reserved_ports
from sniproxy.app.demo.programs import StepFailed
from tests.support.pebble import AVAILABLE, CHALLTESTSRV, MISSING, PEBBLE

NAME = "www.demo.test"
PATIENCE_SECONDS = 40

needs_pebble = pytest.mark.skipif(not AVAILABLE, reason=MISSING)


@pytest.fixture
def make(tmp_path):
    """Makes a CA, of these programs instead of the real ones; it is gone when the test is."""
    with contextlib.ExitStack() as stack:

        def make(**programs):
            found = {"pebble": PEBBLE, "pebble-challtestsrv": CHALLTESTSRV, **programs}
            ports = reserved_ports(stack)
            ca = AcmeCa(tmp_path / "pebble", ports, found, validation_port=5001, validity_seconds=77)
            stack.callback(ca.kill)
            return ca, ports

        yield make


def stub(directory, text):
    program = directory / "stub"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


@needs_pebble
def test_it_is_an_acme_ca_with_https_of_its_own(make, tmp_path):
    ca, ports = make()
    ca.start(NAME, PATIENCE_SECONDS)
    trust = ssl.create_default_context(cafile=tmp_path / "pebble" / "ca.pem")
    with contextlib.closing(HTTPSConnection("127.0.0.1", ports.acme, timeout=10, context=trust)) as connection:
        connection.request("GET", "/dir")
        assert "newOrder" in json.loads(connection.getresponse().read())
    assert stat.S_IMODE((tmp_path / "pebble").stat().st_mode) == 0o700


@needs_pebble
def test_its_root_is_a_ca_and_another_one_than_that_of_its_https(make, tmp_path):
    ca, _ = make()
    ca.start(NAME, PATIENCE_SECONDS)
    root = x509.load_pem_x509_certificate(ca.root().encode())
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert root != x509.load_pem_x509_certificate((tmp_path / "pebble" / "ca.pem").read_bytes())


@needs_pebble
def test_every_name_is_this_machine_and_has_no_ipv6_address(make):
    ca, ports = make()
    ca.start(NAME, PATIENCE_SECONDS)

    def look_up(kind):
        query = dns.message.make_query("any.name.test", kind)
        answer = dns.query.udp(query, "127.0.0.1", timeout=10, port=ports.dns).answer
        return [record.to_text() for records in answer for record in records]

    assert look_up("A") == ["127.0.0.1"]
    assert look_up("AAAA") == []


@needs_pebble
def test_it_is_told_how_long_certificates_last(make):
    """2.4 says so when it starts; newer ones have it in profiles."""
    ca, _ = make()
    ca.start(NAME, PATIENCE_SECONDS)
    words = "\n".join(line for program in ca.programs for line in program.words())
    assert "validity period of 77 seconds" in words or "validity" not in words


@needs_pebble
def test_killed_both_are_gone(make):
    ca, ports = make()
    ca.start(NAME, PATIENCE_SECONDS)
    ca.kill()
    assert len(ca.programs) == 2
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    with pytest.raises(ConnectionRefusedError):
        ca.root()


@needs_pebble
def test_pebble_that_ends_is_quoted(make, tmp_path):
    ca, _ = make(pebble=stub(tmp_path, "echo 'bind: address already in use' >&2; exit 1"))
    with pytest.raises(StepFailed, match="pebble ended with exit status 1") as caught:
        ca.start(NAME, PATIENCE_SECONDS)
    assert caught.value.words == ("pebble: bind: address already in use",)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("pebble-challtestsrv", r"the DNS beside pebble has no 127\.0\.0\.1 for www\.demo\.test after 0\.2 s"),
        pytest.param("pebble", r"pebble does not answer on 127\.0\.0\.1:\d+ after 1 s", marks=needs_pebble),
    ],
)
def test_one_that_does_not_come_is_not_waited_for_for_ever(make, tmp_path, program, message):
    ca, _ = make(**{program: stub(tmp_path, "exec sleep 60")})
    # The DNS has to be there for pebble to be waited for.
    with pytest.raises(StepFailed, match=message):
        ca.start(NAME, 0.2 if program == "pebble-challtestsrv" else 1)
