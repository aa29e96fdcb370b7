"""The real program between real clients and a real HAProxy."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.pki import Authority
from tests.support.processes import Programs, attach_logs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    attach_logs(item, report)
    return report


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def programs() -> Iterator[Programs]:
    """In a directory with a short name, as the path of a unix socket has at most 107 bytes."""
    yield from _programs()


@pytest.fixture(scope="module")
def module_programs() -> Iterator[Programs]:
    yield from _programs()


def _programs() -> Iterator[Programs]:
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # programs of other users are among them
        running = Programs(directory)
        try:
            yield running
        finally:
            running.end()
