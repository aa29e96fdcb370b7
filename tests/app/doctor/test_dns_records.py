"""What DNS says of a name: addresses, CAA, and answers that are none."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import dns.resolver
import pytest

from sniproxy.app.doctor import dns_records as doctor_dns
from sniproxy.app.doctor.diagnosis import Verdict
from sniproxy.app.doctor.dns_records import LookupFailed, Resolver, Surroundings, check_caa, look_up
from sniproxy.model import TcpAddress
from sniproxy.policy.caa import Applicant
from tests.support.processes import LOCALHOST
from tests.support.scripted_dns import SILENCE, ScriptedDns

NAME = "www.example.com"
PUBLIC_4, PUBLIC_6, PRIVATE = "1.2.3.4", "2a00::1", "10.1.2.3"
PUBLIC_CA = Surroundings(is_public=True, has_ipv6=True)
WE = Applicant(identities=("ca.test",), challenges=("tls-alpn-01", "http-01"), account_url="https://ca.test/1")


@pytest.fixture
def zone(runner):
    zone = ScriptedDns()
    runner.run(zone.start())
    yield zone
    zone.close()


@pytest.fixture
def resolver(zone, monkeypatch):
    return Resolver(zone.address)


@pytest.fixture
def impatient(monkeypatch):
    """Asks once, and not for long."""
    monkeypatch.setattr(doctor_dns, "SERVER_SECONDS", 0.05)
    monkeypatch.setattr(doctor_dns, "LOOKUP_SECONDS", 0.1)


# -- look-ups


async def test_addresses(runner, zone, resolver):
    zone.records = {(NAME, "A"): [PUBLIC_4, PRIVATE], (NAME, "AAAA"): [PUBLIC_6]}
    assert set(await resolver.addresses(NAME, "A")) == {ip_address(PUBLIC_4), ip_address(PRIVATE)}
    assert await resolver.addresses(NAME, "AAAA") == (ip_address(PUBLIC_6),)


async def test_no_record_and_no_name_are_answers(runner, zone, resolver):
    """NOERROR without data, and NXDOMAIN (RFC 2308)."""
    zone.records = {(NAME, "A"): [PUBLIC_4]}
    assert await resolver.addresses(NAME, "AAAA") == ()
    assert await resolver.addresses("nothing.example.com", "A") == ()


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED"])
async def test_an_error_is_none(runner, zone, resolver, code):
    zone.errors[NAME] = code
    with pytest.raises(LookupFailed) as failure:
        await resolver.addresses(NAME, "A")
    assert str(failure.value) == f"A of {NAME}: {code} from {zone.address}"


async def test_silence_is_none(runner, zone, impatient):
    zone.errors[NAME] = SILENCE
    with pytest.raises(LookupFailed) as failure:
        await Resolver(zone.address).addresses(NAME, "A")
    assert str(failure.value) == f"A of {NAME}: no answer from {zone.address}"


async def test_nobody_to_ask(runner, monkeypatch):
    """A container without /etc/resolv.conf."""

    def without(self, file):
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", without)
    with pytest.raises(LookupFailed, match=r"no name server in /etc/resolv\.conf"):
        await Resolver().addresses(NAME, "A")


async def test_what_is_above_two_names_is_looked_up_once(runner, zone, resolver):
    zone.records = {("example.com", "CAA"): ['0 issue "ca.test"'], ("a.example.com", "A"): [], (NAME, "A"): []}
    for name in (NAME, "a.example.com"):
        await check_caa(name, resolver, WE)
    assert zone.asked.count(("example.com", "CAA")) == 1


# -- where a CA would look


async def judged(resolver, around=PUBLIC_CA, name=NAME):
    return await look_up(name, resolver, around)


async def test_ipv6_comes_first(runner, zone, resolver):
    """As Let's Encrypt's validation does."""
    zone.records = {(NAME, "A"): [PUBLIC_4], (NAME, "AAAA"): [PUBLIC_6]}
    found = await judged(resolver)
    assert list(map(str, found.addresses)) == [PUBLIC_6, PUBLIC_4]
    assert found.diagnosis.verdict == Verdict.GOOD
    assert str(found.diagnosis) == f"{NAME}: {PUBLIC_6}, {PUBLIC_4}"


async def test_no_address(runner, zone, resolver):
    found = await judged(resolver)
    assert found.addresses == ()
    assert found.diagnosis.verdict == Verdict.FAILED
    assert found.diagnosis.found == "neither an A nor an AAAA record"


async def test_an_aaaa_record_and_no_ipv6(runner, zone, resolver):
    """The classic: CAs try IPv6 first, and nothing listens there."""
    zone.records = {(NAME, "A"): [PUBLIC_4], (NAME, "AAAA"): [PUBLIC_6]}
    found = await judged(resolver, Surroundings(is_public=True, has_ipv6=False))
    assert found.diagnosis.verdict == Verdict.FAILED
    assert "does not listen on IPv6" in found.diagnosis.found
    assert f"or remove the AAAA record of {NAME}" in found.diagnosis.advice
    assert found.if_heard.verdict == Verdict.WARNING


async def test_private_addresses_with_a_public_ca(runner, zone, resolver):
    zone.records = {(NAME, "A"): [PRIVATE]}
    found = await judged(resolver)
    assert found.diagnosis.verdict == Verdict.WARNING
    assert found.diagnosis.found == f"{PRIVATE}: only private addresses"


async def test_one_private_address_among_others(runner, zone, resolver):
    zone.records = {(NAME, "A"): [PUBLIC_4, PRIVATE]}
    found = await judged(resolver)
    assert found.diagnosis.verdict == Verdict.WARNING
    assert f"{PRIVATE} is private" in found.diagnosis.found


async def test_private_addresses_with_a_private_ca(runner, zone, resolver):
    zone.records = {(NAME, "A"): [LOCALHOST]}
    assert (await judged(resolver, Surroundings(is_public=False, has_ipv6=True))).diagnosis.verdict == Verdict.GOOD


async def test_dns_that_does_not_work(runner, zone, resolver):
    zone.errors[NAME] = "SERVFAIL"
    found = await judged(resolver)
    assert found.diagnosis.verdict == Verdict.FAILED
    assert "AAAA of" in found.diagnosis.found
    assert "; A of" in found.diagnosis.found
    assert "DNSSEC" in found.diagnosis.advice


async def test_dns_that_works_for_ipv4_only(runner, zone, resolver):
    """Some name servers choke on AAAA."""
    zone.records = {(NAME, "A"): [PUBLIC_4]}
    zone.errors[NAME, "AAAA"] = "SERVFAIL"
    found = await judged(resolver)
    assert list(map(str, found.addresses)) == [PUBLIC_4]
    assert found.diagnosis.verdict == Verdict.WARNING


@pytest.mark.parametrize("name", [PUBLIC_4, PUBLIC_6])
async def test_an_ip_address_is_not_looked_up(runner, zone, resolver, name):
    """RFC 8738."""
    found = await judged(resolver, name=name)
    assert list(map(str, found.addresses)) == [name]
    assert found.diagnosis.verdict == Verdict.GOOD
    assert zone.asked == []


@pytest.fixture
def in_hosts(monkeypatch):
    """This machine's own answer for every name, 127.0.0.1; and a resolver that lets it count."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOCALHOST, 0))]
    )


async def test_a_public_ca_does_not_read_our_hosts(runner, zone, resolver, in_hosts):
    resolver.reads_hosts = True
    found = await judged(resolver)
    assert found.diagnosis.verdict == Verdict.FAILED
    assert "this machine alone has 127.0.0.1, from /etc/hosts" in found.diagnosis.found


async def test_a_private_ca_may_know_a_name_in_another_way(runner, zone, resolver, in_hosts):
    resolver.reads_hosts = True
    found = await judged(resolver, Surroundings(is_public=False, has_ipv6=True))
    assert list(map(str, found.addresses)) == [LOCALHOST]
    assert found.diagnosis.verdict == Verdict.WARNING


async def test_a_name_server_that_was_named_is_all_there_is(runner, zone, resolver, in_hosts):
    assert (await judged(resolver)).addresses == ()


# -- who may issue


async def test_no_caa_record_at_all(runner, zone, resolver):
    """RFC 8659 section 3: the name, and each domain above."""
    answer = await check_caa(NAME, resolver, WE)
    assert answer.verdict == Verdict.GOOD
    assert zone.asked == [(NAME, "CAA"), ("example.com", "CAA"), ("com", "CAA")]


async def test_the_nearest_record_counts(runner, zone, resolver):
    zone.records = {(NAME, "CAA"): ['0 issue "other.test"'], ("example.com", "CAA"): ['0 issue "ca.test"']}
    answer = await check_caa(NAME, resolver, WE)
    assert answer.verdict == Verdict.FAILED
    assert f'at {NAME}: 0 issue "other.test": other.test may issue, and this CA is ca.test' in answer.found
    assert answer.advice.startswith(f'{NAME} needs a record: 0 issue "ca.test"')
    assert 'accounturi=https://ca.test/1")' in answer.advice


async def test_a_record_above_names_us(runner, zone, resolver):
    zone.records = {("example.com", "CAA"): ['0 issue "ca.test"', '128 iodef "mailto:a@example.com"']}
    answer = await check_caa(NAME, resolver, WE)
    assert answer.verdict == Verdict.GOOD
    assert 'at example.com: 0 issue "ca.test", 128 iodef' in answer.found


@pytest.mark.parametrize("at", [NAME, "example.com", "com"])
async def test_a_lookup_that_fails_is_a_refusal(runner, zone, resolver, at):
    """RFC 8659 section 3, and every CA's practice: what is hidden may forbid it."""
    zone.errors[at] = "SERVFAIL"
    answer = await check_caa(NAME, resolver, WE)
    assert answer.verdict == Verdict.FAILED
    assert answer.found == f"CAA of {at}: SERVFAIL from {zone.address}"


async def test_an_error_above_a_record_does_not_matter(runner, zone, resolver):
    zone.records = {(NAME, "CAA"): ['0 issue "ca.test"']}
    zone.errors["example.com"] = "SERVFAIL"
    assert (await check_caa(NAME, resolver, WE)).verdict == Verdict.GOOD


async def test_the_first_challenge_is_not_allowed(runner, zone, resolver):
    """RFC 8657 section 4."""
    zone.records = {(NAME, "CAA"): ['0 issue "ca.test; validationmethods=http-01"']}
    answer = await check_caa(NAME, resolver, WE)
    assert answer.verdict == Verdict.WARNING
    assert answer.advice.endswith("put http-01 first in challenges")


async def test_the_first_challenge_alone_is_allowed(runner, zone, resolver):
    zone.records = {(NAME, "CAA"): ['0 issue "ca.test; validationmethods=tls-alpn-01"']}
    assert (await check_caa(NAME, resolver, WE)).verdict == Verdict.GOOD


async def test_another_account_is_meant(runner, zone, resolver):
    """RFC 8657 section 3."""
    zone.records = {(NAME, "CAA"): ['0 issue "ca.test; accounturi=https://ca.test/2"']}
    answer = await check_caa(NAME, resolver, WE)
    assert answer.verdict == Verdict.FAILED
    assert "accounturi=https://ca.test/2 is asked for, and ours is https://ca.test/1" in answer.found


async def test_a_ca_that_does_not_say_who_it_is(runner, zone, resolver):
    """`caaIdentities` is optional (RFC 8555 section 7.1.1)."""
    zone.records = {(NAME, "CAA"): ['0 issue "ca.test"']}
    nobody = Applicant(identities=(), challenges=("http-01",), account_url=None)
    assert (await check_caa(NAME, resolver, nobody)).verdict == Verdict.WARNING
    zone.records = {("other.test", "CAA"): ['128 tbs "x"', '0 issue "ca.test"']}
    assert (await check_caa("other.test", resolver, nobody)).verdict == Verdict.FAILED


async def test_a_ca_that_did_not_answer(runner, zone, resolver):
    zone.records = {(NAME, "CAA"): ['0 issue "ca.test"']}
    assert (await check_caa(NAME, resolver, None)).verdict == Verdict.SKIPPED
    assert (await check_caa("other.test", resolver, None)).verdict == Verdict.GOOD


async def test_a_record_that_would_colour_the_terminal(runner, zone, resolver):
    zone.records = {(NAME, "CAA"): ['0 issue "\\027[31m"']}
    assert "\x1b" not in (await check_caa(NAME, resolver, WE)).found


async def test_nobody_listens_there(runner, impatient):
    with pytest.raises(LookupFailed, match=r"no answer|refused"):
        await Resolver(TcpAddress(LOCALHOST, 1)).addresses(NAME, "A")
