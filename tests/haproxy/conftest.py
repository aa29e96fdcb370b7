"""Coroutines here run on both event loops; HAProxy is the real one, or a socket with a script."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.loops import pytest_pyfunc_call, runner
from tests.support.processes import Programs, attach_logs
from tests.support.runtime_socket import ScriptedRuntime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator, Iterator

__all__ = ["pytest_pyfunc_call", "runner"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a short name, as the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        yield Path(name)


@pytest.fixture
def programs(directory: Path) -> Iterator[Programs]:
    running = Programs(directory)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture
def scripted(runner: asyncio.Runner, directory: Path) -> Iterator[ScriptedRuntime]:
    runtime = ScriptedRuntime(directory / "scripted.sock")
    runner.run(runtime.start())
    yield runtime
    runner.run(runtime.close())
