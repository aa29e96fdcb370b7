"""Commands that ask the running proxy, or do it themselves (contract section 1: exit statuses; `renew`)."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sniproxy.cli import running
from sniproxy.cli.running import load_with_certificates, result_of, say
from sniproxy.config import load
from tests.support.acme_stub import AcmeStub
from tests.support.control import ScriptedControl
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sniproxy.app.certificates import Certificates

REQUEST = {"command": "renew"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, as the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        yield Path(name)


def configuration(place: Path, *, control: bool = True) -> Path:
    path = place / "sniproxy.toml"
    path.write_text(f"""
[proxy]
listen = ["{LOCALHOST}:{free_port()}"]
[backends.haproxy]
servers = ["unix:/nowhere.sock"]
[admin]
listen = "{LOCALHOST}:{free_port()}"
control_socket = "{f"{place}/control.sock" if control else ""}"
[acme]
directory = "http://{LOCALHOST}:{free_port()}/directory"
agree_to_terms = true
state_dir = "{place}/state"
[[certificates]]
names = ["a.example"]
""")
    return path


async def never(_certificates: Certificates) -> None:
    raise AssertionError("the running proxy does it")


async def names(certificates: Certificates) -> list[str]:
    return [status.name for status in certificates.statuses()]


def test_the_running_proxys_result_is_the_result(place, capsys):
    path = configuration(place)
    step = {"step": {"certificate": "a.example", "text": "ordered"}}
    with ScriptedControl(place / "control.sock", step, {"result": [1]}) as control:
        assert result_of(load(path), path, REQUEST, never) == [1]
    assert control.requests == [REQUEST]
    assert capsys.readouterr().err == "a.example: ordered\n"


def test_what_it_refuses_is_an_error_in_its_words(place, capsys):
    path = configuration(place)
    with ScriptedControl(place / "control.sock", {"error": "no"}), pytest.raises(SystemExit) as exit_:
        result_of(load(path), path, REQUEST, never)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "no\n"


def test_without_one_the_errand_is_run_here(place, capsys):
    path = configuration(place)
    assert result_of(load(path), path, REQUEST, names) == ["a.example"]
    assert "listening in its place" in capsys.readouterr().err


def test_an_errand_that_needs_no_listening_leaves_the_ports_alone(place, capsys):
    path = configuration(place)
    assert result_of(load(path), path, REQUEST, names, listening=False) == ["a.example"]
    assert capsys.readouterr().err == ""


def test_a_proxy_that_cannot_be_asked_is_not_run_over(place, capsys, monkeypatch):
    """Two at once would order twice."""
    monkeypatch.setattr(running, "_is_running", lambda _config: True)
    path = configuration(place, control=False)
    with pytest.raises(SystemExit) as exit_:
        result_of(load(path), path, REQUEST, never)
    assert exit_.value.code == 1
    assert 'cannot be reached through admin.control_socket, which is ""' in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to everything")
def test_a_socket_that_is_not_for_us_is_told(place, capsys):
    path = configuration(place)
    before = os.umask(0o777)
    control = ScriptedControl(place / "control.sock", {"result": 1})
    os.umask(before)
    with control, pytest.raises(SystemExit):
        result_of(load(path), path, REQUEST, never)
    assert "join its group, or be root" in capsys.readouterr().err


def test_errors_of_the_errand_are_told(place, capsys):
    """Whose fault it is and what to do, on one line; exit status 1."""
    (place / "state").write_text("a file where the directory should be")
    path = configuration(place)
    with pytest.raises(SystemExit) as exit_:
        result_of(load(path), path, REQUEST, names, listening=False)
    assert exit_.value.code == 1
    assert str(place / "state") in capsys.readouterr().err


def test_a_name_that_is_not_there_is_a_bad_argument(place, capsys):
    """Section 1: 2 for bad arguments."""
    with pytest.raises(SystemExit) as exit_:
        load_with_certificates(configuration(place), "b.example")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "there is no certificate called b.example; there is a.example\n"


def test_a_configuration_without_certificates_is_a_bad_one(config, capsys):
    with pytest.raises(SystemExit) as exit_:
        load_with_certificates(config)
    assert exit_.value.code == 2
    assert "there are no [[certificates]]" in capsys.readouterr().err


def test_steps_are_for_people(capsys):
    """Section 1: data to stdout, the rest to stderr."""
    say({"certificate": "a.example", "text": "issued"})
    assert capsys.readouterr() == ("", "a.example: issued\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_what_is_written_beside_the_ports_is_the_proxys(place):
    """Contract section 4: files are 0600, so what root would write the proxy's user could not read."""
    place.chmod(0o755)
    with AcmeStub() as stub:
        path = configuration(place)
        text = re.sub(r"http://[^\"]+", stub.directory_url, path.read_text())
        path.write_text(text.replace("[proxy]", '[proxy]\nuser = "nobody"'))
        done = subprocess.run(
            [sys.executable, "-m", "sniproxy", "account", "-c", path],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
    assert done.returncode == 0, done.stderr
    assert len(stub.accounts) == 1
    assert {file.stat().st_uid for file in (place / "state").rglob("*")} == {pwd.getpwnam("nobody").pw_uid}
