"""No private key, token, key authorization or customer's key comes to light, whatever goes wrong and whoever listens."""

from __future__ import annotations

import asyncio
import logging
import traceback
from base64 import b64encode, urlsafe_b64encode
from typing import TYPE_CHECKING

import pytest

import sniproxy.acme.network  # noqa: F401  so that the loggers of the libraries are there
from sniproxy.acme.client import Client
from sniproxy.bundle import generate_key, key_pem, signing_request
from sniproxy.errors import AcmeError
from tests.support.acme_stub import AcmeStub, CheckFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from sniproxy.bundle import PrivateKey

MAC_KEY = bytes(range(100, 132))
HMAC = urlsafe_b64encode(MAC_KEY).decode()
NAMES = ("a.test",)


class Listener(logging.Handler):
    """Hears everything, in every form that a log line can have."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += [record.getMessage(), repr(record.args), repr(record.__dict__)]
        if record.exc_info:
            self.heard += traceback.format_exception(*record.exc_info)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Every logger there is, at debug."""
    listener = Listener()
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    listening = [logger for logger in loggers if logger is logging.root or not logger.propagate]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    for logger in listening:
        logger.addHandler(listener)
    yield listener
    for logger in listening:
        logger.removeHandler(listener)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


class Witness:
    """Keeps all that a user of the client gets to see."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def see(self, result: Awaitable[object]) -> object:
        try:
            value = await result
        except AcmeError as error:
            self.seen += [str(error), repr(error), *traceback.format_exception(error), repr(vars(error))]
            return error
        self.seen += [str(value), repr(value)]
        return value


def forms(key: PrivateKey) -> list[str]:
    """A private key as it would be shown."""
    numbers = key.private_numbers()
    number = getattr(numbers, "private_value", None) or numbers.d
    content = number.to_bytes((number.bit_length() + 7) // 8, "big")
    lines = [line for line in key_pem(key).decode().splitlines() if "-----" not in line and len(line) > 20]
    return [str(number), f"{number:x}", urlsafe_b64encode(content).decode().rstrip("="), *lines]


@pytest.mark.parametrize("kind", ["ecdsa-p256", "rsa-2048"])
async def test_nothing_secret_is_shown(runner: asyncio.Runner, listener: Listener, kind: str) -> None:
    asyncio.get_running_loop().set_debug(True)
    told: list[str] = []

    def quote(authorization: object, challenge: object, key_authorization: str) -> None:
        told.append(key_authorization)
        raise CheckFailed("unauthorized", f'Expected "{key_authorization}" (got "{key_authorization}x")')

    key, new_key = generate_key(kind), generate_key(kind)
    witness = Witness()
    with AcmeStub(eab={"me": HMAC.rstrip("=")}) as stub:
        client = Client(stub.directory_url, key)
        await witness.see(client.create_account(contact=[], agree_to_terms=True, eab_kid="me", eab_hmac=HMAC + "!"))
        stub.fail("newAccount", status=500)
        await witness.see(client.create_account(contact=[], agree_to_terms=True, eab_kid="me", eab_hmac=HMAC))
        stub.html("newAccount")
        await witness.see(client.create_account(contact=[], agree_to_terms=True, eab_kid="me", eab_hmac=HMAC))
        stub.cut("newAccount")
        await witness.see(client.create_account(contact=[], agree_to_terms=True, eab_kid="me", eab_hmac=HMAC))
        await witness.see(client.create_account(contact=[], agree_to_terms=True, eab_kid="me", eab_hmac=HMAC))
        stub.validate = quote
        order = await client.new_order(NAMES)
        authorization = await client.authorization(order.authorizations[0])
        await witness.see(client.answer(authorization.challenges[0]))
        async with asyncio.timeout(20):
            while (await client.authorization(authorization.url)).status == "pending":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        authorization = await client.authorization(authorization.url)
        assert "(key authorization)" in str(authorization.challenges[0].error)
        await witness.see(client.authorization(authorization.url))
        await witness.see(client.order(order.url))
        stub.validate = False
        order = await client.new_order(NAMES)
        await witness.see(client.answer((await client.authorization(order.authorizations[0])).challenges[1]))
        await witness.see(client.finalize(await client.order(order.url), signing_request(key, NAMES)))
        await witness.see(client.roll_over_key(new_key))
        await cancelled(client, order.url, stub)
        await client.close()
        tokens = [challenge.token for known in stub.authorizations for challenge in known.challenges]
    witness.seen.append(repr(client))

    assert told
    assert len(tokens) == 4
    public = "\n".join((*witness.seen, *listener.heard))
    secrets = [
        *told,
        *tokens,
        *forms(key),
        *forms(new_key),
        HMAC.rstrip("="),
        MAC_KEY.hex(),
        b64encode(MAC_KEY).decode(),
    ]
    assert [secret for secret in secrets if secret in public] == []
    assert "newOrder: the CA answers 201" in public


async def cancelled(client: Client, url: str, stub: AcmeStub) -> None:
    """A request that somebody gives up on while it is under way."""
    stub.hang("order")
    before = stub.count("order")
    asking = asyncio.get_running_loop().create_task(client.order(url))
    while stub.count("order") == before:  # noqa: ASYNC110  it comes from another thread
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
