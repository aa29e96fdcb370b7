"""One order, from newOrder to a certificate, at a CA that does what a test says; and from wherever it had got to."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sniproxy.acme import challenges, ordering
from sniproxy.acme.ordering import Nowhere, Ordering, is_for
from sniproxy.acme.responder import Responder
from sniproxy.acme.store import PendingOrder
from sniproxy.bundle import generate_key, utc_now
from sniproxy.errors import AcmeError, BadCertificate, CaUnreachable, OrderFailed, Problem, StoreError, ValidationFailed
from tests.support.acme_jws import decoded
from tests.support.acme_stub import AcmeStub, CheckFailed
from tests.support.kept import NAME, NAMES, Workbench, contents, until, wanted
from tests.support.processes import LOCALHOST, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sniproxy.acme.store import CertificateFiles
    from sniproxy.bundle import Bundle
    from sniproxy.model import UnixAddress
    from tests.support.acme_issuer import Chain
    from tests.support.acme_stub import Authorization, Challenge, Request

SOON = 0.4
"""For orders that shall not come to an end: the CA is asked a dozen times by then."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "FIRST_POLL_SECONDS", 0.005)


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False, alternates=1) as stub:
        yield stub


class Counter(Workbench):
    """Where orders are made: each by another process, unless it is told which account to use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.told: list[str] = []

    async def order(self, changes: dict[str, Any] | None = None, **options: Any) -> Bundle:
        """`changes`: of what is wanted; `options`: of the order."""
        account = self.account()
        known: dict[str, Any] = {
            "client": await account.client(),
            "responder": self.responder,
            "wanted": wanted(**(changes or {})),
            "directory": self.stub.directory_url,
            "files": self.files(),
            "counts": self.counts,
            "tell": self.told.append,
        }
        return await Ordering(**{**known, **options}).obtain()

    def under_way(self) -> PendingOrder | None:
        files: CertificateFiles = self.files()
        return files.order()

    def begin(self, **options: Any) -> asyncio.Task[Bundle]:
        return asyncio.get_running_loop().create_task(self.order(**options))

    async def cut(self, task: asyncio.Task[Bundle]) -> None:
        """As a process that ends."""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


@pytest.fixture
def counter(runner: asyncio.Runner, stub: AcmeStub, tmp_path: Path) -> Iterator[Counter]:
    async def make() -> Counter:
        return Counter(stub=stub, directory=tmp_path / "state")

    counter = runner.run(make())
    yield counter
    runner.run(counter.close())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, each time; none of it takes any time."""
    waited: list[float] = []
    sleep = asyncio.sleep

    async def instead(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", instead)
    return waited


# ----------------------------------------------------------------------------------------------------------- the way


async def test_from_an_order_to_a_certificate(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """RFC 8555 section 7.1, in its order: newOrder, authorizations, challenges, finalize, certificate."""
    bundle = await counter.order()

    assert bundle.leaf.names == NAMES
    assert bundle.leaf.certificate == stub.issued[0].certificate
    assert len(bundle.chain) == 2
    assert stub.payloads("newOrder") == [{"identifiers": [{"type": "dns", "value": name} for name in NAMES]}]
    assert (stub.count("challenge"), stub.count("finalize")) == (2, 1)
    assert counter.counts.challenges == {("tls-alpn-01", "valid"): 2}
    assert counter.told[0] == f"ordered from {stub.directory_url}"
    assert sorted(counter.told[1:]) == sorted(
        text for name in NAMES for text in (f"{name}: answering tls-alpn-01", f"{name}: valid")
    )


async def test_its_url_and_key_are_on_disk_before_it_is_finalized(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """certmagic#361: or a crash while the CA issues costs another certificate, and with `replaces` all that follow."""
    seen: list[tuple[PendingOrder | None, Any]] = []

    def look(request: Request) -> None:
        assert request.payload is not None
        csr = x509.load_der_x509_csr(decoded(request.payload["csr"]))
        seen.append((counter.under_way(), csr.public_key()))

    stub.on("finalize", look, when="received")
    await counter.order(replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")

    ((order, public_key),) = seen
    assert order is not None
    assert (order.url, order.key.public_key()) == (stub.orders[0].url, public_key)
    assert (order.names, order.directory, order.profile) == (NAMES, stub.directory_url, "")
    assert order.replaces == "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"


async def test_it_stays_there_for_whoever_stores_the_certificate(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """Who has not stored it gets the same one again."""
    first = await counter.order()
    again = await counter.order()

    assert again.pem == first.pem
    assert len(stub.issued) == 1


@pytest.mark.parametrize("key_type", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_its_key_is_as_configured(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, key_type: str
) -> None:
    """`key_type`; and another one each time."""
    bundle = await counter.order({"key_type": key_type})

    size = bundle.key.key_size
    kind = "ecdsa-p" if isinstance(bundle.key, ec.EllipticCurvePrivateKey) else "rsa-"
    assert f"{kind}{size}" == key_type
    counter.files().forget_order()
    assert (await counter.order({"key_type": key_type})).key.public_key() != bundle.key.public_key()


async def test_addresses(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """RFC 8738: identifiers of type ip, in one certificate with names."""
    names = ("192.0.2.1", "2001:db8::1", "a.test")
    bundle = await counter.order({"names": names})

    assert set(bundle.leaf.names) == set(names)
    assert {(each["type"], each["value"]) for each in stub.payloads("newOrder")[0]["identifiers"]} == {
        ("ip", "192.0.2.1"),
        ("ip", "2001:db8::1"),
        ("dns", "a.test"),
    }


async def test_a_profile(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """draft-ietf-acme-profiles: sent, and kept with the order."""
    stub.profiles = {"shortlived": "six days"}
    await counter.order({"profile": "shortlived"})

    assert stub.payloads("newOrder")[0]["profile"] == "shortlived"
    order = counter.under_way()
    assert order is not None
    assert order.profile == "shortlived"


async def test_a_profile_that_the_ca_does_not_have(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """In the CA's words."""
    with pytest.raises(Problem, match="invalidProfile: there is no profile shortlived"):
        await counter.order({"profile": "shortlived"})


# ---------------------------------------------------------------------------------------------------- authorizations


async def test_what_is_proven_already_is_not_proven_again(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """RFC 8555 section 7.1.3: an order may come with authorizations that are valid; such an order is ready at once."""
    stub.reuse_authorizations = True
    await counter.order()
    counter.files().forget_order()
    before = stub.count("challenge")
    await counter.order()
    assert stub.count("challenge") == before

    counter.files().forget_order()
    await counter.order({"names": (*NAMES, "new.example.test")})

    assert stub.count("challenge") == before + 1


def answered(stub: AcmeStub) -> set[str]:
    """The types of challenges that were valid."""
    return {
        challenge.type
        for authorization in stub.authorizations
        for challenge in authorization.challenges
        if challenge.status == "valid"
    }


@pytest.mark.parametrize(
    ("preferences", "avoid", "taken"),
    [
        (("tls-alpn-01", "http-01"), "", "tls-alpn-01"),
        (("http-01", "tls-alpn-01"), "", "http-01"),
        (("http-01",), "", "http-01"),
        (("tls-sni-01", "http-01"), "", "http-01"),
        (("tls-alpn-01", "http-01"), "tls-alpn-01", "http-01"),
        (("tls-alpn-01", "http-01"), "http-01", "tls-alpn-01"),
        (("tls-alpn-01",), "tls-alpn-01", "tls-alpn-01"),
    ],
)
async def test_the_challenge_is_the_first_that_is_offered_and_did_not_fail_last(
    runner: asyncio.Runner,
    stub: AcmeStub,
    counter: Counter,
    preferences: tuple[str, ...],
    avoid: str,
    taken: str,
) -> None:
    """`challenges`, in order of preference; where one fails, the next attempt takes another, if there is another."""
    await counter.order({"challenges": preferences}, avoid=avoid)

    assert answered(stub) == {taken}


async def test_one_that_is_not_offered(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """What is, and what we have: one of the two has to change."""
    stub.challenge_types = ("dns-01", "http-01")
    with pytest.raises(ValidationFailed) as caught:
        await counter.order({"challenges": ("tls-alpn-01",), "names": (NAME,)})

    assert str(caught.value) == f"{NAME}: the CA offers dns-01, http-01, and acme.challenges has tls-alpn-01"
    assert caught.value.challenge == ""
    assert counter.under_way() is None


async def test_one_that_has_failed_already_is_passed_over(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """A CA may let an authorization stay open for the others; step-ca does."""

    def failed(authorization: dict[str, Any]) -> None:
        authorization["challenges"][0]["status"] = "invalid"

    stub.edit("authorization", failed, times=2)
    await counter.order()

    assert answered(stub) == {"http-01"}


async def test_an_answer_is_in_its_place_as_long_as_the_ca_may_look(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """Both ways, and no longer: whoever asks afterwards is told nothing (DESIGN, "The challenge responder")."""
    seen: list[str] = []

    def look(authorization: Authorization, challenge: Challenge, key_authorization: str) -> None:
        name = authorization.identifier[1]
        if challenge.type == "http-01":
            assert counter.responder.http_answer(challenge.token) == key_authorization
        else:
            assert counter.responder.is_pending(challenges.server_name(name))
        seen.append(f"{name} {challenge.type}")

    stub.validate = look
    names = ("a.test", "192.0.2.1")
    for types in (("tls-alpn-01",), ("http-01",)):
        await counter.order({"challenges": types, "names": names})
        counter.files().forget_order()

    assert sorted(seen) == sorted(f"{name} {kind}" for name in names for kind in ("tls-alpn-01", "http-01"))
    assert not counter.responder.has_pending


@asynccontextmanager
async def door(address: UnixAddress) -> AsyncIterator[int]:
    """A port of loopback that leads to a unix socket, as the relay does."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
            writer.write_eof()
        except OSError:
            pass

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address.socket_address)
        inside, out = await asyncio.open_unix_connection(sock=connection)
        await asyncio.gather(pump(reader, out), pump(inside, writer))
        out.close()
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(carry(reader, writer)))

    port = free_port()
    server = await asyncio.start_server(accept, LOCALHOST, port)
    try:
        yield port
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_ca_that_looks(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8737, RFC 8738: names and addresses, looked at from three places at once, and it issues."""
    monkeypatch.setattr("sniproxy.acme.responder.HANDSHAKE_SECONDS", 60.0)
    counter.responder = Responder(report=pytest.fail, bug=stub.bugs.append)
    address = await counter.responder.start()
    async with door(address) as port:
        stub.validate, stub.tls = True, [(LOCALHOST, port)]
        bundle = await counter.order({"names": ("a.test", "b.test", "192.0.2.1", "2001:db8::1")})
    await counter.responder.close()

    assert len(bundle.leaf.names) == 4
    assert counter.responder.counts.answered["tls-alpn-01"] == 12


async def test_a_name_that_is_not_validated_is_told_in_the_cas_words(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """One of two: the other was fine, and the whole order is lost (RFC 8555 section 7.1.6)."""

    def look(authorization: Authorization, challenge: Challenge, _: str) -> None:
        if authorization.identifier[1] == NAMES[1]:
            raise CheckFailed("connection", "192.0.2.1: Connection refused")

    stub.validate = look
    with pytest.raises(ValidationFailed) as caught:
        await counter.order()

    assert str(caught.value) == f"{NAMES[1]}: tls-alpn-01: connection: 192.0.2.1: Connection refused"
    assert caught.value.challenge == "tls-alpn-01"
    assert f"{NAMES[0]}: valid" in counter.told
    assert counter.counts.challenges == {("tls-alpn-01", "valid"): 1, ("tls-alpn-01", "invalid"): 1}
    assert counter.under_way() is None


async def test_of_two_that_are_not_both_are_told(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """Or an operator would mend one after the other, an hour each."""
    stub.fail_authorization("dns", times=2)
    with pytest.raises(ValidationFailed) as caught:
        await counter.order()

    for name in NAMES:
        assert f"{name}: tls-alpn-01: dns: scripted dns" in str(caught.value)


async def test_a_ca_that_does_not_say_why(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """certbot's library goes on to finalize then (poll_authorizations); acme2certifier is such a CA."""
    stub.fail_authorization(None, times=2)
    with pytest.raises(ValidationFailed, match="the authorization is invalid, and the CA does not say why"):
        await counter.order()

    assert stub.count("finalize") == 0


@pytest.mark.parametrize("status", ["deactivated", "expired", "revoked", "invalid"])
async def test_an_authorization_that_is_over_before_it_began(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, status: str
) -> None:
    """RFC 8555 section 7.1.6: there is nothing to be answered any more."""

    def over(authorization: dict[str, Any]) -> None:
        authorization["status"] = status
        if status == "invalid":
            authorization["challenges"][0]["error"] = {"type": "urn:ietf:params:acme:error:caa", "detail": "not you"}

    stub.edit("authorization", over, times=None)
    words = "tls-alpn-01: caa: not you" if status == "invalid" else f"the authorization is {status}"
    with pytest.raises(ValidationFailed, match=words):
        await counter.order()

    assert stub.count("challenge") == 0


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ("invalid", {"type": "urn:ietf:params:acme:error:dns", "detail": "no such name"}, "dns: no such name"),
        ("pending", {"type": "urn:ietf:params:acme:error:connection", "detail": "refused"}, "connection: refused"),
        ("invalid", None, "the challenge has failed, and the CA does not say why"),
    ],
)
async def test_a_challenge_that_fails_while_its_authorization_stays_open(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, status: str, error: dict[str, str] | None, words: str
) -> None:
    """step-ca's stay pending until they expire (its acme/authorization.go, UpdateStatus): not waited for in vain."""

    def still_open(authorization: dict[str, Any]) -> None:
        authorization["status"] = "pending"
        for challenge in authorization["challenges"]:
            if challenge["status"] == "invalid":
                challenge.update(status=status, error=error)

    stub.fail_authorization("dns", times=2)
    stub.edit("authorization", still_open, times=None)
    with pytest.raises(ValidationFailed, match=words) as caught:
        await counter.order()

    assert caught.value.challenge == "tls-alpn-01"


async def test_a_ca_that_tries_again_by_itself_is_waited_for(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """RFC 8555 section 8.2: the challenge is `processing`, with the error of the last time."""

    def trying(authorization: dict[str, Any]) -> None:
        authorization["status"] = "pending"
        error = {"type": "urn:ietf:params:acme:error:connection", "detail": "refused"}
        authorization["challenges"][0].update(status="processing", error=error)

    stub.edit("authorization", trying, skip=1, times=3)

    await counter.order({"names": (NAME,)})

    assert stub.count("authorization") == 5


async def test_a_machine_that_cannot_answer_says_so_itself(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose fault it is: not the CA's, and no failed validation there."""

    def answering(*_: object) -> None:
        raise StoreError("a challenge's key cannot be kept in memory")

    monkeypatch.setattr(Responder, "answering", answering)
    with pytest.raises(StoreError):
        await counter.order()

    assert stub.count("challenge") == 0


async def test_one_that_was_answered_by_an_earlier_process_is_not_answered_again(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """A challenge that is `processing` is waited for, with the answer in its place again."""
    let = threading.Event()

    def look(_: Authorization, challenge: Challenge, key_authorization: str) -> None:
        assert let.wait(60)
        assert counter.responder.http_answer(challenge.token) == key_authorization

    stub.validate = look
    only_http = {"challenges": ("http-01",), "names": (NAME,)}
    first = counter.begin(changes=only_http)
    await until(lambda: stub.count("authorization") >= 2, "the challenge is answered")
    await counter.cut(first)
    second = counter.begin(changes=only_http)
    await until(lambda: stub.count("authorization") >= 6, "it is waited for")
    let.set()
    await second

    assert (stub.count("challenge"), len(stub.orders), len(stub.issued)) == (1, 1, 1)


async def test_who_is_cut_off_takes_the_answer_away(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """And counts it: it never came to an answer of the CA's."""
    stub.validate = lambda *_: None
    stub.hang("challenge", carried_out=True)
    task = counter.begin(changes={"names": (NAME,)})
    await until(lambda: stub.count("challenge"), "the challenge is answered")
    assert counter.responder.is_pending(NAME)
    await counter.cut(task)

    assert not counter.responder.has_pending
    assert counter.counts.challenges == {("tls-alpn-01", "error"): 1}


# ----------------------------------------------------------------------------------------------------------- patience


async def test_the_ca_is_asked_less_and_less_often(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, pauses: list[float]
) -> None:
    """Where it does not say when: a public CA should not be asked much more than ten times a minute."""
    stub.processing_polls = 30
    await counter.order({"names": (NAME,)})
    asked = pauses[-30:]

    assert asked == sorted(asked)
    assert asked[-1] == ordering.LONGEST_POLL_SECONDS
    assert len(stub.issued) == 1


async def test_its_retry_after_is_obeyed(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, pauses: list[float]
) -> None:
    """RFC 8555 sections 7.4 and 7.5.1: of orders, and of authorizations."""
    stub.processing_polls = 2
    stub.poll_retry_after = "7"
    await counter.order({"names": (NAME,)})

    assert pauses == [7.0] * 4


async def test_a_long_one_of_an_order_is_not_waited_for_in_place(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, pauses: list[float]
) -> None:
    """An hour, say, for somebody who looks at each order: it is left, kept, and gone on with after that."""
    stub.processing_polls = math.inf
    stub.headers("finalize", {"Retry-After": "3600"})
    with pytest.raises(OrderFailed) as caught:
        await counter.order()
    assert caught.value.retry_after == 3600
    assert max(pauses) < ordering.LONGEST_RETRY_AFTER_SECONDS

    stub.orders[0].polls_left = 0
    await counter.order()

    assert (len(stub.orders), len(stub.issued)) == (1, 1)


async def test_a_long_one_of_an_authorization_is_waited_for(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, pauses: list[float]
) -> None:
    """Whoever left would take the answer away that the CA is about to look at."""
    stub.poll_retry_after = "300"
    pending: list[bool] = []
    stub.on("authorization", lambda _: pending.append(counter.responder.is_pending(NAME)), times=2)
    await counter.order({"names": (NAME,)})

    assert pauses == [300.0]
    assert pending == [False, True]


async def test_one_that_is_longer_than_an_order_may_take(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, pauses: list[float]
) -> None:
    """An answer is not kept in its place for a day."""
    stub.poll_retry_after = "86400"
    with pytest.raises(OrderFailed) as caught:
        await counter.order({"names": (NAME,)})

    assert caught.value.retry_after == 86400
    assert pauses == []


async def test_an_order_that_never_ends_is_left_and_gone_on_with(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every wait has a deadline; the certificate comes out of the same order, once it is there."""
    stub.processing_polls = math.inf
    with monkeypatch.context() as patch:
        patch.setattr(ordering, "ORDER_SECONDS", SOON)
        with pytest.raises(OrderFailed, match=r"^the CA was not done with the order after 0\.4 s$"):
            await counter.order()
    stub.orders[0].polls_left = 3
    bundle = await counter.order()

    assert bundle.leaf.certificate == stub.issued[0].certificate
    assert (len(stub.orders), len(stub.issued), stub.count("finalize")) == (1, 1, 1)
    assert "going on with an order that is processing" in counter.told


async def test_one_that_was_waited_for_often_enough_is_given_up(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA's fault must not outlast a certificate of six days: the next attempt has another order."""
    stub.processing_polls = math.inf
    with monkeypatch.context() as patch:
        patch.setattr(ordering, "ORDER_SECONDS", SOON)
        with pytest.raises(OrderFailed, match="there will be another one"):
            await counter.order(last_try=True)
    assert counter.under_way() is None

    stub.processing_polls = 0
    await counter.order()

    assert (len(stub.orders), len(stub.issued)) == (2, 1)


async def test_an_order_that_stays_pending_after_all_is_proven(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """A CA may take a moment to see that the last name is validated."""

    def pending(order: dict[str, Any]) -> None:
        order["status"] = "pending"

    stub.edit("order", pending, times=3)
    await counter.order()

    assert len(stub.issued) == 1


async def test_one_that_stays_so_for_good(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, and with pauses between the questions."""

    def pending(order: dict[str, Any]) -> None:
        order["status"] = "pending"

    monkeypatch.setattr(ordering, "ORDER_SECONDS", SOON)
    stub.edit("order", pending, times=None)
    with pytest.raises(OrderFailed, match="not done"):
        await counter.order()

    assert stub.count("order") < 20


# ----------------------------------------------------------------------------------------------------------- finalize


async def test_a_ca_that_is_not_ready_yet(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """orderNotReady (RFC 8555 section 7.4): the order is looked at again, and finalized again."""
    stub.fail("finalize", status=403, problem="orderNotReady")
    await counter.order()

    assert (stub.count("finalize"), len(stub.orders), len(stub.issued)) == (2, 1, 1)


async def test_a_ca_that_is_finalizing_already(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """It says orderNotReady as well, of an order that is `processing` or `valid`: not finalized again."""
    stub.fail("finalize", status=403, problem="orderNotReady", carried_out=True)
    await counter.order()

    assert (stub.count("finalize"), len(stub.issued)) == (1, 1)


@pytest.mark.parametrize("how", ["refuses", "takes it and forgets it"])
async def test_a_ca_that_never_is(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Asked again with pauses, and not for ever."""

    def ready(order: dict[str, Any]) -> None:
        order["status"] = "ready"
        order.pop("certificate", None)

    monkeypatch.setattr(ordering, "ORDER_SECONDS", SOON)
    if how == "refuses":
        stub.fail("finalize", status=403, problem="orderNotReady", times=None)
    else:
        stub.processing_polls = math.inf
        stub.edit("finalize", ready, times=None)
        stub.edit("order", ready, times=None)
    with pytest.raises(AcmeError):
        await counter.order()

    assert stub.count("finalize") < 20


async def test_a_request_that_is_refused_takes_another_order(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """badCSR, say: the order is not gone on with, as it would be refused for ever."""
    stub.fail("finalize", status=400, problem="badCSR")
    with pytest.raises(Problem, match="badCSR"):
        await counter.order()
    assert counter.under_way() is None

    await counter.order()

    assert len(stub.orders) == 2


async def test_an_answer_that_is_lost_takes_the_same(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """The CA has issued, and we were not told."""
    stub.cut("finalize")
    with pytest.raises(CaUnreachable):
        await counter.order()
    await counter.order()

    assert (len(stub.orders), stub.count("finalize"), len(stub.issued)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [("caa", "^the order is invalid: caa: scripted caa$"), (None, "^the order is invalid: the CA does not say why$")],
)
async def test_an_order_that_becomes_invalid(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, error: str | None, words: str
) -> None:
    """With the CA's reason, if it has any (acme2certifier has none); it is over, and not gone on with."""
    stub.fail_order(error)
    with pytest.raises(OrderFailed, match=words):
        await counter.order()
    assert counter.under_way() is None

    await counter.order()

    assert (len(stub.orders), len(stub.issued)) == (2, 1)


# ---------------------------------------------------------------------------------------------------- the certificate


def misissued(what: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    changes: dict[str, dict[str, Any]] = {
        "other names": {"names": ("evil.test", *NAMES)},
        "fewer names": {"names": NAMES[:1]},
        "another key": {"public_key": generate_key("ecdsa-p256").public_key()},
        "over already": {"not_before": now - timedelta(days=3), "not_after": now - timedelta(days=1)},
        "not yet": {"not_before": now + timedelta(days=1), "not_after": now + timedelta(days=90)},
    }
    return changes[what]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("other names", "is for evil.test, www.example.test, example.test, not for www.example.test, example.test"),
        ("fewer names", "is for www.example.test, not for www.example.test, example.test"),
        ("another key", "is of no use: the private key is not the one of the certificate"),
        ("over already", "is the clock right"),
        ("not yet", "is the clock right"),
    ],
)
async def test_something_else_than_was_ordered_is_refused(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, what: str, words: str
) -> None:
    """It would never be delivered; and the order is over, as it would be the same each time."""
    stub.misissue(**misissued(what))
    with pytest.raises(BadCertificate, match=words):
        await counter.order()
    assert counter.under_way() is None

    assert (await counter.order()).leaf.names == NAMES


@pytest.mark.parametrize("chain", ["reversed", "foreign", "shuffled"])
async def test_a_chain_that_does_not_hold_is_refused(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, chain: Chain
) -> None:
    """RFC 8555 section 9.1: each certificate certifies the one before it."""
    stub.misissue(chain=chain)
    with pytest.raises(BadCertificate):
        await counter.order()


@pytest.mark.parametrize("chain", ["garbage", "empty"])
async def test_one_that_cannot_be_read_is_asked_for_again(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, chain: Chain
) -> None:
    """The certificate is there, whatever stood between: no other order, as long as the CA has this one."""
    stub.misissue(chain=chain)
    with pytest.raises(CaUnreachable):
        await counter.order()

    assert counter.under_way() is not None


async def test_the_clock_is_ours(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """Whether it is over is a question of this machine's time of day."""
    with pytest.raises(BadCertificate, match="is the clock right"):
        await counter.order(now=lambda: utc_now() + timedelta(days=365))


async def test_a_certificate_without_a_place(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """An order that is valid and does not say where its certificate is: told, and not gone on with for ever."""
    stub.omit("finalize", "certificate")
    with pytest.raises(OrderFailed, match="the certificate is there, and not where"):
        await counter.order()
    await counter.order()

    assert len(stub.orders) == 2


async def test_a_certificate_that_the_ca_has_lost(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """404: the next attempt has another order, or there would never be another."""
    stub.fail("certificate", status=404, problem="malformed")
    with pytest.raises(Problem):
        await counter.order()
    await counter.order()

    assert len(stub.orders) == 2


@pytest.mark.parametrize(("preferred_chain", "root"), [("", 0), ("stub root 0", 0), ("stub root 1", 1), ("nobody", 0)])
async def test_the_chain_that_is_preferred(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, preferred_chain: str, root: int
) -> None:
    """RFC 8555 section 7.4.2: by the common name of who has issued its topmost certificate; else the CA's first."""
    bundle = await counter.order({"preferred_chain": preferred_chain})

    assert bundle.chain[-1].issuer.rfc4514_string() == f"CN=stub root {root}"


# ----------------------------------------------------------------------------------------------------------- replaces


async def test_it_says_which_one_it_replaces(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """RFC 9773 section 5: such an order is exempt from rate limits."""
    first = await counter.order()
    counter.files().forget_order()
    await counter.order(replaces=first.leaf.ari_certificate_id)

    assert stub.issued[0].replaced_by == stub.orders[1].url


async def test_of_one_that_is_replaced_already_there_is_an_order_without(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """RFC 9773 section 5: 409 alreadyReplaced. Once more without it, or no renewal would ever succeed again."""
    first = await counter.order()
    counter.files().forget_order()
    stub.already_replaced = "always"
    await counter.order(replaces=first.leaf.ari_certificate_id)

    assert ["replaces" in payload for payload in stub.payloads("newOrder")] == [False, True, False]
    assert len(stub.issued) == 2


@pytest.mark.parametrize(("status", "problem"), [(400, "malformed"), (403, "unauthorized"), (404, "malformed")])
async def test_nor_is_any_other_refusal_of_it(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, status: int, problem: str
) -> None:
    """Pebble before 2.10 calls it malformed (pebble#532), and a certificate of another account is unauthorized."""
    stub.fail("newOrder", status=status, problem=problem)
    await counter.order(replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")

    assert ["replaces" in payload for payload in stub.payloads("newOrder")] == [True, False]


async def test_an_order_without_it_is_not_made_twice(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """Another attempt would be refused for the same reason."""
    stub.fail("newOrder", status=400, problem="rejectedIdentifier")
    with pytest.raises(Problem, match="rejectedIdentifier"):
        await counter.order()

    assert stub.count("newOrder") == 1


async def test_a_limit_is_not_a_refusal_of_it(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """429: asking again at once is what must not be done; how long to wait is handed on (RFC 8555 section 6.6)."""
    stub.fail("newOrder", status=429, problem="rateLimited", retry_after="120")
    with pytest.raises(Problem, match="rateLimited") as caught:
        await counter.order(replaces="aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")

    assert caught.value.retry_after == 120
    assert stub.count("newOrder") == 1


# ------------------------------------------------------------------------------------------ an order of an earlier try


@pytest.mark.parametrize(
    "changes",
    [{"names": (NAME, "new.example.test")}, {"profile": "shortlived"}],
    ids=["names", "profile"],
)
async def test_an_order_for_something_else_is_not_gone_on_with(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, changes: dict[str, Any]
) -> None:
    """The file has changed since."""
    stub.profiles = {"shortlived": "six days"}
    stub.cut("finalize")
    with pytest.raises(CaUnreachable):
        await counter.order()
    bundle = await counter.order(changes)

    assert len(stub.orders) == 2
    assert bundle.leaf.names == changes.get("names", NAMES)


def test_what_an_order_is_for() -> None:
    """Names in any order, profile and CA; the key's type may differ, as the next certificate has the right one."""
    this = wanted()
    order = PendingOrder(url="u", key=generate_key("ecdsa-p256"), names=NAMES[::-1], directory="d")

    assert is_for(order, this, "d")
    assert not is_for(order, this, "another")
    assert not is_for(order, wanted(names=NAMES[:1]), "d")
    assert not is_for(order, wanted(profile="p"), "d")
    assert is_for(order, replace(this, key_type="rsa-4096"), "d")


@pytest.mark.parametrize("status", [403, 404])
async def test_an_order_that_the_ca_does_not_have_any_more(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, status: int
) -> None:
    """Let's Encrypt's are gone after a week: there is a new one."""
    stub.cut("finalize")
    with pytest.raises(CaUnreachable):
        await counter.order()
    stub.fail("order", status=status, problem="malformed")
    await counter.order()

    assert len(stub.orders) == 2


async def test_an_order_that_cannot_be_asked_for_is_not_gone(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """A failure is never taken for absence: a CA that is down has not lost what it had."""
    stub.cut("finalize")
    with pytest.raises(CaUnreachable):
        await counter.order()
    stub.fail("order", status=500)
    with pytest.raises(Problem):
        await counter.order()
    stub.html("order", status=502)
    with pytest.raises(AcmeError):
        await counter.order()
    await counter.order()

    assert (len(stub.orders), len(stub.issued)) == (1, 1)


async def test_one_that_became_invalid_meanwhile_costs_no_attempt(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """A validation that nobody was there to answer: the new order is made at once."""
    stub.hang("challenge")
    task = counter.begin()
    await until(lambda: stub.count("challenge"), "it is under way")
    await counter.cut(task)
    stub.heal()
    stub.orders[0].status = "invalid"
    await counter.order()

    assert (len(stub.orders), len(stub.issued)) == (2, 1)


async def test_an_order_that_is_done_from_the_start_is_not_ours(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """Its certificate would be for a key that we do not have."""

    def valid(order: dict[str, Any]) -> None:
        order["status"] = "valid"

    stub.edit("newOrder", valid)
    with pytest.raises(OrderFailed, match="done already, for a key that is not ours"):
        await counter.order()
    assert counter.under_way() is None


async def test_an_order_for_something_else_is_not_accepted(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter
) -> None:
    """The CA's reply names other identifiers than were asked for."""

    def other(order: dict[str, Any]) -> None:
        order["identifiers"] = [{"type": "dns", "value": "evil.test"}]

    stub.edit("newOrder", other)
    with pytest.raises(AcmeError, match=r"the CA's order is for evil\.test"):
        await counter.order()


async def test_where_it_cannot_be_kept_it_is_not_finalized(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk without room: nothing is issued that could not be found again."""

    class Full(Nowhere):
        def save_order(self, order: PendingOrder) -> None:
            raise StoreError("no space left on device")

    with pytest.raises(StoreError):
        await counter.order(files=Full())

    assert stub.count("finalize") == 0


# ------------------------------------------------------------------------------------------------------ dry, and quiet


async def test_nowhere_keeps_nothing(runner: asyncio.Runner, stub: AcmeStub, counter: Counter) -> None:
    """Contract, section 1: `--dry-run`."""
    await counter.account().client()
    before = contents(counter.directory)
    await counter.order(files=Nowhere())

    assert contents(counter.directory) == before
    assert len(stub.issued) == 1


async def test_no_secret_is_told_or_kept(
    runner: asyncio.Runner, stub: AcmeStub, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    """No private key, token or key authorization in any log, at any level, nor in an error or in a file.

    But for order.json, which has the key of the certificate until there is one.
    """
    with caplog.at_level("DEBUG"):
        await counter.order({"challenges": ("http-01",)})
        stub.fail_authorization("unauthorized", times=2)
        with pytest.raises(AcmeError) as caught:
            await counter.order({"names": ("c.test", "d.test")})
        await counter.order({"names": ("e.test",)})
        order = counter.under_way()
    assert order is not None
    stored = counter.store.account(stub.directory_url).load()
    assert stored is not None
    secrets = [challenge.token for each in stub.authorizations for challenge in each.challenges]
    secrets += [stub.thumbprint(account) for account in stub.accounts]
    numbers = [order.key.private_numbers(), stored.key.private_numbers()]
    secrets += [f"{number.private_value:x}" for number in numbers]
    texts = [record.getMessage() + str(record.args) for record in caplog.records]
    texts += [*counter.told, str(caught.value), repr(caught.value), repr(order), repr(counter.counts)]
    files = contents(counter.directory)
    keys = [files.pop(path).decode() for path in list(files) if path.endswith(("order.json", "key.pem"))]
    texts += [content.decode() for content in files.values()]
    assert len(keys) == 2

    for secret in secrets:
        assert not [text for text in texts if secret in text]
    assert not [text for text in texts if "PRIVATE KEY" in text]
