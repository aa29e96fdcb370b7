"""The client against a CA that does what the test says: what goes wrong, and what no test CA has."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from josepy.jwk import JWKEC, JWKRSA

from sniproxy.acme import client as module
from sniproxy.acme import resources
from sniproxy.acme.client import MAX_ALTERNATES, NONCE_RETRIES, Client
from sniproxy.acme.resources import AccountStatus, AuthorizationStatus, ChallengeStatus, OrderStatus
from sniproxy.bundle import Leaf, generate_key, signing_request
from sniproxy.errors import AcmeError, CaUnreachable, Problem
from tests.support.acme_stub import AcmeStub
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sniproxy.acme.resources import Order

KEY = generate_key("ecdsa-p256")
HMAC = urlsafe_b64encode(bytes(range(32))).decode()
NAMES = ("a.test", "b.test")
FAR_SECONDS = 7200


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False) as stub:
        yield stub


@pytest.fixture
def connect(runner: asyncio.Runner, stub: AcmeStub) -> Iterator[Callable[..., Client]]:
    """Clients of the stub, which are closed in the end."""
    clients: list[Client] = []

    def connect(key: Any = KEY, *, url: str = "", account_url: str | None = None) -> Client:
        clients.append(Client(url or stub.directory_url, key, account_url=account_url))
        return clients[-1]

    yield connect

    async def close() -> None:
        for client in clients:
            await client.close()

    runner.run(close())


@pytest.fixture
def client(runner: asyncio.Runner, connect: Callable[..., Client]) -> Client:
    """One with an account."""
    client = connect()
    runner.run(client.create_account(contact=["mailto:admin@a.test"], agree_to_terms=True))
    return client


async def ready(client: Client, names: tuple[str, ...] = NAMES, **options: Any) -> Order:
    """An order whose names are validated."""
    order = await client.new_order(names, **options)
    for url in order.authorizations:
        await client.answer((await client.authorization(url)).challenges[0])
    return await client.order(order.url)


async def issued(client: Client, **options: Any) -> Order:
    """An order that is done."""
    order = await ready(client, **options)
    return await client.finalize(order, signing_request(generate_key("ecdsa-p256"), NAMES))


async def from_nothing(client: Client) -> Order:
    """Account and all."""
    await client.create_account(contact=[], agree_to_terms=True)
    return await issued(client)


def held(stub: AcmeStub, resource: str) -> tuple[threading.Event, Callable[[], Any]]:
    """Holds the next request of this kind: the event lets it go, and the other thing waits until it is there."""
    event = stub.hang(resource)
    before = stub.count(resource)

    async def is_there() -> None:
        while stub.count(resource) == before:  # noqa: ASYNC110  it comes from another thread
            await asyncio.sleep(0.001)

    return event, is_there


# ---------------------------------------------------------------------------------------------------- from end to end


async def test_a_certificate(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 7.1, the table of the usual course."""
    order = await client.new_order(NAMES)
    assert (order.status, order.identifiers) == (OrderStatus.PENDING, NAMES)

    authorization = await client.authorization(order.authorizations[0])
    assert (authorization.status, authorization.identifier) == (AuthorizationStatus.PENDING, "a.test")
    challenge = authorization.challenges[0]
    assert (await client.answer(challenge)).status in {ChallengeStatus.PROCESSING, ChallengeStatus.VALID}
    await client.answer((await client.authorization(order.authorizations[1])).challenges[0])

    order = await client.order(order.url)
    assert order.status is OrderStatus.READY
    key = generate_key("ecdsa-p256")
    order = await client.finalize(order, signing_request(key, order.identifiers))
    assert order.status is OrderStatus.VALID
    ((leaf, *_above),) = await client.certificate(order.certificate)

    assert Leaf(leaf).names == NAMES
    assert leaf.public_key() == key.public_key()


async def test_ip_addresses_beside_names(stub: AcmeStub, client: Client) -> None:
    """RFC 8738 section 3: another type, and the address as RFC 5952 has it."""
    order = await client.new_order(["A.test", "192.0.2.1", "2001:DB8::1", "a.test"])

    assert stub.payloads("newOrder")[0]["identifiers"] == [
        {"type": "dns", "value": "a.test"},
        {"type": "ip", "value": "192.0.2.1"},
        {"type": "ip", "value": "2001:db8::1"},
    ]
    assert set(order.identifiers) == {"a.test", "192.0.2.1", "2001:db8::1"}
    assert (await client.authorization(order.authorizations[1])).is_ip


async def test_the_profile_is_in_the_order(stub: AcmeStub, client: Client) -> None:
    """draft-aaron-acme-profiles section 4; and none where none is set."""
    stub.profiles = {"shortlived": "Six days"}
    await client.new_order(NAMES, profile="shortlived")
    await client.new_order(NAMES)

    assert [payload.get("profile") for payload in stub.payloads("newOrder")] == ["shortlived", None]
    assert dict((await client.directory()).profiles) == {}  # of before; asked for anew after an hour


async def test_the_other_chains(runner: asyncio.Runner) -> None:
    """RFC 8555 section 7.4.2: Link with rel="alternate". The first is the CA's choice."""
    with AcmeStub(validate=False, alternates=2) as stub:
        client = Client(stub.directory_url, KEY)
        await client.create_account(contact=[], agree_to_terms=True)
        order = await issued(client)
        chains = await client.certificate(order.certificate)
        only = await client.certificate(order.certificate, alternates=False)
        await client.close()

    assert len(chains) == 3
    assert only == chains[:1]
    assert len({chain[0] for chain in chains}) == 1
    assert len({chain[-1].issuer for chain in chains}) == 3


async def test_not_more_chains_than_a_few(stub: AcmeStub, client: Client) -> None:
    order = await issued(client)
    links = ", ".join(f'<{order.certificate}?{number}>;rel="alternate"' for number in range(50))
    stub.headers("certificate", {"Link": f'<{stub.directory_url}>;rel="index", {links}'})
    before = stub.count("certificate")

    with pytest.raises(AcmeError):  # the stub has none of these
        await client.certificate(order.certificate)
    assert module._alternates(order.certificate, [links]) == [f"{order.certificate}?{number}" for number in range(4)]
    assert MAX_ALTERNATES == 4
    assert stub.count("certificate") - before <= 1 + MAX_ALTERNATES


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ('<https://ca.test/2>;rel="alternate"', ["https://ca.test/2"]),
        ("</2>; rel=alternate", ["https://ca.test/2"]),
        ('<2>;title="x";rel="alternate"', ["https://ca.test/2"]),
        ('<https://ca.test/2>;rel="up alternate"', ["https://ca.test/2"]),
        ('<https://ca.test/2>;rel="up", <https://ca.test/3>;REL="Alternate"', ["https://ca.test/3"]),
        ('<https://ca.test/2>;rel="index"', []),
        ('<https://ca.test/1>;rel="alternate"', []),
        ("garbage", []),
        ("<", []),
    ],
)
def test_links(link, found):
    """RFC 8288 section 3."""
    assert module._alternates("https://ca.test/1", [link]) == found


async def test_a_certificate_that_is_none(stub: AcmeStub, client: Client) -> None:
    order = await issued(client)
    stub.answer("certificate", b"no certificate", content_type="application/pem-certificate-chain")

    with pytest.raises(CaUnreachable, match=r"^the CA's certificate is not PEM: "):
        await client.certificate(order.certificate)


async def test_a_certificate_is_revoked(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 7.6; the second time, in the CA's words."""
    ((leaf, *_above),) = await client.certificate((await issued(client)).certificate)

    await client.revoke(leaf, reason=4)

    assert stub.issued[0].revoked == 4
    with pytest.raises(Problem) as caught:
        await client.revoke(leaf)
    assert caught.value.code == "alreadyRevoked"


async def test_an_authorization_is_deactivated(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 7.5.2."""
    order = await client.new_order(NAMES)

    await client.deactivate_authorization(order.authorizations[0])

    status = (await client.authorization(order.authorizations[0])).status
    assert status is AuthorizationStatus.DEACTIVATED
    assert (await client.order(order.url)).status is OrderStatus.INVALID


# ------------------------------------------------------------------------------------------------- renewal information


async def test_renewal_information(stub: AcmeStub, client: Client) -> None:
    """RFC 9773 section 4: a plain GET."""
    ((leaf, *_above),) = await client.certificate((await issued(client)).certificate)
    start = datetime(2027, 1, 1, tzinfo=UTC)
    stub.renewal_window = (start, start + timedelta(days=2))
    stub.explanation_url = "https://ca.test/incident"

    info = await client.renewal_info(Leaf(leaf).ari_certificate_id)

    assert (info.start, info.end) == stub.renewal_window
    assert info.explanation_url == "https://ca.test/incident"
    assert info.retry_after == 21600.0


async def test_renewal_information_of_a_certificate_that_the_ca_does_not_know(client: Client) -> None:
    with pytest.raises(Problem) as caught:
        await client.renewal_info("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")

    assert caught.value.status == 404


async def test_a_ca_without_renewal_information(stub: AcmeStub, client: Client) -> None:
    """RFC 9773 section 5: without it, nothing is said of what is replaced either."""
    stub.renewal_info = False
    client._directory = None

    with pytest.raises(AcmeError, match=r"^the CA offers no renewal information$"):
        await client.renewal_info("a.b")
    await client.new_order(NAMES, replaces="a.b")

    assert "replaces" not in stub.payloads("newOrder")[0]


async def test_what_was_replaced_already_can_be_told(stub: AcmeStub, client: Client) -> None:
    """RFC 9773 section 5: 409 alreadyReplaced. The client of the acme package does not read its body."""
    ((leaf, *_above),) = await client.certificate((await issued(client)).certificate)
    replaces = Leaf(leaf).ari_certificate_id
    await client.new_order(NAMES, replaces=replaces)

    with pytest.raises(Problem) as caught:
        await client.new_order(NAMES, replaces=replaces)

    assert [payload.get("replaces") for payload in stub.payloads("newOrder")] == [None, replaces, replaces]
    assert (caught.value.code, caught.value.status) == ("alreadyReplaced", 409)


# ------------------------------------------------------------------------------------------------------------ accounts


async def test_an_account_that_is_not_there(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    """RFC 8555 section 7.3.1: onlyReturnExisting makes none."""
    client = connect()

    assert await client.find_account() is None
    assert stub.payloads("newAccount") == [{"onlyReturnExisting": True}]
    assert stub.accounts == []


async def test_a_failure_is_not_taken_for_no_account(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    stub.fail("newAccount", status=500, problem="serverInternal")

    with pytest.raises(Problem, match="serverInternal"):
        await connect().find_account()


async def test_an_account_is_found_by_its_key(stub: AcmeStub, client: Client, connect: Callable[..., Client]) -> None:
    """Whoever has lost the URL asks with the key; and it is asked for when it is needed."""
    found = await connect().find_account()
    assert (found.url, found.status) == (stub.accounts[0].url, AccountStatus.VALID)
    assert found.contact == ("mailto:admin@a.test",)

    again = connect()
    await again.new_order(NAMES)
    assert again.account_url == found.url


async def test_without_an_account_there_is_no_order(connect: Callable[..., Client]) -> None:
    with pytest.raises(AcmeError, match=r"^the CA has no account for this key$"):
        await connect().new_order(NAMES)


async def test_the_account_of_before_is_used(stub: AcmeStub, client: Client, connect: Callable[..., Client]) -> None:
    """It is not asked for again at each start."""
    before = stub.count("newAccount")

    await connect(account_url=client.account_url).new_order(NAMES)

    assert stub.count("newAccount") == before


async def test_an_account_that_the_ca_has_forgotten(stub: AcmeStub, client: Client) -> None:
    stub.forget()

    with pytest.raises(Problem) as caught:
        await client.new_order(NAMES)

    assert caught.value.code == "accountDoesNotExist"


async def test_terms_that_were_not_agreed_to(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    """The operator agrees, and not we; and where to read them is said before anything is sent."""
    with pytest.raises(AcmeError, match=r"^the CA has terms of service, https://ca\.test/terms: read them"):
        await connect().create_account(contact=[], agree_to_terms=False)

    assert stub.count("newAccount") == 0


async def test_a_ca_without_terms(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    stub.terms_of_service = None

    account = await connect().create_account(contact=[], agree_to_terms=False)

    assert account.url == stub.accounts[0].url


async def test_contact_is_changed_and_taken_away(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 7.3.2."""
    assert (await client.update_account(contact=["mailto:b@a.test"])).contact == ("mailto:b@a.test",)
    assert (await client.update_account(contact=[])).contact == ()
    assert stub.accounts[0].contact == []


async def test_an_account_is_deactivated(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 7.3.6."""
    await client.deactivate_account()

    assert stub.accounts[0].status == "deactivated"
    with pytest.raises(Problem, match="unauthorized"):
        await client.new_order(NAMES)


@pytest.mark.parametrize("hmac", [HMAC, HMAC.rstrip("="), f"{HMAC}\n"], ids=["padded", "not padded", "with a newline"])
async def test_an_external_account(stub: AcmeStub, connect: Callable[..., Client], hmac: str) -> None:
    """RFC 8555 section 7.3.4. CAs hand the key out with and without padding."""
    stub.eab = {"customer-1": HMAC.rstrip("=")}

    await connect().create_account(contact=[], agree_to_terms=True, eab_kid="customer-1", eab_hmac=hmac)

    assert stub.accounts[0].eab == "customer-1"


async def test_a_ca_for_customers_only(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    stub.eab = {"customer-1": HMAC}

    with pytest.raises(AcmeError, match=r"get acme\.eab_kid and acme\.eab_hmac_file at https://ca\.test/$"):
        await connect().create_account(contact=[], agree_to_terms=True)

    assert stub.count("newAccount") == 0


@pytest.mark.parametrize("hmac", ["", "not base64url!", "A", "AAAAA", "zażółć"])
async def test_an_external_account_key_that_is_none(connect: Callable[..., Client], hmac: str) -> None:
    """It is wrong, and it may still be most of a secret."""
    with pytest.raises(AcmeError, match=r"^acme\.eab_hmac_file does not hold base64url, as the CA has given it$"):
        await connect().create_account(contact=[], agree_to_terms=True, eab_kid="me", eab_hmac=hmac)


async def test_the_key_is_rolled_over(stub: AcmeStub, client: Client, connect: Callable[..., Client]) -> None:
    """RFC 8555 section 7.3.5: from then on, requests and key authorizations are of the new one."""
    new = generate_key("ecdsa-p384")
    before = client.thumbprint

    await client.roll_over_key(new)

    await client.new_order(NAMES)
    assert client.key is new
    assert client.thumbprint == stub.thumbprint(stub.accounts[0]) != before
    assert await connect(KEY).find_account() is None
    assert (await connect(new).find_account()).url == client.account_url


async def test_a_key_rollover_that_the_ca_refuses(stub: AcmeStub, client: Client) -> None:
    """Then it is the old key that counts."""
    stub.fail("keyChange", status=409, problem="malformed")
    before = client.thumbprint

    with pytest.raises(Problem):
        await client.roll_over_key(generate_key("ecdsa-p256"))

    assert (client.key, client.thumbprint) == (KEY, before)
    await client.new_order(NAMES)


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_every_kind_of_key(stub: AcmeStub, connect: Callable[..., Client], kind: str) -> None:
    client = connect(generate_key(kind))

    await client.create_account(contact=[], agree_to_terms=True)

    assert client.thumbprint == stub.thumbprint(stub.accounts[0])


def test_the_thumbprint_is_that_of_josepy():
    """RFC 7638, by another hand. Some points have zeros in front, which stay (RFC 7518 section 6.2.1.2)."""
    for kind, count in (("ecdsa-p256", 300), ("ecdsa-p384", 300), ("rsa-2048", 1)):
        for _ in range(count):
            key = generate_key(kind)
            public = key.public_key()
            jwk = JWKRSA(key=public) if kind.startswith("rsa") else JWKEC(key=public)
            assert Client("https://ca.test/", key).thumbprint == module._base64url(jwk.thumbprint())


# ------------------------------------------------------------------------------------------------------------- nonces


async def test_a_nonce_is_asked_for_once(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 6.5: each answer brings the next one."""
    await issued(client)

    assert stub.count("newNonce") == 1


async def test_the_nonces_of_errors_are_kept_too(stub: AcmeStub, client: Client) -> None:
    """Section 6.5: also error responses have one. The client of the acme package throws it away."""
    stub.fail("newOrder", status=403, problem="unauthorized", times=3)

    for _ in range(3):
        with pytest.raises(Problem):
            await client.new_order(NAMES)
    await client.new_order(NAMES)

    assert stub.count("newNonce") == 1


@pytest.mark.parametrize("in_errors", [True, False])
async def test_bad_nonces(stub: AcmeStub, client: Client, in_errors: bool) -> None:
    """Section 6.5: the client tries again with the nonce of the error; without one, it asks for another."""
    stub.nonces_in_errors = in_errors
    stub.bad_nonce(NONCE_RETRIES, "newOrder")

    await client.new_order(NAMES)

    assert stub.count("newOrder") == 1 + NONCE_RETRIES
    assert stub.count("newNonce") == (1 if in_errors else 1 + NONCE_RETRIES)


async def test_a_storm_of_bad_nonces_comes_to_an_end(stub: AcmeStub, client: Client) -> None:
    stub.bad_nonce(None, "newOrder")

    with pytest.raises(Problem) as caught:
        await client.new_order(NAMES)

    assert caught.value.code == "badNonce"
    assert stub.count("newOrder") == 1 + NONCE_RETRIES


async def test_other_errors_are_not_tried_again(stub: AcmeStub, client: Client) -> None:
    """Whether it is worth it is for the caller to say, who knows how often it was tried."""
    stub.fail("newOrder", status=500, problem="serverInternal")

    with pytest.raises(Problem):
        await client.new_order(NAMES)

    assert stub.count("newOrder") == 1


async def test_an_old_nonce_is_not_used(stub: AcmeStub, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NONCE_SECONDS", 0.0)

    await client.new_order(NAMES)

    assert stub.count("newNonce") == 2
    assert stub.count("newOrder") == 1


@pytest.mark.parametrize("nonce", [None, "", "not base64url!", "A", "AB", "x" * 1000], ids=repr)
async def test_a_nonce_that_is_none(stub: AcmeStub, connect: Callable[..., Client], nonce: str | None) -> None:
    """Section 6.5.1: base64url, and others are ignored. AB stands for one byte, and is not what that is written as."""
    stub.headers("newNonce", {"Replay-Nonce": nonce})

    with pytest.raises(CaUnreachable, match=r"^newNonce: the CA's answer has no nonce"):
        await connect().find_account()


async def test_not_every_nonce_is_kept(stub: AcmeStub, client: Client) -> None:
    for _ in range(2 * module.MAX_NONCES):
        client._keep_nonce(await client._get("newNonce", (await client.directory()).new_nonce, head=True))

    assert len(client._nonces) == module.MAX_NONCES


# ------------------------------------------------------------------------------------------------ errors, Retry-After


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_a_problem_has_its_retry_after(stub: AcmeStub, client: Client, status: int) -> None:
    """RFC 8555 section 6.6. The client of the acme package loses it."""
    stub.fail("newOrder", status=status, problem="rateLimited", retry_after="120")

    with pytest.raises(Problem) as caught:
        await client.new_order(NAMES)

    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("rateLimited", status, 120.0)


async def test_retry_after_as_a_date_is_by_the_cas_clock(stub: AcmeStub, client: Client) -> None:
    """RFC 9110 section 10.2.3: a date of the server's, whose clock need not be right; nor ours."""
    stub.clock_skew = timedelta(days=3)
    date = format_datetime(stub.now() + timedelta(seconds=FAR_SECONDS), usegmt=True)
    stub.fail("newOrder", status=429, problem="rateLimited", retry_after=date)

    with pytest.raises(Problem) as caught:
        await client.new_order(NAMES)

    assert caught.value.retry_after == pytest.approx(FAR_SECONDS, abs=2 * PATIENCE_SECONDS)


async def test_retry_after_of_what_is_being_worked_on(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 7.4: when to look again."""
    stub.processing_polls = 1
    stub.poll_retry_after = "7"

    order = await issued(client)
    assert (order.status, order.retry_after) == (OrderStatus.PROCESSING, 7.0)
    order = await client.order(order.url)
    assert (order.status, order.retry_after) == (OrderStatus.PROCESSING, 7.0)
    order = await client.order(order.url)
    assert (order.status, order.retry_after) == (OrderStatus.VALID, None)


async def test_the_pages_of_a_proxy_that_is_down(stub: AcmeStub, client: Client) -> None:
    stub.html("newOrder", status=502)
    with pytest.raises(CaUnreachable, match=r"^newOrder: the CA answered 502, and not as ACME has it \(text/html\)"):
        await client.new_order(NAMES)

    stub.fail("newOrder", status=503, problem=None, retry_after="30")
    with pytest.raises(CaUnreachable, match=r"^newOrder: the CA answered 503,") as caught:
        await client.new_order(NAMES)
    assert caught.value.retry_after == 30.0


async def test_a_page_in_the_place_of_json(stub: AcmeStub, client: Client) -> None:
    """A captive portal answers with 200."""
    stub.html("newOrder", status=200)

    with pytest.raises(CaUnreachable, match=r"^newOrder: the CA's answer is not JSON"):
        await client.new_order(NAMES)


async def test_subproblems(stub: AcmeStub, client: Client) -> None:
    """RFC 8555 section 6.7.1: which of the names it is about."""
    stub.blocked = {"b.test"}

    with pytest.raises(Problem) as caught:
        await client.new_order(NAMES)

    assert caught.value.code == "rejectedIdentifier"
    assert "b.test" in str(caught.value)


async def test_the_connection_breaks(stub: AcmeStub, client: Client) -> None:
    stub.cut("newOrder")
    with pytest.raises(CaUnreachable, match=r"^the CA at 127\.0\.0\.1:\d+ cannot be reached: "):
        await client.new_order(NAMES)

    stub.cut("newOrder", 10)
    with pytest.raises(CaUnreachable, match=r"what it answers is not HTTP, or not all of it$"):
        await client.new_order(NAMES)


# ----------------------------------------------------------------------------------------------------- malformed answers


@pytest.mark.parametrize(
    ("resource", "field", "words"),
    [
        ("directory", "newOrder", "the CA's directory lacks newOrder"),
        ("newOrder", "finalize", "the CA's order lacks finalize"),
        ("newOrder", "status", "the CA's order lacks status"),
        ("authorization", "identifier", "the CA's authorization lacks identifier"),
        ("challenge", "url", "the CA's challenge lacks url"),
        ("finalize", "identifiers", "the CA's order has no identifiers"),
        ("newAccount", "status", "the CA's account lacks status"),
    ],
)
async def test_a_field_is_missing(
    stub: AcmeStub, connect: Callable[..., Client], resource: str, field: str, words: str
) -> None:
    stub.omit(resource, field)
    client = connect()

    with pytest.raises(CaUnreachable) as caught:
        await from_nothing(client)

    assert str(caught.value) == words


@pytest.mark.parametrize("resource", ["newOrder", "newAccount"])
@pytest.mark.parametrize("location", [None, "", "/1", "http://ca.test/1", "https://a@ca.test/1"], ids=repr)
async def test_what_is_new_has_an_address(
    stub: AcmeStub, connect: Callable[..., Client], resource: str, location: str | None
) -> None:
    """RFC 8555 sections 7.3 and 7.4: in Location, and without it there is no way back."""
    stub.headers(resource, {"Location": location})
    client = connect()

    with pytest.raises(CaUnreachable, match=r"has no address of its own: its Location is not a"):
        await from_nothing(client)


@pytest.mark.parametrize(
    "identifiers",
    [
        [{"type": "dns", "value": "a.test"}],
        [{"type": "dns", "value": name} for name in (*NAMES, "c.test")],
        [{"type": "dns", "value": "a.test"}, {"type": "dns", "value": "evil.test"}],
    ],
    ids=["fewer", "more", "others"],
)
@pytest.mark.parametrize("resource", ["newOrder", "finalize"])
async def test_an_order_for_something_else(stub: AcmeStub, client: Client, identifiers: Any, resource: str) -> None:
    """Section 7.4: the order has the identifiers that were asked for."""
    stub.edit(resource, lambda order: order.update(identifiers=identifiers))

    with pytest.raises(AcmeError, match=r"^the CA's order is for a\.test.*, not for a\.test, b\.test$"):
        await issued(client)


async def test_https_never_leads_to_http(runner: asyncio.Runner) -> None:
    """A CA that is asked by https cannot have us ask this machine's own services, which trust it."""
    client = Client("https://ca.test/directory", KEY, account_url="https://ca.test/1")

    with pytest.raises(CaUnreachable, match=r"^order: the address to ask at is not an https:// URL$"):
        await client.order("http://127.0.0.1:1/order")


# --------------------------------------------------------------------------------------------------------- the directory


async def test_the_directory_is_asked_for_once_an_hour(
    stub: AcmeStub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.new_order(NAMES)
    assert await client.directory() is await client.directory()
    assert stub.count("directory") == 1

    client._directory_ends = 0.0
    stub.profiles = {"x": "y"}
    assert dict((await client.directory()).profiles) == {"x": "y"}
    assert stub.count("directory") == 2


@pytest.mark.parametrize("fault", ["html", "404"])
async def test_the_directory_is_asked_for_again_after_a_failure(stub: AcmeStub, client: Client, fault: str) -> None:
    """What it says may have moved."""
    if fault == "html":
        stub.cut("newOrder")
    else:
        stub.fail("newOrder", status=404, problem="malformed")
    with pytest.raises(AcmeError):
        await client.new_order(NAMES)

    await client.new_order(NAMES)

    assert stub.count("directory") == 2


async def test_redirects_are_followed(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    """RFC 8555 section 6.3 does not forbid it for a directory. Relative ones too (RFC 9110 section 10.2.2)."""
    stub.fail("directory", status=301, problem=None, headers={"Location": "/directory"})
    stub.fail("newNonce", status=307, problem=None, headers={"Location": f"{stub.base_url}/new-nonce"})

    assert await connect().find_account() is None


async def test_redirects_in_a_circle(stub: AcmeStub, connect: Callable[..., Client]) -> None:
    stub.fail("directory", status=302, problem=None, headers={"Location": "/directory"}, times=None)

    with pytest.raises(CaUnreachable, match=r"^directory: the CA redirects more than 3 times$"):
        await connect().directory()

    assert stub.count("directory") == 1 + module.MAX_REDIRECTS


@pytest.mark.parametrize(
    "location", ["http://ca.test/x", "file:///etc/passwd", "https://a:b@ca.test/", "//["], ids=repr
)
async def test_a_redirect_to_somewhere_else(stub: AcmeStub, connect: Callable[..., Client], location: str) -> None:
    stub.fail("directory", status=302, problem=None, headers={"Location": location})

    with pytest.raises(CaUnreachable, match=r"^directory: the "):
        await connect().directory()


async def test_what_is_signed_is_not_redirected(stub: AcmeStub, client: Client) -> None:
    """The signature is for one URL (RFC 8555 section 6.4)."""
    stub.fail("newOrder", status=307, problem=None, headers={"Location": f"{stub.base_url}/new-order"})

    with pytest.raises(CaUnreachable, match=r"^newOrder: the CA answered 307, "):
        await client.new_order(NAMES)

    assert stub.count("newOrder") == 1


@pytest.mark.parametrize("resource", ["directory", "newOrder"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "not declared"])
async def test_a_huge_answer(stub: AcmeStub, connect: Callable[..., Client], resource: str, declared: bool) -> None:
    stub.huge(resource, declared=declared)
    client = connect()
    most = module.MAX_DIRECTORY_BYTES if resource == "directory" else module.MAX_REPLY_BYTES

    with pytest.raises(CaUnreachable, match=f"^the CA's answer has more than {most} bytes$"):
        await from_nothing(client)


# ------------------------------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize("days", [-3, 0, 3])
async def test_how_far_the_clocks_are_apart(stub: AcmeStub, connect: Callable[..., Client], days: int) -> None:
    """RFC 9110 section 6.6.1: Date. A clock that is wrong is why certificates are refused or renewed too late."""
    stub.clock_skew = timedelta(days=days)
    client = connect()
    assert client.clock_skew is None

    await client.directory()

    assert client.clock_skew == pytest.approx(days * 86400, abs=PATIENCE_SECONDS)


async def test_an_answer_without_a_date_says_nothing_of_the_clock(stub: AcmeStub, client: Client) -> None:
    before = client.clock_skew
    stub.headers("newOrder", {"Date": "yesterday"})

    await client.new_order(NAMES)

    assert client.clock_skew == before


# -------------------------------------------------------------------------------------------------- the loop, the thread


async def test_the_event_loop_is_free_while_a_request_hangs(stub: AcmeStub, client: Client) -> None:
    """And so is the relay."""
    release, is_there = held(stub, "newOrder")
    async with asyncio.TaskGroup() as tasks:
        ordering = tasks.create_task(client.new_order(NAMES))
        await is_there()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not ordering.done()
        release.set()

    assert ordering.result().status is OrderStatus.PENDING


async def test_requests_go_one_after_the_other(stub: AcmeStub, client: Client) -> None:
    """One client is one thread, and one connection to the CA."""
    release, is_there = held(stub, "newOrder")
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(client.new_order(NAMES))
        await is_there()
        second = tasks.create_task(client.new_order(["c.test"]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert stub.count("newOrder") == 1
        release.set()

    assert first.result().identifiers == NAMES
    assert second.result().identifiers == ("c.test",)


@pytest.mark.parametrize("how", ["no answer", "drips"])
async def test_a_request_has_an_end(stub: AcmeStub, client: Client, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """An answer byte by byte is none either. And the next request has another thread and another connection."""
    if how == "drips":
        stub.drip("newOrder", 0.02)
        stub.edit("newOrder", lambda order: order.update(padding="x" * 10_000))
    else:
        stub.hang("newOrder")
    monkeypatch.setattr(module, "REQUEST_SECONDS", 1.0)

    with pytest.raises(CaUnreachable, match=r"^newOrder: the CA at 127\.0\.0\.1:\d+ has not answered in 1 s$"):
        await client.new_order(NAMES)

    monkeypatch.undo()
    assert (await client.new_order(NAMES)).status is OrderStatus.PENDING
    await gone(client)


async def test_a_caller_who_goes_away_takes_the_request_along(stub: AcmeStub, client: Client) -> None:
    """On the way to a stop, or a reload."""
    _, is_there = held(stub, "newOrder")
    ordering = asyncio.get_running_loop().create_task(client.new_order(NAMES))
    await is_there()
    ordering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ordering

    await gone(client)
    assert (await client.new_order(NAMES)).status is OrderStatus.PENDING


async def test_waiting_for_ones_turn_has_an_end(
    stub: AcmeStub, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.01)
    release, is_there = held(stub, "newOrder")
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(client.new_order(NAMES))
        await is_there()
        with pytest.raises(CaUnreachable, match=r"the requests before it were not done in 0\.01 s$"):
            await client.new_order(NAMES)
        release.set()

    assert first.result().status is OrderStatus.PENDING


class Lookups:
    """Takes the place of getaddrinfo: hangs until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        self.count = 0
        self._getaddrinfo = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, *arguments: Any, **named: Any) -> Any:
        if threading.current_thread().name == "acme":
            self.count += 1
            self.release.wait(PATIENCE_SECONDS)
        return self._getaddrinfo(*arguments, **named)


async def test_a_thread_that_hangs_is_left_behind(
    stub: AcmeStub, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up of an address cannot be cut short. The thread comes back in the end, and sends nothing then."""
    client = connect(url=f"http://localhost:{stub.port}/directory")
    lookups = Lookups(monkeypatch)
    monkeypatch.setattr(module, "MAX_LEFT_BEHIND", 2)

    for number in (1, 2):
        asking = asyncio.get_running_loop().create_task(client.directory())
        while lookups.count < number:  # noqa: ASYNC110  it comes from another thread
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    with pytest.raises(CaUnreachable, match=r"^2 requests to the CA still hang; does DNS answer"):
        await client.directory()

    lookups.release.set()
    await gone(client)
    assert stub.count("directory") == 0
    assert (await client.directory()).new_order == f"{stub.base_url}/new-order"


async def gone(client: Client) -> None:
    """Waits until the threads that were left behind have ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(thread.is_alive for thread in client._left_behind):  # noqa: ASYNC110  no event tells
            await asyncio.sleep(0.001)


async def test_close_ends_what_is_going_on(stub: AcmeStub, client: Client) -> None:
    _, is_there = held(stub, "newOrder")
    ordering = asyncio.get_running_loop().create_task(client.new_order(NAMES))
    await is_there()
    thread = client._thread

    await client.close()

    with pytest.raises(CaUnreachable):
        await ordering
    assert not thread.is_alive
    assert (await client.new_order(NAMES)).status is OrderStatus.PENDING  # with a new thread


async def test_a_ca_file_that_comes_later(stub: AcmeStub, client: Client, tmp_path: Any) -> None:
    """What was wrong with the file is said each time, until it is mended."""
    path = tmp_path / "root.pem"
    client = Client(stub.directory_url, KEY, ca_file=path)
    for _ in range(2):
        with pytest.raises(AcmeError, match=r"^acme\.ca_file: "):
            await client.directory()

    path.write_text(stub.root_pem)
    await client.directory()
    await client.close()


def test_a_request_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    """Whatever a CA does, a stop is a stop."""
    code = f"""
import asyncio, socket
from sniproxy.acme.client import Client
from sniproxy.bundle import generate_key
listening = socket.create_server(({LOCALHOST!r}, 0))
client = Client("http://{LOCALHOST}:%d/" % listening.getsockname()[1], generate_key("ecdsa-p256"))

async def main():
    asking = asyncio.get_running_loop().create_task(client.directory())
    connection, _ = await asyncio.to_thread(listening.accept)
    await asyncio.to_thread(connection.recv, 1)
    client._thread.leave = lambda: None  # as if it could not be woken
    print("hangs", flush=True)

asyncio.run(main())
"""

    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    assert (done.stdout, done.returncode) == ("hangs\n", 0), done.stderr


def test_what_it_looks_like_shows_no_key():
    assert repr(Client("https://ca.test/", KEY)) == "Client('https://ca.test/', account_url=None)"


def test_every_problem_that_is_told_apart_has_a_name():
    """RFC 8555 section 6.7: the code is the last part of the type."""
    document = {"type": "urn:ietf:params:acme:error:alreadyReplaced"}

    error = resources.refusal("x", 409, json.dumps(document).encode(), content_type="", retry_after=None)

    assert isinstance(error, Problem)
    assert error.code == "alreadyReplaced"
