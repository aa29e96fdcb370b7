"""`sniproxy demo` from start to end, with a real HAProxy."""

from __future__ import annotations

import os
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

from sniproxy.app import demo as demo_module
from sniproxy.app.demo import CLIENT, INTERNAL_NAME, NAME, Demo
from sniproxy.app.demo_certificate import Issued
from sniproxy.app.demo_programs import MORE_PATH, StepFailed
from sniproxy.config import load

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:{MORE_PATH}") is None,
    reason="haproxy is missing: apt-get install haproxy",
)
COMMAND = [sys.executable, "-m", "sniproxy", "demo"]


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


def run_once(temporary, *arguments, **more):
    return subprocess.run(
        [*COMMAND, "--once", *arguments],
        env=environment(temporary, **more),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def processes_of(temporary):
    """Processes that have something below the directory on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(temporary) in words:
                found.append(words)
    return found


def wait_until(condition, seconds=20):
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
                child.wait(20)


# ---------------------------------------------------------------------- it works


@needs_haproxy
def test_once_proves_everything_and_leaves_nothing(temporary):
    done = run_once(temporary)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout, "a pipe gets plain text"
    lines = done.stdout.splitlines()
    assert f"src {CLIENT}, req.ver 1.1, ssl_fc_sni {NAME}," in done.stdout
    assert f"fc_pp_authority {NAME}, fc_pp_unique_id " in done.stdout
    identity = done.stdout.partition("fc_pp_unique_id ")[2].split()[0]
    assert any(line.endswith(f"{{{NAME}|http/1.1}} {identity}") for line in lines), "the log line of the same id"
    assert "h2 chosen by ALPN" in done.stdout
    assert f"{INTERNAL_NAME} from 127.0.0.3 is refused" in done.stdout
    assert "alert TLSV1_ALERT_ACCESS_DENIED" in done.stdout
    assert "accepted = 1 active + " in done.stdout
    assert sum(line.startswith("  ✓ ") for line in lines) == 11
    assert lines[-1] == "No process and no file is left."
    assert not processes_of(temporary)


@needs_haproxy
def test_an_encoding_without_the_tick_is_no_failure(temporary):
    done = run_once(temporary, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "? metrics" in done.stdout


@needs_haproxy
def test_two_at_once(temporary):
    pair = [
        subprocess.Popen([*COMMAND, "--once"], env=environment(temporary), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [child.communicate(timeout=60)[0] for child in pair]
    assert [child.returncode for child in pair] == [0, 0], texts
    assert not processes_of(temporary)


@needs_haproxy
def test_it_runs_beside_files_that_look_like_its_own(temporary, tmp_path):
    """A working directory with modules in it, as this program's own source has them."""
    for name in ("sniproxy", "click", "http", "acme"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    command = [sys.executable, "-P", *COMMAND[1:], "--once"]
    done = subprocess.run(command, env=environment(temporary), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_haproxy
def test_a_place_that_no_socket_can_be_in_is_passed_over(tmp_path):
    place = tmp_path / ("x" * 60)
    place.mkdir()
    done = run_once(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(place.iterdir())


@needs_haproxy
def test_keep_leaves_the_files(tmp_path):
    place = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    try:
        done = run_once(place, "--keep")
        assert done.returncode == 0, done.stdout + done.stderr
        (directory,) = place.iterdir()
        assert f"Left in place: {directory}" in done.stdout
        assert {"sniproxy.toml", "haproxy.cfg", "ca.pem", "certs", "page.html"} <= {p.name for p in directory.iterdir()}
        load(directory / "sniproxy.toml")
    finally:
        shutil.rmtree(place)
    assert not processes_of(place)


# ---------------------------------------------------------------------- it goes on


@needs_haproxy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_and_removes_everything(temporary, number):
    with running(temporary) as (child, _):
        (directory,) = temporary.iterdir()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        child.send_signal(number)
        rest = child.stdout.read()
        assert child.wait(20) == 0, rest
    assert "✓ drain" in rest
    assert rest.endswith("No process and no file is left.\n")
    assert not processes_of(temporary)


@needs_haproxy
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
        (explain,) = [line for line in text.splitlines() if " explain -c " in line]
        assert "backend  haproxy" in subprocess.run(explain.split(), capture_output=True, text=True).stdout
        live = ""
        wanted = ("haproxy   127.0.0.9:", "sniproxy  127.0.0.9:", "HTTP/2.0 200", INTERNAL_NAME)
        while not all(words in live for words in wanted):
            live += child.stdout.readline()


@needs_haproxy
def test_when_it_is_killed_everything_goes_with_it(temporary):
    with running(temporary) as (child, _):
        assert processes_of(temporary)
        child.kill()
        child.wait(20)
    wait_until(lambda: not processes_of(temporary) and not list(temporary.iterdir()))


@needs_haproxy
@pytest.mark.parametrize("name", ["haproxy", "sniproxy"])
def test_a_program_that_ends_meanwhile_is_told(temporary, name):
    with running(temporary) as (child, text):
        title = {"haproxy": "HAProxy", "sniproxy": "sniproxy"}[name]
        (line,) = [line for line in text.splitlines() if line.startswith(f"  ✓ {title} ") and "as process" in line]
        os.kill(int(line.partition("as process ")[2].split()[0]), signal.SIGKILL)
        rest = child.stdout.read()
        assert child.wait(20) == 1
    assert f"{name} was ended by signal 9" in rest
    assert not processes_of(temporary)


@needs_haproxy
def test_a_guest_that_stays_is_cut_and_that_is_no_failure(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(demo_module, "DRAIN_SECONDS", 1)
    with Demo() as demo:
        for step in demo.steps[:3]:
            demo.run(step)
        with socket.create_connection(("127.0.0.1", demo.port)):
            assert (
                demo.run(demo.drain(guests=True)) == "connections that did not end within 1 s were cut; exit status 3"
            )


# ---------------------------------------------------------------------- it does not work


def stub(directory, text):
    """A haproxy that is none, in front of all others."""
    program = directory / "haproxy"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def test_haproxy_that_refuses_is_quoted(temporary, tmp_path):
    words = "[ALERT]    (7) : Starting frontend https: cannot bind UNIX socket (Permission denied)"
    version = 'if [ "$1" = -v ]; then echo "HAProxy version 2.6.12-1 2023"; exit; fi\n'
    done = run_once(temporary, **stub(tmp_path, f"{version}echo '{words}' >&2; exit 1"))
    assert done.returncode == 1
    assert "✗ HAProxy      haproxy ended with exit status 1" in done.stderr
    assert f"haproxy: {words}" in done.stderr
    assert "what to do: HAProxy must be allowed" in done.stderr
    assert "✓ certificate" in done.stdout
    assert not processes_of(temporary)


def test_a_mistake_in_haproxy_cfg_is_in_haproxys_own_words(temporary, monkeypatch):
    if not Path("/usr/sbin/haproxy").exists() and shutil.which("haproxy") is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")
    monkeypatch.setattr(demo_module, "HAPROXY_CFG", "frontend https\n    bindd {socket} {bundle} {page}\n")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with Demo() as demo:
        certificate, haproxy, *_ = demo.steps
        demo.run(certificate)
        with pytest.raises(StepFailed, match="haproxy ended with exit status 1") as caught:
            demo.run(haproxy)
    assert any("unknown keyword 'bindd'" in line and line.startswith("haproxy: ") for line in caught.value.words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo HA-Proxy version 2.0.31-1 2023", "is 2.0.31-1; the demo needs 2.2 or later"),
        ("echo what; exit 3", "tells no version"),
    ],
)
def test_haproxy_that_will_not_do(temporary, tmp_path, text, message):
    done = run_once(temporary, **stub(tmp_path, text))
    assert done.returncode == 1
    assert message in done.stderr


def test_haproxy_that_never_listens_is_not_waited_for_forever(temporary, monkeypatch, tmp_path):
    for name, value in stub(tmp_path, 'test "$1" = -v && echo version 2.6.0 && exit; exec sleep 60').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with Demo(start_seconds=0.2) as demo:
        certificate, haproxy, *_ = demo.steps
        demo.run(certificate)
        with pytest.raises(StepFailed, match=r"does not listen on .* after 0.2 s"):
            demo.run(haproxy)
    assert not processes_of(temporary)


@needs_haproxy
def test_a_port_that_is_taken_is_in_sniproxys_own_words(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with closing(socket.create_server(("127.0.0.1", 0))) as other, Demo() as demo:
        demo.port = other.getsockname()[1]
        certificate, haproxy, proxy, *_ = demo.steps
        demo.run(certificate)
        demo.run(haproxy)
        with pytest.raises(StepFailed, match="sniproxy ended with exit status 1") as caught:
            demo.run(proxy)
    (words,) = caught.value.words
    assert words.startswith(f"sniproxy: cannot listen on 127.0.0.1:{demo.port}: Address already in use")
    assert not processes_of(temporary)


@needs_haproxy
def test_what_haproxy_sees_is_compared(temporary, monkeypatch):
    """Without accept-proxy's address, the page would tell another client."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(demo_module, "PAGE", demo_module.PAGE.replace("%[src]", "192.0.2.1"))
    with Demo() as demo:
        certificate, haproxy, proxy, request, read, *_ = demo.steps
        for step in (certificate, haproxy, proxy, request):
            demo.run(step)
        with pytest.raises(StepFailed, match=r"HAProxy saw src '192\.0\.2\.1'"):
            demo.run(read)


def test_another_certificate_may_be_brought(temporary, monkeypatch, tmp_path):
    """The step that an ACME CA takes over."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    asked = []

    def obtain(names, directory):
        asked.append((tuple(names), stat.S_IMODE(directory.stat().st_mode)))
        return Issued(tmp_path / "ca.pem", directory / "x.pem", "from elsewhere")

    for name, value in stub(tmp_path, "exit 1").items():
        monkeypatch.setenv(name, value)
    with Demo(obtain=obtain) as demo:
        assert demo.run(demo.steps[0]).endswith("from elsewhere")
    assert asked == [((NAME, INTERNAL_NAME), 0o700)]
