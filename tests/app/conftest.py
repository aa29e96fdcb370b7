"""Coroutines here run on both event loops; programs of a test are gone with it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.loops import pytest_pyfunc_call, runner
from tests.support.processes import Programs, attach_logs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["pytest_pyfunc_call", "runner"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture
def programs() -> Iterator[Programs]:
    """In a directory with a short name, as the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        running = Programs(Path(name))
        try:
            yield running
        finally:
            running.end()
