"""`sniproxy demo` from start to end, with a real Pebble and a real HAProxy.

One run waits for a renewal on schedule as a user does, for half of 90 seconds. The others leave that step out, or have
certificates with a shorter life.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sniproxy.app.demo import files as demo_files
from sniproxy.app.demo import setup as demo_setup
from sniproxy.app.demo import story as demo_module
from sniproxy.app.demo.files import CLIENT, INTERNAL_NAME, NAME
from sniproxy.app.demo.programs import StepFailed, reserved_port
from sniproxy.app.demo.story import Demo
from sniproxy.config import load
from tests.support.demo import needs_programs, processes_of, stub

WHOLE = [sys.executable, "-m", "sniproxy", "demo"]
SHORT = """
import sys

import sniproxy.__main__
from sniproxy.app.demo.story import Demo

all_steps = Demo.steps.fget
Demo.steps = property(lambda self: tuple(step for step in all_steps(self) if step.title != "on schedule"))
sys.argv[0] = sniproxy.__main__.__file__
sniproxy.__main__.main()
"""
COMMAND = [sys.executable, "-c", SHORT, "demo"]
"""The same without the wait for a renewal."""

STEPS = 17


@pytest.fixture
def temporary():
    """A directory for temporary files that has to be empty in the end; short, for the sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield path
    left = sorted(path.iterdir())
    shutil.rmtree(path, ignore_errors=True)
    assert not left


def environment(temporary, **more):
    return {**os.environ, "TMPDIR": str(temporary), **more}


def run_once(temporary, *arguments, command=COMMAND, cwd=None, **more):
    return subprocess.run(
        [*command, "--once", *arguments],
        env=environment(temporary, **more),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


def wait_until(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@contextmanager
def running(temporary):
    """A demo that goes on; yields it with what it has printed so far, up to the live log."""
    # Not the dispositions of a background job, where INT is ignored.
    command = ["env", "--default-signal=INT,HUP,TERM", *COMMAND]
    with subprocess.Popen(
        command, env=environment(temporary), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            text = ""
            for line in child.stdout:
                text += line
                if "until Ctrl-C:" in line:
                    break
            assert "until Ctrl-C:" in text, text
            yield child, text
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait(40)


@contextmanager
def up_to(temporary, monkeypatch, *titles, **options):
    """A demo in this process, with everything done before the step of the last title; yields it with these steps."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with Demo(**{"start_seconds": 40, **options}) as demo:
        steps = {step.title: step for step in demo.steps}
        for step in demo.steps:
            if step.title == titles[0]:
                break
            if step.title not in ("renew", "on schedule"):
                demo.run(step)
        yield demo, *(steps[title] for title in titles)


# ---------------------------------------------------------------------- it works


@needs_programs
@pytest.mark.timeout(300)
def test_once_proves_everything_and_leaves_nothing(temporary):
    done = run_once(temporary, command=WHOLE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "a pipe gets plain text"
    lines = done.stdout.splitlines()
    assert "about 55 s" in lines[1]
    assert f"src {CLIENT}, req.ver 1.1, ssl_fc_sni {NAME}," in done.stdout
    assert f"fc_pp_authority {NAME}, fc_pp_unique_id " in done.stdout
    identity = done.stdout.partition("fc_pp_unique_id ")[2].split()[0]
    assert any(line.endswith(f"{{{NAME}|http/1.1}} {identity}") for line in lines), "the log line of the same id"
    assert "h2 chosen by ALPN" in done.stdout
    assert f"{INTERNAL_NAME} from 127.0.0.3 is refused" in done.stdout
    assert "alert TLSV1_ALERT_ACCESS_DENIED" in done.stdout
    assert re.search(r"\b[1-9]\d+ accepted = \d+ active \+ .*\d+ challenge", done.stdout)
    assert sum(line.startswith("  ✓ ") for line in lines) == STEPS
    assert lines[-2].startswith(f"All {STEPS} steps worked, in ")
    assert lines[-1] == "No process and no file is left."
    assert not processes_of(temporary)
    # Three certificates, one after the other, and what a client got each time.
    told = re.findall(r"serial ([0-9a-f]+), until \d\d:\d\d:\d\d UTC", done.stdout)
    assert len(told) == len(set(told)) == 3
    assert re.search(r"  … on schedule  the next renewal comes by itself, at .* UTC: in [1-4]\d s;", done.stdout)
    assert re.search(r"\b[1-9]\d{2,} requests, 0 failed, serials seen: 3 ", done.stdout)
    assert f"{NAME}: serial {told[-1]}, deployed, next renewal " in done.stdout
    assert re.search(r"\b[1-9]\d{2,} requests in all, 0 failed", done.stdout)


@needs_programs
def test_two_at_once(temporary):
    pair = [
        subprocess.Popen([*COMMAND, "--once"], env=environment(temporary), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [child.communicate(timeout=100)[0] for child in pair]
    assert [child.returncode for child in pair] == [0, 0], texts
    assert not processes_of(temporary)


@needs_programs
def test_odd_surroundings_are_no_failure(tmp_path):
    """An encoding without the tick; a place that no socket can be in; modules named as ours in the working directory."""
    place, beside = tmp_path / ("x" * 60), tmp_path / "beside"
    place.mkdir()
    for name in ("sniproxy", "click", "http", "acme"):
        (beside / name).mkdir(parents=True)
        (beside / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    command = [sys.executable, "-P", *COMMAND[1:]]
    done = run_once(place, command=command, cwd=beside, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "? metrics" in done.stdout
    assert not list(place.iterdir())


@needs_programs
def test_keep_leaves_the_files(tmp_path):
    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    try:
        done = run_once(place, "--keep")
        assert done.returncode == 0, done.stdout + done.stderr
        (directory,) = place.iterdir()
        assert f"Left in place: {directory}" in done.stdout
        names = {path.name for path in directory.iterdir()}
        assert names >= {"sniproxy.toml", "haproxy.cfg", "ca.pem", "certs", "page.html", "pebble", "state"}
        load(directory / "sniproxy.toml")
    finally:
        shutil.rmtree(place)
    assert not processes_of(place)


# ---------------------------------------------------------------------- it goes on


@needs_programs
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_removes_everything(temporary, number):
    with running(temporary) as (child, _):
        (directory,) = temporary.iterdir()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        child.send_signal(number)
        rest = child.stdout.read()
        assert child.wait(40) == 0, rest
    assert "✓ drain" in rest
    assert re.search(r"\d+ requests in all, 0 failed", rest)
    assert rest.endswith("No process and no file is left.\n")
    assert not processes_of(temporary)


@needs_programs
def test_the_commands_it_shows_work(temporary):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is missing: apt-get install curl")
    with running(temporary) as (child, text):
        commands = [line for line in text.splitlines() if line.startswith("curl ")]
        pages = [subprocess.run([*command.split(), "-s"], capture_output=True, text=True) for command in commands]
        assert [page.returncode for page in pages] == [0, 0, 35], pages
        assert '<th scope="row">req.ver</th><td>2.0</td>' in pages[0].stdout
        assert '<th scope="row">src</th><td>127.0.0.9</td>' in pages[1].stdout
        admitted = subprocess.run([*commands[2].split(), "-s", "--interface", CLIENT], capture_output=True, text=True)
        assert f"<td>{INTERNAL_NAME}</td>" in admitted.stdout

        def run(name):
            (line,) = [line for line in text.splitlines() if f" {name} -c " in line]
            done = subprocess.run(line.split(), capture_output=True, text=True)
            assert done.returncode == 0, done
            return done.stdout

        assert "backend  haproxy" in run("explain")
        assert "renewed, and served" in run("renew")
        assert NAME in run("certs")
        live = ""
        wanted = ("haproxy   127.0.0.9:", "sniproxy  127.0.0.9:", "HTTP/2.0 200", INTERNAL_NAME)
        renewed = r"\ntraffic   renewed: serial [0-9a-f]+, until .* UTC; \d+ requests so far, 0 failed\n"
        while not all(words in live for words in wanted) or not re.search(renewed, live):
            live += child.stdout.readline()
        assert " 127.0.0.4:" not in live, "the demo's own requests are not shown"


@needs_programs
def test_a_renewal_is_told_when_it_comes(temporary, monkeypatch):
    """By itself, when half of a life of 16 s is over."""
    with up_to(temporary, monkeypatch, "requests", validity_seconds=16) as (demo, _):
        told = demo.go_on()
        renewed = next(line for speaker, line in told if speaker == "traffic")
        assert re.fullmatch(
            r"renewed: serial [0-9a-f]+, until \d\d:\d\d:\d\d UTC; \d+ requests so far, 0 failed", renewed
        )
        told.close()


@needs_programs
def test_when_it_is_killed_everything_goes_with_it(temporary):
    with running(temporary) as (child, _):
        assert processes_of(temporary)
        child.kill()
        child.wait(40)
    wait_until(lambda: not processes_of(temporary) and not list(temporary.iterdir()))


@needs_programs
def test_a_program_that_ends_meanwhile_is_told(temporary):
    with running(temporary) as (child, text):
        (line,) = [line for line in text.splitlines() if line.startswith("  ✓ HAProxy ") and "as process" in line]
        os.kill(int(line.partition("as process ")[2].split()[0]), signal.SIGKILL)
        rest = child.stdout.read()
        assert child.wait(40) == 1
    assert "haproxy was ended by signal 9" in rest
    assert not processes_of(temporary)


def break_haproxy(directory):
    """From now on HAProxy takes no connection, as one does that is overloaded."""
    with closing(socket.socket(socket.AF_UNIX)) as runtime:
        runtime.connect(str(directory / "haproxy.admin"))
        runtime.sendall(b"shutdown frontend https\n")
        runtime.recv(4096)


@needs_programs
def test_a_request_that_fails_ends_it_with_what_to_do(temporary):
    with running(temporary) as (child, _):
        (directory,) = temporary.iterdir()
        break_haproxy(directory)
        rest = child.stdout.read()
        assert child.wait(40) == 1
    assert re.search(r"\d+ of \d+ requests failed; the first: \d\d:\d\d:\d\d", rest)
    assert "what to do: no request may fail while a certificate changes" in rest
    assert re.search(r"sniproxy: 127\.0\.0\.4:.* SC ", rest), "the log line of a request that failed"
    assert not processes_of(temporary)


@needs_programs
def test_a_guest_that_stays_is_cut_and_that_is_no_failure(temporary, monkeypatch):
    monkeypatch.setattr(demo_module, "DRAIN_SECONDS", 1)
    short = demo_files.SNIPROXY_TOML.replace('shutdown_grace = "5s"', 'shutdown_grace = "1s"')
    monkeypatch.setattr(demo_setup, "SNIPROXY_TOML", short)
    with (
        up_to(temporary, monkeypatch, "HTTP/1.1") as (demo, _),
        socket.create_connection(("127.0.0.1", demo.setup.port)),
    ):
        found = demo.run(demo.drain(guests=True))
    assert found.endswith("connections that did not end within 1 s were cut; exit status 3")


# ---------------------------------------------------------------------- it does not work


@needs_programs
def test_haproxy_that_refuses_is_quoted(temporary, tmp_path):
    words = "[ALERT]    (7) : Starting frontend https: cannot bind UNIX socket (Permission denied)"
    version = 'if [ "$1" = -v ]; then echo "HAProxy version 2.6.12-1 2023"; exit; fi\n'
    done = run_once(temporary, **stub(tmp_path, f"{version}echo '{words}' >&2; exit 1"))
    assert done.returncode == 1
    assert "✗ HAProxy      haproxy ended with exit status 1" in done.stderr
    assert f"haproxy: {words}" in done.stderr
    assert "what to do: HAProxy must be allowed" in done.stderr
    assert "✓ sniproxy" in done.stdout
    assert not processes_of(temporary)


@needs_programs
def test_pebble_that_refuses_is_quoted(temporary, tmp_path):
    done = run_once(temporary, **stub(tmp_path, "echo 'no such flag' >&2; exit 2", "pebble"))
    assert done.returncode == 1
    assert "✗ ACME CA      pebble ended with exit status 2" in done.stderr
    assert "pebble: no such flag" in done.stderr
    assert "what to do: look at what pebble said" in done.stderr
    assert not processes_of(temporary)


@needs_programs
def test_a_certificate_that_is_not_issued_is_told_in_the_cas_words(temporary, monkeypatch):
    """Pebble validates where nobody listens."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with Demo(start_seconds=40) as demo, reserved_port() as nobody:
        ca, proxy, haproxy, certificate, *_ = demo.steps
        port, demo.setup.port = demo.setup.port, nobody
        demo.run(ca)
        text = demo.setup.config_file.read_text().replace(f"127.0.0.1:{nobody}", f"127.0.0.1:{port}")
        demo.setup.config_file.write_text(text)
        demo.setup.port = port
        demo.run(proxy)
        demo.run(haproxy)
        with pytest.raises(StepFailed, match=rf"no certificate was issued: .*127\.0\.0\.1:{nobody}") as caught:
            demo.run(certificate)
    assert any(words.startswith("pebble: ") for words in caught.value.words)


@needs_programs
def test_pebble_that_goes_by_its_own_lifetimes_is_told(temporary, monkeypatch):
    with up_to(temporary, monkeypatch, "certificate") as (demo, certificate):
        monkeypatch.setattr(demo, "_validity_seconds", 20)
        with pytest.raises(StepFailed, match="pebble was told 20 s, and its certificate lasts 90 s"):
            demo.run(certificate)


@needs_programs
def test_what_haproxy_sees_is_compared(temporary, monkeypatch):
    """Without accept-proxy's address, the page would tell another client."""
    monkeypatch.setattr(demo_setup, "PAGE", demo_files.PAGE.replace("%[src]", "192.0.2.1"))
    with (
        up_to(temporary, monkeypatch, "HAProxy saw") as (demo, read),
        pytest.raises(StepFailed, match=r"HAProxy saw src '192\.0\.2\.1'"),
    ):
        demo.run(read)
