"""What tests of the demo share: whether its programs are there, what is left of them, and a haproxy that is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.haproxy import HAPROXY
from tests.support.pebble import AVAILABLE

needs_programs = pytest.mark.skipif(
    HAPROXY is None or not AVAILABLE, reason="haproxy or pebble is missing: apt-get install haproxy pebble"
)


def processes_of(directory: Path) -> list[str]:
    """Processes that have something below the directory on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in words:
                found.append(words)
    return found


def stub(directory: Path, text: str, name: str = "haproxy") -> dict[str, str]:
    """The environment with a program that is a shell script in front of all others."""
    program = directory / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}
