"""`sniproxy check`: the configuration, and what it points at; starts nothing (contract, section 1)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import LOCALHOST, Programs, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Path]:
    """A socket that takes connections."""
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        yield path


@pytest.fixture
def write(tmp_path: Path, backend: Path) -> Callable[..., Path]:
    """Writes a configuration with which nothing is wrong, but for what a test adds to it."""

    def write(proxy: str = "", more: str = "", *, listen: str = "", admin: str = 'listen = ""') -> Path:
        path = tmp_path / "sniproxy.toml"
        path.write_text(
            f'[proxy]\nlisten = [{listen or f"{LOCALHOST}:{free_port()}"!r}]\ndefault_backend = "web"\n{proxy}\n'
            f'[backends.web]\nservers = ["unix:{backend}"]\n{more}\n'
            f'[admin]\ncontrol_socket = ""\n{admin}\n'
        )
        return path

    return write


def findings(result: Result) -> dict[str, str]:
    """The messages by key, of a check that found something."""
    assert (result.exit_code, result.stderr) == (1, "")
    return {row["key"]: row["message"] for row in json.loads(result.stdout)}


def test_nothing_is_wrong(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """Exit status 0; that all is good goes to standard error, data there is none."""
    path = write()
    result = sniproxy("check", "-c", path)

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{path}: good; backends: 1, names in routes: 0\n"


def test_nothing_is_wrong_as_json(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """Every command that prints a table takes --json: an empty list."""
    result = sniproxy("check", "-c", write(), "--json")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "[]\n", "")


def test_mistakes_exit_with_2(sniproxy: Callable[..., Result], mistaken: Path) -> None:
    """Exit status 2: bad config, as JSON one object each."""
    result = sniproxy("check", "-c", mistaken, "--json")
    rows = json.loads(result.stdout)

    assert (result.exit_code, result.stderr) == (2, "")
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 8]
    assert all(list(row) == ["file", "line", "key", "message"] for row in rows)


def test_what_it_finds_is_placed(sniproxy: Callable[..., Result], write: Callable[..., Path], tmp_path: Path) -> None:
    """Exit status 1: a check found a problem, one line each, `FILE:LINE: key.path: what is wrong`; in the file's order."""
    path = write('user = "nosuch-user"', f'\n[backends.gone]\nservers = ["unix:{tmp_path}/gone.sock"]\n')
    result = sniproxy("check", "-c", path)

    assert (result.exit_code, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert first == f'{path}:4: proxy.user: this machine has no user "nosuch-user"'
    assert second.startswith(
        f"{path}:9: backends.gone.servers[0]: nothing can be reached at unix:{tmp_path}/gone.sock: "
    )


def test_a_socket_that_is_missing(sniproxy: Callable[..., Result], write: Callable[..., Path], backend: Path) -> None:
    """Files and sockets."""
    path = write()
    backend.unlink()

    assert "there is no such socket" in findings(sniproxy("check", "-c", path, "--json"))["backends.web.servers[0]"]


def test_a_port_that_nobody_listens_on(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """Ports of backends."""
    path = write(more=f'[backends.gone]\nservers = ["{LOCALHOST}:{free_port()}"]\n')

    assert "nobody listens there" in findings(sniproxy("check", "-c", path, "--json"))["backends.gone.servers[0]"]


def test_a_name_that_cannot_be_looked_up(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """RFC 6761 section 6.4: names below .invalid never exist."""
    path = write(more='[backends.gone]\nservers = ["haproxy.invalid:443"]\n')
    message = findings(sniproxy("check", "-c", path, "--json"))["backends.gone.servers[0]"]

    assert "cannot be looked up" in message or "no answer" in message


def test_a_port_that_is_taken(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """Ports of our own: another program has it."""
    with socket.create_server((LOCALHOST, 0)) as taken:
        port = taken.getsockname()[1]
        message = findings(sniproxy("check", "-c", write(listen=f"{LOCALHOST}:{port}"), "--json"))["proxy.listen[0]"]

    assert message.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use")


def test_an_admin_port_that_is_taken(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """Likewise, by something that is not sniproxy."""
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        path = write(admin=f'listen = "{LOCALHOST}:{taken.getsockname()[1]}"')

        assert "Address already in use" in findings(sniproxy("check", "-c", path, "--json"))["admin.listen"]


def test_an_address_that_this_machine_has_not(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """RFC 5737: 192.0.2.0/24 is nobody's."""
    path = write(listen="192.0.2.1:8443")

    assert "no such address" in findings(sniproxy("check", "-c", path, "--json"))["proxy.listen[0]"]


def test_a_group_that_is_missing(sniproxy: Callable[..., Result], write: Callable[..., Path]) -> None:
    """Rights."""
    path = write('group = "nosuch-group"')

    assert findings(sniproxy("check", "-c", path, "--json")) == {
        "proxy.group": 'this machine has no group "nosuch-group"'
    }


def test_a_log_file_without_a_directory(
    sniproxy: Callable[..., Result], write: Callable[..., Path], tmp_path: Path
) -> None:
    """Files: opening the log would fail at the start."""
    path = write(more=f'[log]\ntarget = "{tmp_path}/nosuch/sniproxy.log"\n')

    assert "there is no directory" in findings(sniproxy("check", "-c", path, "--json"))["log.target"]


def test_a_log_file_that_is_a_directory(
    sniproxy: Callable[..., Result], write: Callable[..., Path], tmp_path: Path
) -> None:
    """Likewise."""
    path = write(more=f'[log]\ntarget = "{tmp_path}"\n')

    assert "is a directory" in findings(sniproxy("check", "-c", path, "--json"))["log.target"]


@needs_root
def test_rights_are_those_of_the_user_it_becomes(
    sniproxy: Callable[..., Result], write: Callable[..., Path], tmp_path: Path, backend: Path
) -> None:
    """HAProxy's socket and the log are opened without root, so that is how they are tried."""
    backend.chmod(0o600)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    closed = tmp_path / "log"
    closed.mkdir(mode=0o700)
    path = write('user = "nobody"', f'[log]\ntarget = "{closed}/sniproxy.log"\n')
    found = findings(sniproxy("check", "-c", path, "--json"))

    assert "this user may not connect" in found["backends.web.servers[0]"]
    assert "cannot be written to by this user" in found["log.target"]
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_more_connections_than_descriptors(write: Callable[..., Path]) -> None:
    """Rights: the limit of open files does not allow what was asked for."""
    path = write("max_connections = 5000")
    done = subprocess.run(
        ["prlimit", "--nofile=1024:1024", sys.executable, "-m", "sniproxy", "check", "-c", path],
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert f"{path}:4: proxy.max_connections: 5000 connections need more descriptors" in done.stderr


def test_it_leaves_no_socket_behind(
    sniproxy: Callable[..., Result], write: Callable[..., Path], tmp_path: Path
) -> None:
    """Starts nothing: what it has bound to see whether it can, it gives back."""
    path = write(listen=f"unix:{tmp_path}/public.sock")

    assert sniproxy("check", "-c", path).exit_code == 0
    assert not (tmp_path / "public.sock").exists()


def test_it_is_fine_beside_the_running_proxy(
    sniproxy: Callable[..., Result], programs: Programs, backend: Path
) -> None:
    """Before a reload: addresses that are taken are taken by ourselves."""
    text = (
        f'[proxy]\nlisten = ["{LOCALHOST}:{free_port()}"]\ndefault_backend = "web"\n'
        f'[backends.web]\nservers = ["unix:{backend}"]\n'
    )
    proxy = programs.sniproxy(text)
    result = sniproxy("check", "-c", proxy.config)

    assert (result.exit_code, result.stdout) == (0, "")
    assert "good" in result.stderr
    assert proxy.get("/readyz")[0] == 200
