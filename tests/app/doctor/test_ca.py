"""What `doctor` learns from a CA, and that asking leaves no trace there."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest

from sniproxy.acme.account import AccountSettings
from sniproxy.acme.client import Client
from sniproxy.acme.ordering import Wanted
from sniproxy.acme.store import StoredAccount
from sniproxy.app.doctor import ca as doctor_ca
from sniproxy.app.doctor.ca import ask_ca, clock, is_public
from sniproxy.app.doctor.diagnosis import Verdict
from sniproxy.bundle import generate_key
from tests.support.acme_stub import AcmeStub
from tests.support.pebble import AVAILABLE, MISSING, Pebble
from tests.support.pki import Authority
from tests.support.processes import LOCALHOST, free_port

WANTED = Wanted(
    name="www.example.test",
    names=("www.example.test",),
    key_type="ecdsa-p256",
    challenges=("tls-alpn-01",),
    profile="",
    preferred_chain="",
)
KEY = generate_key("ecdsa-p256")


@pytest.fixture
def ca():
    with AcmeStub() as stub:
        yield stub


def settings(ca, **more):
    return AccountSettings(directory=ca.directory_url, agree_to_terms=True, **more)


async def asked(ca, stored=None, wanted=(WANTED,), unreadable="", **more):
    """The report, and its diagnoses by step."""
    report = await ask_ca(settings(ca, **more), wanted, stored, unreadable)
    return report, {diagnosis.step: diagnosis for diagnosis in report.diagnoses}


async def registered(ca):
    """An account there, by a client as the running proxy has it."""
    client = Client(ca.directory_url, KEY)
    try:
        await client.create_account(contact=(), agree_to_terms=True)
        return StoredAccount(key=KEY, url=client.account_url)
    finally:
        await client.close()


async def test_before_the_first_order(runner, ca):
    report, found = await asked(ca)
    assert report.directory is not None
    assert report.account_url is None
    assert found["directory"].verdict == found["clock"].verdict == Verdict.GOOD
    assert found["account"].verdict == Verdict.SKIPPED
    assert [request.resource for request in ca.requests] == ["directory"]
    assert ca.accounts == []


async def test_a_known_account(runner, ca):
    stored = await registered(ca)
    report, found = await asked(ca, stored)
    assert report.account_url == stored.url
    assert found["account"].verdict == Verdict.GOOD
    assert found["account"].found == stored.url
    assert ca.payloads("newAccount")[-1] == {"onlyReturnExisting": True}
    assert len(ca.accounts) == 1


async def test_an_account_that_is_found_by_its_key_alone(runner, ca):
    """As after a crash, or in another directory's files."""
    stored = await registered(ca)
    report, _ = await asked(ca, StoredAccount(key=KEY))
    assert report.account_url == stored.url


async def test_an_account_that_the_ca_has_forgotten(runner, ca):
    """RFC 8555 section 7.3.1: accountDoesNotExist."""
    stored = await registered(ca)
    ca.forget()
    report, found = await asked(ca, stored)
    assert report.account_url is None
    assert found["account"].verdict == Verdict.WARNING
    assert ca.accounts == []


async def test_an_account_that_was_deactivated(runner, ca):
    """RFC 8555 section 7.3.6."""
    stored = await registered(ca)
    ca.accounts[0].status = "deactivated"
    _, found = await asked(ca, stored)
    assert found["account"].verdict == Verdict.FAILED
    assert "deactivated" in found["account"].found
    assert "for a new one" in found["account"].advice


async def test_a_ca_that_says_so_without_refusing(runner, ca):
    stored = await registered(ca)
    ca.edit("newAccount", lambda account: account.update(status="revoked"), times=None)
    _, found = await asked(ca, stored)
    assert found["account"].verdict == Verdict.FAILED
    assert found["account"].found == f"{stored.url} is revoked"


async def test_an_account_that_cannot_be_asked_for(runner, ca):
    stored = await registered(ca)
    ca.fail("newAccount", status=503, times=None)
    report, found = await asked(ca, stored)
    assert report.account_url == stored.url
    assert found["account"].verdict == Verdict.FAILED


async def test_a_store_that_cannot_be_read(runner, ca):
    _, found = await asked(ca, unreadable="state cannot be read")
    assert found["account"].verdict == Verdict.SKIPPED
    assert found["account"].found == "its key cannot be read: state cannot be read"


@pytest.mark.parametrize("what", ["nobody", "page", "404"])
async def test_no_directory(runner, ca, what):
    if what == "nobody":
        ca.close()
    elif what == "page":
        ca.html("directory", status=200, times=None)
    else:
        ca.fail("directory", status=404, problem=None, times=None)
    report, found = await asked(ca, StoredAccount(key=KEY, url="https://ca.test/1"))
    assert report.directory is None
    assert report.account_url == "https://ca.test/1"
    assert found["directory"].verdict == Verdict.FAILED
    assert f"`curl {ca.directory_url}`" in found["directory"].advice
    assert found["account"].verdict == found["clock"].verdict == Verdict.SKIPPED


async def test_a_ca_that_hangs(runner, ca, monkeypatch):
    monkeypatch.setattr(doctor_ca, "ANSWER_SECONDS", 0.2)
    ca.hang("directory", times=None)
    _, found = await asked(ca)
    assert found["directory"].found == "no answer within 0.2 s"


async def test_a_ca_that_hangs_later(runner, ca, monkeypatch):
    stored = await registered(ca)
    impatient = partial(monkeypatch.setattr, doctor_ca, "ANSWER_SECONDS", 0.2)
    ca.on("directory", lambda _: impatient())
    ca.hang("newAccount", times=None)
    _, found = await asked(ca, stored)
    assert found["directory"].verdict == Verdict.GOOD
    assert found["account"].found == "no answer within 0.2 s"


# -- what it offers


async def test_terms_that_are_not_agreed_to(runner, ca):
    report = await ask_ca(AccountSettings(directory=ca.directory_url), (WANTED,), None)
    assert report.diagnoses[0].verdict == Verdict.FAILED
    assert "https://ca.test/terms" in report.diagnoses[0].advice


async def test_a_ca_for_its_customers(runner, ca, tmp_path):
    """RFC 8555 section 7.3.4."""
    ca.eab = {"kid-1": "c2VjcmV0LXNlY3JldA"}
    _, found = await asked(ca)
    assert found["directory"].verdict == Verdict.FAILED
    assert "at https://ca.test/" in found["directory"].advice

    hmac = tmp_path / "hmac"
    hmac.write_text("c2VjcmV0LXNlY3JldA\n")
    assert (await asked(ca, eab_kid="kid-1", eab_hmac_file=hmac))[1]["directory"].verdict == Verdict.GOOD
    hmac.write_text("c2VjcmV0 LXNlY3JldA\n")
    _, found = await asked(ca, eab_kid="kid-1", eab_hmac_file=hmac)
    assert found["directory"].found == f"{hmac} is not base64url text"
    hmac.unlink()
    _, found = await asked(ca, eab_kid="kid-1", eab_hmac_file=hmac)
    assert found["directory"].found == f"{hmac} cannot be read: No such file or directory"


async def test_a_binding_is_not_needed_any_more(runner, ca):
    """For an account that is there."""
    stored = await registered(ca)
    ca.eab = {"kid-1": "c2VjcmV0LXNlY3JldA"}
    assert (await asked(ca, stored))[1]["directory"].verdict == Verdict.GOOD


@pytest.mark.parametrize(
    ("offered", "wanted", "verdict", "words"),
    [
        ({"classic": "", "short": ""}, "short", Verdict.GOOD, "profiles classic, short"),
        ({"classic": "", "short": ""}, "shrot", Verdict.FAILED, 'has no profile "shrot", which www.example.test is to'),
        ({}, "short", Verdict.WARNING, "has no profiles at all"),
    ],
)
async def test_profiles(runner, ca, offered, wanted, verdict, words):
    ca.profiles = offered
    one = Wanted(**{name: getattr(WANTED, name) for name in WANTED.__slots__} | {"profile": wanted})
    _, found = await asked(ca, wanted=(one,))
    assert found["directory"].verdict == verdict
    assert words in found["directory"].found


# -- the clock


@pytest.mark.parametrize(
    ("skew", "verdict", "words"),
    [
        (None, Verdict.SKIPPED, "have no date"),
        (0.4, Verdict.GOOD, "as the CA's"),
        (-30.0, Verdict.GOOD, "30 s ahead of the CA's"),
        (61.0, Verdict.WARNING, "61 s behind the CA's"),
        (-1800.0, Verdict.WARNING, "30 min ahead of the CA's"),
        (3601.0, Verdict.FAILED, "60 min behind the CA's"),
        (-86400.0, Verdict.FAILED, "24.0 h ahead of the CA's"),
    ],
)
def test_skews(skew, verdict, words):
    found = clock(skew)
    assert found.verdict == verdict
    assert words in found.found


async def test_the_clock_is_compared_with_the_date_of_answers(runner, ca):
    ca.clock_skew = timedelta(hours=2)
    assert (await asked(ca))[1]["clock"].verdict == Verdict.FAILED


async def test_a_ca_without_a_clock(runner, ca):
    ca.headers("directory", {"Date": None}, times=None)
    assert (await asked(ca))[1]["clock"].verdict == Verdict.SKIPPED


# -- a real one, over TLS


@pytest.mark.skipif(not AVAILABLE, reason=MISSING)
async def test_pebble(runner, programs):
    pebble = programs.start(Pebble(programs.directory))
    _, found = await asked(pebble, StoredAccount(key=KEY), ca_file=pebble.ca_file)
    assert found["directory"].verdict == found["clock"].verdict == Verdict.GOOD
    assert found["account"].verdict == Verdict.WARNING, "nobody has an account there"
    other = programs.directory / "other"
    other.mkdir()
    _, found = await asked(pebble, ca_file=Authority(other).root)
    assert "is not trusted" in found["directory"].found


@pytest.mark.parametrize(
    ("directory", "ca_file", "public"),
    [
        ("https://acme-v02.api.letsencrypt.org/directory", None, True),
        ("https://acme-v02.api.letsencrypt.org/directory", "ca.pem", False),
        (f"https://{LOCALHOST}:{free_port()}/dir", None, False),
        ("https://192.168.1.1/dir", None, False),
        ("http://localhost/dir", None, False),
    ],
)
def test_which_cas_are_public(directory, ca_file, public, tmp_path):
    path = None if ca_file is None else tmp_path / ca_file
    assert is_public(AccountSettings(directory=directory, ca_file=path)) == public
