"""Programs as child processes: started, waited for by what they say or answer, and gone when the test is.

Nothing here sleeps for a fixed time: whatever is waited for is asked for again until it is there, or until a deadline
that only a program that hangs will meet.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from signal import SIGHUP, SIGKILL, SIGTERM
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pytest

PATIENCE_SECONDS = 40.0
"""For what takes milliseconds: a machine that is busy with other things must not fail a test."""

POLL_SECONDS = 0.005
LOCALHOST = "127.0.0.1"
# Below net.ipv4.ip_local_port_range: a port of it may become that of anybody's outgoing connection at any time.
_PORTS = range(10240, 32768)
_MAX_LOG_CHARS = 20_000

T = TypeVar("T")
ReadyT = TypeVar("ReadyT", bound="Program")


def until(
    condition: Callable[[], T | None], what: str, program: Program | None = None, seconds: float = PATIENCE_SECONDS
) -> T:
    """What `condition` returns, as soon as that is true; an error that says what was waited for otherwise."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            said = f"; {program.name} said:\n{program.stderr}" if program is not None else ""
            raise AssertionError(f"in vain, for {seconds:g} s: {what}{said}")
        time.sleep(POLL_SECONDS)
    return result


def free_port() -> int:
    """A port that nobody listens on, on 127.0.0.1 and ::1."""
    for port in random.sample(_PORTS, 200):
        try:
            for family, host in ((socket.AF_INET, LOCALHOST), (socket.AF_INET6, "::1")):
                if family == socket.AF_INET6 and not has_ipv6():
                    continue
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return port
    raise AssertionError("no free port")


def has_ipv6() -> bool:
    """Whether this machine's loopback has ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class Program:
    """A child process with its output in files. It dies with this process, and all of its group with `kill`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str | Path],
        directory: Path,
        *,
        descriptors: int | None = None,
        environment: dict[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self.name = name
        self._stdout_path, self._stderr_path = directory / f"{name}.stdout", directory / f"{name}.stderr"
        command: list[str | Path] = []
        if descriptors is not None:
            command += ["prlimit", f"--nofile={descriptors}:{descriptors}"]
        # Each of them execs what follows, so that the child is the program itself.
        command += ["setpriv", "--pdeathsig", "KILL", "--", *arguments]
        with self._stdout_path.open("ab") as out, self._stderr_path.open("ab") as err:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )
        self.pid = self._child.pid

    def await_ready(self) -> None:
        """Waits until it does what it is there for; those that can be asked say more."""

    @property
    def stdout(self) -> str:
        return self._stdout_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def says(self, pattern: str, *, times: int = 1) -> str:
        """Waits until standard error has the regular expression so many times; returns the last match."""

        def found() -> str | None:
            ended = not self.running  # asked first: what it said last is there by then
            matches = [match[0] for match in re.finditer(pattern, self.stderr)]
            assert len(matches) >= times or not ended, f"{self.name} has ended; it said:\n{self.stderr}"
            return matches[-1] if len(matches) >= times else None

        return until(found, f"{self.name} says {pattern!r}", self)

    def send(self, number: int) -> None:
        self._child.send_signal(number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """The exit status, once it has ended by itself."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {seconds:g} s; it said:\n{self.stderr}") from None

    def stop(self, number: int = SIGTERM) -> int:
        """The exit status after this signal."""
        self.send(number)
        return self.wait()

    def kill(self) -> None:
        """Ends it whatever it is doing, and what it has started."""
        if self.running:
            try:
                os.killpg(self.pid, SIGKILL)
            except ProcessLookupError:
                pass
            self._child.wait()

    def logs(self) -> Iterator[tuple[str, str]]:
        """What it has written, for the report of a failure."""
        for stream, path in (("stdout", self._stdout_path), ("stderr", self._stderr_path)):
            text = path.read_text(errors="replace") if path.exists() else ""
            if text:
                yield f"{self.name}: {stream}", text[-_MAX_LOG_CHARS:]


class Sniproxy(Program):
    """`sniproxy run` with this configuration, in a file of its own.

    An [admin] section on a free port is added unless there is one.
    """

    def __init__(
        self,
        text: str,
        directory: Path,
        *,
        name: str = "sniproxy",
        event_loop: str = "uvloop",
        descriptors: int | None = None,
        environment: dict[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self.config = directory / f"{name}.toml"
        self.admin_port = 0
        self._admin_section = ""
        if "[admin]" not in text:
            self.admin_port = free_port()
            self._admin_section = f'\n[admin]\nlisten = "{LOCALHOST}:{self.admin_port}"\ncontrol_socket = ""\n'
        self.write(text)
        arguments = (sys.executable, "-m", "sniproxy", "run", "-c", self.config, "--event-loop", event_loop)
        super().__init__(
            name,
            arguments,
            directory,
            descriptors=descriptors,
            environment=environment,
            stdout=stdout,
            stderr=stderr,
        )

    def write(self, text: str) -> None:
        """Changes its file; it is for `reload` to make it read that."""
        self.config.write_text(text + self._admin_section)

    def await_ready(self) -> None:
        """Waits until it accepts connections; an error with its own words where it has ended instead."""
        until(self._ready_or_ended, f"{self.name} is ready", self)

    def reload(self, text: str) -> None:
        """Another configuration, and a HUP; returns when that has been taken or refused."""
        before = sum(self.metric("sniproxy_config_reloads_total", result=result) for result in ("success", "failure"))
        self.write(text)
        self.send(SIGHUP)
        until(
            lambda: (
                sum(self.metric("sniproxy_config_reloads_total", result=r) for r in ("success", "failure")) > before
            ),
            f"{self.name} reloads",
            self,
        )

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the admin listener."""
        connection = HTTPConnection(LOCALHOST, self.admin_port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """All samples of one scrape, by name and sorted labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """One sample; 0 where there is none (yet)."""
        return self.metrics().get((name, tuple(sorted(labels.items()))), 0.0)

    def connection_lines(self, count: int) -> list[str]:
        """The lines of connections on standard output, once there are so many."""

        def lines() -> list[str] | None:
            whole = self.stdout.splitlines()
            return whole if len(whole) >= count and self.stdout.endswith("\n") else None

        return until(lines, f"{count} log lines; there are:\n{self.stdout}")

    def _ready_or_ended(self) -> bool:
        if not self.running:
            raise AssertionError(f"{self.name} has ended with {self.wait()}; it said:\n{self.stderr}")
        try:
            return self.get("/readyz")[0] == 200
        except (OSError, HTTPException):
            return False


class Programs:
    """The programs of one test or one module: ready when they are handed out, and ended all at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[Program] = []

    def sniproxy(self, text: str, **options: Any) -> Sniproxy:
        return self.start(Sniproxy(text, self.directory, **options))

    def start(self, program: ReadyT) -> ReadyT:
        """Waits until it is ready, and ends it with the others."""
        self.started.append(program)
        program.await_ready()
        return program

    def end(self) -> None:
        for program in reversed(self.started):
            program.kill()


def attach_logs(item: pytest.Item, report: pytest.TestReport) -> None:
    """Adds to the report of a failure what the programs of its fixtures have written."""
    if not report.failed:
        return
    for fixture in getattr(item, "funcargs", {}).values():
        programs = fixture if isinstance(fixture, Programs) else getattr(fixture, "programs", None)
        if isinstance(programs, Programs):
            report.sections += [section for program in programs.started for section in program.logs()]
