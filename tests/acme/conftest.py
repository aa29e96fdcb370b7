"""Coroutines here run on both event loops; the CAs of a module or a test are gone with it."""

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
    yield from _programs()


@pytest.fixture(scope="module")
def module_programs() -> Iterator[Programs]:
    yield from _programs()


def _programs() -> Iterator[Programs]:
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        running = Programs(Path(name))
        try:
            yield running
        finally:
            running.end()
