"""Everything that runs in the demo: a directory, ports, the ACME CA, the proxy, HAProxy, and how to ask them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sniproxy.app.demo.acme_ca import AcmeCa, reserved_ports
from sniproxy.app.demo.files import BUNDLE, HAPROXY_CFG, PAGE, SNIPROXY_TOML
from sniproxy.app.demo.programs import (
    Program,
    StepFailed,
    find_programs,
    haproxy_version,
    removed,
    reserved_port,
    undisturbed,
    usable_for_sockets,
)
from sniproxy.app.demo.traffic import GOOD_LOG_LINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

START_SECONDS = 15.0
"""For a program to be ready: it takes half a second, and much longer on a machine that is busy."""
ANSWER_SECONDS = 5.0
COMMAND_SECONDS = 15.0


class Setup:
    """As a context manager it gives back everything at the end: programs, ports, files.

    Programs are started in the order of the methods. keep: leave the files where they are. validity_seconds: a
    certificate's life. start_seconds: how long a program may take to be ready.

    Raises StepFailed where a program is missing.
    """

    def __init__(self, *, keep: bool, validity_seconds: int, start_seconds: float = START_SECONDS) -> None:
        self._found = find_programs()
        self._keep = keep
        self._validity_seconds = validity_seconds
        self._start_seconds = start_seconds
        self._stack = contextlib.ExitStack()
        self._ca: AcmeCa | None = None
        self._proxy: Program | None = None
        self._haproxy: Program | None = None
        self.directory: Path
        self.port = self.admin_port = 0

    def __enter__(self) -> Self:
        directory = Path(tempfile.mkdtemp(prefix="sniproxy-demo-", dir=usable_for_sockets(tempfile.gettempdir())))
        self.directory = directory
        if not self._keep:
            self._stack.enter_context(removed(directory))
        try:
            self.port, self.admin_port = (self._stack.enter_context(reserved_port()) for _ in range(2))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with undisturbed():
            for program in reversed(self.programs):
                program.kill()
            self._stack.close()

    # ------------------------------------------------------------------ where things are

    @property
    def ca_file(self) -> Path:
        """The root of what the CA issues: for clients to trust."""
        return self.directory / "ca.pem"

    @property
    def config_file(self) -> Path:
        """The proxy's configuration."""
        return self.directory / "sniproxy.toml"

    @property
    def haproxy_cfg(self) -> Path:
        """HAProxy's configuration."""
        return self.directory / "haproxy.cfg"

    @property
    def bundle(self) -> Path:
        """The certificate, where HAProxy reads it."""
        return self.directory / "certs" / BUNDLE

    @property
    def proxy(self) -> Program:
        """The proxy, once it has been started."""
        assert self._proxy is not None
        return self._proxy

    @property
    def haproxy(self) -> Program:
        """HAProxy, once it has been started."""
        assert self._haproxy is not None
        return self._haproxy

    @property
    def programs(self) -> list[Program]:
        """All that have been started."""
        ca = self._ca.programs if self._ca is not None else ()
        return [program for program in (*ca, self._proxy, self._haproxy) if program is not None]

    # ------------------------------------------------------------------ start

    def start_ca(self, name: str) -> str:
        """Starts the ACME CA, with a DNS that knows `name`; returns the URL of its directory."""
        ports = reserved_ports(self._stack)
        self._ca = AcmeCa(
            self.directory / "pebble",
            ports,
            self._found,
            validation_port=self.port,
            validity_seconds=self._validity_seconds,
        )
        self._ca.start(name, self._start_seconds)
        self.ca_file.write_text(self._ca.root())
        self.config_file.write_text(
            SNIPROXY_TOML.format(
                port=self.port, admin_port=self.admin_port, acme_port=ports.acme, directory=self.directory
            )
        )
        return f"https://127.0.0.1:{ports.acme}/dir"

    def start_proxy(self) -> Program:
        """Starts the proxy, which has left something for HAProxy to start with when this returns."""
        self.bundle.parent.mkdir(mode=0o700)
        command = own_command("run", "-c", str(self.config_file))
        self._proxy = program = Program("sniproxy", command, self.directory / "sniproxy.log", dull=GOOD_LOG_LINE)
        program.wait_until(self._is_ready, "sniproxy is not ready", self._start_seconds)
        program.wait_until(self.bundle.exists, f"sniproxy has not written {self.bundle}", self._start_seconds)
        return program

    def start_haproxy(self) -> tuple[Program, str]:
        """Starts HAProxy; returns its version, too."""
        version = haproxy_version(self._found["haproxy"])
        (self.directory / "page.html").write_text(PAGE)
        self.haproxy_cfg.write_text(HAPROXY_CFG.format(directory=self.directory))
        command = (self._found["haproxy"], "-db", "-f", str(self.haproxy_cfg))
        self._haproxy = program = Program("haproxy", command, self.directory / "haproxy.log", dull=GOOD_LOG_LINE)
        path = self.directory / "haproxy.sock"
        program.wait_until(lambda: _listens(path), f"haproxy does not listen on {path}", self._start_seconds)
        return program, version

    def _is_ready(self) -> bool:
        try:
            return self._ask_admin("/readyz")[0] == http.client.OK
        except ConnectionRefusedError:
            return False

    # ------------------------------------------------------------------ asked

    def metrics(self) -> Metrics:
        """The proxy's, now."""
        return Metrics(self._ask_admin("/metrics")[1])

    def command(self, name: str, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """What a command of this program prints. Raises StepFailed unless it exits with 0."""
        done = subprocess.run(  # noqa: S603  this very program
            own_command(name, "-c", str(self.config_file), *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            text=True,
        )
        if done.returncode:
            words = [f"sniproxy {name}: {line}" for line in (done.stdout + done.stderr).splitlines()]
            raise StepFailed(f"sniproxy {name} exits with {done.returncode}", words)
        return done.stdout

    def certificate(self) -> dict[str, Any]:
        """The certificate as `sniproxy certs --json` tells it."""
        (certificate,) = json.loads(self.command("certs", "--json"))
        return dict(certificate)

    def words(self) -> list[str]:
        """What all programs said last."""
        return [line for program in self.programs for line in program.words()]

    def must_live(self) -> None:
        """Raises StepFailed if a program has ended."""
        for program in self.programs:
            program.must_live()

    def log_lines(self) -> Iterator[list[tuple[str, str]]]:
        """What HAProxy and the proxy have logged since the last time it was asked for: speaker and line."""
        with contextlib.ExitStack() as files:
            logging = [program for program in (self._proxy, self._haproxy) if program is not None]
            tails = [(program, files.enter_context(program.output.open(errors="replace"))) for program in logging]
            for _, tail in tails:
                tail.seek(0, os.SEEK_END)
            while True:
                yield [
                    (program.name, line.rstrip("\n"))
                    for program, tail in tails
                    for line in tail
                    if program.is_worth_showing(line)
                ]

    def _ask_admin(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")


class Metrics:
    """One scrape: all samples are of the same moment."""

    def __init__(self, text: str) -> None:
        self._text = text

    def samples(self, name: str) -> dict[str, float]:
        """The samples of a metric, by their labels as they are written."""
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self._text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def sum(self, name: str, *labels: str) -> float:
        """All samples that have these labels, each written as `key="value"`."""
        return sum(value for key, value in self.samples(name).items() if all(label in key for label in labels))


def own_command(*arguments: str) -> tuple[str, ...]:
    """This same program, whatever lies in the working directory (-P)."""
    return (sys.executable, "-P", "-m", "sniproxy", *arguments)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True
