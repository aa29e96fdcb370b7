"""The story of one certificate: when it is due, how it comes, where it goes; and that nothing makes it come twice."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from sniproxy import durable
from sniproxy.acme import certificate as module
from sniproxy.acme import locking, ordering
from sniproxy.acme.certificate import RECONCILE, ManagedCertificate, planned, status
from sniproxy.acme.ordering import Ordering
from sniproxy.acme.store import CertificateFiles, CertificateState, PendingOrder
from sniproxy.bundle import Bundle, generate_key, utc_now
from sniproxy.errors import StoreError
from sniproxy.policy.renewal import Reason
from tests.support import certificates
from tests.support.acme_stub import AcmeStub
from tests.support.kept import NAME, NAMES, Deliveries, Workbench, contents, until, wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sniproxy.acme.certificate import Renewed

SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
YEAR = 365 * DAY


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", timedelta(milliseconds=5))
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


def deliveries(bench: Workbench) -> Deliveries:
    assert bench.delivery is not None
    return bench.delivery


async def deployed(bench: Workbench, certificate: ManagedCertificate, issued: int = 1) -> None:
    """So many are issued, and the last one is delivered, and reported."""

    def is_done() -> bool:
        found = certificate.status()
        if len(bench.stub.issued) != issued or not found.deployed or found.serial is None:
            return False
        is_last = int(found.serial, 16) == bench.stub.issued[-1].serial
        return is_last and bool(bench.renewed) and bench.renewed[-1].serial == found.serial

    await until(is_done, f"{issued} are issued, and the last one is deployed")


async def first(bench: Workbench, **changes: Any) -> None:
    """A certificate, by a process that has ended since."""
    async with bench.kept(bench.certificate(**changes)) as certificate:
        await deployed(bench, certificate, len(bench.stub.issued) + 1)
        await until(lambda: not bench.stub.renewal_info or bench.state().ari_at, "the CA was asked when to renew")


# ------------------------------------------------------------------------------------------------------------- by when

NOW = certificates.NOW


def bundle(*, age: timedelta = DAY, lifetime: timedelta = 90 * DAY, names: tuple[str, ...] = NAMES) -> Bundle:
    """As of NOW."""
    key = generate_key("ecdsa-p256")
    leaf = certificates.certificate(
        names,
        key=key,
        begins=NOW - age,
        ends=NOW - age + lifetime - SECOND,  # both ends belong to it (RFC 5280 section 4.1.2.5)
        more=[x509.AuthorityKeyIdentifier(b"issuer", None, None)],
    )
    return Bundle(key, (leaf,))


def plan_of(this: Bundle | None, state: CertificateState | None = None, *, broken: bool = False) -> tuple[Reason, Any]:
    return planned(wanted(), this, state or CertificateState(), "d", NOW, broken=broken)


def test_where_there_is_none_it_is_due_now() -> None:
    """Contract, section 1: `reason`."""
    assert plan_of(None) == (Reason.MISSING, NOW)
    assert plan_of(None, broken=True) == (Reason.BROKEN, NOW)


def test_one_for_other_names_is_due_now() -> None:
    """In whatever order they are, and no matter what the CA says."""
    assert plan_of(bundle(names=NAMES[::-1]))[0] is Reason.LIFETIME
    assert plan_of(bundle(names=NAMES[:1])) == (Reason.NAMES_CHANGED, NOW)
    assert plan_of(bundle(names=(*NAMES, "more.test"))) == (Reason.NAMES_CHANGED, NOW)


def test_one_of_another_ca_is_due_now() -> None:
    """`directory` was changed; of one that was imported it is not known, and that is no reason."""
    assert plan_of(bundle(), CertificateState(directory="other")) == (Reason.DIRECTORY_CHANGED, NOW)
    assert plan_of(bundle(), CertificateState(directory="d"))[0] is Reason.LIFETIME
    assert plan_of(bundle(), CertificateState(directory=""))[0] is Reason.LIFETIME


@pytest.mark.parametrize(
    ("lifetime", "left"), [(90 * DAY, 30 * DAY), (45 * DAY, 15 * DAY), (6 * DAY, 3 * DAY), (120 * SECOND, MINUTE)]
)
def test_by_its_lifetime(lifetime: timedelta, left: timedelta) -> None:
    """Let's Encrypt's integration guide: a third is left, or half if it lives for less than ten days."""
    reason, at = plan_of(bundle(age=timedelta(), lifetime=lifetime))

    assert reason is Reason.LIFETIME
    assert at == NOW + lifetime - SECOND - left


def answered(this: Bundle, at: datetime, **changes: Any) -> CertificateState:
    """What is known after the CA was asked when to renew."""
    known: dict[str, Any] = {
        "ari_certificate_id": this.leaf.ari_certificate_id,
        "ari_at": at,
        "ari_checked_at": NOW - HOUR,
        "ari_next_check": NOW + 5 * HOUR,
    }
    return CertificateState(**{**known, **changes})


def test_by_the_cas_word() -> None:
    """RFC 9773 section 4.2, and a floor below which no CA's word counts."""
    this = bundle()
    assert plan_of(this, answered(this, NOW + DAY)) == (Reason.ARI, NOW + DAY)
    assert plan_of(this, answered(this, NOW - DAY)) == (Reason.ARI, NOW - DAY)
    reason, at = plan_of(this, answered(this, NOW + 89 * DAY))
    assert reason is Reason.EXPIRING
    assert at == this.leaf.not_after - timedelta(days=4.5)


def test_the_cas_word_about_another_one_does_not_count() -> None:
    """It is asked anew after each renewal."""
    this = bundle()
    assert plan_of(this, answered(this, NOW - DAY, ari_certificate_id="another"))[0] is Reason.LIFETIME


@pytest.mark.parametrize("reason", [Reason.ARI, Reason.LIFETIME, Reason.EXPIRING])
def test_after_a_renewal_for_a_reason_of_time_there_is_a_rest(reason: Reason) -> None:
    """Or a CA that suggests the past, or a clock that is far ahead, would have one ordered after the other."""
    this = bundle(age=HOUR)
    state = answered(this, NOW - DAY, issued_at=NOW - HOUR, issued_reason=reason.value)

    assert plan_of(this, state) == (Reason.ARI, NOW + 23 * HOUR)
    assert plan_of(bundle(age=62 * DAY), state)[1] == NOW + 23 * HOUR


@pytest.mark.parametrize("reason", [Reason.MISSING, Reason.NAMES_CHANGED, Reason.FORCED, ""])
def test_after_any_other_there_is_none(reason: str) -> None:
    """A revocation is to be followed at once."""
    this = bundle(age=HOUR)
    state = answered(this, NOW - DAY, issued_at=NOW - HOUR, issued_reason=str(reason))

    assert plan_of(this, state) == (Reason.ARI, NOW - DAY)


def test_nor_after_one_that_is_yet_to_come() -> None:
    """A clock that was set back."""
    this = bundle(age=HOUR)
    assert plan_of(this, answered(this, NOW - DAY, issued_at=NOW + YEAR, issued_reason="ari"))[1] == NOW - DAY


def test_other_names_do_not_wait_for_that() -> None:
    """Somebody has just changed the file."""
    state = CertificateState(issued_at=NOW, issued_reason="lifetime")
    assert plan_of(bundle(names=NAMES[:1]), state) == (Reason.NAMES_CHANGED, NOW)


# -------------------------------------------------------------------------------------------------------------- status


def seen(this: Bundle | None, state: CertificateState | None = None) -> Any:
    return status(wanted(), this, state or CertificateState(), "d", NOW, broken=False)


def test_the_status_of_none() -> None:
    """Names as asked for; what is to come."""
    found = seen(None, CertificateState(last_error="no", failures=1, next_attempt=NOW + MINUTE))

    assert (found.name, found.names, found.serial, found.deployed) == (NAME, NAMES, None, False)
    assert (found.reason, found.renew_at, found.next_attempt) == ("missing", NOW, NOW + MINUTE)
    assert found.last_error == "no"


def test_the_status_of_one() -> None:
    """What it is, when the next one comes and why, and whether it is served."""
    this = bundle()
    found = seen(this, CertificateState(deployed_serial=this.leaf.serial, deployed_at=NOW))

    assert (found.names, found.serial, found.issuer) == (NAMES, this.leaf.serial, this.leaf.issuer)
    assert (found.not_before, found.not_after) == (this.leaf.not_before, this.leaf.not_after)
    assert (found.reason, found.renew_at, found.next_attempt) == ("lifetime", found.renew_at, found.renew_at)
    assert (found.deployed, found.deployed_at, found.last_error) == (True, NOW, None)


def test_it_is_not_deployed_while_another_is() -> None:
    """Or while its delivery fails: then the error is HAProxy's."""
    this = bundle()
    assert not seen(this, CertificateState(deployed_serial="other")).deployed
    found = seen(this, CertificateState(deployed_serial=this.leaf.serial, delivery_error="no socket"))
    assert (found.deployed, found.last_error) == (False, "no socket")


@pytest.mark.parametrize(
    ("age", "words"), [(91 * DAY, "expired at 2026-11-24"), (-DAY, "not valid before .* is the clock right")]
)
def test_one_that_is_not_valid_now_is_an_error(age: timedelta, words: str) -> None:
    """Whatever the reason, clients get a warning."""
    found = seen(bundle(age=age))

    assert found.last_error is not None
    assert re.search(words, found.last_error)


def test_what_went_wrong_is_no_error_any_more_once_nothing_is_due() -> None:
    """A clock that is right again, or a renewal by hand that failed: nobody is to be woken for it for weeks."""
    this = bundle()
    later = CertificateState(last_error="is the clock right?", failures=1, next_attempt=NOW + YEAR)

    assert seen(this, later).last_error is None
    assert seen(bundle(age=70 * DAY), later).last_error == "is the clock right?"
    assert seen(this, replace(later, next_attempt=NOW + MINUTE)).last_error == "is the clock right?"


# ----------------------------------------------------------------------------------------------------------- the story


async def test_from_missing_to_deployed(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """due → lock → look again → order → answer → finalize → store → deliver → verify → recorded (DESIGN)."""
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        found = certificate.status()
        await until(lambda: bench.state().deployed_serial, "it is recorded")

    state = bench.state()
    assert deliveries(bench).made == [(NAME, bench.serial())]
    assert (state.names, state.directory, state.issued_reason) == (NAMES, stub.directory_url, "missing")
    assert (state.failures, state.next_attempt, state.last_error) == (0, None, None)
    assert state.deployed_serial == bench.serial() == found.serial
    assert [status.serial for status in bench.renewed] == [bench.serial()]
    assert bench.renewed[0].deployed
    assert bench.failed == []
    assert bench.counts.renewals == {(NAME, "success"): 1}
    assert bench.files().order() is None


async def test_one_that_is_good_is_never_ordered_again_at_a_start(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """dehydrated and autocert have; here disk is the truth."""
    bench.put(NAMES[::-1])
    for _ in range(3):
        async with bench.kept() as certificate:
            await until(lambda: certificate.status().deployed, "it is delivered")
            await bench.idle()

    assert stub.requests == []
    assert bench.state().issued_at is None
    assert len(bench.renewed) == 1  # it is new to HAProxy, once


async def test_it_is_told_what_is_done(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each step."""
    with caplog.at_level(logging.INFO, "sniproxy.acme.certificate"):
        async with bench.kept() as certificate:
            await deployed(bench, certificate)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"certificate {NAME}: due (missing)"
    assert f"certificate {NAME}: served: serial {bench.serial()}" in lines
    assert any(f"issued by stub intermediate: serial {bench.serial()}, until " in line for line in lines)


async def test_a_broken_one_is_replaced(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """mod_md#334, certmagic#366: of no use, and so as good as none."""
    bench.put()
    (path,) = (bench.directory / "certificates" / NAME).glob("*.pem")
    path.write_bytes(b"garbage")
    async with bench.kept() as certificate:
        await deployed(bench, certificate)

    assert bench.state().issued_reason == "broken"
    assert any("0001.pem is broken" in warning for warning in bench.warnings)


async def test_other_names_are_ordered_at_once(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """And until then the old one is served."""
    old = bench.put(NAMES[:1])
    stub.fail("newOrder")
    async with bench.kept() as certificate:
        await until(lambda: bench.failed, "the order fails")
        await until(lambda: certificate.status().deployed, "the old one is delivered")
        assert deliveries(bench).serials == [old.leaf.serial]
        bench.pass_time(2 * MINUTE)
        await deployed(bench, certificate)

    assert bench.state().issued_reason == "names_changed"


async def test_another_directory_is_ordered_from_at_once(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """And the new CA is not told to replace what it has not issued."""
    await first(bench)
    bench.change_state(directory="https://another.test/directory")
    async with bench.kept() as certificate:
        await deployed(bench, certificate, 2)

    assert bench.state().issued_reason == "directory_changed"
    assert all("replaces" not in payload for payload in stub.payloads("newOrder"))


async def test_an_old_one_is_renewed_by_its_lifetime(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """61 of 90 days; at the first look, as the program was not there before."""
    bench.put(age=61 * DAY)
    async with bench.kept() as certificate:
        await deployed(bench, certificate)

    assert bench.state().issued_reason == "lifetime"


@pytest.mark.parametrize(
    ("lifetime", "age"),
    [(120 * SECOND, 60 * SECOND), (6 * DAY, 3 * DAY), (45 * DAY, 30 * DAY), (90 * DAY, 60 * DAY)],
    ids=["120 s", "6 days", "45 days", "90 days"],
)
async def test_however_long_it_lives(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, lifetime: timedelta, age: timedelta
) -> None:
    """The same code for all (golang/go#64997): renewed at its time, each time, and not before."""
    stub.lifetime, stub.backdate, stub.renewal_info = lifetime, timedelta(), False
    almost = age - max(age / 60, 20 * SECOND)
    async with bench.kept() as certificate:
        for issued in (1, 2, 3):
            await deployed(bench, certificate, issued)
            bench.pass_time(almost)
            await bench.idle()
            assert len(stub.issued) == issued
            bench.pass_time(age - almost)
        await deployed(bench, certificate, 4)

    assert [status.serial for status in bench.renewed] == deliveries(bench).serials
    assert bench.failed == []


async def test_the_last_two_stay(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Whoever finds something wrong with the new one has the old one."""
    await first(bench)
    old = bench.serial()
    async with bench.kept() as certificate:
        await certificate.renew_now(force=True, tell=lambda _: None)

    assert bench.files().generations() == [2, 1]
    assert bench.files().previous().leaf.serial == old


# --------------------------------------------------------------------------------------------------- another process


async def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Tells whether somebody has waited for a lock."""
    in_vain: list[bool] = []
    try_acquire = durable.Lock.try_acquire

    def watched(lock: durable.Lock) -> bool:
        taken = try_acquire(lock)
        if not taken:
            in_vain.append(True)
        return taken

    monkeypatch.setattr(durable.Lock, "try_acquire", watched)
    return lambda: len(in_vain) >= 3


@pytest.mark.parametrize("left", ["nothing", "an order"])
async def test_it_is_looked_at_again_after_the_lock(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Another process has renewed it meanwhile: nothing is ordered, and what it has stored is delivered."""
    waits = await waiting(monkeypatch)
    lock = bench.files().lock()
    assert lock.try_acquire()
    if left == "an order":
        bench.put()
        order = PendingOrder(
            url=f"{stub.base_url}/order/1",
            key=generate_key("ecdsa-p256"),
            names=NAMES,
            directory=stub.directory_url,
        )
        bench.files().save_order(order)
    async with bench.kept() as certificate:
        await until(waits, "it waits for the lock")
        new = bench.put()
        bench.files().forget_order()
        lock.release()
        await until(lambda: new.leaf.serial in deliveries(bench).serials, "the new one is delivered")
        await bench.idle()
        assert certificate.status().serial == new.leaf.serial

    assert stub.count("newOrder") == 0


async def test_what_another_process_has_stored_is_delivered(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """Disk is the truth: `renew` by itself, `import-certbot`, a backup that was brought back."""
    bench.put()
    async with bench.kept() as certificate:
        await until(lambda: certificate.status().deployed, "the first is delivered")
        new = bench.put()
        await until(lambda: certificate.status().serial == new.leaf.serial, "the other one is seen")
        await until(lambda: certificate.status().deployed, "and delivered")

    assert deliveries(bench).serials[-1] == new.leaf.serial


async def test_a_lock_that_another_keeps_is_a_failure_and_not_the_end(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says who is at it."""
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0.05)
    lock = bench.files().lock()
    assert lock.try_acquire()
    async with bench.kept() as certificate:
        await until(lambda: bench.failed, "it gives up")
        assert bench.failed[0].last_error == "another sniproxy is at the same certificate, and has not finished"
        lock.release()
        bench.pass_time(2 * MINUTE)
        await deployed(bench, certificate)


# ------------------------------------------------------------------------------------------------------------ failures


async def test_failures_are_waited_out_and_survive_restarts(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """1, 10, 100 minutes, then daily (Let's Encrypt's integration guide); certbot#3553 is what happens without."""
    stub.fail("newOrder", times=None)
    for failures, delay in enumerate((MINUTE, 10 * MINUTE, 100 * MINUTE, DAY, DAY), 1):
        async with bench.kept():
            await until(lambda: len(bench.failed) == failures, f"failure {failures}")  # noqa: B023  at once
            await bench.idle()
            assert stub.count("newOrder") == failures
        state = bench.state()
        assert state.failures == failures
        assert state.next_attempt is not None
        assert state.last_attempt is not None
        assert state.next_attempt - state.last_attempt == delay
        async with bench.kept() as certificate:  # a restart changes nothing
            await bench.idle()
            assert certificate.status().next_attempt == state.next_attempt
        assert stub.count("newOrder") == failures
        bench.pass_time(delay)
    stub.heal()
    async with bench.kept() as certificate:
        await deployed(bench, certificate)

    state = bench.state()
    assert (state.failures, state.next_attempt, state.last_error) == (0, None, None)
    assert bench.counts.renewals == {(NAME, "failure"): 5, (NAME, "success"): 1}


async def test_it_waits_some_chance_more(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """All who failed at the same moment must not come back at the same moment."""
    stub.fail("newOrder", times=None)
    bench.chance = 0.5
    async with bench.kept():
        await until(lambda: bench.failed, "it fails")

    state = bench.state()
    assert state.next_attempt is not None
    assert state.last_attempt is not None
    assert state.next_attempt - state.last_attempt == 67.5 * SECOND


async def test_a_retry_after_is_obeyed(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """RFC 8555 section 6.6: rateLimited. certbot#10073 loses it; here it is on disk too."""
    stub.fail("newOrder", status=429, problem="rateLimited", retry_after="7200")
    async with bench.kept():
        await until(lambda: bench.failed, "it is refused")
    bench.pass_time(7000 * SECOND)
    async with bench.kept() as certificate:
        await bench.idle()
        assert stub.count("newOrder") == 1
        bench.pass_time(300 * SECOND)
        await deployed(bench, certificate)


async def test_the_error_is_in_the_cas_own_words(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """Contract, section 1: `last_error`. In the status, on disk, in the report and in the log."""
    detail = "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s"
    stub.fail(
        "newOrder",
        status=429,
        problem={"type": "urn:ietf:params:acme:error:rateLimited", "detail": detail},
    )
    async with bench.kept() as certificate:
        await until(lambda: bench.failed, "it is refused")
        assert certificate.status().last_error == f"rateLimited: {detail}"

    assert bench.state().last_error == bench.failed[0].last_error == f"rateLimited: {detail}"
    assert f"certificate {NAME}: rateLimited: {detail}; next attempt in 60 s" in caplog.text


async def test_each_failure_is_reported(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """`on_failed`: when a certificate could not be obtained, at each attempt."""
    stub.fail("newOrder", times=3)
    async with bench.kept() as certificate:
        for failures in (1, 2, 3):
            await until(lambda: len(bench.failed) == failures, f"failure {failures}")  # noqa: B023  at once
            bench.pass_time(2 * HOUR)
        await deployed(bench, certificate)

    assert len(bench.failed) == 3
    assert [found.serial for found in bench.failed] == [None, None, None]


async def test_a_challenge_that_failed_is_not_the_next_one(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """A way in that is shut stays shut, mostly; it comes first again after a success."""
    stub.fail_authorization("connection", times=2)
    async with bench.kept() as certificate:
        await until(lambda: bench.failed, "tls-alpn-01 fails")
        assert bench.state().failed_challenge == "tls-alpn-01"
    bench.pass_time(2 * MINUTE)
    async with bench.kept() as certificate:
        await deployed(bench, certificate)

    assert bench.counts.challenges == {("tls-alpn-01", "invalid"): 2, ("http-01", "valid"): 2}
    assert bench.state().failed_challenge == ""


@pytest.mark.parametrize("what", ["another key", "other names", "over already", "no chain"])
async def test_a_certificate_of_no_use_does_not_replace_the_old_one(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, what: str
) -> None:
    """A CA's fault must not take a site down; and it is not asked for another one at once."""
    old = bench.put(age=70 * DAY)
    wrong: dict[str, dict[str, Any]] = {
        "another key": {"public_key": generate_key("ecdsa-p256").public_key()},
        "other names": {"names": ("evil.test",)},
        "over already": {"not_before": utc_now() - 2 * DAY, "not_after": utc_now() - DAY},
        "no chain": {"chain": "foreign"},
    }
    stub.misissue(**wrong[what])
    async with bench.kept() as certificate:
        await until(lambda: bench.failed, "it is refused")
        await until(lambda: certificate.status().deployed, "the old one is delivered")
        await bench.idle()
        assert (bench.serial(), len(stub.issued)) == (old.leaf.serial, 1)
        bench.pass_time(2 * MINUTE)
        await deployed(bench, certificate, 2)

    assert deliveries(bench).serials == [old.leaf.serial, bench.serial()]


async def test_an_order_that_hangs_is_given_up_in_the_end(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone on with after each back-off, until it was waited for three times; then there is another."""
    monkeypatch.setattr(ordering, "ORDER_SECONDS", 0.3)
    stub.processing_polls = math.inf
    async with bench.kept() as certificate:
        for failures in (1, 2, 3, 4):
            await until(lambda: len(bench.failed) == failures, f"failure {failures}")  # noqa: B023  at once
            assert len(stub.orders) == 1
            bench.pass_time(2 * DAY)
        monkeypatch.setattr(ordering, "ORDER_SECONDS", 60.0)
        stub.processing_polls = 0
        await deployed(bench, certificate)

    assert len(stub.orders) <= 3  # one more may have been begun before the CA was mended


async def test_an_account_that_the_ca_has_lost(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """RFC 8555 section 6.7: accountDoesNotExist. It is made again, and the order goes on: no failure, no back-off."""
    await first(bench)
    stub.forget()
    async with bench.kept() as certificate:
        told: list[str] = []
        result = await certificate.renew_now(force=True, tell=told.append)

    assert result.result == "renewed"
    assert "the CA does not know the account: making it again" in told
    assert len(stub.accounts) == 1
    assert bench.failed == []


async def test_two_that_are_told_so_at_once(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """One account is made again, and neither of the two orders fails."""
    await first(bench)
    stub.forget()
    means = bench.means()
    both = [bench.certificate(means, name=name, names=(name,)) for name in ("a.test", "b.test")]
    results = await asyncio.gather(*(each.renew_now(force=True, tell=lambda _: None) for each in both))

    assert [result.result for result in results] == ["renewed", "renewed"]
    assert len(stub.accounts) == 1


async def test_a_clock_that_differs_from_the_cas_is_told_of(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its Date header: certificates would seem to begin or end at other times than they do."""
    stub.clock_skew = timedelta(minutes=10)
    async with bench.kept() as certificate:
        await deployed(bench, certificate)

    assert "the CA's clock is +" in caplog.text
    assert "is ours right?" in caplog.text


# ---------------------------------------------------------------------------------------------------------- disk, bugs


def refuse(*_: object) -> None:
    raise StoreError("state.json cannot be written: No space left on device")


async def test_where_failures_cannot_be_kept_they_are_remembered(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not turn the back-off off; and once there is room, it is on disk."""
    stub.fail("newOrder", times=None)
    with monkeypatch.context() as patch:
        patch.setattr(CertificateFiles, "save_state", refuse)
        async with bench.kept() as certificate:
            await until(lambda: bench.failed, "it fails")
            await bench.idle()
            assert stub.count("newOrder") == 1
            assert certificate.status().last_error == "serverInternal: scripted serverInternal"
            patch.undo()
            await until(lambda: bench.state().failures == 1, "it is on disk")
            await bench.idle()

    assert stub.count("newOrder") == 1


async def test_where_success_cannot_be_kept_nothing_is_ordered_again(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is in the store, and that is what counts: no failure."""
    bench.change_state(directory="https://another.test/directory", failures=2, last_error="before")
    bench.put()
    with monkeypatch.context() as patch:
        patch.setattr(CertificateFiles, "save_state", refuse)
        async with bench.kept() as certificate:
            await deployed(bench, certificate)
            await bench.idle()
            assert certificate.status().last_error is None
            assert bench.failed == []
            patch.undo()
            await until(lambda: bench.state().deployed_serial == bench.serial(), "it is on disk")

    assert len(stub.issued) == 1
    assert (bench.state().directory, bench.state().failures) == (stub.directory_url, 0)


async def test_where_the_certificate_cannot_be_kept_it_comes_out_of_the_same_order(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there is room; until then, the disk is what is told of."""
    with monkeypatch.context() as patch:
        patch.setattr(CertificateFiles, "save", refuse)
        async with bench.kept() as certificate:
            await until(lambda: bench.failed, "it cannot be stored")
            assert "No space left on device" in (certificate.status().last_error or "")
            patch.undo()
            bench.pass_time(2 * MINUTE)
            await deployed(bench, certificate)

    assert (len(stub.orders), len(stub.issued)) == (1, 1)


async def test_a_store_that_cannot_be_read_is_told_of_and_read_again(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A failure is never taken for absence: nothing is ordered, as there may be one."""
    bench.put()

    def fail(*_: object) -> None:
        raise StoreError("state.json cannot be read: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(CertificateFiles, "state", fail)
        async with bench.kept() as certificate:
            await bench.idle(20)
            assert "Input/output error" in caplog.text
            assert certificate.status().serial is None
            patch.undo()
            bench.pass_time(MINUTE)
            await until(lambda: certificate.status().deployed, "it is read again")

    assert stub.requests == []


async def test_a_bug_is_told_of_and_does_not_end_it(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """One round is lost, not the certificate; and not one round after the other."""
    rounds = []

    async def fail(_: Ordering) -> Bundle:
        rounds.append(True)
        raise RuntimeError("a bug of the test")

    with monkeypatch.context() as patch:
        patch.setattr(Ordering, "obtain", fail)
        async with bench.kept() as certificate:
            await until(lambda: rounds, "it happens")
            assert "a bug in sniproxy, please report it" in caplog.text
            assert "a bug of the test" in caplog.text
            patch.undo()
            bench.pass_time(2 * MINUTE)
            await deployed(bench, certificate)


async def test_no_secret_is_told(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """No private key, token or key authorization in any log at any level, from the first round to the last."""
    stub.fail_authorization("unauthorized", times=2)
    with caplog.at_level(logging.DEBUG):
        async with bench.kept() as certificate:
            await until(lambda: bench.failed, "it fails")
            bench.pass_time(2 * MINUTE)
            await deployed(bench, certificate)
    secrets = [challenge.token for each in stub.authorizations for challenge in each.challenges]
    secrets += [stub.thumbprint(account) for account in stub.accounts]
    secrets += ["PRIVATE KEY", f"{bench.files().current().key.private_numbers().private_value:x}"]
    texts = [f"{record.getMessage()} {record.args}" for record in caplog.records]
    texts += [repr(bench.failed), repr(bench.renewed), repr(bench.counts)]
    texts += [str(content) for path, content in contents(bench.directory).items() if path.endswith(".json")]

    for secret in secrets:
        assert not [text for text in texts if secret in text]


# ------------------------------------------------------------------------------------------------------------- clocks


async def test_a_clock_that_is_a_year_ahead_and_comes_back(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """All seems to be over: one order, whose certificate seems so too, then the back-off; and then all is well."""
    old = bench.put()
    async with bench.kept() as certificate:
        await until(lambda: certificate.status().deployed, "it is delivered")
        bench.clock.set(by=YEAR)
        await until(lambda: bench.failed, "what comes is refused")
        await bench.idle()
        assert stub.count("newOrder") == 1
        assert "is the clock right?" in (certificate.status().last_error or "")
        bench.clock.set(by=-YEAR)
        await bench.idle()
        found = certificate.status()

    assert (found.serial, found.last_error, found.deployed) == (old.leaf.serial, None, True)
    assert stub.count("newOrder") == 1


async def test_a_clock_that_is_two_months_ahead(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """What is issued is good, and due again at once: one a day at the most, and somebody is told."""
    bench.clock.set(by=65 * DAY)
    async with bench.kept() as certificate:
        await deployed(bench, certificate, 2)
        await bench.idle()
        assert len(stub.issued) == 2
        assert "the new one is due again at once: is the clock right?" in caplog.text
        bench.pass_time(DAY)
        await deployed(bench, certificate, 3)
        await bench.idle()

    assert len(stub.issued) == 3


async def test_a_clock_that_is_set_back(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """A year: nothing is due for long, nothing is asked again and again; when it is right again, nothing was missed."""
    await first(bench)
    async with bench.kept() as certificate:
        await until(lambda: certificate.status().deployed, "it is delivered")
        bench.clock.set(by=-YEAR)
        asked = stub.count("renewalInfo")
        await bench.idle()
        assert "is the clock right?" in (certificate.status().last_error or "")
        assert stub.count("newOrder") == 1
        assert stub.count("renewalInfo") <= asked + 1
        bench.clock.set(by=YEAR)
        bench.pass_time(61 * DAY)
        await deployed(bench, certificate, 2)


async def test_a_wait_of_a_clock_that_was_ahead_is_not_believed(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """A back-off that would end in a year is none: one attempt, and a back-off by the clock that is right."""
    bench.clock.set(by=YEAR)
    stub.fail("newOrder", times=None)
    async with bench.kept():
        await until(lambda: bench.failed, "it fails")
        bench.clock.set(by=-YEAR)
        await until(lambda: len(bench.failed) == 2, "it is tried")
        await bench.idle()

    assert stub.count("newOrder") == 2


async def test_a_question_of_a_clock_that_was_ahead_is_not_put_off(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """When to renew is asked more than once a day (RFC 9773 section 4.3.2), and not again in a year."""
    await first(bench)
    bench.change_state(ari_next_check=bench.clock() + YEAR)
    asked = stub.count("renewalInfo")
    async with bench.kept():
        await until(lambda: stub.count("renewalInfo") > asked, "it is asked now")
        await bench.idle()

    assert stub.count("renewalInfo") == asked + 1
    next_check = bench.state().ari_next_check
    assert next_check is not None
    assert next_check < bench.clock() + DAY


async def test_a_suspend(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Whoever sleeps by a monotonic clock sleeps through it (CLOCK_MONOTONIC stands still, clock_gettime(2))."""
    bench.put(age=59 * DAY)
    async with bench.kept() as certificate:
        await until(lambda: certificate.status().deployed, "it is delivered")
        await bench.idle()
        assert stub.count("newOrder") == 0
        bench.pass_time(2 * DAY)
        await deployed(bench, certificate)


async def test_a_delivery_is_not_put_off_by_a_clock_that_was_set_back(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """Neither the next attempt, nor the next look."""
    bench.put()
    deliveries(bench).failing = "no socket"
    async with bench.kept() as certificate:
        await until(lambda: deliveries(bench).made, "it is tried")
        deliveries(bench).failing = None
        bench.clock.set(by=-YEAR)
        await until(lambda: len(deliveries(bench).made) == 2, "it is tried again")
        deliveries(bench).found = ["gone"]
        bench.clock.set(by=-YEAR)
        await until(lambda: len(deliveries(bench).made) == 3, "it is looked at again")
        await until(lambda: certificate.status().deployed, "it is delivered")


# ------------------------------------------------------------------------------------------------ renewal information


def window(stub: AcmeStub, begin: timedelta, end: timedelta) -> None:
    """From now."""
    now = datetime.now(UTC).replace(microsecond=0)
    stub.renewal_window = (now + begin, now + end)


async def test_the_ca_is_asked_after_each_issuance_and_when_it_says(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """RFC 9773 section 4.3: at its Retry-After (certmagic#297: 33 times in one second)."""
    stub.renewal_retry_after = "3600"
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        await until(lambda: bench.state().ari_at, "it is asked")
        await bench.idle()
        assert stub.count("renewalInfo") == 1
        bench.pass_time(3500 * SECOND)
        await bench.idle()
        assert stub.count("renewalInfo") == 1
        bench.pass_time(200 * SECOND)
        await until(lambda: stub.count("renewalInfo") == 2, "it is asked again")
        await bench.idle()

    assert stub.count("renewalInfo") == 2
    state = bench.state()
    async with bench.kept():  # nor by a restart
        await bench.idle()
    assert stub.count("renewalInfo") == 2
    assert bench.state().ari_next_check == state.ari_next_check


async def test_the_instant_is_drawn_once_for_each_window(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """RFC 9773 section 4.2: whoever draws at each look renews too early. It is on disk; a moved window is redrawn."""
    window(stub, 10 * DAY, 20 * DAY)
    bench.chance = 0.5
    async with bench.kept() as certificate:
        await until(lambda: bench.state().ari_at, "it is asked")
        drawn = bench.state().ari_at
        assert stub.renewal_window is not None
        assert not callable(stub.renewal_window)
        start, end = stub.renewal_window
        assert drawn == start + (end - start) / 2
        await until(lambda: certificate.status().renew_at == drawn, "it is the plan")
        assert certificate.status().reason == "ari"

        bench.chance = 0.9
        bench.pass_time(7 * HOUR)
        await until(lambda: stub.count("renewalInfo") == 2, "it is asked again")
        await bench.idle()
        assert bench.state().ari_at == drawn
        window(stub, 30 * DAY, 40 * DAY)
        bench.pass_time(7 * HOUR)
        await until(lambda: bench.state().ari_at != drawn, "it is drawn again")
        start, end = stub.renewal_window
        assert bench.state().ari_at == start + (end - start) * 0.9


async def test_a_window_that_makes_no_sense_is_none(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 9773 section 4.2: ends before it begins. The lifetime says when."""
    window(stub, 2 * DAY, DAY)
    caplog.set_level(logging.INFO)
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        await until(lambda: bench.state().ari_next_check, "it is asked")
        await bench.idle()
        assert certificate.status().reason == "lifetime"

    assert "no renewal information: the CA's renewal information has a window that ends before it begins" in caplog.text
    assert (len(stub.issued), stub.count("renewalInfo")) == (1, 1)


async def test_a_ca_that_does_not_answer_is_asked_less_often(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """RFC 9773 section 4.3.3: errors back off, and nothing else suffers from them."""
    stub.fail("renewalInfo", status=503, times=None)
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        for failures, delay in enumerate((MINUTE, 2 * MINUTE, 4 * MINUTE), 1):
            await until(lambda: bench.state().ari_failures == failures, f"failure {failures}")  # noqa: B023  at once
            await bench.idle()
            assert stub.count("renewalInfo") == failures
            bench.pass_time(delay)
        assert certificate.status().last_error is None
        assert certificate.status().reason == "lifetime"
        stub.heal()
        bench.pass_time(HOUR)
        await until(lambda: bench.state().ari_failures == 0 and bench.state().ari_at, "it answers")

    assert bench.failed == []


async def test_a_retry_after_of_an_error_is_obeyed(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """RFC 9773 section 4.3, and RFC 8555 section 6.6."""
    stub.fail("renewalInfo", status=503, retry_after="7200")
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        await until(lambda: bench.state().ari_failures, "it fails")
        bench.pass_time(HOUR)
        await bench.idle()
        assert stub.count("renewalInfo") == 1
        bench.pass_time(HOUR)
        await until(lambda: stub.count("renewalInfo") == 2, "it is asked again")


async def test_a_suggestion_of_the_past_is_followed_now(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """RFC 9773 section 4.2: a revocation. The order says which one it replaces (section 5)."""
    stub.explanation_url = "https://ca.test/incident"
    await first(bench)
    window(stub, -2 * DAY, -DAY)
    bench.change_state(ari_next_check=bench.clock())
    async with bench.kept() as certificate:
        await until(lambda: len(stub.issued) >= 2, "it is renewed")
        stub.renewal_window = None
        await deployed(bench, certificate, 2)

    assert bench.state().issued_reason == "ari"
    assert stub.payloads("newOrder")[1]["replaces"] == stub.issued[0].certificate_id
    assert stub.issued[0].replaced_by == stub.issued[1].order


async def test_a_ca_that_always_suggests_the_past(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Each renewal is a success, so no back-off ends that: there is a rest of a day."""
    window(stub, -2 * DAY, -DAY)
    async with bench.kept() as certificate:
        await deployed(bench, certificate, 2)
        await until(lambda: stub.count("renewalInfo") == 2, "it is asked about the second")
        await bench.idle()
        assert len(stub.issued) == 2
        assert certificate.status().reason == "ari"
        bench.pass_time(DAY)
        await deployed(bench, certificate, 3)
        await bench.idle()

    assert len(stub.issued) == 3


async def test_what_people_should_read_is_told_once(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 9773 section 4.2: explanationURL."""
    stub.explanation_url = "https://ca.test/incident"
    async with bench.kept():
        for asked in (1, 2, 3):
            await until(lambda: stub.count("renewalInfo") == asked, f"it is asked, {asked}")  # noqa: B023  at once
            await bench.idle()
            bench.pass_time(7 * HOUR)

    assert caplog.text.count("the CA moved its renewal, see https://ca.test/incident") == 1


async def test_a_ca_without_it(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Its directory is looked at a few times a day, as it may learn; the lifetime says when."""
    stub.renewal_info = False
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        await until(lambda: bench.state().ari_next_check, "it is looked for")
        before = len(stub.requests)
        await bench.idle()
        assert len(stub.requests) == before
        assert certificate.status().reason == "lifetime"


async def test_one_that_is_over_is_not_asked_about(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """RFC 9773 section 4.3: nor is one that is of no CA."""
    await first(bench)
    asked = stub.count("renewalInfo")
    stub.fail("newOrder", times=None)
    bench.pass_time(100 * DAY)
    async with bench.kept():
        await until(lambda: bench.failed, "it cannot be renewed")
        await bench.idle()

    assert stub.count("renewalInfo") == asked


# ------------------------------------------------------------------------------------------------------------ delivery


async def test_a_delivery_that_fails_is_made_again_from_the_store(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """certbot#7138: renewed, and never deployed. Retried in seconds, and nothing is ordered for it."""
    delivery = deliveries(bench)
    delivery.failing = "HAProxy does not answer on its socket"
    async with bench.kept() as certificate:
        for attempts, delay in enumerate((2, 5, 10, 30, 60, 120, 120), 1):
            await until(lambda: len(delivery.made) == attempts, f"attempt {attempts}")  # noqa: B023  at once
            await bench.idle(40)
            assert len(delivery.made) == attempts
            found = certificate.status()
            assert (found.deployed, found.last_error) == (False, "HAProxy does not answer on its socket")
            bench.pass_time(delay * SECOND)
        delivery.failing = None
        bench.pass_time(2 * MINUTE)
        await deployed(bench, certificate)
        assert certificate.status().last_error is None

    assert len(set(delivery.serials)) == 1
    assert (len(stub.issued), stub.count("newOrder")) == (1, 1)
    # Once: `on_failed` is for the first attempt.
    assert [found.last_error for found in bench.failed] == ["HAProxy does not answer on its socket"]
    assert [found.serial for found in bench.renewed] == [bench.serial()]


async def test_it_goes_on_after_a_restart(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Not ordered, not reported again: the disk knows."""
    deliveries(bench).failing = "no socket"
    async with bench.kept():
        await until(lambda: bench.failed, "it fails")
    async with bench.kept() as certificate:
        await until(lambda: len(deliveries(bench).made) >= 2, "it is tried again")
        await bench.idle(40)
        assert len(bench.failed) == 1
        deliveries(bench).failing = None
        bench.pass_time(MINUTE)
        await deployed(bench, certificate)

    assert (len(stub.issued), len(bench.renewed)) == (1, 1)


async def test_what_goes_wrong_is_logged_once(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as it is the same; not thousands of lines in a night."""
    bench.put()
    delivery = deliveries(bench)
    delivery.failing = "one thing"
    async with bench.kept():
        for attempts, words in enumerate(("one thing", "one thing", "another", "another"), 1):
            delivery.failing = words
            await until(lambda: len(delivery.made) >= attempts, f"attempt {attempts}")  # noqa: B023  at once
            await bench.idle(40)
            bench.pass_time(2 * MINUTE)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    assert errors == [
        f"certificate {NAME}: not deployed: {words}; tried again" for words in dict.fromkeys(("one thing", "another"))
    ]


async def test_a_renewal_is_not_held_up_by_it(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """An HAProxy that is down for weeks is no reason to let the certificate expire."""
    deliveries(bench).failing = "no socket"
    async with bench.kept():
        await until(lambda: len(stub.issued) == 1, "the first is issued")
        await until(lambda: bench.state().ari_at, "the CA says when")
        bench.pass_time(70 * DAY)
        await until(lambda: len(stub.issued) == 2, "the next one is")
        await until(lambda: bench.serial() in deliveries(bench).serials, "and that is what is delivered")


async def test_what_was_changed_by_others_is_put_right(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """Contract, section 1: a bundle that went missing or was overwritten is restored from the store, no order."""
    delivery = deliveries(bench)
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        bench.pass_time(RECONCILE)
        await until(lambda: delivery.looked == 1, "it is looked at")
        await bench.idle()
        assert len(delivery.made) == 1

        delivery.found = ["www.example.test.pem is gone", "another serial is served"]
        delivery.let.clear()
        bench.pass_time(RECONCILE)
        await until(lambda: len(delivery.made) == 2, "it is delivered again")
        assert not certificate.status().deployed
        delivery.let.set()
        await until(lambda: certificate.status().deployed, "it is served")

    assert (len(stub.issued), stub.count("newOrder"), len(bench.renewed)) == (1, 1, 1)


async def test_it_is_looked_at_every_other_minute(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """Not at each look at the clock: it takes a handshake."""
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        await bench.idle()
        assert deliveries(bench).looked == 0
        for looked in (1, 2, 3):
            bench.pass_time(RECONCILE)
            await until(lambda: deliveries(bench).looked == looked, "it is looked at")  # noqa: B023  at once


async def test_without_haproxy_the_store_is_where_it_belongs(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """No [haproxy]: `on_renewed` is what takes it further, once for each."""
    bench.delivery = None
    async with bench.kept() as certificate:
        await deployed(bench, certificate)
        await until(lambda: bench.renewed, "it is reported")
        await bench.idle()
    async with bench.kept():
        await bench.idle()

    assert [found.serial for found in bench.renewed] == [bench.serial()]


async def test_a_fault_of_the_deliverers_is_a_bug(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """And the certificate is kept all the same."""
    bench.put()

    async def fail(*_: object) -> None:
        raise RuntimeError("a bug of the test")

    with monkeypatch.context() as patch:
        patch.setattr(deliveries(bench), "deliver", fail)
        async with bench.kept() as certificate:
            await until(lambda: "a bug of the test" in caplog.text, "it happens")
            patch.undo()
            bench.pass_time(2 * MINUTE)
            await until(lambda: certificate.status().deployed, "it is delivered")


# ----------------------------------------------------------------------------------------------------------- asked for


async def renew(bench: Workbench, *, force: bool = False, kept: bool = False) -> tuple[Renewed, list[str]]:
    """By a command: of a running program, or by itself."""
    told: list[str] = []
    certificate = bench.certificate()
    if not kept:
        return await certificate.renew_now(force=force, tell=told.append), told
    async with bench.kept(certificate):
        await bench.idle(20)
        return await certificate.renew_now(force=force, tell=told.append), told


async def test_what_is_not_due_is_not_renewed(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """`not_due`; but it is brought where it belongs."""
    put = bench.put()
    result, _ = await renew(bench)

    assert (result.result, result.error) == ("not_due", None)
    assert result.status.deployed
    assert deliveries(bench).serials == [put.leaf.serial]
    assert stub.requests == []


@pytest.mark.parametrize("kept", [False, True])
async def test_by_force_it_is(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, kept: bool) -> None:
    """`renewed`: with each step told; by a running program, or by the command itself."""
    await first(bench)
    result, told = await renew(bench, force=True, kept=kept)

    assert (result.result, result.error, result.status.deployed) == ("renewed", None, True)
    assert result.status.serial == bench.serial()
    assert told[0] == "due (forced)"
    assert told[-1] == f"served: serial {bench.serial()}"
    assert len(stub.issued) == 2
    assert stub.payloads("newOrder")[1]["replaces"] == stub.issued[0].certificate_id
    assert bench.state().issued_reason == "forced"


async def test_what_is_due_is_renewed_whatever_the_back_off_says(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """Somebody has mended it, and wants to see."""
    stub.fail("newOrder", times=3)
    for failures in (1, 2, 3):
        result, _ = await renew(bench)
        assert (result.result, result.error) == ("failed", "serverInternal: scripted serverInternal")
        assert bench.state().failures == failures
    result, _ = await renew(bench)

    assert result.result == "renewed"


async def test_one_that_fails_leaves_the_old_one_in_its_place(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """`failed`, in the CA's words."""
    old = bench.put()
    stub.fail("newOrder")
    result, told = await renew(bench, force=True)

    assert (result.result, result.error) == ("failed", "serverInternal: scripted serverInternal")
    assert result.status.serial == old.leaf.serial
    assert deliveries(bench).serials == [old.leaf.serial]
    assert "failed: serverInternal: scripted serverInternal" in told


async def test_one_that_is_issued_and_not_served(runner: asyncio.Runner, stub: AcmeStub, bench: Workbench) -> None:
    """`not_deployed`, in HAProxy's words; and again, without an order, of one that is not due."""
    deliveries(bench).failing = "no socket"
    result, told = await renew(bench)
    assert (result.result, result.error) == ("not_deployed", "no socket")
    assert told[-1] == "not deployed: no socket"

    result, _ = await renew(bench)

    assert (result.result, result.error) == ("not_deployed", "no socket")
    assert len(stub.issued) == 1


async def test_it_is_looked_whether_it_is_still_served(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """`renew` of what is not due is a way to have it put right now."""
    bench.put()
    async with bench.kept() as certificate:
        await until(lambda: certificate.status().deployed, "it is delivered")
        deliveries(bench).found = ["gone"]
        result = await certificate.renew_now(force=False, tell=lambda _: None)

    assert result.result == "not_due"
    assert len(deliveries(bench).made) == 2


async def test_without_haproxy_it_is_renewed_when_it_is_stored(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """And reported by the command too."""
    bench.delivery = None
    result, _ = await renew(bench)

    assert (result.result, result.status.deployed) == ("renewed", True)
    assert len(bench.renewed) == 1


async def test_a_disk_that_fails_is_a_failure_of_this_one(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several that were asked for, the others have their results all the same."""

    def fail(*_: object) -> None:
        raise StoreError("cannot be read: Input/output error")

    monkeypatch.setattr(CertificateFiles, "state", fail)
    result, _ = await renew(bench)

    assert (result.result, result.error) == ("failed", "cannot be read: Input/output error")


async def test_two_at_once_are_done_one_after_the_other(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """Of what is due, the second finds that it is not any more."""
    certificate = bench.certificate()
    async with bench.kept(certificate):
        results = await asyncio.gather(
            *(certificate.renew_now(force=False, tell=lambda _: None) for _ in range(2)),
        )
    assert {result.result for result in results} <= {"renewed", "not_due"}
    assert len(stub.issued) == 1


async def test_who_holds_it_waits_for_the_step_under_way(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """A reload: what is being ordered is let come to its end, and nothing else is begun."""
    let = stub.hang("finalize")
    async with bench.kept() as certificate:
        await until(lambda: stub.count("finalize"), "it is under way")
        holding = asyncio.get_running_loop().create_task(certificate.hold())
        await until(lambda: stub.count("finalize"), "it waits")
        assert not holding.done()
        let.set()
        await holding
        assert certificate.status().deployed
        bench.pass_time(100 * DAY)
        looks = bench.clock.looks
        await asyncio.sleep(0)
        assert bench.clock.looks == looks

    assert len(stub.issued) == 1


async def test_it_can_be_looked_at_before_it_is_kept(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a metric does not say, for a moment at each start, that there is none."""
    put = bench.put()
    certificate = bench.certificate()
    assert certificate.status().serial is None
    await certificate.look()
    assert certificate.status().serial == put.leaf.serial

    monkeypatch.setattr(CertificateFiles, "state", refuse)
    await certificate.look()  # what cannot be read is told of elsewhere


# ------------------------------------------------------------------------------------------------------------- crashes


def expired(bench: Workbench) -> None:
    """What there is is due."""
    bench.change_state(ari_at=bench.clock() - DAY, ari_next_check=bench.clock() + HOUR)


@pytest.mark.parametrize("renewal", [False, True], ids=["the first", "a renewal"])
@pytest.mark.parametrize("when", ["carried out", "answered"])
async def test_a_crash_at_any_request_costs_no_second_certificate(
    runner: asyncio.Runner,
    stub: AcmeStub,
    tmp_path: Path,
    when: Any,
    renewal: bool,
) -> None:
    """DESIGN: order URL and key are saved before finalising. The next start goes on, and one is issued."""
    loop = asyncio.get_running_loop()
    for skip in count():
        bench = Workbench(stub=stub, directory=tmp_path / f"{skip}")
        if renewal:
            await first(bench)
            expired(bench)
        issued = len(stub.issued)
        certificate = bench.certificate()
        task = loop.create_task(certificate.keep())
        killed = asyncio.Event()

        def kill(_: Any, task: asyncio.Task[None] = task, killed: asyncio.Event = killed) -> None:
            loop.call_soon_threadsafe(task.cancel)
            loop.call_soon_threadsafe(killed.set)

        stub.on(None, kill, when=when, skip=skip)
        await until(
            lambda: killed.is_set() or (len(stub.issued) > issued and certificate.status().deployed),  # noqa: B023
            "it is killed, or it is done",
        )
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stub.heal()
        await bench.close()
        async with bench.kept() as again:
            await deployed(bench, again, issued + 1)
            await bench.idle(40)

        assert len(stub.issued) == issued + 1
        assert bench.serial() is not None
        assert bench.failed == []
        assert bench.files().order() is None
        if not killed.is_set():
            break
    assert skip >= 10


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["save_order", "save", "save_state", "forget_order"])
async def test_a_crash_at_any_step_of_the_disk_costs_none_either(
    runner: asyncio.Runner,
    stub: AcmeStub,
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: bool,
) -> None:
    """The new generation first, then what is known of it, then the order is forgotten."""
    loop = asyncio.get_running_loop()
    original = getattr(CertificateFiles, step)
    killed = threading.Event()
    task: asyncio.Task[None]

    def dying(*arguments: Any) -> None:
        if after:
            original(*arguments)
        killed.set()
        loop.call_soon_threadsafe(task.cancel)

    await first(bench)
    expired(bench)
    with monkeypatch.context() as patch:
        patch.setattr(CertificateFiles, step, dying)
        task = loop.create_task(bench.certificate().keep())
        await asyncio.gather(task, return_exceptions=True)
        assert killed.is_set()
    await bench.close()
    orders = len(stub.orders)
    async with bench.kept() as certificate:
        await deployed(bench, certificate, 2)
        await until(lambda: bench.state().ari_at and bench.files().order() is None, "all is recorded")

    assert bench.files().generations() == [2, 1]
    assert bench.state().issued_reason in ("ari", "forced")
    if (step, after) != ("save_order", False):
        assert len(stub.orders) == orders
    assert [found.serial for found in bench.renewed][-1] == bench.serial()


async def test_what_is_stored_already_is_not_fetched_again(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """Its order may be gone at the CA by now: it is only recorded, and forgotten."""
    await first(bench)
    this = bench.files().current()
    order = PendingOrder(url=f"{stub.base_url}/order/9999", key=this.key, names=NAMES, directory=stub.directory_url)
    bench.files().save_order(order)
    async with bench.kept():
        await until(lambda: bench.files().order() is None, "it is forgotten")
        await bench.idle()

    assert (stub.count("newOrder"), len(stub.issued), bench.files().generations()) == (1, 1, [1])


async def test_what_somebody_asked_for_is_gone_on_with(
    runner: asyncio.Runner, stub: AcmeStub, bench: Workbench
) -> None:
    """A renewal by force whose process was killed: nothing is due, and the order is finished all the same."""
    await first(bench)
    certificate = bench.certificate()
    stub.hang("finalize", carried_out=True)
    task = asyncio.get_running_loop().create_task(certificate.renew_now(force=True, tell=lambda _: None))
    await until(lambda: len(stub.issued) == 2, "the CA has issued it")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    stub.heal()
    async with bench.kept() as again:
        await deployed(bench, again, 2)

    assert len(stub.orders) == 2
