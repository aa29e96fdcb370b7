"""Commands in this process, with their streams apart; where a running proxy matters, as programs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from sniproxy.cli.program import program
from tests.support.processes import Programs, attach_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from click.testing import Result

# A server that nothing listens at, an admin port that is off: commands that dial nothing do not care.
CONFIG = """
[proxy]
listen = ["127.0.0.1:8443"]
default_backend = "haproxy"

[backends.haproxy]
servers = ["unix:/run/haproxy/sniproxy.sock"]

[backends.git]
servers = ["127.0.0.1:2443"]

[[routes]]
sni = ["git.example.com", "*.dev.example.com"]
backend = "git"

[[routes]]
sni = ["h2.example.com"]
alpn = ["h2"]
backend = "git"

[[routes]]
sni = ["office.example.com"]
backend = "git"
allow = ["192.0.2.0/24"]
"""

# One mistake a line, from line 2 on, each of another kind.
MISTAKES = """[proxy]
lisen = ["127.0.0.1:8443"]
max_hello = "1B"
workers = "many"
default_backend = "hapoxy"

[backends.haproxy]
servers = ["*:443"]
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """Commands that run the proxy in this process set the program's logger up for it."""
    root = logging.getLogger("sniproxy")
    before = (root.handlers, root.propagate, root.level)
    yield
    root.handlers, root.propagate = before[:2]
    root.setLevel(before[2])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file with CONFIG in it."""
    path = tmp_path / "sniproxy.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def mistaken(tmp_path: Path) -> Path:
    """A file with MISTAKES in it."""
    path = tmp_path / "mistaken.toml"
    path.write_text(MISTAKES)
    return path


@pytest.fixture
def sniproxy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command: `sniproxy("explain", "--sni", "a", input=...)`."""
    monkeypatch.delenv("SNIPROXY_CONFIG", raising=False)

    def run(*arguments: str | Path, **options: Any) -> Result:
        result = CliRunner().invoke(program, [str(argument) for argument in arguments], **options)
        # Exits are all that is raised on purpose.
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    return run


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    running = Programs(tmp_path)
    try:
        yield running
    finally:
        running.end()
