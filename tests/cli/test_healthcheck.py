"""`sniproxy healthcheck`: exit 0 if the running proxy is ready, else 1 (contract, section 1)."""

from __future__ import annotations

import socket
from signal import SIGTERM
from typing import TYPE_CHECKING

import pytest

from tests.support import hellos
from tests.support.clients import connected
from tests.support.origins import NamedServer
from tests.support.processes import LOCALHOST, Programs, Sniproxy, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def text(listen: str, admin: str, backend: str = "unix:/nonexistent.sock") -> str:
    return (
        f'[proxy]\nlisten = ["{listen}"]\ndefault_backend = "web"\n[backends.web]\nservers = ["{backend}"]\n'
        f'[admin]\nlisten = "{admin}"\ncontrol_socket = ""\n'
    )


def start(programs: Programs, config: str) -> Sniproxy:
    proxy = Sniproxy(config, programs.directory)
    programs.started.append(proxy)
    proxy.says(r"info: \S+ on ")
    return proxy


@pytest.mark.parametrize("host", [LOCALHOST, "0.0.0.0", ""])
def test_a_proxy_that_is_ready(sniproxy: Callable[..., Result], programs: Programs, host: str) -> None:
    """Exit status 0, and nothing said: for containers."""
    port = free_port()
    proxy = start(programs, text(f"{LOCALHOST}:{free_port()}", f"{host}:{port}"))
    result = sniproxy("healthcheck", "-c", proxy.config)

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_an_admin_listener_on_a_unix_socket(
    sniproxy: Callable[..., Result], programs: Programs, tmp_path: Path, kind: str
) -> None:
    """[admin] listen may be unix:/path as well."""
    address = f"unix:{tmp_path}/admin.sock" if kind == "path" else f"unix:@sniproxy-test-{free_port()}"
    proxy = start(programs, text(f"{LOCALHOST}:{free_port()}", address))

    assert sniproxy("healthcheck", "-c", proxy.config).exit_code == 0


def test_nobody_is_there(sniproxy: Callable[..., Result], tmp_path: Path) -> None:
    """Exit status 1, with the reason in one line."""
    path = tmp_path / "sniproxy.toml"
    path.write_text(text("127.0.0.1:8443", f"{LOCALHOST}:{(port := free_port())}"))
    result = sniproxy("healthcheck", "-c", path)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"no answer from 127.0.0.1:{port}: Connection refused\n"


def test_somebody_else_is_there(sniproxy: Callable[..., Result], tmp_path: Path) -> None:
    """Exit status 1 where what answers does not speak HTTP."""
    path = tmp_path / "sniproxy.toml"
    port = free_port()
    path.write_text(text("127.0.0.1:8443", f"{LOCALHOST}:{port}"))
    other = NamedServer("SSH-2.0-OpenSSH_9.2\r\n", port)
    try:
        result = sniproxy("healthcheck", "-c", path)
    finally:
        other.close()

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"what listens on 127.0.0.1:{port} is not sniproxy: it does not speak HTTP\n"


def test_nobody_can_be_asked(sniproxy: Callable[..., Result], tmp_path: Path) -> None:
    """Exit status 1: without an admin listener there is no telling."""
    path = tmp_path / "sniproxy.toml"
    path.write_text(text("127.0.0.1:8443", ""))
    result = sniproxy("healthcheck", "-c", path)

    assert (result.exit_code, result.stderr) == (1, "admin.listen is off: nobody can be asked\n")


def test_a_proxy_that_drains_is_not_ready(sniproxy: Callable[..., Result], programs: Programs, tmp_path: Path) -> None:
    """So that a load balancer sends nobody there any more."""
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(tmp_path / "web.sock"))
        backend.listen()
        port = free_port()
        admin = f"{LOCALHOST}:{free_port()}"
        proxy = start(programs, text(f"{LOCALHOST}:{port}", admin, f"unix:{tmp_path}/web.sock"))
        with connected(LOCALHOST, port) as client:
            client.sendall(hellos.hello())
            with backend.accept()[0]:
                proxy.send(SIGTERM)
                proxy.says("stopping")
                result = sniproxy("healthcheck", "-c", proxy.config)

    assert (result.exit_code, result.stderr) == (1, "not ready: draining\n")
