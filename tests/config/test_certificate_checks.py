"""What [acme], [[certificates]] and [haproxy] say together (contract section 2)."""

from __future__ import annotations

import pytest

from sniproxy.config import parse
from sniproxy.errors import ConfigError

BACKEND = '[backends.haproxy]\nservers = ["unix:/run/haproxy/sniproxy.sock"]\n'
ACME = "[acme]\nagree_to_terms = true\n"
CERTIFICATE = "[[certificates]]\nnames = ['a.example']\n"


def mistakes(text):
    try:
        parse(text + BACKEND, file="f")
    except ConfigError as error:
        return [f"{mistake.line} {mistake.key}: {mistake.message}" for mistake in error.mistakes]
    return []


@pytest.mark.parametrize(
    "text",
    [
        ACME,
        ACME + CERTIFICATE,
        ACME + CERTIFICATE + "[haproxy]\n",
        "[acme]\n",
        "[haproxy]\nverify = 'off'\n",
        ACME + "challenges = ['http-01']\n[http]\n" + CERTIFICATE,
        ACME + "challenges = ['http-01', 'tls-alpn-01']\n" + CERTIFICATE,
        ACME + "eab_kid = 'k'\neab_hmac_file = '/etc/sniproxy/eab'\n",
        ACME + CERTIFICATE + CERTIFICATE + "name = 'a.example.rsa'\nkey_type = 'rsa-2048'\n",
    ],
)
def test_what_makes_sense_is_taken(text):
    """Section 2: the config; an [acme] or [haproxy] that waits for its first certificate is no mistake."""
    assert mistakes(text) == []


def test_certificates_need_a_ca():
    """Section 2: [[certificates]] are ordered from [acme]."""
    (mistake,) = mistakes(CERTIFICATE)
    assert mistake.startswith("1 certificates: needs an [acme] section")


def test_terms_are_agreed_to():
    """Section 2: agree_to_terms; RFC 8555 section 7.3: the operator agrees, not the program."""
    (mistake,) = mistakes("[acme]\nagree_to_terms = false\n" + CERTIFICATE)
    assert mistake.startswith("2 acme.agree_to_terms: must be true to order certificates")


@pytest.mark.parametrize(
    ("key", "absent"), [("eab_kid = 'k'", "eab_hmac_file"), ("eab_hmac_file = '/etc/eab'", "eab_kid")]
)
def test_an_external_account_binding_is_whole(key, absent):
    """Section 2: eab_kid, eab_hmac_file; RFC 8555 section 7.3.4 needs both."""
    (mistake,) = mistakes(ACME + key + "\n")
    assert mistake == f"3 acme.{key.split()[0]}: has no effect without {absent}; write both or none"


def test_http_01_alone_needs_http():
    """Section 2: [http] answers it."""
    (mistake,) = mistakes(ACME + "challenges = ['http-01']\n" + CERTIFICATE)
    assert mistake.startswith("3 acme.challenges: http-01 is answered by [http], which is not there")


def test_http_01_alone_needs_http_for_one_certificate_too():
    """Section 2: optional per certificate: challenges."""
    (mistake,) = mistakes(ACME + CERTIFICATE + "challenges = ['http-01']\n")
    assert mistake.startswith("5 certificates[0].challenges: http-01 is answered by [http]")


def test_a_challenge_is_there_once():
    """Section 2: in order of preference."""
    (mistake,) = mistakes(ACME + "challenges = ['tls-alpn-01', 'tls-alpn-01']\n")
    assert mistake == '3 acme.challenges[1]: "tls-alpn-01" is there twice'


def test_a_name_is_in_a_certificate_once():
    """Section 2: `names`."""
    (mistake,) = mistakes(ACME + "[[certificates]]\nnames = ['a.example', 'A.example']\n")
    assert mistake == '4 certificates[0].names[1]: "a.example" is there twice'


def test_two_certificates_are_not_kept_in_one_file():
    """Section 2: name (default: names[0]); section 4: certificate_dir/NAME.pem."""
    assert mistakes(ACME + CERTIFICATE + CERTIFICATE) == [
        '6 certificates[1].names: a certificate is called "a.example" already, certificates[0]; give one of them a name of its own, name = … (line 4)'
    ]


def test_a_written_name_is_not_another_certificates_first_name():
    """Section 2: name (default: names[0])."""
    other = "[[certificates]]\nnames = ['b.example']\nname = 'a.example'\n"
    (mistake,) = mistakes(ACME + CERTIFICATE + other)
    assert mistake == '7 certificates[1].name: a certificate is called "a.example" already, certificates[0] (line 4)'


def test_a_name_too_long_for_a_file_needs_another():
    """Section 4: certificate_dir/NAME.pem; a file's name has at most 255 bytes."""
    (mistake,) = mistakes(ACME + f"[[certificates]]\nnames = ['{'.'.join(['a' * 63] * 3)}.{'b' * 20}']\n")
    assert mistake.startswith("3 certificates[0].name: is needed")


def test_verify_names_a_backend_there_is():
    """Section 2: verify = "backend:haproxy"."""
    (mistake,) = mistakes("[haproxy]\nverify = 'backend:hapro'\n")
    assert mistake == '2 haproxy.verify: there is no backend "hapro"; did you mean "haproxy"?'


def test_verify_has_no_default_without_a_default_backend():
    """Section 2: verify is the default backend when not written."""
    (mistake,) = mistakes("[proxy]\ndefault_backend = 'reject'\n[haproxy]\n")
    assert mistake.startswith('3 haproxy.verify: is missing: with default_backend = "reject", say where HAProxy is')


def test_haproxy_does_not_read_the_state():
    """Section 2: `crt DIR` reads all of certificate_dir; section 4: account keys are in state_dir."""
    (mistake,) = mistakes(ACME + "[haproxy]\ncertificate_dir = '/var/lib/sniproxy'\n")
    assert mistake.startswith("4 haproxy.certificate_dir: is acme.state_dir")


def test_hooks_are_for_certificates():
    """Section 2: a key that another key makes meaningless is an error."""
    (mistake,) = mistakes("[hooks]\non_renewed = ['/bin/true']\n")
    assert mistake == "2 hooks.on_renewed: has no effect without [[certificates]]"


def test_a_timeout_is_for_a_hook():
    """Likewise."""
    (mistake,) = mistakes(ACME + CERTIFICATE + "[hooks]\ntimeout = '1s'\n")
    assert mistake == "6 hooks.timeout: has no effect without on_renewed or on_failed"
