"""What the demo starts, and how it gives everything back."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sniproxy.app.demo import programs as demo_programs
from sniproxy.app.demo.programs import (
    PACKAGES,
    Program,
    StepFailed,
    find_programs,
    haproxy_version,
    removed,
    reserved_port,
    undisturbed,
    usable_for_sockets,
)


@pytest.fixture
def start(tmp_path):
    programs = []

    def start(script):
        programs.append(Program("it", ("/bin/sh", "-c", script), tmp_path / "output"))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def test_a_program_that_ends_is_told_with_its_last_words(start):
    program = start("i=0; while [ $i -lt 40 ]; do i=$((i + 1)); echo line $i; done; exit 7")
    with pytest.raises(StepFailed, match="it ended with exit status 7") as caught:
        program.wait_until(lambda: False, "never", 20)
    assert caught.value.words[-1] == "it: line 40"
    assert len(caught.value.words) == 12


def test_a_program_that_says_nothing(start):
    with pytest.raises(StepFailed, match="it was ended by signal 9") as caught:
        start("kill -9 $$").wait_until(lambda: False, "never", 20)
    assert caught.value.words == ("it: (it said nothing)",)


def test_lines_that_nobody_wants_to_see_are_left_out_of_the_last_words(tmp_path):
    command = ("/bin/sh", "-c", "echo this; for i in $(seq 20); do echo dull $i; done; exit 7")
    program = Program("it", command, tmp_path / "output", dull=re.compile("dull "))
    with pytest.raises(StepFailed) as caught:
        program.wait_until(lambda: False, "never", 20)
    assert caught.value.words == ("it: this",)
    assert program.lines()[0] == "this"
    assert program.lines()[-1] == "dull 20"


def test_a_program_has_our_environment_and_more(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "ours")
    command = ("/bin/sh", "-c", 'echo "$OURS $MORE"; exec sleep 60')
    program = Program("it", command, tmp_path / "output", environment={"MORE": "and more"})
    try:
        program.wait_until(lambda: program.lines() == ["ours and more"], "it says nothing", 20)
    finally:
        program.kill()


def test_a_program_that_does_not_get_there(start):
    program = start("echo waiting; sleep 60")
    began = time.monotonic()
    with pytest.raises(StepFailed, match=r"it is not there after 0.2 s"):
        program.wait_until(lambda: False, "it is not there", 0.2)
    assert time.monotonic() - began < 2


def test_a_program_is_in_a_session_of_its_own(start):
    """Ctrl-C of the terminal is for the demo alone, which ends its programs in order."""
    assert os.getsid(start("sleep 60").pid) != os.getsid(0)


def test_a_killed_program_is_gone(start):
    program = start("trap '' TERM; echo ready; sleep 60")
    program.wait_until(lambda: "ready" in program.output.read_text(), "not ready", 5)
    program.terminate()
    program.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)
    program.kill()


def test_a_program_dies_with_its_parent(tmp_path):
    script = (
        "import pathlib, sys, time; from sniproxy.app.demo.programs import Program\n"
        "print(Program('it', ('sleep', '60'), pathlib.Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "output"], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_there(pid):
        time.sleep(0.01)
    assert not is_there(pid)


def is_there(pid):
    """Whether a process is there and no zombie that waits for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_directory_is_removed_whatever_happens(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "file").touch()
    with pytest.raises(KeyboardInterrupt), removed(directory):
        raise KeyboardInterrupt
    assert not directory.exists()


def test_a_reserved_port_is_for_servers_that_know_it():
    with reserved_port() as port:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as server:  # SO_REUSEADDR, as the proxy's listeners have it
            socket.create_connection(("127.0.0.1", port)).close()
            server.accept()[0].close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_reserved_ports_differ():
    with reserved_port() as one, reserved_port() as other:
        assert one != other


def test_signals_wait_for_the_end_of_what_must_not_be_disturbed():
    done = []

    def give_back():
        with undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        give_back()
    assert done


@pytest.mark.parametrize("directory", ["/tmp", "/run/user/1000", "/var/tmp/a_b-c.d"])
def test_places_for_sockets(directory):
    assert usable_for_sockets(directory) == directory


@pytest.mark.parametrize("directory", ["/tmp/" + "x" * 40, "/tmp/a b", "/tmp/a,b", "/tmp/a'b", "/tmp/ä"])
def test_places_that_are_none(directory):
    assert usable_for_sockets(directory) == "/tmp"


@pytest.fixture
def programs_in(monkeypatch, tmp_path):
    """Puts programs where Debian has haproxy, and none anywhere else."""

    def put(*names):
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        return str(tmp_path)

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(demo_programs, "MORE_PATH", str(tmp_path))
    return put


def test_programs_are_looked_for_where_debian_has_haproxy(programs_in):
    place = programs_in(*PACKAGES)
    assert find_programs() == {name: f"{place}/{name}" for name in ("haproxy", "pebble", "pebble-challtestsrv")}


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            ("pebble", "pebble-challtestsrv"),
            "demo: needs haproxy, neither in PATH nor in /usr/sbin: apt-get install haproxy",
        ),
        (
            ("haproxy",),
            "demo: needs pebble and pebble-challtestsrv, neither in PATH nor in /usr/sbin: apt-get install pebble",
        ),
        ((), f"demo: needs {' and '.join(PACKAGES)}, neither in PATH nor in /usr/sbin: apt-get install haproxy pebble"),
    ],
)
def test_programs_that_are_missing_are_told_in_one_line(programs_in, there, message):
    programs_in(*there)
    with pytest.raises(StepFailed) as caught:
        find_programs()
    assert str(caught.value) == message


def haproxy_that_says(directory, text):
    program = directory / "haproxy"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("echo HAProxy version 2.6.12-1+deb12u4 2026/03/21 - https://haproxy.org/", "2.6.12"),
        ("echo HA-Proxy version 2.2.9-2 2021/01/01 >&2", "2.2.9"),
    ],
)
def test_the_version_of_haproxy(tmp_path, text, version):
    assert haproxy_version(haproxy_that_says(tmp_path, text)) == version


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo HA-Proxy version 2.0.31-1 2023", "is 2.0.31-1; the demo needs 2.2 or later"),
        ("echo what; exit 3", "tells no version"),
    ],
)
def test_haproxy_that_will_not_do(tmp_path, text, message):
    with pytest.raises(StepFailed, match=message):
        haproxy_version(haproxy_that_says(tmp_path, text))
