"""What is compared: how each front is started, and what it is told to do.

All of them listen on one TCP port of 127.0.0.1, write one tcplog line for each connection to somebody who reads it,
and hand everything on to the same backend. To compare another one, add it to FRONTS.
"""

from __future__ import annotations

import resource
import shutil
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.first_flight import Task, first_flight
from bench.processes import Program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOST = "127.0.0.1"
READY_SECONDS = 15.0
MAX_CONNECTIONS = min(16384, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 500) // 2)
"""What sniproxy has as its default, or as many as the limit of open files allows: each takes two."""

_HAPROXY = """\
global
    nbthread 1
    maxconn {max_connections}
    log {syslog} local0

defaults
    mode tcp
    log global
    option tcplog
    timeout connect 10s
    timeout client 10m
    timeout server 10m

frontend sni
    bind {listen}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    acl acme req.ssl_sni -m end .acme.invalid
    use_backend acme if acme
    default_backend loop

backend acme
    server client {unused}

backend loop
    server loop {server}
"""

_SNIPROXY = """\
[proxy]
listen = ["{listen}"]
default_backend = "loop"
max_connections = {max_connections}

[backends.loop]
servers = ["{server}"]
proxy_protocol = "v2"

[admin]
listen = "{admin}"
control_socket = ""

[log]
format = "tcplog"
target = "stdout"
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a front does its work: a directory of its own, the cores, and the backend's two addresses."""

    directory: Path
    core: int
    tcp: tuple[str, int]
    unix: Path


class Running:
    """A front that is up, or nothing at all: then `program` is None and `address` the backend's own."""

    def __init__(self, address: tuple[str, int], program: Program | None, syslog: Syslog | None = None) -> None:
        self.address = address
        self.program = program
        self._syslog = syslog

    @property
    def log_lines(self) -> int:
        """Lines that it has logged and somebody has read."""
        if self._syslog is not None:
            return self._syslog.lines
        return self.program.lines if self.program is not None else 0

    def stop(self) -> None:
        """Ends it."""
        if self.program is not None:
            self.program.stop()
        if self._syslog is not None:
            self._syslog.close()


@dataclass(frozen=True, slots=True)
class Front:
    """One of the things compared. `missing` says why it cannot be started here, empty when it can."""

    name: str
    label: str
    start: Callable[[Site], Running]
    missing: Callable[[], str] = lambda: ""


class Syslog:
    """Takes and counts what is logged over UDP, with a buffer that loses nothing."""

    def __init__(self) -> None:
        self.lines = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((HOST, 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _count(self) -> None:
        while self._socket.recv(2048):
            self.lines += 1


def free_port() -> int:
    """A port of HOST that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def answers(address: tuple[str, int]) -> bool:
    """Whether a hello gets an answer from the backend through this address."""
    try:
        with socket.create_connection(address, timeout=1.0) as sock:
            sock.sendall(first_flight(Task.ANSWER, 1))
            return len(sock.recv(1)) == 1
    except OSError:
        return False


def _up(running: Running) -> Running:
    """Waits until it serves."""
    program = running.program
    assert program is not None
    deadline = time.monotonic() + READY_SECONDS
    while not answers(running.address):
        if not program.alive or time.monotonic() > deadline:
            running.stop()
            raise RuntimeError(f"does not come up: {program.last_words()}")
        time.sleep(0.05)
    return running


def _haproxy(site: Site, server: str) -> Running:
    binary = shutil.which("haproxy")
    assert binary is not None
    syslog = Syslog()
    port = free_port()
    config = site.directory / "haproxy.cfg"
    config.write_text(
        _HAPROXY.format(
            max_connections=MAX_CONNECTIONS,
            syslog=syslog.address,
            listen=f"{HOST}:{port}",
            unused=f"{HOST}:{free_port()}",
            server=server,
        ),
        encoding="ascii",
    )
    program = Program([binary, "-db", "-f", str(config)], core=site.core, errors=site.directory / "errors")
    return _up(Running((HOST, port), program, syslog))


def sniproxy_config(*, listen: str, admin: str, server: str) -> str:
    """The configuration of a sniproxy that hands everything to one server."""
    return _SNIPROXY.format(listen=listen, max_connections=MAX_CONNECTIONS, server=server, admin=admin)


def _sniproxy(site: Site, server: str) -> Running:
    port = free_port()
    path = site.directory / "sniproxy.toml"
    config = sniproxy_config(listen=f"{HOST}:{port}", admin=f"{HOST}:{free_port()}", server=server)
    path.write_text(config, encoding="ascii")
    command = [sys.executable, "-m", "sniproxy", "run", "-c", str(path)]
    return _up(Running((HOST, port), Program(command, core=site.core, errors=site.directory / "errors")))


def _tcp(site: Site) -> str:
    return "{}:{}".format(*site.tcp)


def _no_haproxy() -> str:
    return "" if shutil.which("haproxy") else "haproxy is not installed"


HAPROXY_TCP = Front("haproxy-tcp", "HAProxy loop, TCP", lambda site: _haproxy(site, _tcp(site)), _no_haproxy)
HAPROXY_UNIX = Front(
    "haproxy-unix", "HAProxy loop, unix", lambda site: _haproxy(site, f"unix@{site.unix}"), _no_haproxy
)
SNIPROXY_UNIX = Front("sniproxy-unix", "sniproxy, unix", lambda site: _sniproxy(site, f"unix:{site.unix}"))
SNIPROXY_TCP = Front("sniproxy-tcp", "sniproxy, TCP", lambda site: _sniproxy(site, _tcp(site)))
DIRECT = Front("direct", "no front at all", lambda site: Running(site.tcp, None))

FRONTS = (HAPROXY_TCP, HAPROXY_UNIX, SNIPROXY_UNIX, SNIPROXY_TCP, DIRECT)
BASELINE = HAPROXY_TCP.name
"""What ratios are ratios to: the loop as it is usually set up."""
