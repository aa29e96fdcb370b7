"""The running program, in this process; as a program of its own it is in tests/scenarios/test_lifecycle.py."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from contextlib import contextmanager
from signal import SIGTERM
from typing import TYPE_CHECKING

import pytest

from sniproxy.app.proxy import Proxy, bind_all
from sniproxy.config import parse
from sniproxy.errors import StartError
from sniproxy.model import TcpAddress, UnixAddress
from tests.support import hellos
from tests.support.clients import connected, everything
from tests.support.processes import LOCALHOST, free_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """The proxy sets the program's logger up for itself."""
    root = logging.getLogger("sniproxy")
    before = (root.handlers, root.propagate, root.level)
    yield
    root.handlers, root.propagate = before[:2]
    root.setLevel(before[2])


def test_all_addresses_are_bound_or_none() -> None:
    """A start or a reload that fails leaves nothing behind."""
    free = free_port()
    with socket.create_server((LOCALHOST, 0)) as taken, pytest.raises(StartError, match="Address already in use"):
        bind_all([TcpAddress(LOCALHOST, free), TcpAddress(LOCALHOST, taken.getsockname()[1])])

    with socket.create_server((LOCALHOST, free)):
        pass


def test_addresses_are_bound_in_their_order(tmp_path: Path) -> None:
    """Whoever asks for several has them back one for one."""
    addresses = [UnixAddress(str(tmp_path / name)) for name in ("a", "b")]
    bound = bind_all(addresses)
    for listener in bound:
        listener.close()

    assert [listener.name for listener in bound] == [str(address) for address in addresses]


def test_sockets_that_were_bound_are_removed_again(tmp_path: Path) -> None:
    """Of unix sockets nothing stays either, where a later address cannot be bound."""
    path = tmp_path / "public.sock"
    with pytest.raises(StartError, match="No such file or directory"):
        bind_all([UnixAddress(str(path)), UnixAddress(str(tmp_path / "nosuch" / "a.sock"))])

    assert not path.exists()


def test_a_log_that_cannot_be_opened_is_a_reason_not_to_start(tmp_path: Path) -> None:
    """Better no start than one without a log."""
    text = f'[proxy]\nlisten = ["{LOCALHOST}:{free_port()}"]\ndefault_backend = "reject"\n' + QUIET
    text += f'[log]\ntarget = "{tmp_path}"\n'

    async def run() -> None:
        await Proxy(parse(text, file="sniproxy.toml"), tmp_path / "sniproxy.toml").run()

    with pytest.raises(StartError, match=rf"log\.target: cannot open {tmp_path}: Is a directory"):
        asyncio.run(run())


QUIET = '[admin]\nlisten = ""\ncontrol_socket = ""\n'


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Does something in a thread beside the event loop."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_one_run(tmp_path: Path) -> None:
    """start → serve → TERM → stopped, with exit status 0, and everything given back."""
    port = free_port()
    log = tmp_path / "sniproxy.log"
    text = f'[proxy]\nlisten = ["{LOCALHOST}:{port}"]\ndefault_backend = "reject"\n[log]\ntarget = "{log}"\n' + QUIET
    answers = []

    def client() -> None:
        until(lambda: log.exists() and f"on {LOCALHOST}:{port}" in log.read_text(), "it has started")
        with connected(LOCALHOST, port) as connection:
            connection.sendall(hellos.hello())
            answers.append(everything(connection))
        os.kill(os.getpid(), SIGTERM)

    async def run() -> int:
        return await Proxy(parse(text, file="sniproxy.toml"), tmp_path / "sniproxy.toml").run()

    with meanwhile(client):
        status = asyncio.run(run())

    assert status == 0
    # RFC 8446 section 6.2: unrecognized_name, fatal.
    assert answers == [bytes((21, 3, 3, 0, 2, 2, 112))]
    assert "{git.example.com|}" in log.read_text()
    with socket.create_server((LOCALHOST, port)):
        pass
