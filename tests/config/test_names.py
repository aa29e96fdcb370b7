"""Server names (contract section 2: exact; one label; any depth and the name itself)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.names import certificate_name, host_name, name_pattern

LABEL_63 = "a" * 63


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("git.example.com", "git.example.com"),
        ("*.dev.example.com", "*.dev.example.com"),
        (".example.net", ".example.net"),
        ("GIT.Example.COM", "git.example.com"),
        ("git.example.com.", "git.example.com"),
        (".Example.NET.", ".example.net"),
        ("localhost", "localhost"),
        ("_dmarc.ex_ample.com", "_dmarc.ex_ample.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.BÜCHER.example", "*.xn--bcher-kva.example"),
        ("_x.bücher。example", "_x.xn--bcher-kva.example"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        (f"{LABEL_63}.example", f"{LABEL_63}.example"),
    ],
)
def test_patterns_take_the_form_of_the_wire(text, pattern):
    """Section 2: `sni`; what the wire carries is lower case A-labels without a trailing dot (section 1, `explain`)."""
    assert name_pattern(text) == pattern


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("git.*.example.com", "a star stands for one whole label, the first"),
        ("g*.example.com", "a star stands for"),
        ("*.*.example.com", "a star stands for"),
        ("**", "a star stands for"),
        ("*", "goes to proxy.default_backend"),
        (".", "goes to proxy.default_backend"),
        ("", "is not a name"),
        (5, "is not a name"),
        ("192.0.2.1", "is an IP address; .* proxy.no_sni"),
        ("2001:db8::1", "is an IP address"),
        ("[2001:db8::1]", "is an IP address"),
        ("a..example", "empty label"),
        ("..example", "empty label"),
        ("a.example..", "empty label"),
        (f"{LABEL_63}a.example", "longer than 63"),
        (".".join([LABEL_63] * 4), "longer than 253"),
        ("*." + ".".join([LABEL_63] * 3 + ["a" * 61]), "can match no name"),
        ("-a.example", "hyphen"),
        ("a-.example", "hyphen"),
        ("a b.example", 'has " " in it'),
        ("a.example:443", "has a port"),
        ("https://a.example/", "write the host name alone"),
        ("a.123", "ends in the number 123"),
        ("☃\u200d.example", "internationalized"),
    ],
)
def test_anything_else_is_no_pattern(value, reason):
    """Section 2: `sni`; the message says why."""
    with pytest.raises(ValueError, match=reason):
        name_pattern(value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("WWW.example.com.", "www.example.com"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_certificates_are_for_dns_names_and_ip_addresses(text, name):
    """Section 1: `names` may hold IP addresses."""
    assert certificate_name(text) == name


@pytest.mark.parametrize("value", ["*.example.com", ".example.com"])
def test_certificates_have_no_wildcards(value):
    """Section 2: neither tls-alpn-01 nor http-01 can prove one (RFC 8737 section 3, RFC 8555 section 8.3)."""
    with pytest.raises(ValueError, match="no wildcards"):
        certificate_name(value)


@pytest.mark.parametrize("value", ["", 5, "a..b", "fe80::1%eth0"])
def test_anything_else_is_no_certificates_name(value):
    """Section 2: `names`."""
    with pytest.raises(ValueError, match=r"is not a name|label|has"):
        certificate_name(value)


@given(st.text())
def test_a_name_once_read_reads_as_itself(text):
    """Section 2: whatever is accepted is in the one form already, and is ASCII."""
    try:
        name = host_name(text)
    except ValueError:
        return
    assert host_name(name) == name
    assert name.isascii()
