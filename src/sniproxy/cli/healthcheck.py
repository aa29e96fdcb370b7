"""`sniproxy healthcheck`: for containers and monitoring."""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING

import click

from sniproxy.cli.program import config_option, fail, load_or_exit
from sniproxy.model import TcpAddress, UnixAddress

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.model import Address

ANSWER_SECONDS = 5.0
MAX_ANSWER_BYTES = 4 << 20
"""Enough for the metrics of thousands of servers."""


@click.command()
@config_option
def healthcheck(path: Path) -> None:
    """Exit with 0 if the running proxy is ready, else with 1."""
    config = load_or_exit(path)
    if not config.admin.listen:
        fail("admin.listen is off: nobody can be asked")
    try:
        status, text = ask(config.admin.listen, "/readyz")
    except OSError as error:
        fail(f"no answer from {config.admin.listen}: {error.strerror or error}")
    except http.client.HTTPException:
        fail(f"what listens on {config.admin.listen} is not sniproxy: it does not speak HTTP")
    if status != http.client.OK:
        fail(f"not ready: {text.strip()}")


def ask(address: Address, path: str) -> tuple[int, str]:
    """Asks the admin listener of the running proxy. Raises OSError or HTTPException where it does not answer."""
    connection = http.client.HTTPConnection("localhost", timeout=ANSWER_SECONDS)
    connection.sock = _connect(address)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
    finally:
        connection.close()


def _connect(address: Address) -> socket.socket:
    if isinstance(address, UnixAddress):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(address.socket_address)
        return connection
    assert isinstance(address, TcpAddress)
    # Listening on all addresses includes this one.
    host = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return socket.create_connection((host, address.port), ANSWER_SECONDS)
