"""The runtime API: what HAProxy answers, and that nothing but success is taken for it.

The real one here is 2.6; the script has what others answer, and what HAProxy does when it dies.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.bundle import Bundle
from sniproxy.errors import DeliveryError
from sniproxy.haproxy import runtime as runtime_module
from sniproxy.haproxy.runtime import RuntimeApi, RuntimeUnreachable, TransactionOpen
from sniproxy.model import TcpAddress, UnixAddress
from tests.support.bundles import bundle, write
from tests.support.haproxy import HAPROXY, MISSING, Haproxy
from tests.support.processes import LOCALHOST, free_port
from tests.support.runtime_socket import ENDLESS, HANG

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.processes import Programs
    from tests.support.runtime_socket import ScriptedRuntime

with_haproxy = pytest.mark.skipif(HAPROXY is None, reason=MISSING)

A, B, NEW = "certs/a.pem", "certs/b.pem", "certs/new.pem"

SECTIONS = """
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s

frontend https
    bind unix@{directory}/tls.sock ssl crt {certificates}
"""


class Site:
    """HAProxy with the directory `certs` of two certificates, and its runtime API."""

    def __init__(self, programs: Programs, global_lines: str = "", sections: str = SECTIONS) -> None:
        self.directory = programs.directory
        self.certificates = self.directory / "certs"
        self.certificates.mkdir()
        self.a = write(self.certificates / "a.pem", bundle("a.test"))
        self.b = write(self.certificates / "b.pem", bundle("b.test"))
        text = sections.format(directory=self.directory, certificates=self.certificates)
        self.haproxy = programs.start(Haproxy(global_lines + text, self.directory))
        self.api = RuntimeApi(UnixAddress(str(self.haproxy.runtime)))

    def path(self, name: str) -> str:
        return str(self.certificates / name)

    def sha1(self, name: str) -> str:
        """What HAProxy has in its memory, by its own words."""
        found = re.search(r"(?m)^SHA1 FingerPrint: (\w+)$", self.haproxy.ask(f"show ssl cert {self.path(name)}"))
        return found[1] if found else ""

    def transaction(self) -> str | None:
        found = re.search(r"(?m)^\*(.+)$", self.haproxy.ask("show ssl cert"))
        return found[1] if found else None

    def open_transaction(self, name: str, content: Bundle) -> None:
        """As another program would."""
        assert "Transaction created" in self.haproxy.ask(f"set ssl cert {self.path(name)} <<\n{content.pem.decode()}\n")


@pytest.fixture
def site(programs: Programs) -> Site:
    return Site(programs)


@pytest.fixture
def api(scripted: ScriptedRuntime) -> RuntimeApi:
    scripted.held = {A: "AA", B: "BB"}
    scripted.used = {A, B}
    return RuntimeApi(scripted.address)


@pytest.fixture
def new(scripted: ScriptedRuntime) -> Bundle:
    """What is to get into the scripted HAProxy."""
    made = bundle("a.test")
    scripted.next_sha1 = made.leaf.sha1
    return made


async def error_of(awaitable: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await awaitable
    return caught.value


# ---------------------------------------------------------------------------------------------------- real: questions


@with_haproxy
async def test_who_answers(runner: asyncio.Runner, site: Site) -> None:
    """Management guide, section 9.3, `show info`."""
    process = await site.api.process()

    assert process.pid == site.haproxy.pid
    assert not process.is_stopping
    assert process.version == await site.api.version()
    assert process.release >= (2, 2)


@with_haproxy
async def test_the_certificates_by_haproxys_names(runner: asyncio.Runner, site: Site) -> None:
    known = await site.api.certificate_names()

    assert set(known.names) == {site.path("a.pem"), site.path("b.pem")}
    assert known.transaction is None


@with_haproxy
async def test_an_open_transaction_is_seen(runner: asyncio.Runner, site: Site) -> None:
    site.open_transaction("b.pem", bundle("b.test"))

    assert (await site.api.certificate_names()).transaction == site.path("b.pem")


@with_haproxy
async def test_what_there_is_to_know_of_a_certificate(runner: asyncio.Runner, site: Site) -> None:
    held = await site.api.certificate(site.path("a.pem"))

    assert held is not None
    assert held.name == site.path("a.pem")
    assert (held.sha1, held.serial.lower()) == (site.a.leaf.sha1, site.a.leaf.serial)
    assert held.not_after == site.a.leaf.not_after
    assert held.is_used
    assert held.issuer == site.a.leaf.issuer
    assert site.a.leaf.serial in str(held)


@with_haproxy
async def test_a_name_that_haproxy_does_not_know(runner: asyncio.Runner, site: Site) -> None:
    assert await site.api.certificate("nowhere.pem") is None
    assert await site.api.certificate(f"*{site.path('a.pem')}") is None


@with_haproxy
async def test_names_with_characters_that_commands_take_for_theirs(runner: asyncio.Runner, programs: Programs) -> None:
    """Management guide, section 9.3: backslashes before spaces and semicolons."""
    odd = programs.directory / "it's; odd certs"
    odd.mkdir()
    write(odd / "a.pem", bundle("odd.test"))
    escaped = re.sub(r"([ '])", r"\\\1", str(odd))
    site = Site(programs, sections=SECTIONS + f"    bind unix@{{directory}}/odd.sock ssl crt {escaped}\n")
    new = bundle("odd.test")

    await site.api.set_certificate(f"{odd}/a.pem", new)

    held = await site.api.certificate(f"{odd}/a.pem")
    assert held is not None
    assert held.sha1 == new.leaf.sha1
    assert str(odd) in await site.api.crt_lists()
    known = (await site.api.certificate_names()).names
    assert await site.api.crt_list(str(odd), known) == (f"{odd}/a.pem",)


@with_haproxy
async def test_directories_and_crt_list_files(runner: asyncio.Runner, programs: Programs) -> None:
    """A line of a crt-list goes on with options and filters (configuration manual, section 5.1, crt-list)."""
    crt_list = programs.directory / "crt.list"
    certificates = programs.directory / "certs"
    crt_list.write_text(f"{certificates}/b.pem [alpn h2] *.b.test !x.b.test\n{certificates}/a.pem\n")
    site = Site(programs, sections=SECTIONS + f"    bind unix@{{directory}}/list.sock ssl crt-list {crt_list}\n")
    known = (await site.api.certificate_names()).names

    assert set(await site.api.crt_lists()) == {str(certificates), str(crt_list)}
    assert set(await site.api.crt_list(str(crt_list), known)) == set(known)
    assert set(await site.api.crt_list(str(certificates), known)) == set(known)
    assert "expects" not in str(await error_of(site.api.crt_list("nowhere", known)))


@with_haproxy
async def test_without_crt_lists(runner: asyncio.Runner, programs: Programs) -> None:
    """The one answer that may be empty."""
    site = Site(programs, sections=SECTIONS.replace("{certificates}", "{certificates}/a.pem"))

    assert await site.api.crt_lists() == ()


@with_haproxy
@pytest.mark.parametrize("size", [8192, 16384, 32768])
async def test_the_size_of_buffers_is_tune_bufsize(runner: asyncio.Runner, programs: Programs, size: int) -> None:
    site = Site(programs, f"    tune.bufsize {size}\n")

    assert await site.api.bufsize() == size


# ---------------------------------------------------------------------------------------------------- real: changes


@with_haproxy
@pytest.mark.parametrize("rsa", [False, True], ids=["ecdsa", "rsa"])
async def test_a_certificate_is_replaced(runner: asyncio.Runner, site: Site, rsa: bool) -> None:
    new = bundle("a.test", rsa=rsa)

    await site.api.set_certificate(site.path("a.pem"), new)

    assert site.sha1("a.pem") == new.leaf.sha1
    assert site.sha1("b.pem") == site.b.leaf.sha1
    assert site.transaction() is None


@with_haproxy
async def test_a_certificate_is_added_to_a_directory(runner: asyncio.Runner, site: Site) -> None:
    new = bundle("new.test")

    await site.api.add_certificate(str(site.certificates), site.path("new.pem"), new)

    held = await site.api.certificate(site.path("new.pem"))
    assert held is not None
    assert held.is_used
    assert held.sha1 == new.leaf.sha1


@with_haproxy
async def test_what_was_left_behind_halfway_is_taken_over(runner: asyncio.Runner, site: Site) -> None:
    """A predecessor was killed after `new ssl cert`: HAProxy has the name, and nothing in it."""
    site.haproxy.ask(f"new ssl cert {site.path('new.pem')}")
    held = await site.api.certificate(site.path("new.pem"))
    assert held is not None
    assert (held.status, held.sha1, str(held)) == ("Empty", "", "none yet")
    new = bundle("new.test")

    await site.api.add_certificate(str(site.certificates), site.path("new.pem"), new)

    assert site.sha1("new.pem") == new.leaf.sha1


@with_haproxy
async def test_nothing_is_left_of_one_that_could_not_be_added(runner: asyncio.Runner, site: Site) -> None:
    before = site.haproxy.ask("show ssl cert")

    error = await error_of(site.api.add_certificate("nowhere", site.path("new.pem"), bundle("new.test")))

    assert "crt-list 'nowhere' does not exist!" in str(error)
    assert error.reload_helps
    assert site.haproxy.ask("show ssl cert") == before


@with_haproxy
async def test_a_path_outside_of_the_directory_is_not_added(runner: asyncio.Runner, site: Site) -> None:
    error = await error_of(site.api.add_certificate(str(site.certificates), "/elsewhere/new.pem", bundle("new.test")))

    assert "must contain the directory path" in str(error)
    assert "/elsewhere/new.pem" not in site.haproxy.ask("show ssl cert")


@with_haproxy
async def test_a_name_that_is_not_in_the_configuration(runner: asyncio.Runner, site: Site) -> None:
    error = await error_of(site.api.set_certificate("nowhere.pem", bundle("a.test")))

    assert "not referenced by the configuration" in str(error)
    assert error.reload_helps
    assert site.transaction() is None


@with_haproxy
async def test_another_programs_transaction_is_waited_for_and_not_touched(runner: asyncio.Runner, site: Site) -> None:
    theirs = bundle("b.test")
    site.open_transaction("b.pem", theirs)

    error = await error_of(site.api.set_certificate(site.path("a.pem"), bundle("a.test")))

    assert isinstance(error, TransactionOpen)
    assert site.path("b.pem") in str(error)
    assert site.transaction() == site.path("b.pem")
    assert "Success!" in site.haproxy.ask(f"commit ssl cert {site.path('b.pem')}")
    assert (site.sha1("a.pem"), site.sha1("b.pem")) == (site.a.leaf.sha1, theirs.leaf.sha1)


@with_haproxy
async def test_our_own_transaction_of_before_we_were_killed_is_aborted_first(
    runner: asyncio.Runner, site: Site
) -> None:
    site.open_transaction("a.pem", bundle("a.test"))
    new = bundle("a.test")

    await site.api.set_certificate(site.path("a.pem"), new)

    assert site.sha1("a.pem") == new.leaf.sha1


@with_haproxy
async def test_a_transaction_that_begins_at_the_same_moment_is_never_committed(
    runner: asyncio.Runner, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.6.12 in Debian does not compare names: it puts ours into another's transaction, "Transaction updated for …".

    Fixed versions answer "The ongoing transaction is about …".
    """
    theirs = bundle("b.test")

    async def too_early(self: RuntimeApi, *_: object) -> None:
        site.open_transaction("b.pem", theirs)

    monkeypatch.setattr(RuntimeApi, "_must_fit", too_early)
    error = await error_of(site.api.set_certificate(site.path("a.pem"), bundle("a.test")))

    assert isinstance(error, TransactionOpen)
    answer = site.haproxy.ask(f"commit ssl cert {site.path('b.pem')}")
    if "does not look at names" in str(error):
        # What was in it was ours, so that it had to go.
        assert "No ongoing transaction!" in answer
        assert site.sha1("b.pem") == site.b.leaf.sha1
    else:
        assert "Success!" in answer
        assert site.sha1("b.pem") == theirs.leaf.sha1
    assert site.sha1("a.pem") == site.a.leaf.sha1


@with_haproxy
async def test_two_at_once_take_turns(runner: asyncio.Runner, site: Site) -> None:
    """HAProxy has one transaction at a time, and two objects may be made for one address."""
    new_a, new_b = bundle("a.test"), bundle("b.test")
    other = RuntimeApi(UnixAddress(str(site.haproxy.runtime)))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(site.api.set_certificate(site.path("a.pem"), new_a))
        tasks.create_task(other.set_certificate(site.path("b.pem"), new_b))

    assert (site.sha1("a.pem"), site.sha1("b.pem")) == (new_a.leaf.sha1, new_b.leaf.sha1)


@with_haproxy
@pytest.mark.parametrize("bytes_over", [0, 1])
async def test_as_much_as_fits_and_not_a_byte_more(
    runner: asyncio.Runner, site: Site, monkeypatch: pytest.MonkeyPatch, bytes_over: int
) -> None:
    """Command and payload have to fit into tune.bufsize (2.6.12 takes 16383 bytes, and hangs at 16384)."""
    new = bundle("a.test")
    room = 16384 - runtime_module.BUFSIZE_MARGIN
    padding = room + bytes_over - len(f"set ssl cert {site.path('a.pem')} <<\n") - len(new.pem) - 1
    lines = b"".join(b"#" * 63 + b"\n" for _ in range(padding // 64)) + b"#" * (padding % 64 - 1) + b"\n"
    padded = new.pem + lines
    assert len(padded) == len(new.pem) + padding or padding % 64 < 2
    monkeypatch.setattr(Bundle, "pem", property(lambda _: padded))

    if not bytes_over:
        await site.api.set_certificate(site.path("a.pem"), new)
        assert site.sha1("a.pem") == new.leaf.sha1
        return
    error = await error_of(site.api.set_certificate(site.path("a.pem"), new))
    assert "tune.bufsize 32768" in str(error)
    assert "reload_command" in str(error)
    assert error.reload_helps
    assert site.transaction() is None


@with_haproxy
async def test_a_larger_bufsize_takes_more(runner: asyncio.Runner, programs: Programs) -> None:
    site = Site(programs, "    tune.bufsize 32768\n")
    new = bundle("a.test", rsa=True, chain=30)
    assert len(new.pem) > 16384

    await site.api.set_certificate(site.path("a.pem"), new)

    assert site.sha1("a.pem") == new.leaf.sha1


@with_haproxy
async def test_a_key_of_another_certificate_is_refused_and_nothing_stays_open(
    runner: asyncio.Runner, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy takes it with set and finds it out at the commit: then the transaction is still open."""
    new, other = bundle("a.test"), bundle("a.test")
    mixed = other.pem[: other.pem.index(b"-----BEGIN CERT")] + new.pem[new.pem.index(b"-----BEGIN CERT") :]
    monkeypatch.setattr(Bundle, "pem", property(lambda _: mixed))

    error = await error_of(site.api.set_certificate(site.path("a.pem"), new))

    assert "inconsistencies between private key and certificate" in str(error)
    assert site.transaction() is None
    assert site.sha1("a.pem") == site.a.leaf.sha1


@with_haproxy
async def test_a_certificate_that_haproxy_cannot_read(
    runner: asyncio.Runner, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "pem", property(lambda _: b"garbage\n"))

    error = await error_of(site.api.set_certificate(site.path("a.pem"), bundle("a.test")))

    assert "unable to load certificate" in str(error)
    assert "cannot reload or start" in str(error)
    assert not error.reload_helps


# ---------------------------------------------------------------------------------------------------- real: rights


@with_haproxy
@pytest.mark.parametrize("level", ["operator", "user"])
async def test_another_level_than_admin(runner: asyncio.Runner, programs: Programs, level: str) -> None:
    """Configuration manual, section 5.1, level: only admin may change certificates."""
    site = Site(programs, f"    stats socket {programs.directory}/other.sock mode 600 level {level}\n")
    api = RuntimeApi(UnixAddress(f"{programs.directory}/other.sock"))

    error = await error_of(api.set_certificate(site.path("a.pem"), bundle("a.test")))

    assert f"`stats socket {programs.directory}/other.sock level admin`" in str(error)
    assert error.reload_helps
    assert site.sha1("a.pem") == site.a.leaf.sha1


@with_haproxy
async def test_an_operator_may_look(runner: asyncio.Runner, programs: Programs) -> None:
    site = Site(programs, f"    stats socket {programs.directory}/other.sock mode 600 level operator\n")
    api = RuntimeApi(UnixAddress(f"{programs.directory}/other.sock"))

    held = await api.certificate(site.path("a.pem"))
    assert held is not None
    assert held.sha1 == site.a.leaf.sha1
    assert "level admin" in str(await error_of(api.crt_lists()))


@with_haproxy
@pytest.mark.parametrize("level", ["admin", "operator", "user"])
async def test_every_socket_tells_its_level(runner: asyncio.Runner, programs: Programs, level: str) -> None:
    """Management guide, section 9.3, `show cli level`."""
    Site(programs, f"    stats socket {programs.directory}/other.sock mode 600 level {level}\n")

    assert await RuntimeApi(UnixAddress(f"{programs.directory}/other.sock")).level() == level


@with_haproxy
async def test_over_tcp(runner: asyncio.Runner, programs: Programs) -> None:
    port = free_port()
    site = Site(programs, f"    stats socket {LOCALHOST}:{port} level admin\n")
    new = bundle("a.test")

    await RuntimeApi(TcpAddress(LOCALHOST, port)).set_certificate(site.path("a.pem"), new)

    assert site.sha1("a.pem") == new.leaf.sha1


@with_haproxy
async def test_the_master_processs_socket_is_none(runner: asyncio.Runner, directory: Path) -> None:
    """Management guide, section 9.4: its commands are others."""
    reader = RuntimeApi(UnixAddress(f"{directory}/master.sock"))
    server = await asyncio.start_unix_server(_master, f"{directory}/master.sock")
    try:
        error = await error_of(reader.certificate_names())
    finally:
        server.close()

    assert "master process" in str(error)
    assert error.reload_helps


async def _master(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"Unknown command. Please enter one of the following commands only:\n  help\n\n")
    writer.close()


# ---------------------------------------------------------------------------------------------------- nobody there


async def test_no_socket(runner: asyncio.Runner, directory: Path) -> None:
    error = await error_of(RuntimeApi(UnixAddress(f"{directory}/nothing.sock")).version())

    assert isinstance(error, RuntimeUnreachable)
    assert f"stats socket {directory}/nothing.sock level admin" in str(error)
    assert error.reload_helps


async def test_nobody_listens_any_more(runner: asyncio.Runner, directory: Path) -> None:
    """HAProxy does not remove its sockets when it ends."""
    path = directory / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    error = await error_of(RuntimeApi(UnixAddress(str(path))).version())

    assert "nobody listens" in str(error)
    assert not error.reload_helps


async def test_a_host_that_cannot_be_looked_up(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio, "open_connection", lost)

    error = await error_of(RuntimeApi(TcpAddress("haproxy.invalid", 1)).version())
    assert "cannot be looked up (Name or service not known)" in str(error)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EHOSTUNREACH], ids=os.strerror)
async def test_other_failures_to_connect(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Root, as which tests may run, is never denied."""

    async def denied(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio, "open_unix_connection", denied)
    error = await error_of(RuntimeApi(UnixAddress("/run/haproxy/admin.sock")).version())

    assert ("join HAProxy's group" in str(error)) == (number == errno.EACCES)
    assert isinstance(error, RuntimeUnreachable)


async def test_an_address_that_takes_no_connection(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_unix_connection", for_ever)
    monkeypatch.setattr(runtime_module, "CONNECT_SECONDS", 0.05)

    error = await error_of(RuntimeApi(UnixAddress("/run/haproxy/admin.sock")).version())
    assert "not there within 0.05 s" in str(error)


# ---------------------------------------------------------------------------------------------------- odd answers


async def test_the_whole_of_a_transaction(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    """What is sent, in its order; the script then plays HAProxy as well as the tests below need it."""
    await api.set_certificate(A, new)

    assert scripted.commands == [
        "show info",
        "show ssl cert",
        "show pools",
        f"set ssl cert {A} <<",
        f"show ssl cert *{A}",
        f"commit ssl cert {A}",
        f"show ssl cert {A}",
    ]
    assert scripted.held == {A: new.leaf.sha1, B: "BB"}


ABOUT_ANOTHER = b"The ongoing transaction is about 'certs/b.pem' but you are trying to set 'certs/a.pem'\n"
LOCKED = b"Can't update the certificate!\nOperations on certificates are currently locked!\n\n"

SET_ANSWERS: dict[str, tuple[object, str]] = {
    "closed": (b"", "closed without an answer"),
    "empty": (b"\n", "an empty answer"),
    "no empty line": (b"Transaction created for certificate certs/a.pem!\n", "half an answer"),
    "half a line": (b"Transaction crea", "half an answer"),
    "updated": (b"Transaction updated for certificate certs/a.pem!\n\n", "at the same moment"),
    "another's updated": (b"Transaction updated for certificate certs/b.pem!\n\n", "does not look at names"),
    "another's created": (b"Transaction created for certificate certs/b.pem!\n\n", "does not look at names"),
    "about another": (ABOUT_ANOTHER + b"Can't update certs/a.pem!\n\n", "at the same moment"),
    "locked": (LOCKED, "at this moment"),
    "denied": (b"Permission denied\n\n", "level admin"),
    "unreadable": (b"unable to load certificate from file 'a': x\nCan't update\n\n", "cannot reload or start"),
    "too big": (b"The payload is too big. Please change 'tune.cli.max-payload-size'\n\n", "max-payload-size"),
    "something": (b"Success!\n\n", "refuses the certificate"),
    "never": (HANG, "no whole answer within"),
}


@pytest.mark.parametrize(("answer", "words"), SET_ANSWERS.values(), ids=SET_ANSWERS)
async def test_whatever_else_is_answered_to_set_is_never_committed(
    runner: asyncio.Runner,
    scripted: ScriptedRuntime,
    api: RuntimeApi,
    new: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    answer: object,
    words: str,
) -> None:
    if answer is HANG:
        monkeypatch.setattr(runtime_module, "ANSWER_SECONDS", 0.3)
    scripted.script["set ssl cert"] = answer

    error = await error_of(api.set_certificate(A, new))

    assert words in str(error)
    assert not scripted.sent("commit")
    assert scripted.held == {A: "AA", B: "BB"}
    # Not another's, unless ours is in it.
    ours_is_in_another = "does not look at names" in words
    nothing_begun = isinstance(answer, bytes) and (
        b"ongoing transaction is about" in answer or answer.startswith(b"Permission denied")
    )
    expected = [] if nothing_begun else [f"abort ssl cert {B if ours_is_in_another else A}"]
    assert scripted.sent("abort") == expected


COMMIT_ANSWERS: dict[str, tuple[object, str]] = {
    "closed": (b"", "closed without an answer"),
    "empty": (b"\n", "an empty answer"),
    "no empty line": (b"Committing certs/a.pem.\nSuccess!\n", "half an answer"),
    "failed": (b"Committing certs/a.pem.\nout of memory.\nFailed!\n\n", "Failed!"),
    "nothing open": (b"No ongoing transaction! !\nCan't commit certs/a.pem!\n\n", "No ongoing transaction"),
    "not a line": (b"Success! or not\n\n", "Success! or not"),
    "never": (HANG, "no whole answer within"),
}


@pytest.mark.parametrize(("answer", "words"), COMMIT_ANSWERS.values(), ids=COMMIT_ANSWERS)
async def test_a_commit_that_is_not_a_success(
    runner: asyncio.Runner,
    scripted: ScriptedRuntime,
    api: RuntimeApi,
    new: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    answer: object,
    words: str,
) -> None:
    if answer is HANG:
        monkeypatch.setattr(runtime_module, "ANSWER_SECONDS", 0.3)
    scripted.script["commit ssl cert"] = answer

    assert words in str(await error_of(api.set_certificate(A, new)))
    assert scripted.commands[-1] == f"abort ssl cert {A}"
    assert scripted.transaction is None


async def test_another_certificate_in_the_transaction_than_ours(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    """Another program's `set` between ours and the commit, on a version that does not look at names."""
    scripted.next_sha1 = "CC"

    error = await error_of(api.set_certificate(A, new))

    assert "does another program change certificates there?" in str(error)
    assert not scripted.sent("commit")
    assert scripted.sent("abort") == [f"abort ssl cert {A}"]


async def test_success_that_is_not_seen_is_none(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script["commit ssl cert"] = b"Committing certs/a.pem.\nSuccess!\n\n"

    error = await error_of(api.set_certificate(A, new))

    assert f"under {A} there is the one of test issuer with serial 0a" in str(error)


async def test_a_transaction_that_could_not_be_aborted(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script |= {"commit ssl cert": b"No.\n\n", "abort ssl cert": b""}

    error = await error_of(api.set_certificate(A, new))

    assert "its transaction may still be open: " in str(error)
    assert error.reload_helps


async def test_an_answer_without_end(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "MAX_REPLY_BYTES", 1 << 20)
    scripted.script["show ssl cert"] = ENDLESS

    assert "without end" in str(await error_of(api.certificate_names()))


@pytest.mark.parametrize("ask", [RuntimeApi.certificate_names, RuntimeApi.process, RuntimeApi.bufsize])
async def test_something_else_than_haproxy(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, ask: Callable[[RuntimeApi], Any]
) -> None:
    scripted.script["show "] = b"+OK \x1b[1m\n\n"

    if ask is RuntimeApi.bufsize:
        assert await ask(api) == runtime_module.DEFAULT_BUFSIZE
    else:
        assert '"+OK ?[1m" to `show ' in str(await error_of(ask(api)))


async def test_a_certificate_that_is_told_of_in_another_way(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi
) -> None:
    scripted.script["show ssl cert"] = b"Certificate: yes\n\n"

    assert "Certificate: yes" in str(await error_of(api.certificate(A)))


async def test_the_old_process_of_a_reload_is_left_alone(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    """What it is told is forgotten with it."""
    scripted.script["show info"] = b"Version: 3.2.1\nPid: 7\nStopping: 1\n\n"

    assert "old process of a reload" in str(await error_of(api.set_certificate(A, new)))
    assert scripted.commands == ["show info"]


async def test_a_version_with_dynamic_payloads_has_no_limit_of_ours(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, scripted_long: Bundle
) -> None:
    """Since 3.4 (tune.cli.max-payload-size)."""
    scripted.script["show info"] = b"Name: HAProxy\nVersion: 3.4.0-1\nPid: 7\nStopping: 0\n\n"

    await api.set_certificate(A, scripted_long)

    assert scripted.held[A] == scripted_long.leaf.sha1
    assert not scripted.sent("show pools")


@pytest.fixture
def scripted_long(scripted: ScriptedRuntime) -> Bundle:
    made = bundle("a.test", rsa=True, chain=30)
    scripted.next_sha1 = made.leaf.sha1
    return made


async def test_a_version_without_a_number_is_an_old_one(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, scripted_long: Bundle
) -> None:
    scripted.script["show info"] = b"Version: dev\nPid: 7\n\n"

    assert (await api.process()).release == (0, 0)
    assert "tune.bufsize" in str(await error_of(api.set_certificate(A, scripted_long)))
    assert not scripted.sent("set")


async def test_a_pem_with_an_empty_line_is_not_sent(
    runner: asyncio.Runner,
    scripted: ScriptedRuntime,
    api: RuntimeApi,
    new: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an empty line HAProxy runs the rest as commands: lines of the private key."""
    monkeypatch.setattr(Bundle, "pem", property(lambda _: b"certificate\n\r\nkey\n"))

    error = await error_of(api.set_certificate(A, new))

    assert "empty line" in str(error)
    assert "key\n" not in str(error)
    assert not scripted.sent("set")


@pytest.mark.parametrize("name", ["", "a\nshow env", "a\x00"])
async def test_names_that_no_command_can_have(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, name: str
) -> None:
    assert "cannot be said" in str(await error_of(api.certificate(name)))
    assert scripted.commands == []


# ---------------------------------------------------------------------------------------------------- adding


async def test_all_is_undone_when_the_crt_list_takes_it_not(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script["add ssl crt-list"] = b"Can't edit the crt-list: Not enough memory!\n\n"

    await error_of(api.add_certificate("certs", NEW, new))

    assert scripted.commands[-2:] == [f"del ssl crt-list certs {NEW}", f"del ssl cert {NEW}"]
    assert NEW not in scripted.held


async def test_nothing_is_deleted_that_was_there_before(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.held[NEW] = ""
    scripted.script["add ssl crt-list"] = b"Can't edit the crt-list: Not enough memory!\n\n"

    await error_of(api.add_certificate("certs", NEW, new))

    assert not scripted.sent("del")


async def test_one_that_is_in_the_directory_already(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.held[NEW] = "DD"
    scripted.used.add(NEW)
    scripted.script["add ssl crt-list"] = b"Can't edit the crt-list: file already exists in this directory!\n\n"

    await api.add_certificate("certs", NEW, new)

    assert scripted.held[NEW] == new.leaf.sha1


async def test_a_crt_list_that_no_bind_line_has(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script["add ssl crt-list"] = b"Inserting certificate 'x' in crt-list 'certs'.\nSuccess!\n\n"

    error = await error_of(api.add_certificate("certs", NEW, new))

    assert "no bind line uses" in str(error)
    assert error.reload_helps
    assert NEW not in scripted.held


async def test_a_name_that_has_come_up_meanwhile_is_not_deleted(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script["new ssl cert"] = b"Certificate 'certs/new.pem' already exists!\n\n"

    assert "already exists" in str(await error_of(api.add_certificate("certs", NEW, new)))
    assert not scripted.sent("del")


# ---------------------------------------------------------------------------------------------------- cancelled


async def when_received(scripted: ScriptedRuntime, beginning: str) -> None:
    while not scripted.sent(beginning):
        scripted.received.clear()
        await scripted.received.wait()


@pytest.mark.parametrize("last", ["set ssl cert", "show ssl cert *", "commit ssl cert"])
async def test_a_cancelled_transaction_is_aborted(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle, last: str
) -> None:
    scripted.script[last] = HANG
    task = asyncio.get_running_loop().create_task(api.set_certificate(A, new))
    await when_received(scripted, last)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert scripted.sent("abort") == [f"abort ssl cert {A}"]


async def test_cancelled_twice_is_aborted_all_the_same(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    """The second comes while the abort is under way."""
    goes_on = asyncio.Event()
    scripted.script["commit ssl cert"] = HANG
    task = asyncio.get_running_loop().create_task(api.set_certificate(A, new))
    await when_received(scripted, "commit")
    honest = scripted._answer

    async def slowly(command: str, writer: asyncio.StreamWriter) -> None:
        if command.startswith("abort"):
            await goes_on.wait()
        await honest(command, writer)

    scripted._answer = slowly  # type: ignore[method-assign]
    task.cancel()
    await when_received(scripted, "abort")
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert scripted.transaction is None


async def test_cancelled_while_it_is_added_undoes_all(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script["add ssl crt-list"] = HANG
    task = asyncio.get_running_loop().create_task(api.add_certificate("certs", NEW, new))
    await when_received(scripted, "add ssl crt-list")

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert NEW not in scripted.held


async def test_waiting_for_ones_turn_can_be_cancelled(
    runner: asyncio.Runner, scripted: ScriptedRuntime, api: RuntimeApi, new: Bundle
) -> None:
    scripted.script["commit ssl cert"] = HANG
    loop = asyncio.get_running_loop()
    first = loop.create_task(api.set_certificate(A, new))
    await when_received(scripted, "commit")
    second = loop.create_task(RuntimeApi(scripted.address).set_certificate(B, new))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not scripted.sent(f"set ssl cert {B}")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


@with_haproxy
async def test_haproxy_is_killed_between_set_and_commit(
    runner: asyncio.Runner, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RuntimeApi._must_have

    async def killed(self: RuntimeApi, name: str, wanted: Bundle) -> None:
        await original(self, name, wanted)
        if name.startswith("*"):
            site.haproxy.kill()

    monkeypatch.setattr(RuntimeApi, "_must_have", killed)
    error = await error_of(site.api.set_certificate(site.path("a.pem"), bundle("a.test")))

    assert isinstance(error, RuntimeUnreachable)
    assert "nobody listens" in str(error)
