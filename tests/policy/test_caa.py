"""CAA as RFC 8659 and RFC 8657 have it, and as Let's Encrypt reads it where it is stricter."""

from __future__ import annotations

import pytest

from sniproxy.policy.caa import Applicant, CaaRecord, domains, permission

ACCOUNT = "https://ca.test/acct/1"
CHALLENGES = ("tls-alpn-01", "http-01")
WE = Applicant(identities=("letsencrypt.org", "le.example"), challenges=CHALLENGES, account_url=ACCOUNT)


def issue(value, tag="issue", flags=0):
    return CaaRecord(flags=flags, tag=tag, value=value)


def asked(*records, applicant=WE):
    return permission(records, applicant)


def test_the_name_is_looked_at_first_and_the_root_never():
    """RFC 8659 section 3: climbs the tree up to, and not including, the root."""
    assert list(domains("a.b.example.com")) == ["a.b.example.com", "b.example.com", "example.com", "com"]


def test_without_records_everything_is_allowed():
    assert asked().challenges == CHALLENGES


@pytest.mark.parametrize(
    "value",
    [
        "letsencrypt.org",
        "le.example",
        "LetsEncrypt.ORG",
        " letsencrypt.org ",
        "letsencrypt.org;",
        "letsencrypt.org ; ",
        "letsencrypt.org; policy=ev",
        f"letsencrypt.org; accounturi={ACCOUNT}",
        f"letsencrypt.org;ACCOUNTURI = {ACCOUNT} ; validationmethods=dns-01,http-01,tls-alpn-01",
    ],
)
def test_the_ca_is_named(value):
    """RFC 8659 section 4.2, its grammar and examples."""
    assert asked(issue(value)).challenges == CHALLENGES


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ca.example", "ca.example may issue, and this CA is letsencrypt.org or le.example"),
        (";", "nobody may issue"),
        ("", "nobody may issue"),
        ("notletsencrypt.org", "notletsencrypt.org may issue"),
        ("letsencrypt.org.", "nobody may issue"),
        ("letsencrypt.org; policy", "nobody may issue"),
        ("letsencrypt.org; policy=ev;", "nobody may issue"),
        ("letsencrypt.org; a b=c", "nobody may issue"),
        ("letsencrypt.org; a=b c", "nobody may issue"),
        ("%%%%%", "nobody may issue"),
    ],
)
def test_the_ca_is_not_named(value, words):
    """RFC 8659 section 4.2: what breaks the grammar is as an empty name; "%%%%%" is section 4.2's own example."""
    answer = asked(issue(value))
    assert answer.challenges == ()
    assert words in answer.obstacle


def test_one_of_several_records_is_enough():
    assert asked(issue("ca.example"), issue("letsencrypt.org")).challenges == CHALLENGES


def test_a_tag_has_no_case():
    """RFC 8659 section 4.1."""
    assert not asked(issue("ca.example", tag="ISSUE")).challenges


def test_wildcards_have_rules_of_their_own():
    """RFC 8659 section 4.3: issuewild is ignored for names without a wildcard."""
    assert asked(issue(";", tag="issuewild")).challenges == CHALLENGES
    assert not asked(issue("ca.example"), issue("letsencrypt.org", tag="issuewild")).challenges


@pytest.mark.parametrize("tag", ["iodef", "contactemail", "tbs"])
def test_other_properties_do_not_matter(tag):
    assert asked(issue("mailto:a@example.com", tag=tag)).challenges == CHALLENGES


@pytest.mark.parametrize("flags", [128, 1, 129])
def test_what_is_critical_and_unknown_stops_everybody(flags):
    """RFC 8659 section 4.1; bit 1 as Boulder reads it."""
    answer = asked(issue("letsencrypt.org"), issue("x", tag="tbs", flags=flags))
    assert answer.obstacle == f'{flags} tbs "x" is critical, and nothing that CAs know'


@pytest.mark.parametrize("tag", ["issue", "iodef"])
def test_what_is_critical_and_known_stops_nobody(tag):
    assert asked(issue("letsencrypt.org", tag=tag, flags=128)).challenges == CHALLENGES


def test_another_account_is_meant():
    """RFC 8657 section 3: the account is compared as a string."""
    answer = asked(issue("letsencrypt.org; accounturi=https://ca.test/acct/2"))
    assert answer.obstacle == f"accounturi=https://ca.test/acct/2 is asked for, and ours is {ACCOUNT}"


def test_an_account_is_meant_and_there_is_none():
    nobody = Applicant(identities=("letsencrypt.org",), challenges=CHALLENGES, account_url=None)
    answer = asked(issue(f"letsencrypt.org; accounturi={ACCOUNT}"), applicant=nobody)
    assert answer.obstacle.endswith("and we have none yet")


def test_two_accounts_in_one_property_are_nobodys():
    """RFC 8657 section 3: unsatisfiable."""
    value = f"letsencrypt.org; accounturi={ACCOUNT}; accounturi={ACCOUNT}"
    assert "nobody can satisfy" in asked(issue(value)).obstacle


def test_one_property_of_two_has_our_account():
    records = (issue(f"letsencrypt.org; accounturi=https://ca.test/acct/{number}") for number in (1, 2))
    assert asked(*records).challenges == CHALLENGES


def test_some_challenges_are_allowed():
    """RFC 8657 section 4."""
    assert asked(issue("letsencrypt.org; validationmethods=http-01,dns-01")).challenges == ("http-01",)


def test_several_properties_allow_more_challenges():
    records = [issue(f"letsencrypt.org; validationmethods={kind}") for kind in ("http-01", "tls-alpn-01")]
    assert asked(*records).challenges == CHALLENGES


@pytest.mark.parametrize("methods", ["dns-01", "", "tls-alpn-01,", "tls_alpn_01", "HTTP-01"])
def test_no_challenge_of_ours_is_allowed(methods):
    """RFC 8657 section 4: labels are compared as they are, and what breaks the grammar allows none."""
    answer = asked(issue(f"letsencrypt.org; validationmethods={methods}"))
    assert answer.obstacle == f"validationmethods={methods} has none of tls-alpn-01, http-01"


def test_methods_said_twice_are_none():
    value = "letsencrypt.org; validationmethods=http-01; validationmethods=tls-alpn-01"
    assert not asked(issue(value)).challenges


def test_a_record_is_shown_as_zone_files_have_it():
    assert str(issue("a\x1b[31m", flags=128)) == '128 issue "a?[31m"'
