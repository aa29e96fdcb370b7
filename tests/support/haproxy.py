"""A real HAProxy as a child process, ready when its runtime API answers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from signal import SIGUSR2

from tests.support.processes import PATIENCE_SECONDS, Program, until

# Debian keeps it out of the PATH of ordinary users.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
HAPROXY = shutil.which("haproxy", path=_PATH)
HALOG = shutil.which("halog", path=_PATH)
MISSING = "haproxy is not installed"


class Haproxy(Program):
    """`haproxy -db` with these sections behind a `global` of its own; every path in them is absolute.

    Sections may begin with lines that belong to `global`. working_directory: for paths that are not absolute.
    master_worker: a process that starts another on SIGUSR2 (management guide, section 3); see `reload`.
    """

    def __init__(
        self,
        sections: str,
        directory: Path,
        *,
        name: str = "haproxy",
        working_directory: Path | None = None,
        master_worker: bool = False,
    ) -> None:
        assert HAPROXY is not None, MISSING
        self.config = directory / f"{name}.cfg"
        self.runtime = directory / f"{name}.admin"
        self.config.write_text(f"global\n    stats socket {self.runtime} mode 600 level admin\n{sections}")
        # Both stay in the foreground.
        arguments: list[str | Path] = [HAPROXY, "-W" if master_worker else "-db", "-f", self.config]
        if working_directory is not None:
            arguments += ["-C", working_directory]
        super().__init__(name, arguments, directory)

    def await_ready(self) -> None:
        """Waits until it answers; an error with its own words where it has ended instead."""
        until(self._answers_or_ended, f"{self.name} answers", self)

    def ask(self, command: str) -> str:
        """The answer of the runtime API (management guide, section 9.3)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(self.runtime))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def worker(self) -> int:
        """The pid of the process that answers, which is another after a reload."""
        return int(next(line for line in self.ask("show info").splitlines() if line.startswith("Pid: "))[5:])

    def reload(self) -> None:
        """Has the master start another worker, and returns when that is the one that answers."""
        before = self.worker()
        self.await_signals()
        self.send(SIGUSR2)

        def another() -> bool:
            try:
                return self.worker() != before
            except (OSError, StopIteration):
                return False  # at this very moment

        until(another, f"{self.name} reloads", self)

    def await_signals(self) -> None:
        """Waits until the master minds SIGUSR2. Its worker answers before that, and what is sent by then is lost."""

        def minds() -> bool:
            masks = dict(re.findall(r"(Sig(?:Blk|Ign|Cgt)):\t(\w+)", Path(f"/proc/{self.pid}/status").read_text()))
            bits = {name: int(mask, 16) >> (SIGUSR2 - 1) & 1 for name, mask in masks.items()}
            return bits == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 1}

        until(minds, f"{self.name} minds signals", self)

    def _answers_or_ended(self) -> bool:
        if not self.running:
            raise AssertionError(f"{self.name} has ended with {self.wait()}; it said:\n{self.stderr}")
        try:
            return "Pid:" in self.ask("show info")
        except OSError:
            return False


def configuration_mistakes(text: str, directory: Path) -> str:
    """What `haproxy -c` has against a configuration: empty where nothing."""
    assert HAPROXY is not None, MISSING
    path = directory / "checked.cfg"
    path.write_text(text)
    done = subprocess.run((HAPROXY, "-c", "-f", path), capture_output=True, text=True)
    return done.stderr if done.returncode or "[WARNING]" in done.stderr else ""
