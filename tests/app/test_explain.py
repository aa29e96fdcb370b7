"""What would become of a connection: the running proxy's own reader and router. Its printing is in tests/cli."""

from __future__ import annotations

import pytest

from sniproxy.app.explain import Explainer, Explanation
from sniproxy.config import parse
from sniproxy.model import HelloKind
from sniproxy.wire.proxy_header import encode_v1, encode_v2
from tests.support import hellos, vectors

TEXT = """
[proxy]
listen = ["127.0.0.1:8443"]
default_backend = "web"
not_tls = "ssh"
accept_proxy_from = ["10.0.0.0/8"]

[backends.web]
servers = ["127.0.0.1:8001"]
[backends.ssh]
servers = ["127.0.0.1:8002"]
[backends.office]
servers = ["127.0.0.1:8003"]

[[routes]]
sni = ["office.example.com"]
backend = "office"
allow = ["192.0.2.0/24"]
"""
CLIENT = "198.51.100.1"


@pytest.fixture
def explainer() -> Explainer:
    return Explainer(parse(TEXT, file="sniproxy.toml"))


def test_as_a_dict_it_has_these_keys() -> None:
    """Contract: {"kind","sni","alpn","backend","reason"}, and the fingerprint."""
    explanation = Explanation(kind=HelloKind.TLS, sni="a", alpn=("h2",), backend=None, reason="why")

    assert explanation.as_dict() == {
        "kind": "tls",
        "sni": "a",
        "alpn": ["h2"],
        "backend": None,
        "reason": "why",
        "ja4": None,
    }


@pytest.mark.parametrize(("sni", "kind"), [(None, "no_sni"), ("", "no_sni"), (".", "no_sni"), ("a.example", "tls")])
def test_a_name_that_is_none(explainer: Explainer, sni: str | None, kind: str) -> None:
    """Contract: `no_sni` where none was sent; an empty one is none."""
    assert explainer.name(sni, (), CLIENT).kind == kind


def test_a_name_that_is_no_host_name_goes_the_way_of_no_name(explainer: Explainer) -> None:
    """RFC 6066 section 3: an address is no host name; what was sent is told all the same."""
    explanation = explainer.name("192.0.2.1", (), CLIENT)

    assert (explanation.kind, explanation.sni, explanation.backend) == (HelloKind.TLS, "192.0.2.1", "web")
    assert explanation.reason.startswith("the server name is not a host name")


def test_a_challenge_says_that_it_depends(explainer: Explainer) -> None:
    """Contract: a challenge is answered only while one of ours is pending; else acme-tls/1 follows its route."""
    explanation = explainer.name("a.example", ("acme-tls/1",), CLIENT)

    assert explanation.backend == "web"
    assert "while a validation of ours is pending" in explanation.reason


def test_two_protocols_are_no_challenge(explainer: Explainer) -> None:
    """Contract: only a list that is exactly ["acme-tls/1"] is one; ["h2","acme-tls/1"] follows its route."""
    assert "pending" not in explainer.name("a.example", ("h2", "acme-tls/1"), CLIENT).reason


def test_not_tls_may_have_a_backend(explainer: Explainer) -> None:
    """`not_tls`: "reject", or a backend (SSH, say)."""
    explanation = explainer.first_bytes(b"SSH-2.0-OpenSSH_9.2\r\n", CLIENT)

    assert (explanation.kind, explanation.backend) == (HelloKind.NOT_TLS, "ssh")


@pytest.mark.parametrize("vector", vectors.client_hellos(), ids=lambda vector: vector.name)
def test_recorded_hellos(explainer: Explainer, vector: vectors.HelloVector) -> None:
    """Each real client's first flight: its name, its protocols, its fingerprint."""
    explanation = explainer.first_bytes(vector.stream, CLIENT)

    assert explanation.kind == (HelloKind.NO_SNI if vector.normal_name is None else HelloKind.TLS)
    assert explanation.sni == vector.normal_name
    assert explanation.alpn == tuple(protocol.decode("latin-1") for protocol in vector.alpn)
    assert explanation.ja4 == vector.ja4


@pytest.mark.parametrize("cut", [0, 1, 5, 60])
def test_a_beginning_is_incomplete(explainer: Explainer, cut: int) -> None:
    """Contract, `kind`: incomplete. Sent these bytes and so far nothing else."""
    assert explainer.first_bytes(hellos.hello()[:cut], CLIENT).kind is HelloKind.INCOMPLETE


HEADERS = {
    "v1": encode_v1(("192.0.2.7", 1), ("192.0.2.8", 443)),
    "v2": encode_v2(("192.0.2.7", 1), ("192.0.2.8", 443), authority=None, alpn=None, unique_id=b"x"),
}


@pytest.mark.parametrize("version", HEADERS)
def test_a_load_balancers_header_tells_the_client(explainer: Explainer, version: str) -> None:
    """`accept_proxy_from`: they must send a PROXY header, and routes go by the client in it."""
    flight = HEADERS[version] + hellos.hello("office.example.com")

    assert explainer.first_bytes(flight, "10.0.0.1").backend == "office"


def test_a_header_from_others_is_not_read(explainer: Explainer) -> None:
    """… and from nobody else is it read."""
    assert explainer.first_bytes(HEADERS["v1"], CLIENT).kind is HelloKind.NOT_TLS


def test_a_missing_header_is_malformed(explainer: Explainer) -> None:
    """Contract, `kind`: of the six, malformed is what the proxy's bad_proxy_header is."""
    explanation = explainer.first_bytes(hellos.hello(), "10.0.0.1")

    assert (explanation.kind, explanation.backend) == (HelloKind.MALFORMED, None)
    assert "this sender must send one" in explanation.reason


def test_a_header_in_part_is_incomplete(explainer: Explainer) -> None:
    """As the hello."""
    assert explainer.first_bytes(HEADERS["v2"][:20], "10.0.0.1").kind is HelloKind.INCOMPLETE
