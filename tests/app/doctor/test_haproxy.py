"""HAProxy as `doctor` finds it: the real one, and a runtime socket with a script for what it seldom does."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from sniproxy.app.doctor import haproxy as doctor_haproxy
from sniproxy.app.doctor.diagnosis import Verdict
from sniproxy.app.doctor.haproxy import check_served, check_socket
from sniproxy.bundle import placeholder, utc_now
from sniproxy.haproxy.delivery import DeliverySettings
from sniproxy.haproxy.proof import VerifyTarget
from sniproxy.model import ProxyProtocol, UnixAddress
from tests.support import haproxy
from tests.support.bundles import bundle
from tests.support.haproxy_tls import TlsSite
from tests.support.runtime_socket import HANG, ScriptedRuntime

with_haproxy = pytest.mark.skipif(haproxy.HAPROXY is None, reason=haproxy.MISSING)

FIRST = "0first"


@pytest.fixture
def directory():
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        yield Path(name)


@pytest.fixture
def scripted(runner, directory):
    runtime = ScriptedRuntime(directory / "scripted.sock")
    runner.run(runtime.start())
    yield runtime
    runner.run(runtime.close())


def settings(site, *sockets, reload_command=(), verify=()):
    return DeliverySettings(
        certificate_dir=site.certificates,
        runtime_sockets=sockets or (site.runtime,),
        verify=verify or (VerifyTarget(address=site.accept, proxy_protocol=ProxyProtocol.V2),),
        reload_command=reload_command,
    )


def scripted_settings(runtime):
    return DeliverySettings(
        certificate_dir=Path("/x"), runtime_sockets=(runtime.address,), verify=(), reload_command=()
    )


async def looked(site, bundles=None, **options):
    """What the site's own socket has come to."""
    before = site.haproxy.ask("show ssl cert")
    found = await check_socket(site.runtime, settings(site, **options), {FIRST: site.first} | (bundles or {}))
    assert site.haproxy.ask("show ssl cert") == before
    return found


def only(found, verdict):
    (one,) = found
    assert one.verdict == verdict, one
    assert bool(one.advice) == (verdict in (Verdict.FAILED, Verdict.WARNING))
    return one


def put(site, name, content):
    """In memory, in place of what it has."""
    site.haproxy.ask(f"set ssl cert {site.path(name)} <<\n{content.pem.decode()}")
    assert "Success!" in site.haproxy.ask(f"commit ssl cert {site.path(name)}")


# -- sockets


@with_haproxy
async def test_a_socket_in_order(runner, programs):
    site = TlsSite(programs)
    one = only(await looked(site), Verdict.GOOD)
    assert one.found.startswith("HAProxy ")
    assert one.found.endswith(", level admin; has 1 of ours")
    assert one.about == str(site.runtime)


@with_haproxy
@pytest.mark.parametrize("level", ["operator", "user"])
async def test_a_socket_of_too_low_a_level(runner, programs, level):
    site = TlsSite(programs, global_lines=[f"stats socket {{directory}}/low.sock mode 600 level {level}"])
    low = UnixAddress(f"{site.directory}/low.sock")
    one = only(await check_socket(low, settings(site, low), {FIRST: site.first}), Verdict.FAILED)
    assert f"level {level}: changing certificates takes level admin" in one.found
    assert f"`stats socket {low.path} mode 660 level admin`" in one.advice


async def test_no_haproxy(runner, directory):
    nothing = UnixAddress(f"{directory}/admin.sock")
    site = type("Site", (), {"certificates": directory, "runtime": nothing, "accept": nothing})
    one = only(await check_socket(nothing, settings(site), {}), Verdict.FAILED)
    assert "there is no such socket" in one.found
    assert one.advice.startswith("start HAProxy, with `stats socket ")


@with_haproxy
async def test_a_name_that_can_be_added(runner, programs):
    """`crt DIR` takes new names at run time."""
    one = only(await looked(TlsSite(programs), {"new.test": None}), Verdict.GOOD)
    assert one.found.endswith("has 1 of ours, new.test can be added")


@with_haproxy
async def test_a_name_that_a_crt_list_takes(runner, programs):
    site = TlsSite(programs, crt="crt-list {directory}/list", files={"list": "{certificates}/0first.pem\n"})
    assert "new.test can be added" in only(await looked(site, {"new.test": None}), Verdict.GOOD).found


@with_haproxy
async def test_a_haproxy_that_reads_other_files(runner, programs):
    """A single `crt FILE`: no place for new names."""
    site = TlsSite(programs, crt="crt {certificates}/0first.pem")
    one = only(await looked(site, {"new.test": None}), Verdict.FAILED)
    assert one.found == f"does not have new.test, and no bind line has `crt {site.certificates}`"
    assert f"`bind … ssl crt {site.certificates}`" in one.advice
    one = only(await looked(site, {"new.test": None}, reload_command=("true",)), Verdict.WARNING)
    assert "haproxy.reload_command does it" in one.advice


@with_haproxy
async def test_another_certificate_than_the_stores(runner, programs):
    site = TlsSite(programs)
    one = only(await looked(site, {FIRST: bundle("first.test")}), Verdict.WARNING)
    assert one.found == "has another certificate for 0first than the store"


@with_haproxy
async def test_a_placeholder_is_known_for_one(runner, programs):
    """Before the first certificate, HAProxy has started with it."""
    site = TlsSite(programs)
    put(site, FIRST, placeholder(["first.test"], utc_now()))
    one = only(await looked(site, {FIRST: None}), Verdict.GOOD)
    assert one.found.endswith("level admin; a placeholder for 0first")


@with_haproxy
async def test_a_transaction_of_another_program(runner, programs, monkeypatch):
    """HAProxy has one at a time: nothing could be delivered."""
    monkeypatch.setattr(doctor_haproxy, "TRANSACTION_SECONDS", 0.01)
    site = TlsSite(programs)
    name = str(site.path(FIRST))
    pem = bundle("first.test").pem.decode()
    assert "Transaction created" in site.haproxy.ask(f"set ssl cert {name} <<\n{pem}")
    ours = only(await looked(site), Verdict.WARNING)
    assert ours.found == f"a transaction is open about {name}, which is ours"
    (theirs,) = await check_socket(site.runtime, settings(site), {"other.test": None})
    assert theirs.verdict == Verdict.FAILED
    assert theirs.advice.endswith(f"`abort ssl cert {name}`")
    assert site.transaction() == name, "looking has not ended it"


async def test_a_transaction_that_is_over_soon(runner, scripted, directory, monkeypatch):
    """The running proxy delivers at this moment."""
    monkeypatch.setattr(doctor_haproxy, "TRANSACTION_SECONDS", 0.01)
    scripted.held["/x/a.pem"] = "00"
    listing = iter((b"# transaction\n*/x/a.pem\n# filename\n/x/a.pem\n\n",))
    scripted.script["show cli level"] = b"admin\n\n"
    scripted.script["show ssl crt-list"] = b"/x\n\n"
    scripted.script["show ssl cert"] = lambda command: next(listing, None)
    one = only(await check_socket(scripted.address, scripted_settings(scripted), {}), Verdict.GOOD)
    assert one.found.endswith("has none of ours yet")
    assert scripted.commands.count("show ssl cert") == 2
    assert not [command for command in scripted.commands if not command.startswith("show ")]


async def test_the_old_process_of_a_reload(runner, scripted):
    scripted.script["show info"] = b"Version: 3.0.0\nPid: 7\nStopping: 1\n\n"
    scripted.script["show cli level"] = b"admin\n\n"
    scripted.script["show ssl crt-list"] = b"/x\n\n"
    found = await check_socket(scripted.address, scripted_settings(scripted), {})
    assert only(found, Verdict.WARNING).found == "the old process of a reload answers"


async def test_a_haproxy_that_hangs(runner, scripted, monkeypatch):
    monkeypatch.setattr(doctor_haproxy, "SOCKET_SECONDS", 0.1)
    scripted.script["show info"] = HANG
    one = only(await check_socket(scripted.address, scripted_settings(scripted), {}), Verdict.FAILED)
    assert one.found == "its answers take more than 0.1 s"


async def test_the_socket_of_a_master_process(runner, scripted):
    """It knows neither `show info` nor certificates."""
    scripted.script["show info"] = b"Unknown command.\n\n"
    one = only(await check_socket(scripted.address, scripted_settings(scripted), {}), Verdict.FAILED)
    assert "the master process" in one.found


async def test_a_haproxy_without_any_certificate(runner, scripted):
    """2.6 answers `show ssl cert` with an empty line, and `show ssl crt-list` where no bind line reads any."""
    scripted.script["show cli level"] = b"admin\n\n"
    scripted.script["show ssl cert"] = b"\n"
    scripted.script["show ssl crt-list"] = b"\n"
    one = only(await check_socket(scripted.address, scripted_settings(scripted), {}), Verdict.FAILED)
    assert "`bind … ssl crt /x`" in one.advice


# -- what is served


@with_haproxy
async def test_the_certificate_is_served(runner, programs):
    site = TlsSite(programs)
    one = only(await check_served(FIRST, ["first.test"], site.first, settings(site)), Verdict.GOOD)
    assert one.found == f"serial {site.first.leaf.serial} is served at {site.accept}"


@with_haproxy
async def test_another_certificate_is_served(runner, programs):
    site = TlsSite(programs)
    wanted = bundle("first.test")
    one = only(await check_served(FIRST, ["first.test"], wanted, settings(site)), Verdict.FAILED)
    assert f"with serial {site.first.leaf.serial}" in one.found
    assert f"instead of serial {wanted.leaf.serial}" in one.found


@with_haproxy
async def test_there_is_nothing_to_compare_with(runner, programs):
    site = TlsSite(programs)
    one = only(await check_served("new.test", ["new.test"], None, settings(site)), Verdict.GOOD)
    assert one.found == f"{site.accept} answers, with a certificate of test issuer"
    only(await check_served("192.0.2.1", ["192.0.2.1"], None, settings(site)), Verdict.GOOD)


async def test_nobody_to_shake_hands_with(runner, directory):
    nothing = UnixAddress(f"{directory}/https.sock")
    site = type("Site", (), {"certificates": directory, "runtime": nothing, "accept": nothing})
    for content in (None, bundle("new.test")):
        one = only(await check_served("new.test", ["new.test"], content, settings(site)), Verdict.FAILED)
        assert "no such socket" in one.found


@with_haproxy
async def test_a_placeholder_is_served(runner, programs):
    site = TlsSite(programs)
    put(site, FIRST, placeholder(["first.test"], utc_now()))
    one = only(await check_served("first.test", ["first.test"], None, settings(site)), Verdict.GOOD)
    assert "the placeholder that stands in" in one.found


async def test_handshakes_without_end(runner, directory, monkeypatch):
    monkeypatch.setattr(doctor_haproxy, "VERIFY_SECONDS", 0.05)

    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(doctor_haproxy, "unproven", never)
    nothing = UnixAddress(f"{directory}/https.sock")
    site = type("Site", (), {"certificates": directory, "runtime": nothing, "accept": nothing})
    one = only(await check_served("a.test", ["a.test"], bundle("a.test"), settings(site)), Verdict.FAILED)
    assert one.found == "no end of handshakes within 0.05 s"
