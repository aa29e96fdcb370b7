"""The client against a real CA: Pebble, strict, for customers only, which refuses every seventh nonce on purpose."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING

import pytest

from sniproxy.acme.client import Client
from sniproxy.acme.resources import AccountStatus, AuthorizationStatus, ChallengeStatus, OrderStatus
from sniproxy.bundle import Leaf, check_issued, generate_key, signing_request, utc_now
from sniproxy.errors import AcmeError, CaUnreachable, Problem
from tests.support import pebble
from tests.support.pebble import Pebble
from tests.support.processes import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sniproxy.acme.resources import Order
    from sniproxy.bundle import PrivateKey
    from tests.support.processes import Programs

pytestmark = pytest.mark.skipif(not pebble.AVAILABLE, reason=pebble.MISSING)

HMAC = urlsafe_b64encode(bytes(range(32))).decode()
NAMES = ("a.example.com", "b.example.com")
LOOK_AGAIN_SECONDS = 0.05


@pytest.fixture(scope="module")
def ca(module_programs: Programs) -> Pebble:
    """Believes every challenge: what answers them is not what is tested here."""
    return module_programs.start(
        Pebble(
            module_programs.directory,
            nonce_reject=15,
            eab={"customer-1": HMAC.rstrip("=")},
            alternate_roots=2,
            always_valid=True,
            blocklist=["blocked.example.com"],
        )
    )


@pytest.fixture
def connect(runner: asyncio.Runner, ca: Pebble) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def connect(key: PrivateKey | None = None) -> Client:
        clients.append(Client(ca.directory_url, key or generate_key("ecdsa-p256"), ca_file=ca.ca_file))
        return clients[-1]

    yield connect

    async def close() -> None:
        for client in clients:
            await client.close()

    runner.run(close())


@pytest.fixture
def client(runner: asyncio.Runner, connect: Callable[..., Client]) -> Client:
    made = connect()
    runner.run(register(made))
    return made


async def register(client: Client) -> None:
    await client.create_account(
        contact=["mailto:admin@example.com"], agree_to_terms=True, eab_kid="customer-1", eab_hmac=HMAC
    )


async def until(client: Client, order: Order, status: OrderStatus) -> Order:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while order.status is not status:
            assert order.status is not OrderStatus.INVALID, order.error
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            order = await client.order(order.url)
    return order


async def test_a_certificate_and_all_its_chains(ca: Pebble, client: Client) -> None:
    """RFC 8555 sections 7.4 and 7.5, and 7.4.2 with other chains: each holds, and each ends below another root."""
    order = await client.new_order(NAMES)
    for url in order.authorizations:
        authorization = await client.authorization(url)
        assert authorization.status is AuthorizationStatus.PENDING
        kinds = {challenge.type: challenge for challenge in authorization.challenges}
        assert set(kinds) == {"http-01", "dns-01", "tls-alpn-01"}
        answered = await client.answer(kinds["tls-alpn-01"])
        assert answered.status in {ChallengeStatus.PENDING, ChallengeStatus.PROCESSING, ChallengeStatus.VALID}
    order = await until(client, order, OrderStatus.READY)
    key = generate_key("ecdsa-p256")
    order = await until(client, await client.finalize(order, signing_request(key, NAMES)), OrderStatus.VALID)

    chains = await client.certificate(order.certificate)

    assert len(chains) == 3
    assert {check_issued(key, chain, NAMES, utc_now()).leaf.serial for chain in chains} == {Leaf(chains[0][0]).serial}
    assert len({chain[-1].issuer for chain in chains}) == 3

    await client.revoke(chains[0][0])
    assert ca.status(chains[0][0].serial_number) == "Revoked"
    with pytest.raises(Problem) as caught:
        await client.revoke(chains[0][0])
    assert caught.value.code == "alreadyRevoked"


async def test_every_seventh_nonce_is_refused_and_nobody_notices(client: Client) -> None:
    """With one retry, as the client of the acme package has it, one of forty requests would fail."""
    for _ in range(60):
        await client.update_account(contact=["mailto:admin@example.com"])


async def test_an_account_is_made_found_and_given_up(connect: Callable[..., Client]) -> None:
    """RFC 8555 sections 7.3, 7.3.1 and 7.3.6."""
    client = connect()
    assert await client.find_account() is None
    await register(client)

    again = connect(client.key)
    found = await again.find_account()
    assert (found.url, found.status) == (client.account_url, AccountStatus.VALID)
    assert found.contact == ("mailto:admin@example.com",)

    await client.deactivate_account()
    with pytest.raises(Problem):
        await client.new_order(NAMES)


async def test_an_account_for_customers_only(connect: Callable[..., Client]) -> None:
    """RFC 8555 section 7.3.4: the directory says so, and the key has to be the right one."""
    with pytest.raises(AcmeError, match=r"^the CA takes its customers only: get acme\.eab_kid and acme\.eab_hmac_file"):
        await connect().create_account(contact=[], agree_to_terms=True)
    with pytest.raises(Problem):
        await connect().create_account(
            contact=[], agree_to_terms=True, eab_kid="customer-1", eab_hmac=HMAC[::-1].strip("=")
        )


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_the_key_is_rolled_over(client: Client, connect: Callable[..., Client], kind: str) -> None:
    """RFC 8555 section 7.3.5, to every kind of key."""
    old, new = client.key, generate_key(kind)

    await client.roll_over_key(new)

    await client.new_order(NAMES)
    assert await connect(old).find_account() is None
    assert (await connect(new).find_account()).url == client.account_url


async def test_a_name_that_the_ca_does_not_take(client: Client) -> None:
    with pytest.raises(Problem) as caught:
        await client.new_order(["www.blocked.example.com"])

    assert caught.value.code == "rejectedIdentifier"
    assert "blocked.example.com" in str(caught.value)


async def test_terms_have_to_be_agreed_to(connect: Callable[..., Client]) -> None:
    with pytest.raises(AcmeError, match=r"^the CA has terms of service, data:text/plain,Do%20what%20thou%20wilt: read"):
        await connect().create_account(contact=[], agree_to_terms=False)


async def test_it_is_not_trusted_without_its_root(ca: Pebble, runner: asyncio.Runner) -> None:
    client = Client(ca.directory_url, generate_key("ecdsa-p256"))

    with pytest.raises(CaUnreachable, match=r"its certificate is not trusted, .*; acme\.ca_file says whom to trust$"):
        await client.directory()
    await client.close()
