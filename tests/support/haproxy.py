"""A real HAProxy as a child process, ready when its runtime API answers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.support.processes import PATIENCE_SECONDS, Program, until

if TYPE_CHECKING:
    from pathlib import Path

# Debian keeps it out of the PATH of ordinary users.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
HAPROXY = shutil.which("haproxy", path=_PATH)
HALOG = shutil.which("halog", path=_PATH)
MISSING = "haproxy is not installed"


class Haproxy(Program):
    """`haproxy -db` with these sections behind a `global` of its own; every path in them is absolute."""

    def __init__(self, sections: str, directory: Path, *, name: str = "haproxy") -> None:
        assert HAPROXY is not None, MISSING
        self.config = directory / f"{name}.cfg"
        self._runtime = directory / f"{name}.admin"
        self.config.write_text(f"global\n    stats socket {self._runtime} mode 600 level admin\n{sections}")
        super().__init__(name, (HAPROXY, "-db", "-f", self.config), directory)

    def await_ready(self) -> None:
        """Waits until it answers; an error with its own words where it has ended instead."""
        until(self._answers_or_ended, f"{self.name} answers", self)

    def ask(self, command: str) -> str:
        """The answer of the runtime API (management guide, section 9.3)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(str(self._runtime))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

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
