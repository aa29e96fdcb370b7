"""Certificates in a program: from a configuration to files where HAProxy reads them, over reloads and restarts."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.acme import certificate as story
from sniproxy.acme import locking, ordering
from sniproxy.acme.keeper import Keeper
from sniproxy.acme.store import Store
from sniproxy.app import certificates as module
from sniproxy.app.certificates import (
    Certificates,
    CutShort,
    Plan,
    UnknownCertificate,
    delivery_settings,
    plan,
    stored_statuses,
    wanted,
)
from sniproxy.bundle import PLACEHOLDER, Bundle
from sniproxy.config import parse
from sniproxy.errors import AcmeError, StoreError
from sniproxy.haproxy.delivery import VerifyTarget
from sniproxy.model import CertificateCounts, ProxyProtocol, TcpAddress, UnixAddress
from tests.support import bundles
from tests.support.acme_stub import AcmeStub
from tests.support.kept import contents, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from sniproxy.config import Config
    from tests.support.acme_stub import Authorization, Challenge

A, B = "a.example.test", "b.example.test"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "TICK", timedelta(milliseconds=10))
    monkeypatch.setattr(ordering, "FIRST_POLL_SECONDS", 0.005)
    monkeypatch.setattr(locking, "LOCK_POLL_SECONDS", 0.005)


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False) as stub:
        yield stub


@pytest.fixture
def staging() -> Iterator[AcmeStub]:
    with AcmeStub(validate=False) as stub:
        yield stub


def config_of(text: str) -> Config:
    return parse(text, file="sniproxy.toml")


@dataclass(kw_only=True)
class Office:
    """A configuration that can be changed, and what comes of it. `acme`, `hooks`: more lines of these sections."""

    stub: AcmeStub
    directory: Path
    names: tuple[str, ...] = (A,)
    acme: str = ""
    hooks: str = ""
    haproxy: bool = True
    bugs: list[BaseException] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def certificate_dir(self) -> Path:
        return self.directory / "certs"

    @property
    def config(self) -> Config:
        sections = "".join(f'[[certificates]]\nnames = ["{name}"]\n' for name in self.names)
        haproxy = (
            f'[haproxy]\ncertificate_dir = "{self.certificate_dir}"\nruntime_sockets = []\nverify = "off"\n'
            if self.haproxy
            else ""
        )
        self.certificate_dir.mkdir(exist_ok=True)
        return config_of(f"""
[proxy]
listen = ["127.0.0.1:8443"]
[backends.haproxy]
servers = ["unix:/run/haproxy/sniproxy.sock"]
[acme]
directory = "{self.stub.directory_url}"
email = "admin@example.test"
agree_to_terms = true
state_dir = "{self.state}"
{self.acme}
{sections}{haproxy}
[hooks]
{self.hooks}
""")

    @property
    def plan(self) -> Plan:
        this = plan(self.config)
        assert this is not None
        return this

    @property
    def store(self) -> Store:
        return Store(self.state, warn=pytest.fail)

    def put(self, name: str = A) -> Bundle:
        """Into the store, as if it had been issued."""
        bundle = bundles.bundle(name)
        self.store.certificate(name).save(bundle)
        return bundle

    def file(self, name: str = A) -> Path:
        return self.certificate_dir / f"{name}.pem"

    def in_place(self, name: str = A) -> Bundle:
        return Bundle.parse(self.file(name).read_bytes())

    @asynccontextmanager
    async def open(self, *, keep: bool = True, plan: bool = True) -> AsyncIterator[Certificates]:
        """A program, until its end."""
        certificates = Certificates(CertificateCounts(), self.bugs.append)
        try:
            await certificates.start()
            if plan:
                await certificates.take(self.plan, keep=keep)
            yield certificates
        finally:
            await certificates.close()
        assert self.bugs == []


@pytest.fixture
def office(stub: AcmeStub, tmp_path: Path) -> Office:
    return Office(stub=stub, directory=tmp_path)


async def deployed(certificates: Certificates) -> None:
    await until(
        lambda: all(status.deployed for status in certificates.statuses()) and certificates.statuses(),
        "all are deployed",
    )


async def renew(
    certificates: Certificates, *names: str, force: bool = False, dry_run: bool = False
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    told: list[Mapping[str, Any]] = []
    return await certificates.renew(names, force=force, dry_run=dry_run, tell=told.append), told


class Gate:
    """A CA that has not looked yet."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def __call__(self, _authorization: Authorization, _challenge: Challenge, _answer: str) -> None:
        assert self.let.wait(60)


# ---------------------------------------------------------------------------------------------------------- the plan

TEXT = """
[proxy]
listen = ["127.0.0.1:8443"]
[backends.haproxy]
servers = ["unix:/run/haproxy/sniproxy.sock", "127.0.0.1:4443"]
proxy_protocol = "v1"
[acme]
email = "admin@example.com"
agree_to_terms = true
eab_kid = "kid"
eab_hmac_file = "/etc/sniproxy/hmac"
preferred_chain = "ISRG Root X1"
state_dir = "/var/lib/sniproxy"
[[certificates]]
names = ["example.com", "www.example.com"]
key_type = "rsa-2048"
profile = "shortlived"
[haproxy]
certificate_dir = "/srv/certs"
[hooks]
on_renewed = ["/usr/bin/renewed", "now"]
on_failed = ["/usr/bin/failed"]
timeout = "5s"
"""


def test_what_a_configuration_asks_for() -> None:
    """Each key of [acme], [[certificates]], [haproxy] and [hooks] in its place."""
    this = plan(config_of(TEXT))

    assert this is not None
    assert this.account.directory == "https://acme-v02.api.letsencrypt.org/directory"
    assert (this.account.contact, this.account.agree_to_terms) == (("mailto:admin@example.com",), True)
    assert (this.account.eab_kid, this.account.eab_hmac_file) == ("kid", Path("/etc/sniproxy/hmac"))
    (certificate,) = this.wanted
    assert (certificate.name, certificate.names) == ("example.com", ("example.com", "www.example.com"))
    assert (certificate.key_type, certificate.profile) == ("rsa-2048", "shortlived")
    assert certificate.preferred_chain == "ISRG Root X1"
    assert (this.state_dir, this.hook_seconds) == (Path("/var/lib/sniproxy"), 5.0)
    assert (this.on_renewed, this.on_failed) == (("/usr/bin/renewed", "now"), ("/usr/bin/failed",))


def test_one_that_asks_for_none_has_no_plan() -> None:
    """A relay alone."""
    assert plan(config_of('[proxy]\nlisten = ["127.0.0.1:8443"]\ndefault_backend = "reject"\n')) is None


def test_the_same_configuration_is_the_same_plan() -> None:
    """So that a reload that is about something else changes nothing here."""
    assert plan(config_of(TEXT)) == plan(config_of(TEXT.replace('"127.0.0.1:8443"', '"127.0.0.1:9443"')))
    for before, after in (("www.", "w3."), ("admin@", "root@"), ("/srv/certs", "/srv/other"), ("5s", "6s")):
        assert plan(config_of(TEXT)) != plan(config_of(TEXT.replace(before, after)))


@pytest.mark.parametrize(
    ("lines", "directory"),
    [
        ("", "https://acme-staging-v02.api.letsencrypt.org/directory"),
        ('dry_run_directory = "https://ca.test/staging"', "https://ca.test/staging"),
        ('directory = "https://ca.test/directory"', "https://ca.test/directory"),
    ],
)
def test_where_dry_runs_go(lines: str, directory: str) -> None:
    """`dry_run_directory`; for Let's Encrypt its staging directory; else the directory itself."""
    this = plan(config_of(TEXT.replace("[acme]", f"[acme]\n{lines}")))

    assert this is not None
    assert this.rehearsals.directory == directory
    # An external account is known to the CA that has given it.
    assert bool(this.rehearsals.eab_kid) is (this.rehearsals == this.account)


def test_without_port_80_there_is_no_http_01() -> None:
    """Nobody would answer it."""
    kinds = {http_01: wanted(config_of(TEXT), http_01=http_01)[0].challenges for http_01 in (False, True)}
    assert kinds == {False: ("tls-alpn-01",), True: ("tls-alpn-01", "http-01")}
    with_http = config_of(TEXT + '[http]\nlisten = ["127.0.0.1:8080"]\n')
    for config, given, expected in ((config_of(TEXT), None, 1), (with_http, None, 2), (with_http, False, 1)):
        this = plan(config, http_01=given)
        assert this is not None
        assert len(this.wanted[0].challenges) == expected


def test_where_they_go() -> None:
    """Every server of the backend is looked at with the header that it wants; an address with none."""
    settings = delivery_settings(config_of(TEXT))
    assert settings is not None
    assert settings.certificate_dir == Path("/srv/certs")
    assert settings.runtime_sockets == (UnixAddress("/run/haproxy/admin.sock"),)
    assert settings.verify == (
        VerifyTarget(address=UnixAddress("/run/haproxy/sniproxy.sock"), proxy_protocol=ProxyProtocol.V1),
        VerifyTarget(address=TcpAddress("127.0.0.1", 4443), proxy_protocol=ProxyProtocol.V1),
    )
    for value, targets in (
        ("off", ()),
        ("127.0.0.1:443", (VerifyTarget(address=TcpAddress("127.0.0.1", 443), proxy_protocol=ProxyProtocol.OFF),)),
    ):
        settings = delivery_settings(config_of(TEXT.replace("[haproxy]", f'[haproxy]\nverify = "{value}"')))
        assert settings is not None
        assert settings.verify == targets


def test_without_haproxy_they_stay_where_they_are() -> None:
    """[haproxy] left out."""
    assert delivery_settings(config_of(TEXT.replace('[haproxy]\ncertificate_dir = "/srv/certs"\n', ""))) is None


def test_the_store_is_asked_where_no_proxy_runs(office: Office) -> None:
    """`certs`: nothing is changed for it, and it takes no CA."""
    office.names = (A, B)
    put = office.put()
    before = contents(office.directory)
    first, second = stored_statuses(office.config)

    assert (first.name, first.serial, first.deployed) == (A, put.leaf.serial, False)
    assert (second.name, second.serial, second.reason) == (B, None, "missing")
    assert contents(office.directory) == before
    assert office.stub.requests == []
    office.haproxy = False
    assert [status.deployed for status in stored_statuses(office.config)] == [True, False]


# ------------------------------------------------------------------------------------------------------------- kept


async def test_they_are_kept(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """Ordered, stored, and in the files that HAProxy reads (contract section 4)."""
    office.names = (A, B)
    async with office.open() as certificates:
        await deployed(certificates)
        assert [status.name for status in certificates.statuses()] == [A, B]

    for name in (A, B):
        stored = office.store.certificate(name).current()
        assert stored is not None
        assert office.in_place(name).pem == stored.pem
    assert len(stub.issued) == 2


async def test_counters_begin_at_nothing(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """A counter that begins at 1 hides its first event from rate()."""
    office.put()
    async with office.open() as certificates:
        assert certificates.counts.challenges == {
            ("tls-alpn-01", result): 0 for result in ("valid", "invalid", "error")
        }


async def test_a_placeholder_is_where_nothing_is(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """So that HAProxy starts: its `crt DIR` must not be empty."""
    stub.validate = gate = Gate()
    async with office.open() as certificates:
        await until(office.file().exists, "there is something")
        assert office.in_place().leaf.issuer == PLACEHOLDER
        assert office.in_place().leaf.names == (A,)
        gate.let.set()
        await deployed(certificates)

    assert office.in_place().leaf.issuer != PLACEHOLDER


async def test_and_only_there(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """A file of somebody else is served until there is something better."""
    stub.fail("newOrder", times=None)
    this, other = office.plan, bundles.write(office.file(), bundles.bundle(A))
    assert this.delivery is not None
    async with office.open() as certificates:
        await until(lambda: certificates.statuses()[0].last_error, "the order fails")
        assert office.in_place().pem == other.pem


async def test_where_there_is_one_in_the_store_that_is_what_is_placed(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that was emptied."""
    put = office.put()
    async with office.open() as certificates:
        await until(office.file().exists, "there is something")
        assert office.in_place().pem == put.pem
        await deployed(certificates)

    assert stub.count("newOrder") == 0


async def test_no_placeholder_is_placed_before_it(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy may start at any moment."""
    began = asyncio.Event()

    async def run(_: Keeper) -> None:
        began.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Keeper, "run", run)
    office.names = (A, B)
    office.put(A)
    async with office.open():
        await began.wait()
        assert [path.name for path in office.certificate_dir.iterdir()] == [f"{B}.pem"]


async def test_a_directory_that_cannot_be_written_to_is_no_reason_not_to_order(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and tried again."""
    this = office.plan
    office.certificate_dir.rmdir()
    office.certificate_dir.write_text("not a directory")
    certificates = Certificates(CertificateCounts(), office.bugs.append)
    await certificates.take(this)
    try:
        await until(lambda: stub.issued and certificates.statuses()[0].last_error, "it is issued, and not delivered")
        assert "haproxy.certificate_dir has to be a directory" in (certificates.statuses()[0].last_error or "")
    finally:
        await certificates.close()
    assert office.bugs == []


async def test_a_store_that_cannot_be_used_is_told_of_and_looked_at_again(
    runner: asyncio.Runner,
    stub: AcmeStub,
    office: Office,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """:443 goes on, and so does this once somebody has mended it."""
    monkeypatch.setattr(module, "STORE_AGAIN_SECONDS", 0.02)
    office.state.write_text("not a directory")
    async with office.open() as certificates:
        await until(lambda: caplog.text.count("looked at again in 0.02 s") >= 2, "it is told of, again and again")
        assert "Not a directory" in caplog.text
        assert stub.requests == []
        assert certificates.statuses()[0].serial is None
        office.state.unlink()
        await deployed(certificates)


async def test_warnings_of_the_store_are_told(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """Of keys that were open to others, say."""
    office.put()
    office.state.chmod(0o755)
    async with office.open() as certificates:
        await deployed(certificates)

    assert f"{office.state} was open to others; its mode is 0700 now" in caplog.text


async def test_a_bug_is_reported(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To whom the program wants it to be."""

    async def fail(_: Keeper) -> None:
        raise RuntimeError("a bug of the test")

    monkeypatch.setattr(Keeper, "run", fail)
    certificates = Certificates(CertificateCounts(), office.bugs.append)
    await certificates.take(office.plan)
    await until(lambda: office.bugs, "it is reported")
    await certificates.close()

    assert str(office.bugs[0]) == "a bug of the test"


# ----------------------------------------------------------------------------------------------------------- reloads


async def test_the_same_plan_changes_nothing(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way is not even looked at."""
    made: list[Keeper] = []

    def make(*arguments: Any) -> Keeper:
        made.append(Keeper(*arguments))
        return made[-1]

    monkeypatch.setattr(module, "Keeper", make)
    stub.validate = gate = Gate()
    async with office.open() as certificates:
        await until(lambda: stub.count("challenge"), "an order is under way")
        await certificates.take(office.plan)
        gate.let.set()
        await deployed(certificates)

    assert len(made) == 1
    assert len(stub.orders) == len(stub.issued) == 1


async def test_another_plan_waits_for_what_is_under_way(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """And goes on from disk: only what is new is ordered."""
    stub.validate = gate = Gate()
    async with office.open() as certificates:
        await until(lambda: stub.count("challenge"), "an order is under way")
        office.names = (A, B)
        taking = asyncio.get_running_loop().create_task(certificates.take(office.plan))
        await until(lambda: stub.count("authorization") > 10, "it is waited for")
        assert not taking.done()
        gate.let.set()
        await taking
        assert certificates.statuses()[0].serial is not None
        assert len(certificates.statuses()) == 2
        await deployed(certificates)

    assert [issued.names for issued in stub.issued] == [(A,), (B,)]
    assert len(stub.accounts) == 1


async def test_what_takes_too_long_is_cut_and_gone_on_with(
    runner: asyncio.Runner,
    stub: AcmeStub,
    office: Office,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same order, under the new plan."""
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    stub.processing_polls = float("inf")
    async with office.open() as certificates:
        await until(lambda: stub.count("finalize"), "an order is under way")
        office.names = (A, B)
        await certificates.take(office.plan)
        assert "what is under way is cut, and gone on with" in caplog.text
        stub.processing_polls = 0
        stub.orders[0].polls_left = 0
        await deployed(certificates)

    assert [(len(stub.orders), len(stub.issued))] == [(2, 2)]
    assert stub.count("finalize") == 2


async def test_no_certificates_any_more(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """They stay in the store, and where they were brought; nothing is done for them."""
    async with office.open() as certificates:
        await deployed(certificates)
        await certificates.take(None)
        assert certificates.statuses() == []
        with pytest.raises(UnknownCertificate, match=r"^no certificates are configured$"):
            await renew(certificates)
        await certificates.take(office.plan)
        await deployed(certificates)

    assert len(stub.issued) == 1


async def test_they_are_seen_as_soon_as_they_are_taken(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """A metric that is gone for a moment at each reload wakes somebody."""
    put = office.put()
    certificates = Certificates(CertificateCounts(), office.bugs.append)
    await certificates.take(office.plan, keep=False)
    try:
        assert [status.serial for status in certificates.statuses()] == [put.leaf.serial]
    finally:
        await certificates.close()


async def test_what_a_stop_cuts_is_gone_on_with(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """At the next start, with the same order."""
    stub.processing_polls = float("inf")
    async with office.open():
        await until(lambda: stub.count("finalize"), "an order is under way")
    stub.orders[0].polls_left = 0
    async with office.open() as certificates:
        await deployed(certificates)

    assert (len(stub.orders), len(stub.issued), stub.count("finalize")) == (1, 1, 1)


# ------------------------------------------------------------------------------------------------------- asked for


async def test_what_came_of_each_that_was_asked_for(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """Contract section 1: what `renew` prints, and `renew --json`."""
    office.names = (A, B)
    office.put()
    stub.blocked.add(B)
    async with office.open(keep=False) as certificates:
        (first, second), told = await renew(certificates)

    assert (first["name"], first["result"], first["error"]) == (A, "not_due", None)
    assert (second["name"], second["result"]) == (B, "failed")
    assert "rejectedIdentifier" in second["error"]
    assert first["status"]["deployed"] is True
    assert second["status"]["last_error"] == second["error"]
    assert {"certificate": B, "text": "due (missing)"} in told


async def test_names_that_are_not_there(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """With those that are."""
    office.names = (A, B)
    office.put()
    office.put(B)
    async with office.open(keep=False) as certificates:
        words = rf"^there is no certificate called c\.test, d\.test; there is {A}, {B}$"
        with pytest.raises(UnknownCertificate, match=words):
            await renew(certificates, "c.test", A, "d.test")
        with pytest.raises(UnknownCertificate):
            await certificates.revoke("c.test", 0, tell=lambda _: None)


async def test_what_is_asked_for_during_a_reload_is_of_the_new_plan(
    runner: asyncio.Runner, stub: AcmeStub, office: Office
) -> None:
    """Asked of the old one, it would wait for ever: nothing is begun there any more."""
    stub.validate = gate = Gate()
    async with office.open() as certificates:
        await until(lambda: stub.count("challenge"), "an order is under way")
        office.names = (A, B)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(certificates.take(office.plan))
            await asyncio.sleep(0)
            renewing = tasks.create_task(renew(certificates, A, B))
            await asyncio.sleep(0)
            gate.let.set()
        (first, second), _ = renewing.result()

    assert (first["result"], second["result"]) in {("not_due", "renewed"), ("not_due", "not_due")}
    assert len(stub.issued) == 2


async def test_what_was_asked_for_before_is_cut_by_a_reload_that_cannot_wait(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked is told so, and the new plan goes on with the order."""
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    stub.processing_polls = float("inf")
    office.put()
    async with office.open(keep=False) as certificates:
        renewing = asyncio.get_running_loop().create_task(renew(certificates, A, force=True))
        await until(lambda: stub.count("finalize"), "an order is under way")
        office.hooks = 'on_renewed = ["/bin/true"]'
        await certificates.take(office.plan)
        with pytest.raises(CutShort, match="a reload has cut it short; what was begun is gone on with"):
            await renewing
        stub.orders[0].polls_left = 0
        await until(lambda: len(stub.issued) == 1, "it is gone on with")
        await deployed(certificates)

    assert len(stub.orders) == 1


async def test_a_dry_run_is_cut_by_a_reload_too(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next certificate is one of the plan before, where nothing is begun any more: it would wait for ever."""
    office.names = (A, B)
    office.put()
    office.put(B)
    stub.validate = gate = Gate()
    async with office.open(keep=False) as certificates:
        renewing = asyncio.get_running_loop().create_task(renew(certificates, dry_run=True))
        await until(lambda: stub.count("challenge"), "the first is under way")
        office.hooks = 'on_renewed = ["/bin/true"]'
        taking = asyncio.get_running_loop().create_task(certificates.take(office.plan))
        await until(lambda: stub.count("authorization") > 10, "it is waited for")
        gate.let.set()
        await taking
        with pytest.raises(CutShort):
            await renewing

    assert [issued.names for issued in stub.issued] == [(A,)]


async def test_without_keeping_only_what_is_asked_for_is_done(
    runner: asyncio.Runner, stub: AcmeStub, office: Office
) -> None:
    """`renew` by itself: of two that are due, the one that was named."""
    office.names = (A, B)
    async with office.open(keep=False) as certificates:
        (result,), _ = await renew(certificates, B)

    assert result["result"] == "renewed"
    assert [issued.names for issued in stub.issued] == [(B,)]
    assert not office.file(A).exists()


async def test_a_store_that_cannot_be_used_is_an_error_of_the_command(
    runner: asyncio.Runner, stub: AcmeStub, office: Office
) -> None:
    """There is nobody to look at it again."""
    office.state.write_text("not a directory")
    with pytest.raises(StoreError, match="Not a directory"):
        async with office.open(keep=False):
            pytest.fail("it cannot be used")


# ------------------------------------------------------------------------------------------------------------ dry runs


async def test_a_dry_run_goes_to_its_own_directory_and_keeps_nothing(
    runner: asyncio.Runner, stub: AcmeStub, staging: AcmeStub, office: Office
) -> None:
    """Contract section 1: the store is as it was, byte for byte, and so is what HAProxy reads."""
    office.acme = f'dry_run_directory = "{staging.directory_url}"'
    async with office.open() as certificates:
        await deployed(certificates)
        await until(lambda: stub.count("renewalInfo"), "it was asked about")
    async with office.open(keep=False) as certificates:
        before, requests = contents(office.directory), len(stub.requests)
        (result,), told = await renew(certificates, dry_run=True)

    assert (result["name"], result["result"], result["error"]) == (A, "rehearsed", None)
    assert contents(office.directory) == before
    assert (len(staging.issued), len(stub.requests)) == (1, requests)
    texts = [step["text"] for step in told]
    assert texts[0] == f"a dry run at {staging.directory_url}: nothing is kept"
    assert texts[-1] == "would have been issued by stub intermediate"


@pytest.mark.parametrize("known", [False, True])
async def test_at_the_directory_itself_it_makes_no_account_that_stays(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, known: bool
) -> None:
    """The one there is, or one for this once."""
    if known:
        async with office.open(keep=False) as certificates:
            await renew(certificates)
            office.store.certificate(A).remove()
    async with office.open(keep=False) as certificates:
        before = contents(office.directory)
        (result,), _ = await renew(certificates, dry_run=True)

    assert result["result"] == "rehearsed"
    assert contents(office.directory) == before
    assert len(stub.accounts) == 1


async def test_a_dry_run_that_fails(runner: asyncio.Runner, stub: AcmeStub, staging: AcmeStub, office: Office) -> None:
    """`failed`, in the CA's words, one by one; and no back-off for the real thing."""
    office.names = (A, B)
    office.acme = f'dry_run_directory = "{staging.directory_url}"'
    staging.blocked.add(A)
    async with office.open(keep=False) as certificates:
        (first, second), _ = await renew(certificates, dry_run=True)
        assert certificates.statuses()[0].last_error is None

    assert (first["result"], second["result"]) == ("failed", "rehearsed")
    assert "rejectedIdentifier" in first["error"]


# -------------------------------------------------------------------------------------------------------------- probes


async def test_a_probe_is_answered_for_a_while(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` tries the way that a CA's validation takes."""
    async with office.open(plan=False) as certificates:
        responder = certificates.responder
        answer = certificates.probe("http-01", A)
        certificates.probe("tls-alpn-01", A)
        token = answer.partition(".")[0]
        await until(lambda: responder.http_answer(token) == answer, "it is answered")
        await until(lambda: responder.is_pending(A), "over TLS, too")

        monkeypatch.setattr(module, "PROBE_SECONDS", 0.01)
        short = certificates.probe("http-01", A)
        await until(lambda: responder.http_answer(short.partition(".")[0]) is None, "not for ever")
        assert short != answer
    assert responder.http_answer(token) is None


# --------------------------------------------------------------------------------------------------------------- hooks


def hook(office: Office, event: str, text: str) -> str:
    """A line of [hooks]: a program of the shell's, as the hook itself has none."""
    script = office.directory / f"{event}.sh"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return f'on_{event} = ["{script}"]\n'


async def test_hooks_are_run(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """With what happened in their environment: a failure at each attempt, a renewal once it is in its place."""
    said = office.directory / "said"
    words = f'echo "$SNIPROXY_EVENT $SNIPROXY_CERTIFICATE $SNIPROXY_BUNDLE $SNIPROXY_ERROR" >> {said}'
    office.hooks = hook(office, "renewed", words) + hook(office, "failed", words)
    stub.fail("newOrder")
    async with office.open(keep=False) as certificates:
        await renew(certificates)
        await certificates.hooks_done()
        await renew(certificates)
        await certificates.hooks_done()
        await renew(certificates)
        await certificates.hooks_done()

    assert said.read_text().splitlines() == [
        f"failed {A} {office.file()} serverInternal: scripted serverInternal",
        f"renewed {A} {office.file()} ",
    ]


async def test_nothing_waits_for_a_hook(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """The certificate is served while it runs; at the end of the program it is killed."""
    said = office.directory / "said"
    office.hooks = hook(office, "renewed", f"echo began >> {said}\nsleep 600\necho ended >> {said}")
    async with office.open() as certificates:
        await deployed(certificates)
        await until(lambda: said.exists() and said.read_text(), "it runs")
        (result,), _ = await renew(certificates)
        assert result["result"] == "not_due"

    assert said.read_text() == "began\n"


async def test_without_haproxy_there_is_no_file_to_name(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """But it is run: nothing else takes the certificate where it is needed."""
    said = office.directory / "said"
    office.haproxy = False
    office.hooks = hook(office, "renewed", f'echo "$SNIPROXY_EVENT ${{SNIPROXY_BUNDLE-none}}" >> {said}')
    async with office.open(keep=False) as certificates:
        await renew(certificates)
        await certificates.hooks_done()

    assert said.read_text() == "renewed none\n"


# ----------------------------------------------------------------------------------------------- revoke, and the account


async def test_one_is_revoked_after_the_new_one_is_served(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 8555 section 7.6: no moment without a certificate that is good."""
    served: list[str | None] = []
    async with office.open() as certificates:
        await deployed(certificates)
        old = certificates.statuses()[0].serial
        stub.on("revokeCert", lambda _: served.append(office.in_place().leaf.serial))
        result = await certificates.revoke(A, 1, tell=lambda _: None)

    assert (result["result"], result["revoked"]) == ("renewed", old)
    assert [issued.revoked for issued in stub.issued] == [1, None]
    assert served == [office.in_place().leaf.serial]
    assert f"certificate {A}: revoked serial {old}" in caplog.text


async def test_nothing_is_revoked_without_a_new_one(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """It would be an outage."""
    async with office.open() as certificates:
        await deployed(certificates)
        stub.fail("newOrder")
        result = await certificates.revoke(A, 1, tell=lambda _: None)

    assert (result["result"], result["revoked"]) == ("failed", None)
    assert stub.count("revokeCert") == 0


async def test_nothing_is_there_to_be_revoked(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """And nothing is ordered for it."""
    async with office.open(keep=False) as certificates:
        with pytest.raises(UnknownCertificate, match="nothing to revoke"):
            await certificates.revoke(A, 0, tell=lambda _: None)

    assert stub.requests == []


async def test_the_account_gets_another_key_while_nothing_is_ordered(
    runner: asyncio.Runner, stub: AcmeStub, office: Office
) -> None:
    """What is being answered to a challenge is made from the old one."""
    stub.validate = gate = Gate()
    async with office.open() as certificates:
        await until(lambda: stub.count("challenge"), "an order is under way")
        before = stub.thumbprint(stub.accounts[0])
        rolling = asyncio.get_running_loop().create_task(certificates.account(roll_over=True))
        await until(lambda: stub.count("authorization") > 10, "it is waited for")
        assert stub.count("keyChange") == 0
        gate.let.set()
        result = await rolling
        await deployed(certificates)

    assert result == {"directory": stub.directory_url, "url": stub.accounts[0].url}
    assert stub.thumbprint(stub.accounts[0]) != before
    assert len(stub.issued) == 1


async def test_the_account_as_it_is(runner: asyncio.Runner, stub: AcmeStub, office: Office) -> None:
    """Made, where there is none yet; told why not, where that cannot be."""
    async with office.open(keep=False) as certificates:
        stub.fail("newAccount", status=403, problem="unauthorized")
        with pytest.raises(AcmeError, match="unauthorized"):
            await certificates.account(roll_over=False)
        result = await certificates.account(roll_over=False)

    assert result["url"] == stub.accounts[0].url
    assert stub.count("keyChange") == 0


async def test_no_key_is_told(
    runner: asyncio.Runner, stub: AcmeStub, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """In all that is logged, from start to end."""
    with caplog.at_level(logging.DEBUG):
        async with office.open() as certificates:
            await deployed(certificates)
            results, told = await renew(certificates, force=True)
    text = "".join(f"{record.getMessage()} {record.args}" for record in caplog.records) + repr((results, told))

    assert "PRIVATE KEY" not in text
    for authorization in stub.authorizations:
        for challenge in authorization.challenges:
            assert challenge.token not in text
