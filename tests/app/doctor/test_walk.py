"""The whole way a certificate takes, on a whole site that is in order, and with one thing wrong at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sniproxy.acme.ordering import Wanted
from sniproxy.app.certificates import UnknownCertificate
from sniproxy.app.doctor import walk as doctor
from sniproxy.app.doctor.diagnosis import Diagnosis, Verdict, failed, good, skipped
from sniproxy.app.doctor.walk import Options, chosen, examine, judged
from sniproxy.config import parse
from sniproxy.model import CertificateStatus, TcpAddress, UnixAddress
from tests.support import haproxy, pebble
from tests.support.processes import LOCALHOST, Programs, Sniproxy, free_port, has_ipv6, until
from tests.support.site import NAMES, Site

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
with_site = pytest.mark.skipif(
    haproxy.HAPROXY is None or not pebble.AVAILABLE, reason=f"{haproxy.MISSING}, or {pebble.MISSING}"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


class Told:
    """What would be shown."""

    def __init__(self):
        self.sections: list[str] = []
        self.titles: list[str] = []
        self.diagnoses: list[Diagnosis] = []

    def section(self, title):
        self.sections.append(title)

    def doing(self, title):
        self.titles.append(title)
        return contextlib.nullcontext()

    def found(self, diagnosis):
        self.diagnoses.append(diagnosis)


# -- which certificates


def wanted(name, *names):
    return Wanted(
        name=name, names=names, key_type="ecdsa-p256", challenges=("http-01",), profile="", preferred_chain=""
    )


A, B = wanted("a", "a.test", "www.a.test"), wanted("b", "b.test", "www.a.test")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], {"a": ("a.test", "www.a.test"), "b": ("b.test", "www.a.test")}),
        (["a"], {"a": ("a.test", "www.a.test")}),
        (["b.test"], {"b": ("b.test",)}),
        (["www.a.test"], {"a": ("www.a.test",), "b": ("www.a.test",)}),
        (["a", "www.a.test"], {"a": ("a.test", "www.a.test"), "b": ("www.a.test",)}),
    ],
)
def test_certificates_by_their_name_or_one_in_them(names, expected):
    assert {each.name: each.names for each in chosen((A, B), names)} == expected


def test_a_name_that_nothing_has():
    with pytest.raises(UnknownCertificate, match="no certificate called c, nor for it; there is a, b"):
        chosen((A, B), ["a", "c"])


# -- the certificate there is


def status(**more):
    facts = {
        "issuer": "CA 1",
        "serial": "00",
        "not_before": NOW - timedelta(days=10),
        "not_after": NOW + timedelta(days=80),
        "renew_at": NOW + timedelta(days=50),
        "reason": "lifetime",
        "deployed": True,
        "next_attempt": NOW + timedelta(days=50),
    }
    return CertificateStatus(name="a", names=("a.test",), **facts | more)


NONE = {"issuer": None, "serial": None, "not_before": None, "not_after": None, "deployed": False, "next_attempt": NOW}


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        ({}, Verdict.GOOD, "by CA 1, until 2027-02-13 12:00 UTC, 80 days left; the next one at 2027-01-14 12:00 UTC"),
        ({"not_after": NOW + timedelta(hours=1)}, Verdict.GOOD, "1.0 hours left"),
        ({"not_after": NOW - timedelta(hours=1)}, Verdict.FAILED, "over since 2026-11-25 11:00 UTC"),
        ({"not_after": NOW, "last_error": "the CA's words"}, Verdict.FAILED, ": the CA's words"),
        ({"last_error": "rateLimited: no"}, Verdict.WARNING, "rateLimited: no"),
        ({"deployed": False}, Verdict.WARNING, "not proven to be served"),
        ({"names": ("b.test",)}, Verdict.WARNING, "for other names: b.test"),
        (NONE, Verdict.WARNING, "none yet"),
        (NONE | {"last_error": "dns: no"}, Verdict.FAILED, "none yet: dns: no"),
    ],
)
def test_what_is_said_of_it(facts, verdict, words):
    facts = dict(facts)
    names = facts.pop("names", ("a.test",))
    one = status(**facts)
    found = judged(one, names, NOW, is_delivered=True)
    assert found.verdict == verdict
    if names == ("a.test",):
        assert words in found.found
    else:
        assert "for other names: a.test" in found.found
    assert bool(found.advice) == (verdict != Verdict.GOOD)


def test_one_that_stays_in_the_store():
    assert judged(status(deployed=False), ("a.test",), NOW, is_delivered=False).verdict == Verdict.GOOD


def test_a_second_choice_that_fails_may_wait():
    """One proof is enough (RFC 8555 section 7.5.1)."""
    found = doctor._second_choice(failed("http-01", "no", "do this"))
    assert found.verdict == Verdict.WARNING
    assert found.advice.endswith(": do this")
    assert doctor._second_choice(good("http-01", "yes")) == good("http-01", "yes")
    assert doctor._second_choice(skipped("http-01", "who knows")).verdict == Verdict.SKIPPED


# -- a whole site


@pytest.fixture(scope="module")
def site():
    """In order, with a certificate that is served. Tests put back what they change."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        programs = Programs(Path(name))
        try:
            site = Site(programs=programs).start()
            site.await_deployed()
            yield site
        finally:
            programs.end()


@pytest.fixture
def dns(site):
    dns = site.programs.started[0]
    yield dns
    for name in NAMES:
        dns.clear(name)


def options(site, **more):
    defaults = {
        "connect": TcpAddress(LOCALHOST, site.port),
        "connect_http": TcpAddress(LOCALHOST, site.http_port),
        "nameserver": TcpAddress(LOCALHOST, site.programs.started[0].port),
    }
    return Options(**defaults | more)


async def walked(site, names=(), config=None, **more):
    """What was told, by step and what it is about; failures have to say what to do."""
    told = Told()
    parsed = parse(site.configuration() if config is None else config, file="doctor.toml")
    found = await examine(parsed, names, options(site, **more), told)
    assert found == told.diagnoses
    assert all(each.advice for each in found if each.verdict in (Verdict.FAILED, Verdict.WARNING))
    return told


def of(told, step):
    return [each for each in told.diagnoses if each.step == step]


def failures(told):
    return {(each.step, each.about.partition(" ")[0]) for each in told.diagnoses if each.verdict == Verdict.FAILED}


def files_of(directory):
    """Their paths and contents, without what the running proxy writes from time to time."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "state.json")
    return {path: path.read_bytes() for path in paths}


@with_site
async def test_all_is_well(runner, site):
    kept = {directory: files_of(directory) for directory in (site.state, site.certificates)}
    told = await walked(site)
    assert {each.verdict for each in told.diagnoses} == {Verdict.GOOD}, told.diagnoses
    assert told.sections == [NAMES[0], "HAProxy"]
    steps = ["proxy", "store", "directory", "account", "clock", "certificate"]
    steps += ["dns", "caa", "tls-alpn-01", "http-01"] * 2
    assert [each.step for each in told.diagnoses] == [*steps, "bundles", "socket", "verify"]
    assert {directory: files_of(directory) for directory in kept} == kept, "nothing was changed"


@with_site
async def test_one_name(runner, site):
    told = await walked(site, [NAMES[1]])
    assert [each.about for each in of(told, "dns")] == [NAMES[1]]
    assert told.sections == [NAMES[0], "HAProxy"]


@with_site
async def test_another_server_listens_on_443(runner, site):
    """HAProxy itself, which knows nothing of validations."""
    port = free_port()
    other = haproxy.Haproxy(
        f"defaults\n    timeout client 5s\n    timeout server 5s\n    timeout connect 5s\n    mode http\n"
        f"frontend other\n    bind {LOCALHOST}:{port} ssl crt {site.bundle()}\n    http-request return status 200\n",
        site.directory,
        name="other",
    )
    try:
        other.await_ready()
        told = await walked(site, [NAMES[0]], connect=TcpAddress(LOCALHOST, port))
    finally:
        other.kill()
    assert failures(told) == {("tls-alpn-01", NAMES[0])} | {("tls-alpn-01", NAMES[1])}
    assert "does HAProxy itself listen" in of(told, "tls-alpn-01")[0].advice
    assert {each.verdict for each in of(told, "http-01")} == {Verdict.GOOD}


@with_site
async def test_port_80_is_closed(runner, site):
    """The first choice works, and so does the next order."""
    told = await walked(site, [NAMES[1]], connect_http=TcpAddress(LOCALHOST, free_port()))
    (http,) = of(told, "http-01")
    assert http.verdict == Verdict.WARNING
    assert failures(told) == set()


@with_site
async def test_both_ports_are_closed(runner, site):
    closed = TcpAddress(LOCALHOST, free_port())
    told = await walked(site, [NAMES[1]], connect=closed, connect_http=closed)
    assert failures(told) == {("tls-alpn-01", NAMES[1]), ("http-01", NAMES[1])}


@with_site
async def test_a_zone_that_does_not_answer(runner, site, dns):
    dns.servfail(NAMES[1])
    told = await walked(site, connect=None)
    assert failures(told) >= {("dns", NAMES[1]), ("caa", NAMES[1])}
    assert ("dns", NAMES[0]) not in failures(told)
    skips = [each for each in told.diagnoses if each.verdict == Verdict.SKIPPED]
    assert [each.found for each in skips] == ["there is no address to connect to"]


@with_site
async def test_caa_records_of_a_ca_that_does_not_say_who_it_is(runner, site, dns):
    """Pebble has no caaIdentities."""
    dns.add_caa(NAMES[0], "letsencrypt.org; validationmethods=http-01")
    told = await walked(site, [NAMES[0]])
    caa = of(told, "caa")[0]
    assert caa.verdict == Verdict.WARNING
    assert 'issue "letsencrypt.org; validationmethods=http-01"' in caa.found


@pytest.mark.skipif(not has_ipv6(), reason="needs ::1")
@with_site
async def test_an_aaaa_record_and_no_ipv6(runner, site, dns, monkeypatch):
    """The classic; and where something else listens on IPv6 and passes connections on, it is none."""
    monkeypatch.setattr(doctor, "TLS_PORT", site.port)
    dns.add_aaaa(NAMES[0], "::1")
    config = site.configuration().replace("[acme]", '[acme]\nchallenges = ["tls-alpn-01"]')
    told = await walked(site, [NAMES[0]], config=config, connect=None)
    assert ("dns", NAMES[0]) in failures(told)
    reached = {each.about.partition(" at ")[2]: each.verdict for each in of(told, "tls-alpn-01")}
    assert reached[f"[::1]:{site.port}"] == Verdict.FAILED
    assert reached[f"{LOCALHOST}:{site.port}"] == Verdict.GOOD

    async with passing_on("::1", site.port):
        told = await walked(site, [NAMES[0]], config=config, connect=None)
    assert failures(told) == set()
    assert of(told, "dns")[0].verdict == Verdict.WARNING


@contextlib.asynccontextmanager
async def passing_on(host, port):
    """Connections to the same port of 127.0.0.1."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.write_eof()

    async def serve(reader, writer):
        further, back = await asyncio.open_connection(LOCALHOST, port)
        writers.extend((writer, back))
        with contextlib.suppress(OSError):
            await asyncio.gather(copy(reader, back), copy(further, writer))

    server = await asyncio.start_server(serve, host, port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@with_site
async def test_another_directory(runner, site):
    url = f"https://{LOCALHOST}:{free_port()}/dir"
    told = await walked(site, [NAMES[0]], config=site.configuration().replace(site.pebble.directory_url, url))
    assert ("directory", "") in failures(told)
    assert {each.step for each in told.diagnoses if each.verdict == Verdict.SKIPPED} == {"account", "clock"}
    assert {each.verdict for each in of(told, "tls-alpn-01")} == {Verdict.GOOD}, "the rest is looked at all the same"


@with_site
async def test_a_file_that_was_changed_since_the_start(runner, site):
    site.settings["certificates"] = '[[certificates]]\nnames = ["new.example.test"]\n'
    try:
        told = await walked(site)
    finally:
        del site.settings["certificates"]
    (proxy,) = of(told, "proxy")
    assert proxy.verdict == Verdict.WARNING
    assert f"new.example.test, {NAMES[0]}" in proxy.found
    (certificate,) = of(told, "certificate")
    assert certificate.found == "none yet"
    assert {each.verdict for each in of(told, "tls-alpn-01")} == {Verdict.GOOD}, "a name that is new can be proven"


@with_site
async def test_no_proxy_is_running(runner, site):
    config = site.configuration().replace(str(site.control), f"{site.directory}/none.sock")
    told = await walked(site, config=config)
    assert failures(told) == {("proxy", "")}
    assert {each.step for each in told.diagnoses if each.verdict == Verdict.SKIPPED} == {"tls-alpn-01", "http-01"}
    assert of(told, "certificate")[0].verdict == Verdict.GOOD, "from the store"


@with_site
async def test_a_proxy_that_cannot_be_asked(runner, site):
    config = site.configuration().replace(str(site.control), "")
    told = await walked(site, config=config)
    assert failures(told) == set()
    assert of(told, "proxy")[0].verdict == Verdict.WARNING
    assert {each.verdict for each in of(told, "tls-alpn-01")} == {Verdict.SKIPPED}


@with_site
async def test_names_below_acme_invalid_cannot_be_tried(runner, site):
    config = site.configuration().replace("[acme]", '[acme]\nchallenges = ["tls-sni-01"]')
    told = await walked(site, config=config)
    assert {each.verdict for each in of(told, "tls-sni-01")} == {Verdict.SKIPPED}


@with_site
async def test_a_broken_file_stays_where_it_is(runner, site):
    (state,) = site.state.glob("certificates/*/state.json")
    content = state.read_bytes()
    state.write_bytes(b"{")
    try:
        told = await walked(site)
        assert state.read_bytes() == b"{"
    finally:
        state.write_bytes(content)
    assert f"{state} is broken" in of(told, "store")[0].found


@with_site
async def test_without_haproxy(runner, site):
    config = site.configuration()
    start, end = config.index("[haproxy]"), config.index("[hooks]")
    told = await walked(site, config=config[:start] + config[end:])
    (last,) = (each for each in told.diagnoses if each.step == "haproxy")
    assert last.verdict == Verdict.SKIPPED


@with_site
async def test_no_proof_is_wanted(runner, site):
    config = site.configuration().replace("[haproxy]", '[haproxy]\nverify = "off"')
    assert of(await walked(site, config=config), "verify")[0].verdict == Verdict.SKIPPED


@with_site
@needs_root
async def test_the_user_of_the_configuration_may_not(runner, site):
    """What root can do says nothing."""
    config = site.configuration().replace("[proxy]", '[proxy]\nuser = "nobody"')
    told = await walked(site, config=config)
    assert {("store", ""), ("bundles", "")} <= failures(told)
    assert os.geteuid() == 0


@with_site
@needs_root
async def test_a_user_that_this_machine_does_not_have(runner, site):
    config = site.configuration().replace("[proxy]", '[proxy]\nuser = "nosuch-user"')
    told = await walked(site, config=config)
    assert ("proxy", "") in failures(told)


@with_site
async def test_what_is_shown_cannot_be_shown(runner, site):
    """`sniproxy doctor | head`: no group of exceptions."""

    class Closed(Told):
        def found(self, diagnosis):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await examine(parse(site.configuration(), file="doctor.toml"), (), options(site), Closed())


# -- on a machine with less


@pytest.fixture
def bare(tmp_path):
    """A configuration of which nothing is there: no CA, no proxy, no HAProxy, no directory."""
    port = free_port()
    return parse(
        f"""
[proxy]
listen = ["{LOCALHOST}:{free_port()}"]
[backends.haproxy]
servers = ["unix:{tmp_path}/haproxy.sock"]
[admin]
control_socket = "{tmp_path}/control.sock"
[acme]
directory = "https://{LOCALHOST}:{port}/dir"
agree_to_terms = true
state_dir = "{tmp_path}/state"
[[certificates]]
names = ["www.example.test", "192.0.2.1"]
[haproxy]
certificate_dir = "{tmp_path}/certs"
runtime_sockets = ["{tmp_path}/admin.sock"]
""",
        file="bare.toml",
    )


@pytest.fixture
def nothing(monkeypatch):
    """A name server that says nothing, to somebody who does not wait."""
    monkeypatch.setattr("sniproxy.app.doctor.dns_records.SERVER_SECONDS", 0.05)
    monkeypatch.setattr("sniproxy.app.doctor.dns_records.LOOKUP_SECONDS", 0.05)
    return Options(nameserver=TcpAddress(LOCALHOST, 1))


async def test_nothing_is_there_yet(runner, bare, nothing, tmp_path):
    """Every step says so, and none ends the rest."""
    told = Told()
    await examine(bare, (), nothing, told)
    assert failures(told) == {
        ("proxy", ""),
        ("directory", ""),
        ("dns", "www.example.test"),
        ("caa", "www.example.test"),
        ("socket", f"unix:{tmp_path}/admin.sock"),
        ("verify", "www.example.test"),
    }
    assert list(tmp_path.iterdir()) == []


async def test_a_step_that_the_machine_does_not_allow(runner, bare, nothing, monkeypatch):
    """An error of the kernel that nobody has thought of, and a disk that hangs."""

    def fails(*_, **__):
        raise OSError(5, "Input/output error", "/state")

    async def late(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(doctor, "check_store", fails)
    monkeypatch.setattr(doctor, "check_socket", late)
    told = Told()
    await examine(bare, (), nothing, told)
    assert of(told, "store")[0].found == "/state: Input/output error"
    assert of(told, "socket")[0].found == "took too long"
    assert len(of(told, "verify")) == 1


@needs_root
def test_the_user_that_a_service_manager_has_chosen():
    """No proxy.user here, as the unit has it: the running process tells."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        programs = Programs(directory)
        admin = free_port()
        text = f"""
[proxy]
listen = ["{LOCALHOST}:{free_port()}"]
user = "nobody"
[backends.haproxy]
servers = ["{LOCALHOST}:1"]
[admin]
listen = "{LOCALHOST}:{admin}"
control_socket = "{directory}/control.sock"
"""
        try:
            program = doctor_program(programs, text, admin)
            until(lambda: uid_of(program.pid) == nobody.pw_uid, "it is nobody", program)
            found = doctor._identity_of(UnixAddress(f"{directory}/control.sock"))
        finally:
            programs.end()
    assert found is not None
    assert (found.uid, found.gid) == (nobody.pw_uid, nobody.pw_gid)
    assert doctor._identity_of(UnixAddress(f"{directory}/control.sock")) is None


def doctor_program(programs, text, admin):
    program = Sniproxy(text, programs.directory)
    program.admin_port = admin
    return programs.start(program)


def uid_of(pid):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:"))
    return int(line.split()[2])
