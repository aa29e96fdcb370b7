"""What runs in the demo, one program after the other: started, asked, and given back."""

from __future__ import annotations

import shutil
import socket
import stat
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from sniproxy.app.demo import setup as demo_setup
from sniproxy.app.demo.files import NAME
from sniproxy.app.demo.programs import StepFailed
from sniproxy.app.demo.setup import Metrics, Setup
from tests.support.demo import needs_programs, processes_of, stub


@pytest.fixture
def temporary(monkeypatch):
    """A directory for temporary files that has to be empty in the end; short, for the sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    left = sorted(path.iterdir())
    shutil.rmtree(path, ignore_errors=True)
    assert not left
    assert not processes_of(path)


def setup(**options):
    return Setup(**{"keep": False, "validity_seconds": 90, "start_seconds": 40, **options})


# ---------------------------------------------------------------------- it works


@needs_programs
def test_each_program_is_started_and_ended(temporary):
    with setup() as subject:
        assert subject.start_ca(NAME).startswith("https://127.0.0.1:")
        assert b"BEGIN CERTIFICATE" in subject.ca_file.read_bytes()
        proxy = subject.start_proxy()
        assert subject.proxy is proxy
        assert subject.bundle.exists(), "HAProxy does not start with an empty directory"
        haproxy, version = subject.start_haproxy()
        assert subject.haproxy is haproxy
        assert version[0].isdigit()
        assert [program.name for program in subject.programs] == [
            "pebble-challtestsrv",
            "pebble",
            "sniproxy",
            "haproxy",
        ]
        subject.must_live()
        assert subject.metrics().sum("sniproxy_build_info") == 1
        assert {words.partition(":")[0] for words in subject.words()} >= {"pebble", "pebble-challtestsrv"}
        assert subject.certificate()["name"] == NAME
        assert "example.com" in subject.command("explain", "--sni", "example.com")
        haproxy.kill()
        with pytest.raises(StepFailed, match="haproxy was ended by signal 9"):
            subject.must_live()


@needs_programs
def test_its_directory_is_for_nobody_else(temporary):
    with setup() as subject:
        assert stat.S_IMODE(subject.directory.stat().st_mode) == 0o700
        subject.start_ca(NAME)
        subject.start_proxy()
        private = [subject.bundle.parent, subject.directory / "state", subject.directory / "pebble"]
        assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o700] * 3


@needs_programs
def test_a_command_that_fails_is_quoted(temporary):
    with setup() as subject:
        subject.start_ca(NAME)
        with pytest.raises(StepFailed, match="sniproxy healthcheck exits with 1") as caught:
            subject.command("healthcheck")
        assert caught.value.words[0].startswith("sniproxy healthcheck: ")


@needs_programs
def test_log_lines_are_those_from_now_on(temporary):
    with setup() as subject:
        subject.start_ca(NAME)
        subject.start_proxy()
        lines = subject.log_lines()
        assert next(lines) == []
        with subject.proxy.output.open("a") as output:
            output.write("127.0.0.4:1234 GET / HTTP/1.1 200 910 id\na line\n")
        assert ("sniproxy", "a line") in next(lines)
        lines.close()


@needs_programs
def test_kept_files_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    with setup(keep=True) as subject:
        subject.start_ca(NAME)
    try:
        assert subject.config_file.exists()
        assert not processes_of(subject.directory)
    finally:
        shutil.rmtree(subject.directory)


# ---------------------------------------------------------------------- it does not


@needs_programs
def test_a_port_that_is_taken_is_in_sniproxys_own_words(temporary):
    with closing(socket.create_server(("127.0.0.1", 0))) as other, setup() as subject:
        subject.port = other.getsockname()[1]
        subject.start_ca(NAME)
        with pytest.raises(StepFailed, match="sniproxy ended with exit status 1") as caught:
            subject.start_proxy()
        (words,) = caught.value.words
        assert words.startswith(f"sniproxy: cannot listen on 127.0.0.1:{subject.port}: Address already in use")


@needs_programs
def test_a_mistake_in_haproxy_cfg_is_in_haproxys_own_words(temporary, monkeypatch):
    monkeypatch.setattr(demo_setup, "HAPROXY_CFG", "frontend https\n    bindd {directory}\n")
    with setup() as subject, pytest.raises(StepFailed, match="haproxy ended with exit status 1") as caught:
        subject.start_haproxy()
    assert any("unknown keyword 'bindd'" in line and line.startswith("haproxy: ") for line in caught.value.words)


@needs_programs
def test_haproxy_that_never_listens_is_not_waited_for_forever(temporary, monkeypatch, tmp_path):
    for name, value in stub(tmp_path, 'test "$1" = -v && echo version 2.6.0 && exit; exec sleep 60').items():
        monkeypatch.setenv(name, value)
    with setup(start_seconds=0.2) as subject, pytest.raises(StepFailed, match=r"does not listen on .* after 0.2 s"):
        subject.start_haproxy()


def test_without_programs_nothing_is_made(temporary, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sniproxy.app.demo.programs.MORE_PATH", "/nonexistent")
    with pytest.raises(StepFailed, match="apt-get install haproxy pebble"):
        setup()
    assert not list(temporary.iterdir())


# ---------------------------------------------------------------------- metrics


TEXT = """\
# HELP sniproxy_connections_total Accepted connections that are over, by how they ended.
# TYPE sniproxy_connections_total counter
sniproxy_connections_total{backend="haproxy",outcome="relayed"} 12.0
sniproxy_connections_total{backend="<ACME>",outcome="challenge"} 3.0
sniproxy_connections_total{backend="haproxy",outcome="backend_unreachable"} 0.0
sniproxy_connections_active 2.0
sniproxy_certificate_renew_at_timestamp_seconds{certificate="www.demo.test"} 1.795577862e+09
"""


def test_samples_of_a_metric():
    metrics = Metrics(TEXT)
    assert metrics.samples("sniproxy_connections_active") == {"": 2}
    assert metrics.sum("sniproxy_connections_total") == 15
    assert metrics.sum("sniproxy_connections_total", 'backend="haproxy"', 'outcome="relayed"') == 12
    assert metrics.sum("sniproxy_certificate_renew_at_timestamp_seconds") == 1795577862
    assert metrics.sum("sniproxy_connections") == 0
