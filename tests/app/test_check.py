"""What `check` looks at, where a real machine cannot be made to have it. The rest is in tests/cli/test_check.py."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sniproxy.app import check
from sniproxy.config import Source, parse
from tests.support import haproxy
from tests.support.haproxy import Haproxy
from tests.support.processes import LOCALHOST, Programs, free_port

if TYPE_CHECKING:
    from sniproxy.errors import Mistake

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
with_haproxy = pytest.mark.skipif(haproxy.HAPROXY is None, reason=haproxy.MISSING)

DELIVERY = """
[acme]
email = "admin@example.com"
agree_to_terms = true
state_dir = "{state}"
ca_file = "{ca}"

[[certificates]]
names = ["example.com"]

[haproxy]
certificate_dir = "{certificates}"
runtime_sockets = ["{runtime}"]
verify = "off"
"""


def found(text: str, *, running: bool = False) -> dict[str, str]:
    """Messages by key."""
    mistakes: list[Mistake] = check.problems(
        parse(text, file="sniproxy.toml"), Source(text, file="sniproxy.toml"), running=running
    )
    assert mistakes == sorted(mistakes, key=lambda mistake: mistake.line)
    return {mistake.key: mistake.message for mistake in mistakes}


def proxy(listen: str = "", more: str = "") -> str:
    listen = listen or f"{LOCALHOST}:{free_port()}"
    return f'[proxy]\nlisten = ["{listen}"]\ndefault_backend = "reject"\n{more}\n[admin]\nlisten = ""\ncontrol_socket = ""\n'


def test_nothing() -> None:
    """A configuration that points at nothing has nothing that could be missing."""
    assert found(proxy()) == {}


def test_a_port_taken_is_fine_while_we_run() -> None:
    """… as it is taken by the proxy that runs."""
    with socket.create_server((LOCALHOST, 0)) as taken:
        text = proxy(f"{LOCALHOST}:{taken.getsockname()[1]}")

        assert list(found(text)) == ["proxy.listen[0]"]
        assert found(text, running=True) == {}


def test_an_address_that_is_not_ours_is_wrong_even_while_we_run() -> None:
    """What keeps a reload from binding is found beforehand."""
    assert list(found(proxy("192.0.2.1:8443"), running=True)) == ["proxy.listen[0]"]


def test_places_for_certificates(tmp_path: Path) -> None:
    """Contract, section 4: state_dir and certificate_dir; runtime_sockets and ca_file are read."""
    (tmp_path / "file").write_text("")
    places = {"state": f"{tmp_path}/file/state", "ca": f"{tmp_path}/ca.pem", "runtime": f"{tmp_path}/admin.sock"}
    messages = found(proxy() + DELIVERY.format(certificates=f"{tmp_path}/file", **places))

    assert messages == {
        "acme.ca_file": f"{tmp_path}/ca.pem cannot be read",
        "acme.state_dir": f"{tmp_path}/file is not a directory",
        "haproxy.certificate_dir": f"{tmp_path}/file is not a directory",
        "haproxy.runtime_sockets[0]": (
            f"HAProxy at unix:{tmp_path}/admin.sock: there is no such socket; HAProxy is not running, or has no"
            f" `stats socket {tmp_path}/admin.sock level admin`"
        ),
    }


@with_haproxy
def test_places_that_can_be_made(programs: Programs, tmp_path: Path) -> None:
    """A directory that is not there yet, in one that can be written to, is no problem."""
    (tmp_path / "ca.pem").write_text("")
    running = programs.start(Haproxy("", programs.directory))
    places = {"state": f"{tmp_path}/a/b", "certificates": f"{tmp_path}/c/d", "ca": f"{tmp_path}/ca.pem"}

    assert found(proxy() + DELIVERY.format(runtime=running.runtime, **places)) == {}


@needs_root
def test_places_that_root_makes_before_it_is_another(programs: Programs) -> None:
    """They are given to proxy.user, so nothing is in the way; one that is there already has to be that user's."""
    directory = programs.directory
    directory.chmod(0o755)
    (directory / "there").mkdir(mode=0o755)
    places = {"state": f"{directory}/a/b", "certificates": f"{directory}/there", "ca": f"{directory}/ca.pem"}
    messages = found(proxy(more='user = "nobody"\n') + DELIVERY.format(runtime=f"{directory}/none", **places))

    assert "acme.state_dir" not in messages
    assert messages["haproxy.certificate_dir"] == f"{directory}/there cannot be written to by this user"


@with_haproxy
def test_a_runtime_socket_of_too_low_a_level(programs: Programs, tmp_path: Path) -> None:
    """It can be connected to, and is good for looking only (management guide, section 9.3)."""
    (tmp_path / "ca.pem").write_text("")
    operator = tmp_path / "op.sock"
    programs.start(Haproxy(f"    stats socket {operator} level operator\n", programs.directory))
    places = {"state": f"{tmp_path}/a", "certificates": f"{tmp_path}/b", "ca": f"{tmp_path}/ca.pem"}

    assert found(proxy() + DELIVERY.format(runtime=operator, **places)) == {
        "haproxy.runtime_sockets[0]": (
            f"HAProxy at unix:{operator}: its level is 'operator' there; certificates need `stats socket … level admin`"
        )
    }


def test_a_runtime_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    """HAProxy leaves its socket behind when it is killed."""
    (tmp_path / "ca.pem").write_text("")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/left.sock")
    places = {"state": f"{tmp_path}/a", "certificates": f"{tmp_path}/b", "ca": f"{tmp_path}/ca.pem"}

    messages = found(proxy() + DELIVERY.format(runtime=f"{tmp_path}/left.sock", **places))
    assert "nobody listens there" in messages["haproxy.runtime_sockets[0]"]


@with_haproxy
def test_programs_that_cannot_be_run(programs: Programs, tmp_path: Path) -> None:
    """[hooks] and reload_command: what would be found out at the first renewal otherwise."""
    (tmp_path / "ca.pem").write_text("")
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain").chmod(0o644)
    running = programs.start(Haproxy("", programs.directory))
    places = {"state": f"{tmp_path}/a", "certificates": f"{tmp_path}/b", "ca": f"{tmp_path}/ca.pem"}
    text = proxy() + DELIVERY.format(runtime=running.runtime, **places)
    good = '[hooks]\non_renewed = ["/bin/sh", "-c", "gone"]\non_failed = ["sh"]\n'
    bad = f'[hooks]\non_renewed = ["{tmp_path}/gone"]\non_failed = ["{tmp_path}/plain"]\n'

    assert found(f'{text}reload_command = ["sh"]\n{good}') == {}
    assert found(f'{text}reload_command = ["no-such-program"]\n{bad}') == {
        "haproxy.reload_command": "there is no program no-such-program that this user may run, in no directory of PATH",
        "hooks.on_renewed": f"there is no program {tmp_path}/gone that this user may run",
        "hooks.on_failed": f"there is no program {tmp_path}/plain that this user may run",
    }


def test_descriptors_without_end_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """getrlimit(2): RLIM_INFINITY is no limit, and no small number either."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))

    assert found(proxy(more="max_connections = 16384")) == {}


def test_nobody_asked_for_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_connections by default takes what fits, which the proxy says at the start; it is no mistake of the file."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))

    assert found(proxy()) == {}


def test_a_backend_that_swallows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops: told after a moment, not after minutes."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", never)
    monkeypatch.setattr(check, "CONNECT_SECONDS", 0.01)
    messages = found(proxy(more='[backends.web]\nservers = ["192.0.2.1:443"]'))

    assert messages == {"backends.web.servers[0]": "nothing can be reached at 192.0.2.1:443: no answer within 0.01 s"}


@pytest.mark.parametrize("directory", [Path("/dev/null"), Path("/dev/null/log")])
def test_a_log_below_a_file(directory: Path) -> None:
    """ENOTDIR is found as well as ENOENT."""
    messages = found(proxy() + f'[log]\ntarget = "{directory}/sniproxy.log"\n')

    assert messages == {"log.target": f"there is no directory {directory}"}
