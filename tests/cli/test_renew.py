"""`sniproxy renew` (contract section 1): by the running proxy, or by itself where there is none."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.acme_stub import AcmeStub
from tests.support.control import ScriptedControl
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, Program, Sniproxy, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    from tests.support.processes import Programs

A, B = "a.example", "www.b.example"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, as the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        yield Path(name)


def text(
    place: Path, *, directory: str = "", port: int = 0, control: bool = True, admin: int | None = None, more: str = ""
) -> str:
    """Two certificates that stay on this machine: no HAProxy."""
    (place / "certs").mkdir(exist_ok=True)
    return f"""
[proxy]
listen = ["{LOCALHOST}:{port or free_port()}"]
[backends.haproxy]
servers = ["unix:/nowhere.sock"]
[admin]
listen = "{f"{LOCALHOST}:{admin}" if admin else ""}"
control_socket = "{f"{place}/control.sock" if control else ""}"
[acme]
directory = "{directory or f"http://{LOCALHOST}:{free_port()}/directory"}"
agree_to_terms = true
state_dir = "{place}/state"
[[certificates]]
names = ["{A}"]
[[certificates]]
names = ["{B}"]
[haproxy]
certificate_dir = "{place}/certs"
runtime_sockets = []
verify = "off"
{more}
"""


@pytest.fixture
def path(place: Path) -> Path:
    path = place / "sniproxy.toml"
    path.write_text(text(place))
    return path


def result(name: str, result: str, error: str | None = None) -> dict[str, Any]:
    return {"name": name, "result": result, "error": error, "status": {"name": name}}


# ------------------------------------------------------------------------------------------------ by the running proxy


@pytest.mark.parametrize(
    ("results", "status", "lines"),
    [
        ([result(A, "renewed"), result(B, "not_due")], 0, ["renewed, and served", "not due"]),
        ([result(A, "rehearsed"), result(B, "rehearsed")], 0, ["would be renewed; nothing was kept"] * 2),
        (
            [result(A, "renewed"), result(B, "failed", "rateLimited: no more")],
            1,
            ["renewed, and served", "failed: rateLimited: no more"],
        ),
        (
            [result(A, "not_deployed", "no socket"), result(B, "not_due")],
            1,
            ["not deployed: no socket", "not due"],
        ),
        ([result(A, "new in a later version"), result(B, "not_due")], 0, ["new in a later version", "not due"]),
    ],
)
def test_what_came_of_each_is_told(
    sniproxy: Callable[..., Result],
    place: Path,
    path: Path,
    results: list[dict[str, Any]],
    status: int,
    lines: list[str],
) -> None:
    """A line each on standard output; exit status 1 if one could not be obtained, or is not yet deployed."""
    with ScriptedControl(place / "control.sock", {"result": results}):
        done = sniproxy("renew", "-c", path)
        as_json = sniproxy("renew", "-c", path, "--json")

    width = max(len(A), len(B))
    assert done.stdout.splitlines() == [f"{name:<{width}}  {line}" for name, line in zip((A, B), lines, strict=True)]
    assert json.loads(as_json.stdout) == results
    assert done.exit_code == as_json.exit_code == status
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        ((), {"names": [], "force": False, "dry_run": False}),
        ((B, A, "--force"), {"names": [B, A], "force": True, "dry_run": False}),
        (("--dry-run",), {"names": [], "force": False, "dry_run": True}),
    ],
)
def test_what_the_proxy_is_asked(
    sniproxy: Callable[..., Result], place: Path, path: Path, arguments: tuple[str, ...], request_: dict[str, Any]
) -> None:
    """The names in their order, and the two options."""
    with ScriptedControl(place / "control.sock", {"result": []}) as control:
        assert sniproxy("renew", "-c", path, "--json", *arguments).exit_code == 0

    assert control.requests == [{"command": "renew", **request_}]


def test_steps_are_told_as_they_happen(sniproxy: Callable[..., Result], place: Path, path: Path) -> None:
    """On standard error, as data goes to standard output."""
    step = {"step": {"certificate": A, "text": "due (missing)"}}
    with ScriptedControl(place / "control.sock", step, {"result": [result(A, "renewed")]}):
        done = sniproxy("renew", "-c", path, A)

    assert done.stderr == f"{A}: due (missing)\n"
    assert done.stdout == f"{A}  renewed, and served\n"


def test_a_name_that_is_not_there(sniproxy: Callable[..., Result], place: Path, path: Path) -> None:
    """Exit status 2: a bad argument. Nobody is asked."""
    with ScriptedControl(place / "control.sock", {"result": []}) as control:
        done = sniproxy("renew", "-c", path, A, "nosuch.example")

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"there is no certificate called nosuch.example; there is {A}, {B}\n"
    assert control.requests == []


def test_a_configuration_without_certificates(sniproxy: Callable[..., Result], config: Path) -> None:
    """Exit status 2, too."""
    done = sniproxy("renew", "-c", config)

    assert done.exit_code == 2
    assert done.stderr == f"{config}: there are no [[certificates]]\n"


def test_a_refusal_is_told(sniproxy: Callable[..., Result], place: Path, path: Path) -> None:
    """In the proxy's words: its file may be another one than ours."""
    with ScriptedControl(place / "control.sock", {"error": "no certificates are configured"}):
        done = sniproxy("renew", "-c", path)

    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "no certificates are configured\n")


def test_a_proxy_that_cannot_be_reached_is_not_run_over(
    sniproxy: Callable[..., Result], place: Path, programs: Programs
) -> None:
    """Two at once would fight for the port, and for the certificate; exit status 1."""
    proxy = Sniproxy(text(place, control=False, admin=(admin := free_port())), programs.directory)
    proxy.admin_port = admin
    programs.start(proxy)
    done = sniproxy("renew", "-c", proxy.config)

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == 'a proxy is running, and cannot be reached through admin.control_socket, which is ""\n'


# ------------------------------------------------------------------------------------------------------------ by itself


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub() as stub:
        yield stub


class Machine:
    """A configuration whose CA looks where it says that it listens."""

    def __init__(self, place: Path, stub: AcmeStub, *, more: str = "") -> None:
        port = free_port()
        stub.tls = [(LOCALHOST, port)]
        self.place = place
        self.config = place / "sniproxy.toml"
        self.config.write_text(text(place, directory=stub.directory_url, port=port, more=more))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "sniproxy", "renew", "-c", str(self.config), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=PATIENCE_SECONDS * 2)


def test_without_a_proxy_it_is_done_here(place: Path, stub: AcmeStub) -> None:
    """It answers on :443 as long as that takes; store and files are as the proxy would leave them."""
    machine = Machine(place, stub)
    done = machine.run()

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{A:<13}  renewed, and served", f"{B:<13}  renewed, and served"]
    assert done.stderr.startswith("no proxy is running: listening in its place until this is done\n")
    assert f"{A}: due (missing)\n" in done.stderr
    assert {issued.names for issued in stub.issued} == {(A,), (B,)}
    assert sorted(path.name for path in (place / "certs").iterdir()) == [f"{A}.pem", f"{B}.pem"]
    assert not (place / "control.sock").exists()

    again = machine.run("--json")

    assert again.returncode == 0
    assert [each["result"] for each in json.loads(again.stdout)] == ["not_due", "not_due"]
    assert all(each["status"]["deployed"] for each in json.loads(again.stdout))
    assert len(stub.issued) == 2


def test_one_that_fails_is_told_there_too(place: Path, stub: AcmeStub) -> None:
    """Exit status 1; the other one has come all the same, and a second time there is no back-off to wait for."""
    stub.blocked.add(B)
    machine = Machine(place, stub)
    done = machine.run()
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"{A:<13}  renewed, and served"
    assert f"{B}  failed: {B}: rejectedIdentifier: " in done.stdout

    stub.blocked.clear()
    assert machine.run(B).returncode == 0


def test_a_dry_run_leaves_nothing(place: Path, stub: AcmeStub) -> None:
    """Neither account, nor certificate, nor file."""
    done = Machine(place, stub).run("--dry-run", A)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{A}  would be renewed; nothing was kept\n"
    assert f"{A}: a dry run at {stub.directory_url}: nothing is kept\n" in done.stderr
    assert [path for path in (place / "state").rglob("*") if path.is_file()] == []
    assert list((place / "certs").iterdir()) == []
    assert len(stub.issued) == 1


def test_hooks_come_to_their_end(place: Path, stub: AcmeStub) -> None:
    """Though the process has nothing else left to do: who depends on the certificate has to hear of it."""
    script = place / "hook"
    script.write_text(f"#!/bin/sh\nsleep 0.5\necho $SNIPROXY_EVENT $SNIPROXY_CERTIFICATE >> {place}/said\n")
    script.chmod(0o755)
    done = Machine(place, stub, more=f'[hooks]\non_renewed = ["{script}"]\n').run(A)

    assert done.returncode == 0, done.stderr
    assert (place / "said").read_text() == f"renewed {A}\n"


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_it_can_be_stopped(place: Path, stub: AcmeStub, programs: Programs, number: int) -> None:
    """An order that hangs takes ten minutes; what was begun is gone on with the next time."""
    stub.hang("finalize", carried_out=True)
    machine = Machine(place, stub)
    renewing = Program("renew", machine.command(A), place)
    programs.started.append(renewing)
    renewing.says(f"{A}: valid")
    status = renewing.stop(number)

    assert (status, renewing.stdout) == (1, "")
    assert renewing.stderr.endswith("stopped before it was done; what was begun is gone on with next time\n")
    stub.heal()
    done = machine.run(A)
    assert done.returncode == 0, done.stderr
    assert len(stub.issued) == len(stub.orders) == 1


def test_a_port_that_is_taken_is_told(place: Path, stub: AcmeStub) -> None:
    """Somebody else than sniproxy is there: nobody could answer the CA."""
    machine = Machine(place, stub)
    with socket.create_server(stub.tls[0]):
        done = machine.run()

    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert done.stdout == ""
    assert stub.requests == []
