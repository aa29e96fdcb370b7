"""Every test of the relay ends with the proof that nothing of it is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.engine import Relay
from tests.support.loops import pytest_pyfunc_call, runner

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

__all__ = ["pytest_pyfunc_call", "relay", "runner"]


@pytest.fixture
def relay(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    relay = Relay(runner, monkeypatch)
    yield relay
    runner.run(relay.finish())
