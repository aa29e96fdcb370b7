"""What `sniproxy doctor` prints, how it exits, and that it does so on a real site."""

from __future__ import annotations

import json

import pytest

from sniproxy.app.certificates import UnknownCertificate
from sniproxy.app.doctor import walk as app
from sniproxy.app.doctor.diagnosis import failed, good, skipped, warning
from sniproxy.model import TcpAddress
from tests.cli.conftest import CONFIG
from tests.support import haproxy, pebble
from tests.support.processes import LOCALHOST
from tests.support.site import NAMES, Site

WITH_CERTIFICATES = """
[acme]
agree_to_terms = true
[[certificates]]
names = ["www.example.com"]
"""
WELL = [good("proxy", "running"), good("dns", "192.0.2.1", about="www.example.com"), skipped("haproxy", "off")]


@pytest.fixture
def certificates(config):
    config.write_text(CONFIG + WITH_CERTIFICATES)
    return config


@pytest.fixture
def finds(monkeypatch):
    """What the next run finds; returns what it was asked."""

    def find(*found):
        asked: dict[str, object] = {}

        async def examine(config, names, options, show):
            asked.update(names=names, options=options)
            show.section("www.example.com")
            for diagnosis in found:
                if isinstance(diagnosis, Exception):
                    raise diagnosis
                with show.doing(diagnosis.step):
                    pass
                show.found(diagnosis)
            return list(found)

        monkeypatch.setattr(app, "examine", examine)
        return asked

    return find


def test_no_step_fails(sniproxy, certificates, finds):
    finds(*WELL)
    result = sniproxy("doctor", "-c", certificates)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == [
        "www.example.com",
        "  ✓ proxy        running",
        "  ✓ dns          www.example.com: 192.0.2.1",
        "  – haproxy      off",  # noqa: RUF001
    ]
    assert result.stderr == "doctor: no step fails\n"


def test_warnings_are_no_failures(sniproxy, certificates, finds):
    finds(*WELL, warning("clock", "90 s behind", "set it"))
    result = sniproxy("doctor", "-c", certificates)
    assert result.exit_code == 0
    assert result.stdout.endswith("  ! clock        90 s behind\n                 → set it\n")
    assert result.stderr == "doctor: no step fails; 1 warning\n"


def test_which_step_fails(sniproxy, certificates, finds):
    finds(*WELL, failed("store", "nobody may", "chown"))
    result = sniproxy("doctor", "-c", certificates)
    assert result.exit_code == 1
    assert result.stdout.endswith("  ✗ store        nobody may\n                 → chown\n")
    assert result.stderr == "doctor: 1 of 4 steps fails: store\n"


def test_several_fail(sniproxy, certificates, finds):
    finds(*WELL, *[failed("dns", "no", "do")] * 2, failed("caa", "no", "do"))
    assert sniproxy("doctor", "-c", certificates).stderr == "doctor: 3 of 6 steps fail: dns, caa\n"


def test_as_json(sniproxy, certificates, finds):
    finds(WELL[0], failed("dns", "no", "do", about="a.test"))
    result = sniproxy("doctor", "-c", certificates, "--json")
    assert result.exit_code == 1
    common = {"certificate": None}
    assert json.loads(result.stdout) == [
        {**common, "step": "proxy", "verdict": "good", "about": None, "found": "running", "advice": None},
        {**common, "step": "dns", "verdict": "failed", "about": "a.test", "found": "no", "advice": "do"},
    ]


def test_where_to_look(sniproxy, certificates, finds):
    asked = finds(*WELL)
    options = ("--connect", "10.0.0.1:8443", "--connect-http", "proxy.lan:8080", "--nameserver", "[::1]:53")
    assert sniproxy("doctor", "-c", certificates, *options, "www.example.com").exit_code == 0
    assert asked["names"] == ("www.example.com",)
    assert asked["options"] == app.Options(
        connect=TcpAddress("10.0.0.1", 8443),
        connect_http=TcpAddress("proxy.lan", 8080),
        nameserver=TcpAddress("::1", 53),
    )


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--connect", "10.0.0.1", "has no port"),
        ("--connect", "unix:/run/x.sock", "write HOST:PORT"),
        ("--connect-http", ":80", "name the machine to connect to"),
        ("--nameserver", "dns.example.com:53", "write an IP address"),
    ],
)
def test_what_is_no_address(sniproxy, certificates, option, value, words):
    result = sniproxy("doctor", "-c", certificates, option, value)
    assert result.exit_code == 2
    assert f"{option}: " in result.stderr
    assert words in result.stderr


def test_a_name_that_nothing_has(sniproxy, certificates, finds):
    finds(UnknownCertificate("there is no certificate called x"))
    result = sniproxy("doctor", "-c", certificates, "x")
    assert (result.exit_code, result.stderr) == (2, "there is no certificate called x\n")


def test_no_certificates_at_all(sniproxy, config):
    result = sniproxy("doctor", "-c", config)
    assert result.exit_code == 2
    assert "there are no [[certificates]]" in result.stderr


def test_a_mistaken_configuration(sniproxy, mistaken):
    assert sniproxy("doctor", "-c", mistaken).exit_code == 2


def test_stopped_before_the_end(sniproxy, certificates, monkeypatch):
    async def examine(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "examine", examine)
    result = sniproxy("doctor", "-c", certificates)
    assert (result.exit_code, result.stderr) == (1, "doctor: stopped before the end\n")


# -- a real site


@pytest.mark.skipif(haproxy.HAPROXY is None, reason=haproxy.MISSING)
@pytest.mark.skipif(not pebble.AVAILABLE, reason=pebble.MISSING)
def test_a_site_in_order_and_a_socket_that_is_not(programs):
    site = Site(programs=programs)
    site.start_ca()
    (dns, _) = programs.started
    site.start_sniproxy()
    site.await_bundle()
    site.start_haproxy(globals_=f"    stats socket {site.directory}/low.sock mode 600 level operator")
    site.await_deployed()
    where = ["--connect", f"{LOCALHOST}:{site.port}", "--connect-http", f"{LOCALHOST}:{site.http_port}"]
    where += ["--nameserver", dns.address]

    done = site.command("doctor", *where)
    assert done.returncode == 0, done.stdout
    assert done.stderr == "doctor: no step fails\n"
    assert all(line[2:3] == "✓" for line in done.stdout.splitlines() if line.startswith(" "))
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")][1:] == [NAMES[0], "HAProxy"]

    text = site.sniproxy.config.read_text()
    site.sniproxy.config.write_text(text.replace("haproxy.admin", "low.sock"))
    done = site.command("doctor", *where, "--json")
    assert done.returncode == 1
    (wrong,) = (each for each in json.loads(done.stdout) if each["verdict"] == "failed")
    assert wrong["step"] == "socket"
    assert "level operator" in wrong["found"]
    assert f"`stats socket {site.directory}/low.sock mode 660 level admin`" in wrong["advice"]
