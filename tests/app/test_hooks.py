"""Hooks: argv, no shell; data in environment and standard input; a timeout."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sniproxy.app.hooks import environment, run_hook
from sniproxy.model import CertificateStatus

STATUS = CertificateStatus(
    name="example.com",
    names=("example.com", "www.example.com"),
    issuer="Some CA",
    serial="0abc",
    not_after=datetime(2027, 1, 24, 12, 0, tzinfo=UTC),
    last_error="no; $(reboot)",
)
BUNDLE = Path("/srv/certs/example.com.pem")


def python(text, *arguments):
    return (sys.executable, "-c", text, *map(str, arguments))


@pytest.fixture
def hook_log(caplog):
    caplog.set_level(logging.INFO, "sniproxy.app.hooks")
    return caplog


def test_what_happened_is_in_its_environment(runner, tmp_path, hook_log):
    write = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    runner.run(run_hook(python(write, tmp_path / "out"), "renewed", STATUS, BUNDLE, 60))
    found = json.loads((tmp_path / "out").read_text())
    assert {key: value for key, value in found.items() if key.startswith("SNIPROXY_")} == {
        "SNIPROXY_EVENT": "renewed",
        "SNIPROXY_CERTIFICATE": "example.com",
        "SNIPROXY_NAMES": "example.com www.example.com",
        "SNIPROXY_SERIAL": "0abc",
        "SNIPROXY_ISSUER": "Some CA",
        "SNIPROXY_NOT_AFTER": "2027-01-24T12:00:00Z",
        "SNIPROXY_BUNDLE": str(BUNDLE),
        "SNIPROXY_ERROR": "no; $(reboot)",
    }
    assert "PATH" in found


def test_and_on_its_standard_input(runner, tmp_path, hook_log):
    write = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    runner.run(run_hook(python(write, tmp_path / "out"), "failed", STATUS, None, 60))
    document = json.loads((tmp_path / "out").read_text())
    assert document["event"] == "failed"
    assert document["names"] == ["example.com", "www.example.com"]


def test_there_is_no_shell(runner, tmp_path, hook_log):
    """Arguments are what the file says, letter for letter."""
    write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    runner.run(run_hook(python(write, tmp_path / "out", "$HOME; `id` *"), "renewed", STATUS, None, 60))
    assert (tmp_path / "out").read_text() == "$HOME; `id` *"


def test_what_it_says_when_it_fails_is_logged(runner, hook_log):
    runner.run(run_hook(python("import sys; print('out'); sys.exit('no such user')"), "renewed", STATUS, None, 60))
    assert "exit status 1" in hook_log.text
    assert "no such user" in hook_log.text


def test_one_that_is_not_there_is_logged(runner, hook_log):
    runner.run(run_hook(("/nowhere/hook",), "renewed", STATUS, None, 60))
    assert "/nowhere/hook: cannot be run: No such file or directory" in hook_log.text


def test_one_that_hangs_is_killed_with_its_children(runner, hook_log):
    """A grandchild that holds the output open must not hold us."""
    hang = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    runner.run(run_hook(python(hang), "renewed", STATUS, None, 0.5))
    assert "not done after 0.5 s: killed" in hook_log.text


def test_one_that_talks_without_end_is_cut_short(runner, hook_log):
    """What it says is read and dropped, so that it never waits for us; the log gets the beginning."""
    talk = "import sys; sys.stdout.write('x' * 1000000); sys.exit(3)"
    runner.run(run_hook(python(talk), "renewed", STATUS, None, 60))
    assert "exit status 3: xxx" in hook_log.text
    assert len(hook_log.text) < 10000


def test_one_that_does_not_read_is_fine(runner, hook_log):
    runner.run(run_hook(python("pass"), "renewed", STATUS, None, 60))
    assert "done (renewed example.com)" in hook_log.text


def test_one_that_has_ended_before_it_is_told_is_fine(runner, hook_log, monkeypatch):
    """A pipe to it would be broken by then."""
    start = asyncio.create_subprocess_exec

    async def start_late(*command, **options):
        process = await start(*command, **options)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_late)
    runner.run(run_hook(("/bin/sh", "-c", "echo no; exit 3"), "renewed", STATUS, BUNDLE, 60))
    assert [record.getMessage() for record in hook_log.records] == ["hook /bin/sh: exit status 3: no"]


def test_a_nul_cannot_get_into_the_environment():
    """It ends a value there (exec(3)), and Python refuses to pass one."""
    status = CertificateStatus(name="a", names=("a",), last_error="a\0b")
    assert environment("failed", status, None)["SNIPROXY_ERROR"] == "ab"
