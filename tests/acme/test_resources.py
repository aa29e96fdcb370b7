"""What a CA says is believed as far as it is well-formed, and what is wrong with it is said."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.acme import resources
from sniproxy.acme.resources import (
    MAX_CHALLENGES,
    MAX_IDENTIFIERS,
    MAX_RETRY_AFTER_SECONDS,
    MAX_SUBPROBLEMS,
    MAX_TEXT_CHARS,
    AccountStatus,
    AuthorizationStatus,
    ChallengeStatus,
    OrderStatus,
    checked_url,
    http_date,
    identifier_for,
    parse,
    read_account,
    read_authorization,
    read_challenge,
    read_directory,
    read_order,
    read_problem,
    read_renewal_info,
    refusal,
    retry_after_seconds,
    shown,
)
from sniproxy.errors import CaUnreachable, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://ca.test/acme/1"
TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
THUMBPRINT = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)

# As in RFC 8555 section 7.1.1, with profiles (draft-aaron-acme-profiles) and RFC 9773.
DIRECTORY = {
    "newNonce": "https://ca.test/acme/new-nonce",
    "newAccount": "https://ca.test/acme/new-account",
    "newOrder": "https://ca.test/acme/new-order",
    "newAuthz": "https://ca.test/acme/new-authz",
    "revokeCert": "https://ca.test/acme/revoke-cert",
    "keyChange": "https://ca.test/acme/key-change",
    "renewalInfo": "https://ca.test/acme/renewal-info",
    "meta": {
        "termsOfService": "https://ca.test/acme/terms/2017-5-30",
        "website": "https://www.ca.test/",
        "caaIdentities": ["ca.test"],
        "externalAccountRequired": True,
        "profiles": {"classic": "The one of old", "shortlived": "Six days"},
    },
}

# Section 7.1.2.
ACCOUNT = {
    "status": "valid",
    "contact": ["mailto:cert-admin@example.org", "mailto:admin@example.org"],
    "termsOfServiceAgreed": True,
    "orders": "https://ca.test/acme/orders/rzGoeA",
}

# Section 7.1.3.
ORDER = {
    "status": "valid",
    "expires": "2026-01-20T14:09:07.99Z",
    "identifiers": [{"type": "dns", "value": "www.Example.org"}, {"type": "ip", "value": "2001:DB8::1"}],
    "notBefore": "2016-01-01T00:00:00Z",
    "notAfter": "2016-01-08T00:00:00Z",
    "authorizations": ["https://ca.test/acme/authz/PAniVnsZcis", "https://ca.test/acme/authz/r4HqLzrSrpI"],
    "finalize": "https://ca.test/acme/order/TOlocE8rfgo/finalize",
    "certificate": "https://ca.test/acme/cert/jWCdfHVGY2M",
}

CHALLENGE = {
    "url": "https://ca.test/acme/chall/prV_B7yEyA4",
    "type": "http-01",
    "status": "valid",
    "token": TOKEN,
    "validated": "2014-12-01T12:05:58.16Z",
}

# Section 7.1.4.
AUTHORIZATION = {
    "status": "valid",
    "expires": "2026-01-01T14:09:07.99+02:00",
    "identifier": {"type": "dns", "value": "www.example.org"},
    "challenges": [CHALLENGE],
    "wildcard": False,
}

# RFC 9773 section 4.2.
RENEWAL_INFO = {
    "suggestedWindow": {"start": "2026-01-02T04:00:00Z", "end": "2026-01-03T04:00:00Z"},
    "explanationURL": "https://ca.test/docs/ari",
}

# RFC 8555 section 6.7.1.
PROBLEM = {
    "type": "urn:ietf:params:acme:error:malformed",
    "detail": "Some of the identifiers requested were rejected",
    "subproblems": [
        {
            "type": "urn:ietf:params:acme:error:malformed",
            "detail": 'Invalid underscore in DNS name "_example.org"',
            "identifier": {"type": "dns", "value": "_example.org"},
        },
        {
            "type": "urn:ietf:params:acme:error:rejectedIdentifier",
            "detail": 'This CA will not issue for "example.net"',
            "identifier": {"type": "dns", "value": "example.net"},
        },
    ],
}

READERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "directory": (read_directory, DIRECTORY),
    "account": (lambda document: read_account(URL, document), ACCOUNT),
    "order": (lambda document: read_order(URL, document), ORDER),
    "authorization": (lambda document: read_authorization(URL, document), AUTHORIZATION),
    "challenge": (read_challenge, CHALLENGE),
    "renewal information": (read_renewal_info, RENEWAL_INFO),
}


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


# ------------------------------------------------------------------------------------------------------ well-formed


def test_a_directory():
    """RFC 8555 section 7.1.1: URLs, and what the CA says of itself."""
    directory = read_directory(DIRECTORY)

    assert directory.new_order == "https://ca.test/acme/new-order"
    assert directory.renewal_info == "https://ca.test/acme/renewal-info"
    assert directory.terms_of_service == "https://ca.test/acme/terms/2017-5-30"
    assert directory.profiles == {"classic": "The one of old", "shortlived": "Six days"}
    assert directory.external_account_required is True
    assert directory.caa_identities == ("ca.test",)


def test_a_directory_without_what_is_optional():
    """Section 7.1.1: meta is optional; small CAs have neither keyChange nor revokeCert."""
    directory = read_directory(without(DIRECTORY, "meta", "renewalInfo", "keyChange", "revokeCert"))

    assert (directory.renewal_info, directory.key_change, directory.revoke_cert) == (None, None, None)
    assert (directory.terms_of_service, directory.website, dict(directory.profiles)) == ("", "", {})
    assert directory.external_account_required is False


def test_an_account():
    account = read_account(URL, ACCOUNT)

    assert (account.url, account.status) == (URL, AccountStatus.VALID)
    assert account.contact == ("mailto:cert-admin@example.org", "mailto:admin@example.org")


def test_an_account_whose_contact_the_ca_keeps_to_itself():
    """Let's Encrypt has told nobody's contact since 2025."""
    assert read_account(URL, {"status": "valid"}).contact == ()


def test_an_order():
    """Section 7.1.3. Names in lower case and addresses as RFC 5952 has them, so that they compare; times in UTC."""
    order = read_order(URL, ORDER, retry_after=5.0)

    assert (order.url, order.status) == (URL, OrderStatus.VALID)
    assert order.identifiers == ("www.example.org", "2001:db8::1")
    assert order.authorizations == tuple(ORDER["authorizations"])
    assert order.certificate == "https://ca.test/acme/cert/jWCdfHVGY2M"
    assert order.expires == datetime(2026, 1, 20, 14, 9, 7, 990000, tzinfo=UTC)
    assert order.retry_after == 5.0
    assert order.error is None


def test_an_order_that_failed_says_why():
    """Section 7.1.3: `error` is a problem document."""
    order = read_order(URL, {**without(ORDER, "certificate"), "status": "invalid", "error": PROBLEM})

    assert order.certificate is None
    assert [problem.identifier for problem in order.error.subproblems] == ["_example.org", "example.net"]


def test_an_authorization():
    authorization = read_authorization(URL, AUTHORIZATION)

    assert authorization.status is AuthorizationStatus.VALID
    assert (authorization.identifier, authorization.is_ip, authorization.wildcard) == ("www.example.org", False, False)
    assert authorization.expires == datetime(2026, 1, 1, 12, 9, 7, 990000, tzinfo=UTC)
    assert [challenge.token for challenge in authorization.challenges] == [TOKEN]


def test_an_authorization_for_an_ip_address():
    """RFC 8738 section 3."""
    document = {**AUTHORIZATION, "identifier": {"type": "ip", "value": "192.0.2.1"}}

    authorization = read_authorization(URL, document)

    assert (authorization.identifier, authorization.is_ip) == ("192.0.2.1", True)


def test_a_challenge_of_a_type_that_is_not_known_is_kept_by_its_name():
    """dns-persist-01 has no token; whoever cannot answer it wants to say at least what the CA offers."""
    challenge = read_challenge({**without(CHALLENGE, "token"), "type": "dns-persist-01", "issuer-domain-names": ["x"]})

    assert (challenge.type, challenge.token) == ("dns-persist-01", "")


@pytest.mark.parametrize(("n", "iterations"), [(None, 1), (25, 25)], ids=["not said", "25"])
def test_tls_sni_01_says_how_many_certificates_it_wants(n, iterations):
    """draft-ietf-acme-acme-01 section 7.3; Let's Encrypt did not say, and took one."""
    document = {**CHALLENGE, "type": "tls-sni-01"} | ({} if n is None else {"n": n})

    assert read_challenge(document).iterations == iterations


def test_the_token_is_not_in_the_repr():
    assert TOKEN not in repr(read_authorization(URL, AUTHORIZATION))


def test_renewal_information():
    info = read_renewal_info(RENEWAL_INFO, retry_after=21600.0)

    assert info.end - info.start == timedelta(days=1)
    assert info.explanation_url == "https://ca.test/docs/ari"
    assert info.retry_after == 21600.0


@pytest.mark.parametrize("kind", READERS)
def test_what_is_not_known_is_passed_over(kind):
    """Section 7: clients ignore fields that they do not understand."""
    read, document = READERS[kind]

    assert read({**document, "of the future": [1, {"x": None}]}) == read(document)


# ---------------------------------------------------------------------------------------------------------- malformed


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("directory", "newNonce"),
        ("directory", "newAccount"),
        ("directory", "newOrder"),
        ("account", "status"),
        ("order", "status"),
        ("order", "finalize"),
        ("authorization", "status"),
        ("authorization", "identifier"),
        ("challenge", "url"),
        ("challenge", "type"),
        ("challenge", "status"),
    ],
)
def test_what_is_missing_is_named(kind, key):
    read, document = READERS[kind]

    with pytest.raises(CaUnreachable, match=f"^the CA's {kind} lacks {key}$"):
        read(without(document, key))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("directory", {"newOrder": 1}, "the CA's directory: newOrder is not a URL"),
        ("directory", {"newOrder": "http://ca.test/x"}, "the CA's directory: newOrder is not an https:// URL"),
        ("directory", {"meta": []}, "the CA's directory: meta is not an object"),
        ("directory", {"meta": {"profiles": ["x"]}}, "the CA's directory, in meta: profiles is not an object"),
        (
            "directory",
            {"meta": {"profiles": {"x": 1}}},
            "the CA's directory, in meta: profiles is not an object of texts",
        ),
        (
            "directory",
            {"meta": {"termsOfService": "a\nb"}},
            "the CA's directory, in meta: termsOfService is not a text",
        ),
        (
            "directory",
            {"meta": {"externalAccountRequired": "no"}},
            "the CA's directory, in meta: externalAccountRequired is not true or false",
        ),
        ("account", {"contact": "mailto:a@b"}, "the CA's account: contact is not a list"),
        ("account", {"contact": [1]}, "the CA's account: contact is not a list of texts"),
        ("order", {"status": "cancelled"}, "the CA's order has a status that ACME does not know, cancelled"),
        ("order", {"status": ["valid"]}, "the CA's order: status is not a text"),
        ("order", {"identifiers": []}, "the CA's order has no identifiers"),
        ("order", {"identifiers": ["www.example.org"]}, "the CA's order's identifier is not a JSON object; "),
        ("order", {"identifiers": [{"type": "dns"}]}, "the CA's order's identifier lacks value"),
        (
            "order",
            {"identifiers": [{"type": "email", "value": "a@b"}]},
            "the CA's order is for an identifier of an unknown type, email",
        ),
        (
            "order",
            {"identifiers": [{"type": "ip", "value": "999"}]},
            "the CA's order has an IP address that is none: 999",
        ),
        ("order", {"authorizations": [7]}, "the CA's order: an authorization is not a URL"),
        ("order", {"authorizations": ["ftp://ca.test/"]}, "the CA's order: an authorization is not an https:// URL"),
        ("order", {"certificate": "file:///etc/passwd"}, "the CA's order: certificate is not a URL"),
        ("order", {"expires": "tomorrow"}, "the CA's order: expires is not a date"),
        ("order", {"expires": "2026-13-01T00:00:00Z"}, "the CA's order: expires is not a date"),
        ("order", {"expires": "0001-01-01T00:00:00+23:59"}, "the CA's order: expires is not a date"),
        ("authorization", {"challenges": {}}, "the CA's authorization: challenges is not a list"),
        ("authorization", {"challenges": [None]}, "the CA's challenge is not a JSON object; "),
        ("challenge", {"token": None}, "the CA's http-01 challenge has no token of 22 or more letters of base64url"),
        ("challenge", {"token": "../../etc/passwd-and-more"}, "the CA's http-01 challenge has no token of 22"),
        ("challenge", {"token": "short"}, "the CA's http-01 challenge has no token of 22"),
        ("challenge", {"type": "tls-sni-01", "n": 0}, "the CA's challenge: n is not a number from 1 to 100"),
        ("challenge", {"type": "tls-sni-01", "n": 10**9}, "the CA's challenge: n is not a number from 1 to 100"),
        ("challenge", {"type": "tls-sni-01", "n": True}, "the CA's challenge: n is not a number from 1 to 100"),
        ("renewal information", {"suggestedWindow": {}}, "the CA's renewal information lacks the start or the end"),
        (
            "renewal information",
            {"suggestedWindow": {"start": "2026-01-02T04:00:00Z", "end": "2026-01-02T04:00:00Z"}},
            "the CA's renewal information has a window that ends before it begins",
        ),
    ],
)
def test_what_is_wrong_is_said(kind, change, words):
    read, document = READERS[kind]

    with pytest.raises(CaUnreachable) as caught:
        read({**document, **change})

    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("document", [None, [], "text", 1], ids=repr)
def test_another_kind_of_json_is_not_a_resource(kind, document):
    with pytest.raises(CaUnreachable, match=r"is not a JSON object; is acme\.directory right\?"):
        READERS[kind][0](document)


@pytest.mark.parametrize(
    ("kind", "key", "item", "most"),
    [
        ("order", "identifiers", {"type": "dns", "value": "a.test"}, MAX_IDENTIFIERS),
        ("order", "authorizations", "https://ca.test/1", MAX_IDENTIFIERS),
        ("authorization", "challenges", CHALLENGE, MAX_CHALLENGES),
    ],
)
def test_no_more_than_can_be_meant(kind, key, item, most):
    """A CA that has gone mad does not make us ask a million times."""
    read, document = READERS[kind]

    assert read({**document, key: [item] * most})
    with pytest.raises(CaUnreachable, match=f"has {most + 1} {key}, and more than {most} are not believed"):
        read({**document, key: [item] * (most + 1)})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([URL, TOKEN, "valid"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_whatever_stands_in_the_place_of_a_member_is_read_or_refused(kind, data):
    """Nothing a CA can say is another error than CaUnreachable."""
    read, document = READERS[kind]
    key = data.draw(st.sampled_from(sorted(document)))
    changed = {**document, key: data.draw(json_values)}

    with suppress(CaUnreachable):
        read(changed)


@given(document=json_values)
def test_whatever_is_in_the_place_of_a_problem(document):
    """An error that cannot be read must not become another error."""
    problem = read_problem(document, status=500)

    assert problem is None or str(problem).isprintable()


# ------------------------------------------------------------------------------------------------------------ problems


def test_a_problem_document_is_kept_whole():
    """RFC 8555 section 6.7.1."""
    problem = read_problem(PROBLEM, status=403, retry_after=7.0)

    assert (problem.code, problem.status, problem.retry_after) == ("malformed", 403, 7.0)
    assert [(inner.code, inner.identifier) for inner in problem.subproblems] == [
        ("malformed", "_example.org"),
        ("rejectedIdentifier", "example.net"),
    ]
    assert "example.net: rejectedIdentifier: This CA will not issue" in str(problem)


def test_a_problem_without_a_type():
    """RFC 7807 section 3.1: it is about:blank, and the title says what it is."""
    problem = read_problem({"title": "Service Unavailable"}, status=503)

    assert (problem.type, problem.detail) == ("about:blank", "Service Unavailable")


def test_a_problem_that_wants_somebody_to_read_a_page():
    """Section 7.3.3: userActionRequired has the page in `instance`."""
    document = {
        "type": "urn:ietf:params:acme:error:userActionRequired",
        "detail": "Terms",
        "instance": "https://ca.test/t",
    }

    assert str(read_problem(document)) == "userActionRequired: Terms (https://ca.test/t)"


@pytest.mark.parametrize("document", [None, [], "x", {}, {"status": "valid"}], ids=repr)
def test_what_is_no_problem_document(document):
    assert read_problem(document) is None


def test_a_problem_is_printable_and_no_longer_than_can_be_read():
    detail = "\x1b[31mred\n" + "x" * 10_000
    inner = [{"type": "x", "detail": str(number)} for number in range(1000)]

    problem = read_problem({"type": "a\nb", "detail": detail, "subproblems": inner})

    assert problem.detail.startswith("?[31mred?x")
    assert len(problem.detail) == MAX_TEXT_CHARS
    assert problem.type == "a?b"
    assert len(problem.subproblems) == MAX_SUBPROBLEMS


@pytest.mark.parametrize(
    "quoted",
    [
        f'did not match this challenge. Expected "{TOKEN}.{THUMBPRINT}" (got "x")',
        f"Invalid response from http://example.com/.well-known/acme-challenge/{TOKEN}: 404",
        f"no such token: {TOKEN}",
        f"(got {TOKEN}.{THUMBPRINT})",
        "y" * (MAX_TEXT_CHARS - 20) + f" {TOKEN}.{THUMBPRINT}",
    ],
    ids=["key authorization", "URL", "token", "both", "at the end"],
)
def test_what_a_ca_quotes_of_our_response_is_left_out(quoted):
    """Boulder's va/http.go quotes the key authorization and the URL; neither is for logs."""
    error = {"type": "urn:ietf:params:acme:error:unauthorized", "detail": quoted}

    challenge = read_challenge({**CHALLENGE, "status": "invalid", "error": error})

    assert challenge.status is ChallengeStatus.INVALID
    assert TOKEN not in challenge.error.detail
    assert THUMBPRINT not in challenge.error.detail


def test_a_key_authorization_is_left_out_wherever_it_is():
    """Outside of a challenge, where its token is not known."""
    text = shown(f'Expected "{TOKEN}.{THUMBPRINT}", http://x/.well-known/acme-challenge/{TOKEN}')

    assert text == 'Expected "(key authorization)", http://x/.well-known/acme-challenge/(token)'


def test_a_long_text_takes_no_time():
    """An expression that goes back over what it has read would take minutes for these."""
    for text in ("a" * 1_000_000, "a." * 500_000, "/.well-known/acme-challenge/" * 50_000):
        assert len(shown(text)) == MAX_TEXT_CHARS


@pytest.mark.parametrize(
    ("status", "body", "content_type", "words"),
    [
        (
            502,
            b"<h1>Bad gateway</h1>",
            "text/html; charset=utf-8",
            "newOrder: the CA answered 502, and not as ACME has it",
        ),
        (404, b"", "", "newOrder: the CA answered 404, and not as ACME has it (no type); is acme.directory right?"),
        (
            429,
            b"[]",
            "application/json",
            "newOrder: the CA answered 429, and not as ACME has it (application/json); it may",
        ),
        (500, b'{"error": 1}', "application/json", "newOrder: the CA answered 500, "),
        (500, b"[" * 100_000, "application/json", "newOrder: the CA answered 500, "),
    ],
)
def test_an_error_that_is_no_problem_document(status, body, content_type, words):
    error = refusal("newOrder", status, body, content_type=content_type, retry_after=3.0)

    assert isinstance(error, CaUnreachable)
    assert str(error).startswith(words)
    assert error.retry_after == 3.0


@pytest.mark.parametrize("content_type", ["application/problem+json", "application/json", ""])
def test_an_error_that_is_a_problem_document(content_type):
    """Some CAs send it under another type."""
    body = json.dumps(PROBLEM).encode()

    error = refusal("newOrder", 403, body, content_type=content_type, retry_after=None)

    assert isinstance(error, Problem)
    assert error.status == 403


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff\xfe", b'{"a":', b"[" * 100_000, b"1" * 10_000],
    ids=["nothing", "HTML", "not UTF-8", "cut", "deep", "a number of 10,000 digits"],
)
def test_what_is_not_json(body):
    with pytest.raises(CaUnreachable, match=r"^order: the CA's answer is not JSON"):
        parse("order", body)


# ---------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "url",
    [
        "https://ca.test/x?y=1",
        "https://ca.test:14000/dir",
        "https://[2001:db8::1]/x",
        "http://127.0.0.1:14000/dir",
        "http://localhost/dir",
        "http://[::1]:1/",
    ],
)
def test_a_url_that_may_be_asked(url):
    """Section 6.1: https. Without it only this machine itself, for test CAs."""
    assert checked_url(url, "x") == url


@pytest.mark.parametrize(
    "url",
    [
        None,
        1,
        "",
        "ca.test",
        "/relative",
        "https://",
        "https:///x",
        "http://ca.test/",
        "http://127.0.0.1.ca.test/",
        "ftp://ca.test/",
        "https://user:password@ca.test/",
        "https://user@ca.test/",
        "https://ca.test:port/",
        "https://ca.test/a b",
        "https://ca.test/\r\nX: y",
        "https://ca.tést/",
        "https://[::1/",
        "https://ca.test/" + "x" * 2000,
    ],
    ids=repr,
)
def test_a_url_that_may_not(url):
    with pytest.raises(CaUnreachable, match=r"^it is not a"):
        checked_url(url, "it")


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("WWW.example.org", {"type": "dns", "value": "www.example.org"}),
        ("*.example.org", {"type": "dns", "value": "*.example.org"}),
        ("192.0.2.1", {"type": "ip", "value": "192.0.2.1"}),
        ("2001:DB8:0::1", {"type": "ip", "value": "2001:db8::1"}),
    ],
)
def test_names_as_they_are_ordered(name, identifier):
    """RFC 8555 section 7.1.3; RFC 8738 section 3: addresses as RFC 5952 has them."""
    assert identifier_for(name) == identifier


# --------------------------------------------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("-30", 0.0),
        ("999999999999", MAX_RETRY_AFTER_SECONDS),
        ("9" * 400, MAX_RETRY_AFTER_SECONDS),
        ("1e3", None),
        ("soon", None),
        ("", None),
        ("Wed, 25 Nov 2026 12:02:00 GMT", 120.0),
        ("Wednesday, 25-Nov-26 12:02:00 GMT", 120.0),
        ("Wed Nov 25 12:02:00 2026", 120.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0),
        ("Wed, 25 Nov 2099 12:00:00 GMT", MAX_RETRY_AFTER_SECONDS),
        ("Wed, 99 Nov 2026 12:00:00 GMT", None),
        ("Wed, 25 Nov 2026 12:00:00 +9999", None),
    ],
    ids=repr,
)
def test_retry_after(value, seconds):
    """RFC 9110 section 10.2.3: seconds or a date, and of dates also the two obsolete forms (section 5.6.7)."""
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text(max_size=80))
def test_no_date_of_http_is_an_error(text):
    date = http_date(text)

    assert date is None or date.tzinfo is UTC


def test_every_status_is_one_of_the_rfc():
    """RFC 8555 section 7.1.6, the diagrams."""
    found = {name: sorted(getattr(resources, name)) for name in ("OrderStatus", "ChallengeStatus", "AccountStatus")}

    assert found == {
        "OrderStatus": ["invalid", "pending", "processing", "ready", "valid"],
        "ChallengeStatus": ["invalid", "pending", "processing", "valid"],
        "AccountStatus": ["deactivated", "revoked", "valid"],
    }
    assert sorted(AuthorizationStatus) == ["deactivated", "expired", "invalid", "pending", "revoked", "valid"]
