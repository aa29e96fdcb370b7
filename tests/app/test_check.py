"""What `check` looks at, where a real machine cannot be made to have it. The rest is in tests/cli/test_check.py."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sniproxy.app import check
from sniproxy.config import Source, parse
from tests.support.processes import LOCALHOST, free_port

if TYPE_CHECKING:
    from sniproxy.errors import Mistake

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
            f"not there for this user; HAProxy needs: stats socket {tmp_path}/admin.sock level admin"
        ),
    }


def test_places_that_can_be_made(tmp_path: Path) -> None:
    """A directory that is not there yet, in one that can be written to, is no problem."""
    (tmp_path / "ca.pem").write_text("")
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.bind(str(tmp_path / "admin.sock"))
        places = {"state": f"{tmp_path}/a/b", "certificates": f"{tmp_path}/c/d", "ca": f"{tmp_path}/ca.pem"}

        assert found(proxy() + DELIVERY.format(runtime=f"{tmp_path}/admin.sock", **places)) == {}


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
