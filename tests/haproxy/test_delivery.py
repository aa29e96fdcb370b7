"""Delivery into the real HAProxy: on disk, in memory, and seen to be served, whatever HAProxy is set up like."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.errors import DeliveryError
from sniproxy.haproxy import delivery as delivery_module
from sniproxy.haproxy import disk
from sniproxy.haproxy.delivery import Delivery, DeliverySettings, VerifyTarget
from sniproxy.haproxy.reload import run_reload_command
from sniproxy.haproxy.runtime import RuntimeApi, TransactionOpen
from sniproxy.model import ProxyProtocol, UnixAddress
from tests.support.bundles import ISSUER, bundle, write
from tests.support.haproxy import HAPROXY, MISSING
from tests.support.haproxy_tls import TlsSite, get
from tests.support.runtime_socket import HANG

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sniproxy.bundle import Bundle
    from sniproxy.model import Address
    from tests.support.processes import Programs
    from tests.support.runtime_socket import ScriptedRuntime

pytestmark = pytest.mark.skipif(HAPROXY is None, reason=MISSING)


class Bringing:
    """A Delivery to a site, and what it has warned of."""

    def __init__(
        self,
        site: TlsSite,
        *,
        directory: Path | None = None,
        sockets: Sequence[Address] | None = None,
        verify: Sequence[VerifyTarget] | None = None,
        reload_command: Sequence[str] = (),
    ) -> None:
        self.warnings: list[str] = []
        settings = DeliverySettings(
            certificate_dir=directory or site.certificates,
            runtime_sockets=tuple(sockets if sockets is not None else [site.runtime]),
            verify=tuple(verify if verify is not None else [VerifyTarget(address=site.bare)]),
            reload_command=tuple(reload_command),
        )
        self.delivery = Delivery(settings, warn=self.warnings.append)

    async def __call__(self, name: str, content: Bundle) -> None:
        await self.delivery.deliver(name, content)

    async def fails(self, name: str, content: Bundle) -> DeliveryError:
        with pytest.raises(DeliveryError) as caught:
            await self.delivery.deliver(name, content)
        assert str(caught.value).isprintable()
        return caught.value

    async def differences(self, name: str, content: Bundle) -> list[str]:
        found = await self.delivery.differences(name, content)
        assert all(text.isprintable() for text in found)
        return found


@pytest.fixture
def site(programs: Programs) -> TlsSite:
    return TlsSite(programs)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what will never be served."""
    monkeypatch.setattr(delivery_module, "COMMIT_SECONDS", 0.1)
    monkeypatch.setattr(delivery_module, "RELOAD_SECONDS", 0.5)


def transactions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of HAProxy from now on that changes something."""
    asked: list[str] = []
    honest = RuntimeApi._ask

    async def noted(self: RuntimeApi, command: str, *rest: Any, **options: Any) -> str:
        if not command.startswith("show"):
            asked.append(command)
        return await honest(self, command, *rest, **options)

    monkeypatch.setattr(RuntimeApi, "_ask", noted)
    return asked


# ---------------------------------------------------------------------------------------------------- crt DIR


@pytest.mark.parametrize("rsa", [False, True], ids=["ecdsa", "rsa"])
async def test_a_certificate_is_swapped_under_open_connections(
    runner: asyncio.Runner, site: TlsSite, rsa: bool
) -> None:
    """No reload: the process is the same, and who is connected stays so."""
    new, pid = bundle("first.test", rsa=rsa), site.haproxy.worker()
    with site.connect("first.test") as connection:
        assert b" 200 OK" in get(connection)

        await Bringing(site)("0first", new)

        assert b" 200 OK" in get(connection)
        assert connection.getpeercert(binary_form=True) == site.first.leaf.der
    assert site.serves("first.test", new.leaf)
    assert site.path("0first").read_bytes() == new.pem
    assert site.haproxy.worker() == pid
    assert site.transaction() is None


async def test_a_new_name(runner: asyncio.Runner, site: TlsSite) -> None:
    new, deliver = bundle("new.test"), Bringing(site)

    await deliver("new.test", new)

    assert site.serves("new.test", new.leaf)
    assert site.serves("first.test", site.first.leaf)
    assert site.path("new.test").read_bytes() == new.pem
    assert deliver.warnings == []


async def test_a_new_name_and_then_its_renewal(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver = Bringing(site)
    for _ in range(3):
        new = bundle("new.test", "www.new.test")
        await deliver("new.test", new)
        assert site.serves("www.new.test", new.leaf)


async def test_what_is_in_place_is_left_alone(
    runner: asyncio.Runner, site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, new = Bringing(site), bundle("first.test")
    await deliver("0first", new)
    before, asked = site.path("0first").stat(), transactions(monkeypatch)

    await deliver("0first", new)

    after = site.path("0first").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert asked == []


async def test_only_what_is_left_to_do_is_done(
    runner: asyncio.Runner, site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk already, since a delivery that was cut short: into memory, then."""
    new = write(site.path("0first"), bundle("first.test"))
    asked = transactions(monkeypatch)

    await Bringing(site)("0first", new)

    assert [command.partition(" ")[0] for command in asked] == ["set", "commit"]
    assert site.serves("first.test", new.leaf)


async def test_one_left_behind_halfway(runner: asyncio.Runner, site: TlsSite) -> None:
    """In memory, and in no bind line: whoever put it there was killed before `add ssl crt-list`."""
    new, name = bundle("new.test"), str(site.path("new.test"))
    site.haproxy.ask(f"new ssl cert {name}")
    site.haproxy.ask(f"set ssl cert {name} <<\n{new.pem.decode()}\n")
    site.haproxy.ask(f"commit ssl cert {name}")

    await Bringing(site)("new.test", new)

    assert site.serves("new.test", new.leaf)


async def test_at_every_way_in(runner: asyncio.Runner, site: TlsSite) -> None:
    """PROXY header v1, v2 and none, over a unix socket and TCP."""
    targets = [VerifyTarget(address=address, proxy_protocol=header) for address, header in site.doors]

    await Bringing(site, verify=targets)("0first", bundle("first.test"))


async def test_a_bundle_of_a_hundred_names(runner: asyncio.Runner, site: TlsSite) -> None:
    new = bundle(*(f"n{number}.test" for number in range(100)))

    await Bringing(site)("many", new)

    assert site.serves("n99.test", new.leaf)


async def test_more_names_than_are_checked(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver = Bringing(site)
    await deliver("many", bundle(*(f"n{number}.test" for number in range(101))))

    assert deliver.warnings == [f"{site.path('many')}: of 101 names the first 100 are checked"]


async def test_two_deliveries_at_once_take_turns(runner: asyncio.Runner, site: TlsSite) -> None:
    """Two Delivery objects: after a reload of our configuration there are two for a while."""
    one, other = Bringing(site), Bringing(site)
    bundles = {name: bundle(f"{name}.test") for name in ("a", "b", "c", "d")}

    async with asyncio.TaskGroup() as tasks:
        for number, (name, new) in enumerate(bundles.items()):
            tasks.create_task((one, other)[number % 2](name, new))

    for name, new in bundles.items():
        assert site.serves(f"{name}.test", new.leaf)


async def test_the_last_of_two_for_one_name_is_the_last_everywhere(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver, first, last = Bringing(site), bundle("first.test"), bundle("first.test")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deliver("0first", first))
        tasks.create_task(deliver("0first", last))

    assert site.path("0first").read_bytes() == last.pem
    assert site.serves("first.test", last.leaf)
    assert await deliver.differences("0first", last) == []


async def test_every_process_gets_it(runner: asyncio.Runner, programs: Programs) -> None:
    """One runtime socket for each HAProxy."""
    site = TlsSite(programs)
    (site.directory / "second").mkdir()
    programs.directory = site.directory / "second"
    second = TlsSite(programs, crt=f"crt {site.certificates}")
    targets = [VerifyTarget(address=site.bare), VerifyTarget(address=second.bare)]
    new = bundle("first.test")

    await Bringing(site, sockets=[site.runtime, second.runtime], verify=targets)("0first", new)

    assert site.serves("first.test", new.leaf)
    assert second.serves("first.test", new.leaf)


# ---------------------------------------------------------------------------------------------------- crt-list, names


async def test_a_crt_list_file(runner: asyncio.Runner, programs: Programs) -> None:
    """Options and filters of the line stay what they are."""
    line = "{certificates}/0first.pem [alpn h2] first.test *.first.test\n"
    site = TlsSite(programs, crt="crt-list {directory}/crt.list", files={"crt.list": line})
    new = bundle("first.test", "www.first.test")

    await Bringing(site)("0first", new)

    assert site.serves("www.first.test", new.leaf)


async def test_a_new_name_for_a_crt_list_file(runner: asyncio.Runner, programs: Programs) -> None:
    """Served now, and lost at the next reload unless somebody adds the line: that is told."""
    line = "{certificates}/0first.pem\n"
    site = TlsSite(programs, crt="crt-list {directory}/crt.list", files={"crt.list": line}, master_worker=True)
    deliver, new = Bringing(site), bundle("new.test")

    await deliver("new.test", new)

    assert site.serves("new.test", new.leaf)
    (warning,) = deliver.warnings
    assert f"add a line `{site.path('new.test')}` to {site.directory}/crt.list" in warning

    site.haproxy.reload()
    assert f"does not have {site.path('new.test')}" in (await deliver.differences("new.test", new))[0]
    with (site.directory / "crt.list").open("a") as crt_list:
        crt_list.write(f"{site.path('new.test')}\n")
    site.haproxy.reload()
    site.await_serving("new.test", new)
    assert await deliver.differences("new.test", new) == []


async def test_two_crt_lists_that_a_new_name_may_belong_to(runner: asyncio.Runner, programs: Programs) -> None:
    line = "{certificates}/0first.pem\n"
    site = TlsSite(
        programs,
        crt="crt-list {directory}/one.list crt-list {directory}/two.list",
        files={"one.list": line, "two.list": line},
    )
    error = await Bringing(site).fails("new.test", bundle("new.test"))

    assert f"{site.directory}/one.list and {site.directory}/two.list have certificates of" in str(error)
    assert len(site.names()) == 1


async def test_a_bind_line_with_single_files(runner: asyncio.Runner, programs: Programs) -> None:
    """Those that are there are swapped; a new name has nowhere to go."""
    site = TlsSite(programs, crt="crt {certificates}/0first.pem")
    deliver, new = Bringing(site), bundle("first.test")
    await deliver("0first", new)
    assert site.serves("first.test", new.leaf)

    error = await deliver.fails("new.test", bundle("new.test"))
    assert f"no bind line has `crt {site.certificates}`" in str(error)
    assert error.reload_helps


async def test_relative_to_where_haproxy_was_started(runner: asyncio.Runner, programs: Programs) -> None:
    site = TlsSite(programs, crt="crt certs", working_directory=programs.directory)
    assert site.names() == ["certs/0first.pem"]
    deliver, new, other = Bringing(site), bundle("first.test"), bundle("new.test")

    await deliver("0first", new)
    await deliver("new.test", other)

    assert site.serves("first.test", new.leaf)
    assert site.serves("new.test", other.leaf)
    assert site.names() == ["certs/0first.pem", "certs/new.test.pem"]


async def test_below_crt_base(runner: asyncio.Runner, programs: Programs) -> None:
    """Configuration manual, section 3.1: the names have it in front of them."""
    site = TlsSite(programs, crt="crt certs", global_lines=["crt-base {directory}"])
    deliver, new, other = Bringing(site), bundle("first.test"), bundle("new.test")

    await deliver("0first", new)
    await deliver("new.test", other)

    assert site.serves("first.test", new.leaf)
    assert site.serves("new.test", other.leaf)


async def test_through_a_symlink(runner: asyncio.Runner, programs: Programs) -> None:
    (programs.directory / "tls").symlink_to(programs.directory / "certs")
    site = TlsSite(programs, crt="crt {directory}/tls")
    deliver, new, other = Bringing(site), bundle("first.test"), bundle("new.test")

    await deliver("0first", new)
    await deliver("new.test", other)

    assert site.serves("first.test", new.leaf)
    assert site.serves("new.test", other.leaf)


async def test_a_directory_with_a_space(runner: asyncio.Runner, programs: Programs) -> None:
    (programs.directory / "my certs").mkdir()
    write(programs.directory / "my certs" / "0.pem", bundle("zero.test"))
    site = TlsSite(programs, crt='crt "{directory}/my certs"')
    new = bundle("new.test")

    await Bringing(site, directory=site.directory / "my certs")("new.test", new)

    assert site.serves("new.test", new.leaf)


async def test_which_of_two(runner: asyncio.Runner, programs: Programs) -> None:
    """Nothing is guessed."""
    for name in ("one", "two"):
        (programs.directory / name / "certs").mkdir(parents=True)
        write(programs.directory / name / "certs" / "a.pem", bundle(f"{name}.test"))
    site = TlsSite(programs, crt="crt one/certs crt two/certs", working_directory=programs.directory)
    error = await Bringing(site).fails("a", bundle("a.test"))

    assert "one/certs/a.pem and two/certs/a.pem: which of them is" in str(error)


async def test_another_directory_than_the_one_haproxy_reads(runner: asyncio.Runner, site: TlsSite) -> None:
    wrong = site.directory / "wrong"
    deliver = Bringing(site, directory=wrong)
    error = await deliver.fails("new.test", bundle("new.test"))

    assert f"does not know {wrong}/new.test.pem, and no bind line has `crt {wrong}`" in str(error)
    assert error.reload_helps
    assert len(site.names()) == 1

    error = await deliver.fails("0first", bundle("first.test"))
    assert f"reads {site.path('0first')}, which is another file than {wrong}/0first.pem" in str(error)
    assert site.serves("first.test", site.first.leaf)


async def test_a_file_that_haproxy_has_as_a_bundle_of_keys(runner: asyncio.Runner, programs: Programs) -> None:
    """Configuration manual, section 5.1, crt: cert.pem.rsa and cert.pem.ecdsa are loaded for `crt cert.pem`."""
    other = programs.directory / "pairs"
    other.mkdir()
    write(other / "pair.pem.rsa", bundle("pair.test", rsa=True))
    write(other / "pair.pem.ecdsa", bundle("pair.test"))
    site = TlsSite(programs, crt="crt {directory}/pairs/pair.pem")
    error = await Bringing(site, directory=other).fails("pair", bundle("pair.test"))

    assert "as several files, " in str(error)
    assert f"{other}/pair.pem.rsa" in str(error)


async def test_the_runtime_api_is_refused_by_its_level(runner: asyncio.Runner, programs: Programs) -> None:
    site = TlsSite(programs, global_lines=["stats socket {directory}/op.sock level operator"])
    operator = UnixAddress(f"{site.directory}/op.sock")
    deliver, new = Bringing(site, sockets=[operator]), bundle("first.test")
    error = await deliver.fails("0first", new)

    assert str(error).count(f"`stats socket {operator.path} level admin`") == 1
    assert error.reload_helps
    assert site.path("0first").read_bytes() == new.pem


# ---------------------------------------------------------------------------------------------------- not now


async def test_no_haproxy(runner: asyncio.Runner, site: TlsSite) -> None:
    """It is on disk for when it starts."""
    site.haproxy.kill()
    deliver, new = Bringing(site), bundle("first.test")
    error = await deliver.fails("0first", new)

    assert "reads its files when it starts" in str(error)
    assert site.path("0first").read_bytes() == new.pem


async def test_no_socket(runner: asyncio.Runner, site: TlsSite) -> None:
    missing = UnixAddress(f"{site.directory}/nothing.sock")
    error = await Bringing(site, sockets=[missing]).fails("0first", bundle("first.test"))

    assert "no such socket" in str(error)


async def test_one_process_of_two_is_away(
    runner: asyncio.Runner, site: TlsSite, scripted: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other gets it all the same."""
    scripted.script["show"] = b""
    new = bundle("first.test")
    error = await Bringing(site, sockets=[scripted.address, site.runtime]).fails("0first", new)

    assert str(error) == f"HAProxy at {scripted.address}: closed without an answer; has HAProxy just ended?"
    assert site.serves("first.test", new.leaf)


async def test_another_program_has_a_transaction_open(runner: asyncio.Runner, site: TlsSite) -> None:
    """Never aborted, and nothing of ours is left behind: the next attempt does it."""
    write(site.path("other"), bundle("other.test"))
    theirs, deliver, new = bundle("first.test"), Bringing(site), bundle("new.test")
    site.haproxy.ask(f"set ssl cert {site.path('0first')} <<\n{theirs.pem.decode()}\n")

    error = await deliver.fails("new.test", new)
    assert isinstance(error, TransactionOpen)
    assert site.transaction() == str(site.path("0first"))

    assert "Success!" in site.haproxy.ask(f"commit ssl cert {site.path('0first')}")
    await deliver("new.test", new)
    assert site.serves("first.test", theirs.leaf)
    assert site.serves("new.test", new.leaf)


async def test_our_own_transaction_of_before_we_were_killed(runner: asyncio.Runner, site: TlsSite) -> None:
    stale, new = bundle("first.test"), bundle("first.test")
    site.haproxy.ask(f"set ssl cert {site.path('0first')} <<\n{stale.pem.decode()}\n")

    await Bringing(site)("0first", new)

    assert site.serves("first.test", new.leaf)


async def test_too_long_for_the_runtime_api(runner: asyncio.Runner, site: TlsSite) -> None:
    long = bundle("first.test", chain=40)
    error = await Bringing(site).fails("0first", long)

    assert "tune.bufsize" in str(error)
    assert error.reload_helps
    assert site.path("0first").read_bytes() == long.pem


async def test_cancelling_a_delivery_leaves_no_transaction_open(
    runner: asyncio.Runner, site: TlsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_transaction = asyncio.Event()

    async def stuck(*_: object) -> None:
        in_transaction.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(RuntimeApi, "_must_have", stuck)
    task = asyncio.get_running_loop().create_task(Bringing(site)("0first", bundle("first.test")))
    await in_transaction.wait()
    assert site.transaction() == str(site.path("0first"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert site.transaction() is None
    assert site.serves("first.test", site.first.leaf)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "a directory that this user may write to"),
        (OSError(30, "Read-only file system"), "ReadWritePaths="),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=["denied", "read-only", "full"],
)
async def test_the_disk_does_not_take_it(
    runner: asyncio.Runner, site: TlsSite, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    """Then it is not in memory either: a reload would bring the old one back."""

    def fails(*_: object) -> bool:
        raise error

    monkeypatch.setattr(disk, "write", fails)
    told = await Bringing(site).fails("0first", bundle("first.test"))

    assert str(told).startswith(f"cannot write {site.path('0first')}: ")
    assert words in str(told)
    assert site.serves("first.test", site.first.leaf)


# ---------------------------------------------------------------------------------------------------- reloads


async def test_after_a_reload_the_files_are_served(runner: asyncio.Runner, programs: Programs) -> None:
    """SIGUSR2 to the master: what is in memory is forgotten, and read from disk (management guide, section 3)."""
    site = TlsSite(programs, master_worker=True)
    deliver, new, other = Bringing(site), bundle("first.test"), bundle("new.test")
    await deliver("0first", new)
    await deliver("new.test", other)

    site.haproxy.reload()

    site.await_serving("first.test", new)
    site.await_serving("new.test", other)
    assert await deliver.differences("0first", new) == []
    assert await deliver.differences("new.test", other) == []


async def test_deliveries_while_haproxy_is_reloaded(runner: asyncio.Runner, programs: Programs) -> None:
    """A single one may fail, or be forgotten with an old worker; then that is seen, and made good."""
    site = TlsSite(programs, master_worker=True)
    deliver = Bringing(site)

    def reload_thrice() -> None:
        for _ in range(3):
            site.haproxy.reload()

    async def again_until_proven(content: Bundle) -> None:
        while True:
            try:
                await deliver("0first", content)
            except DeliveryError:
                await asyncio.sleep(0.01)  # the caller waits for longer
            else:
                return

    reloading = asyncio.get_running_loop().run_in_executor(None, reload_thrice)
    new = site.first
    while not reloading.done():
        new = bundle("first.test")
        await again_until_proven(new)
    await reloading
    while await deliver.differences("0first", new):
        await again_until_proven(new)

    assert site.serves("first.test", new.leaf)


def reload_command(site: TlsSite) -> tuple[str, ...]:
    """Tells the master and is done, as `kill -USR2` is: HAProxy is not there yet. Each run leaves an x in `runs`."""
    site.haproxy.await_signals()
    script = 'kill -USR2 "$0" && printf x >> "$1"'
    return ("sh", "-c", script, str(site.haproxy.pid), f"{site.directory}/runs")


def runs(site: TlsSite) -> int:
    path = site.directory / "runs"
    return len(path.read_text()) if path.exists() else 0


async def test_without_a_runtime_api_the_command_does_it(runner: asyncio.Runner, programs: Programs) -> None:
    site = TlsSite(programs, master_worker=True)
    deliver, new = Bringing(site, sockets=[], reload_command=reload_command(site)), bundle("new.test")

    await deliver("new.test", new)

    assert site.serves("new.test", new.leaf)
    assert runs(site) == 1
    await deliver("new.test", new)
    assert runs(site) == 1, "it is served already"


async def test_the_command_does_what_the_level_forbids(runner: asyncio.Runner, programs: Programs) -> None:
    site = TlsSite(programs, global_lines=["stats socket {directory}/op.sock level operator"], master_worker=True)
    operator = UnixAddress(f"{site.directory}/op.sock")
    deliver = Bringing(site, sockets=[operator], reload_command=reload_command(site))
    new = bundle("first.test")

    await deliver("0first", new)

    assert site.serves("first.test", new.leaf)
    (warning,) = deliver.warnings
    assert "level admin" in warning
    assert warning.endswith("; running haproxy.reload_command")
    assert await deliver.differences("0first", new) == []


async def test_the_command_does_what_is_too_long(runner: asyncio.Runner, programs: Programs) -> None:
    site = TlsSite(programs, master_worker=True)
    long = bundle("first.test", chain=40)

    await Bringing(site, reload_command=reload_command(site))("0first", long)

    assert site.serves("first.test", long.leaf)


async def test_the_command_is_not_run_where_the_runtime_api_does_it(runner: asyncio.Runner, site: TlsSite) -> None:
    await Bringing(site, reload_command=("false",))("0first", bundle("first.test"))


async def test_nor_where_haproxy_refuses_the_certificate(
    runner: asyncio.Runner, site: TlsSite, scripted: ScriptedRuntime
) -> None:
    """It would refuse it on a reload, too, and the configuration with it."""
    scripted.held = {str(site.path("0first")): "AA"}
    scripted.used = set(scripted.held)
    scripted.script["set"] = b"unable to load certificate from file 'x': ee key too small.\n\n"
    deliver = Bringing(site, sockets=[scripted.address], reload_command=("touch", f"{site.directory}/runs"))

    assert "ee key too small" in str(await deliver.fails("0first", bundle("first.test")))
    assert not (site.directory / "runs").exists()


async def test_a_command_that_fails(runner: asyncio.Runner, site: TlsSite, short_patience: None) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('Job for haproxy.service failed.')")
    deliver = Bringing(site, sockets=[UnixAddress(f"{site.directory}/none.sock")], reload_command=command)
    error = await deliver.fails("0first", bundle("first.test"))

    assert 'ended with exit status 1: "Job for haproxy.service failed."; HAProxy at ' in str(error)
    assert "no such socket" in str(error)


async def test_a_command_that_hangs(runner: asyncio.Runner, site: TlsSite, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = run_reload_command
    monkeypatch.setattr(delivery_module, "run_reload_command", lambda command: honest(command, seconds=0.2))
    deliver = Bringing(site, sockets=[], reload_command=("sleep", "600"))

    assert "has not ended after 0.2 s" in str(await deliver.fails("0first", bundle("first.test")))


async def test_a_command_that_ends_well_and_does_not_help_is_not_run_again(
    runner: asyncio.Runner, site: TlsSite, short_patience: None
) -> None:
    """The caller tries again every few seconds: each would be another HAProxy process, with the old ones still there."""
    command = ("sh", "-c", 'printf x >> "$0"', f"{site.directory}/runs")
    deliver, new = Bringing(site, sockets=[], reload_command=command), bundle("first.test")

    error = await deliver.fails("0first", new)
    assert f"with serial {site.first.leaf.serial}" in str(error)
    assert "haproxy.reload_command was run, and ended well" in str(error)
    assert "was run for" in str(await deliver.fails("0first", new))
    assert runs(site) == 1

    await deliver.fails("0first", bundle("first.test"))
    assert runs(site) == 2, "that is another certificate"


async def test_with_neither_the_operator_is_told(runner: asyncio.Runner, site: TlsSite, short_patience: None) -> None:
    new = bundle("first.test")
    error = await Bringing(site, sockets=[]).fails("0first", new)

    assert "HAProxy has not read its files since" in str(error)
    assert site.path("0first").read_bytes() == new.pem


async def test_with_neither_and_no_proof_it_is_on_disk(runner: asyncio.Runner, site: TlsSite) -> None:
    new = bundle("first.test")
    await Bringing(site, sockets=[], verify=[])("0first", new)

    assert site.path("0first").read_bytes() == new.pem


# ---------------------------------------------------------------------------------------------------- proof


async def test_another_file_has_the_name(runner: asyncio.Runner, site: TlsSite, short_patience: None) -> None:
    """HAProxy goes on serving the one that it has had for longer."""
    write(site.path("1old"), old := bundle("first.test"))
    await RuntimeApi(site.runtime).add_certificate(str(site.certificates), str(site.path("1old")), old)
    new = bundle("first.test")
    error = await Bringing(site).fails("0first", new)

    assert f"serves the certificate of {ISSUER} with serial {old.leaf.serial}" in str(error)
    assert f"that is {site.path('1old')}, which has the same name" in str(error)


async def test_it_is_proven_where_it_is_not_read(
    runner: asyncio.Runner, programs: Programs, short_patience: None
) -> None:
    """The wrong bind line to look at."""
    other = programs.directory / "other"
    other.mkdir()
    write(other / "other.pem", bundle("other.test"))
    more = "    bind unix@{directory}/other.sock ssl crt {directory}/other\n"
    site = TlsSite(programs, more=more)
    target = VerifyTarget(address=UnixAddress(f"{site.directory}/other.sock"))
    error = await Bringing(site, verify=[target]).fails("0first", bundle("first.test"))

    assert f"does the bind line there read {site.certificates}?" in str(error)


async def test_the_proof_needs_another_proxy_header(
    runner: asyncio.Runner, site: TlsSite, short_patience: None
) -> None:
    error = await Bringing(site, verify=[VerifyTarget(address=site.accept)]).fails("0first", bundle("first.test"))
    assert "a bind line with accept-proxy does that to whoever sends no PROXY header" in str(error)

    target = VerifyTarget(address=site.bare, proxy_protocol=ProxyProtocol.V2)
    error = await Bringing(site, verify=[target]).fails("0first", bundle("first.test"))
    assert "a bind line without accept-proxy does that to whoever sends a PROXY header" in str(error)


async def test_without_proof(runner: asyncio.Runner, site: TlsSite) -> None:
    new = bundle("first.test")
    await Bringing(site, verify=[])("0first", new)

    assert site.serves("first.test", new.leaf)


# ---------------------------------------------------------------------------------------------------- differences


async def test_nothing_is_different_after_a_delivery(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver, new = Bringing(site), bundle("new.test")
    await deliver("new.test", new)

    assert await deliver.differences("new.test", new) == []


async def test_on_disk(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver, new = Bringing(site), bundle("first.test")
    await deliver("0first", new)
    site.path("0first").unlink()
    assert await deliver.differences("0first", new) == [f"{site.path('0first')} is missing"]

    write(site.path("0first"), other := bundle("first.test"))
    (found,) = await deliver.differences("0first", new)
    assert other.leaf.serial in found

    await deliver("0first", new)
    assert await deliver.differences("0first", new) == []


async def test_in_memory_and_served(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver, new, other = Bringing(site), bundle("first.test"), bundle("first.test")
    await deliver("0first", new)
    await RuntimeApi(site.runtime).set_certificate(str(site.path("0first")), other)

    memory, served = await deliver.differences("0first", new)
    assert f"under {site.path('0first')} there is the one of {ISSUER} with serial {other.leaf.serial}" in memory
    assert f"serves the certificate of {ISSUER} with serial {other.leaf.serial}" in served

    await deliver("0first", new)
    assert await deliver.differences("0first", new) == []


async def test_a_name_that_haproxy_does_not_have(runner: asyncio.Runner, site: TlsSite) -> None:
    found = await Bringing(site).differences("new.test", bundle("new.test"))

    assert [re.sub(r".*?: ", "", text, count=1)[:9] for text in found[1:2]] == ["does not "]
    assert len(found) == 3


async def test_a_certificate_that_no_bind_line_uses(runner: asyncio.Runner, site: TlsSite) -> None:
    new, name = bundle("new.test"), str(site.path("new.test"))
    write(site.path("new.test"), new)
    for command in (f"new ssl cert {name}", f"set ssl cert {name} <<\n{new.pem.decode()}\n", f"commit ssl cert {name}"):
        site.haproxy.ask(command)
    site.path("new.test").chmod(0o640)

    assert await Bringing(site, verify=[]).differences("new.test", new) == [
        f"HAProxy at {site.runtime}: has {name}, and no bind line uses it"
    ]


async def test_an_haproxy_that_is_away(runner: asyncio.Runner, site: TlsSite) -> None:
    deliver, new = Bringing(site), bundle("first.test")
    await deliver("0first", new)
    site.haproxy.kill()

    memory, served = await deliver.differences("0first", new)
    assert "nobody listens there" in memory
    assert "nobody listens there" in served


async def test_one_that_hangs(
    runner: asyncio.Runner, site: TlsSite, scripted: ScriptedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sniproxy.haproxy.runtime.ANSWER_SECONDS", 0.2)
    scripted.script["show"] = HANG
    site.path("0first").chmod(0o640)

    (found,) = await Bringing(site, sockets=[scripted.address]).differences("0first", site.first)
    assert "no whole answer" in found


async def test_what_only_a_reload_can_do_is_no_difference_once_it_is_served(
    runner: asyncio.Runner, site: TlsSite
) -> None:
    """A socket that is not there cannot be asked, and never will be: the proof has to do."""
    missing = UnixAddress(f"{site.directory}/nothing.sock")
    site.path("0first").chmod(0o640)

    assert await Bringing(site, sockets=[missing]).differences("0first", site.first) == []
    assert len(await Bringing(site, sockets=[missing], verify=[]).differences("0first", site.first)) == 1
    await Bringing(site, sockets=[missing])("0first", site.first)


# ---------------------------------------------------------------------------------------------------- files


async def test_where_a_bundle_is(runner: asyncio.Runner, site: TlsSite) -> None:
    assert Bringing(site).delivery.bundle_path("a.test") == site.certificates / "a.test.pem"


async def test_a_placeholder_takes_nothings_place(runner: asyncio.Runner, site: TlsSite) -> None:
    delivery, first, second = Bringing(site).delivery, bundle("a.test"), bundle("a.test")

    assert await delivery.place_placeholder("a", first)
    assert not await delivery.place_placeholder("a", second)
    assert site.path("a").read_bytes() == first.pem

    site.path("b").symlink_to(site.directory / "nowhere")
    assert not await delivery.place_placeholder("b", second)


async def test_a_placeholder_lets_haproxy_start(runner: asyncio.Runner, programs: Programs, site: TlsSite) -> None:
    """`crt DIR` with nothing in it, and strict-sni: haproxy#2219; the first delivery then takes its place."""
    empty = site.directory / "empty"
    deliver = Bringing(site, directory=empty)
    await deliver.delivery.place_placeholder("a.test", bundle("a.test"))
    (site.directory / "second").mkdir()
    programs.directory = site.directory / "second"
    second = TlsSite(programs, crt=f"crt {empty}")
    new = bundle("a.test")

    await Bringing(second, directory=empty)("a.test", new)

    assert second.serves("a.test", new.leaf)


async def test_no_key_is_ever_told(runner: asyncio.Runner, site: TlsSite, scripted: ScriptedRuntime) -> None:
    """Whatever HAProxy answers: it might echo a line of what it was sent."""
    new = bundle("first.test")
    lines = new.pem.decode().splitlines()
    scripted.held = {str(site.path("0first")): "AA"}
    scripted.used = set(scripted.held)
    scripted.script["set"] = f"Unknown command: {lines[1]}\n\n".encode()
    error = await Bringing(site, sockets=[scripted.address]).fails("0first", new)

    assert lines[1] not in str(error)
    assert lines[1] not in repr(error)
