"""All certificates of one configuration: a few ordered at a time, and none held up by another."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.acme import certificate as module
from sniproxy.acme import locking, ordering
from sniproxy.acme.account import Account
from sniproxy.acme.certificate import ManagedCertificate
from sniproxy.acme.keeper import ORDERS_AT_ONCE, Keeper, no_orders, rehearse
from sniproxy.errors import AcmeError
from sniproxy.model import CertificateCounts
from tests.support.acme_stub import AcmeStub
from tests.support.kept import Deliveries, Workbench, contents, until, wanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sniproxy.acme.certificate import Renewed
    from tests.support.acme_stub import Authorization, Challenge

NAMES = [f"{letter}.test" for letter in "abcdefgh"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", timedelta(milliseconds=10))
    monkeypatch.setattr(ordering, "FIRST_POLL_SECONDS", 0.005)
    monkeypatch.setattr(locking, "LOCK_POLL_SECONDS", 0.005)


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False) as stub:
        yield stub


@pytest.fixture
def bench(runner: asyncio.Runner, stub: AcmeStub, tmp_path: Path) -> Iterator[Workbench]:
    async def make() -> Workbench:
        return Workbench(stub=stub, directory=tmp_path / "state")

    bench = runner.run(make())
    yield bench
    runner.run(bench.close())


def keeper(bench: Workbench, *names: str) -> Keeper:
    return Keeper([wanted(name=name, names=(name,)) for name in names], bench.means())


@asynccontextmanager
async def running(this: Keeper) -> AsyncIterator[None]:
    """Kept until the end."""
    task = asyncio.get_running_loop().create_task(this.run())
    try:
        yield
        assert not task.done(), "they are kept until that is cancelled"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Gate:
    """A CA that has not looked yet, at some names or all."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.let = threading.Event()

    def __call__(self, authorization: Authorization, _challenge: Challenge, _answer: str) -> None:
        if not self.names or authorization.identifier[1] in self.names:
            assert self.let.wait(60)


def all_deployed(this: Keeper) -> bool:
    return all(status.deployed for status in this.statuses())


async def test_all_are_kept_and_a_few_ordered_at_once(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Let's Encrypt: 300 orders for an account in three hours. A fresh machine has all of them due in its first second."""
    stub.validate = gate = Gate()
    this = keeper(bench, *NAMES)
    async with running(this):
        await until(lambda: stub.count("challenge") == ORDERS_AT_ONCE, "some are under way")
        asked = stub.count("authorization")
        await until(lambda: stub.count("authorization") >= asked + 20, "they are waited for")
        assert len(stub.orders) == ORDERS_AT_ONCE
        gate.let.set()
        await until(lambda: all_deployed(this), "all of them are deployed")
        await until(lambda: len(bench.renewed) == len(NAMES), "all of them are reported")

    assert len(stub.issued) == len(stub.orders) == len(NAMES)
    assert len(stub.accounts) == 1
    assert {status.name for status in bench.renewed} == set(NAMES)


async def test_one_that_hangs_holds_up_no_other(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Nor does one that fails."""
    stub.validate = gate = Gate(NAMES[0])
    stub.blocked.add(NAMES[1])
    this = keeper(bench, *NAMES)
    async with running(this):
        await until(lambda: sum(status.deployed for status in this.statuses()) == len(NAMES) - 2, "the others are")
        hanging, failing = this.statuses()[:2]
        assert (hanging.serial, hanging.last_error) == (None, None)
        assert "rejectedIdentifier" in (failing.last_error or "")
        gate.let.set()
        await until(lambda: this.statuses()[0].deployed, "it is too, in the end")


async def test_their_status_is_in_the_order_of_the_file(bench: Workbench, runner: asyncio.Runner) -> None:
    """And there before anything is done, once they were looked at."""
    names = ("z.test", "a.test", "m.test")
    for name in names:
        bench.put((name,), name=name)
    this = keeper(bench, *names)
    await this.look()

    assert [status.name for status in this.statuses()] == list(names)
    assert all(status.serial for status in this.statuses())


# ----------------------------------------------------------------------------------------------------------- asked for


async def test_those_that_are_asked_for_are_renewed(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """`renew NAME…`: in that order, each step told with whose it is."""
    this = keeper(bench, *NAMES)
    told: list[tuple[str, str]] = []
    results = await this.renew(["c.test", "a.test"], force=False, tell=lambda name, text: told.append((name, text)))

    assert [(result.status.name, result.result) for result in results] == [("c.test", "renewed"), ("a.test", "renewed")]
    assert {name for name, _ in told} == {"c.test", "a.test"}
    assert ("a.test", "due (missing)") in told
    assert {issued.names for issued in stub.issued} == {("a.test",), ("c.test",)}


async def test_without_a_name_all_are(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """By force what is not due as well."""
    bench.put(("a.test",), name="a.test")
    this = keeper(bench, "a.test", "b.test")
    results = await this.renew([], force=False, tell=lambda *_: None)
    assert [result.result for result in results] == ["not_due", "renewed"]
    results = await this.renew([], force=True, tell=lambda *_: None)

    assert [result.result for result in results] == ["renewed", "renewed"]
    assert len(stub.issued) == 3


async def test_a_name_that_is_not_there(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Nothing is done for the others either."""
    with pytest.raises(KeyError):
        await keeper(bench, "a.test").renew(["a.test", "nosuch.test"], force=True, tell=lambda *_: None)

    assert stub.requests == []


async def test_a_bug_in_one_lets_the_others_come_to_their_end(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would hear of them if they went on alone."""
    renew_now = ManagedCertificate.renew_now

    async def fail(this: ManagedCertificate, **options: Any) -> Renewed:
        if this.wanted.name == "a.test":
            raise RuntimeError("a bug of the test")
        return await renew_now(this, **options)

    monkeypatch.setattr(ManagedCertificate, "renew_now", fail)
    with pytest.raises(RuntimeError, match="a bug of the test"):
        await keeper(bench, "a.test", "b.test").renew([], force=True, tell=lambda *_: None)

    assert [issued.names for issued in stub.issued] == [("b.test",)]


async def test_who_holds_them_waits_for_all(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Orders and deliveries under way come to their end; no other is begun."""
    stub.validate = gate = Gate("a.test", "b.test")
    this = keeper(bench, "a.test", "b.test", "c.test")
    async with running(this):
        await until(lambda: stub.count("challenge") == 3, "they are under way")
        holding = asyncio.get_running_loop().create_task(this.hold())
        await until(lambda: len(stub.issued) == 1, "one is done")
        assert not holding.done()
        gate.let.set()
        await holding
        assert len(stub.issued) == 3
        bench.pass_time(timedelta(days=100))
        await asyncio.sleep(0)

    assert len(stub.orders) == 3


# ------------------------------------------------------------------------------------------------- rehearsed, and none


async def test_a_dry_run_keeps_nothing(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Contract, section 1: it is ordered as for real, by an account of its own, and then thrown away."""
    bench.put()
    before = contents(bench.directory)
    account = Account(bench.account().settings, None)
    counts = CertificateCounts()
    told: list[str] = []
    bundle = await rehearse(wanted(), bench.means(), account, counts, told.append)
    await account.close()

    assert bundle.leaf.certificate == stub.issued[0].certificate
    assert contents(bench.directory) == before
    assert isinstance(bench.delivery, Deliveries)
    assert (bench.delivery.made, bench.renewed, bench.counts.challenges) == ([], [], {})
    assert counts.challenges == {("tls-alpn-01", "valid"): 2}
    assert told[0] == f"ordered from {stub.directory_url}"


async def test_one_that_fails_says_why(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """And is no failure of the certificate: no back-off."""
    stub.fail_authorization("dns", times=2)
    account = Account(bench.account().settings, None)
    with pytest.raises(AcmeError, match="dns: scripted dns"):
        await rehearse(wanted(), bench.means(), account, CertificateCounts(), lambda _: None)
    await account.close()

    assert not bench.directory.exists()
    assert bench.failed == []


async def test_orders_can_be_waited_for(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """For a key rollover: what is answered to challenges is made from the account's key."""
    stub.validate = gate = Gate("a.test")
    means = bench.means()
    this = Keeper([wanted(name=name, names=(name,)) for name in ("a.test", "b.test")], means)
    inside, leave = asyncio.Event(), asyncio.Event()

    async def alone() -> None:
        async with no_orders(means.orders):
            assert len(stub.issued) == 1
            inside.set()
            await leave.wait()
            assert len(stub.orders) == 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(this.renew(["a.test"], force=False, tell=lambda *_: None))
        await until(lambda: stub.count("challenge"), "an order is under way")
        tasks.create_task(alone())
        await asyncio.sleep(0)
        assert not inside.is_set()
        gate.let.set()
        await inside.wait()
        tasks.create_task(this.renew(["b.test"], force=False, tell=lambda *_: None))
        tasks.create_task(rehearse(wanted(), means, means.account, CertificateCounts(), lambda _: None))
        # What could be done beside them is done.
        for _ in range(3):
            await (await means.account.client()).order(stub.orders[0].url)
        leave.set()

    assert len(stub.issued) == 3
