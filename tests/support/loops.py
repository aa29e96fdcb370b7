"""Tests that are coroutines: each runs on uvloop and on plain asyncio.

A conftest beside them imports both names from here. Such a test asks for `runner`, or for a fixture that does.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

TEST_SECONDS = 60.0
"""Nothing takes that long, not even on a busy machine: whoever waits longer waits for what never comes."""


@pytest.fixture(params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        runner.run(asyncio.sleep(0))  # so that the loop has opened what it needs
        yield runner


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await pyfuncitem.obj(**arguments)

    runner: Any = pyfuncitem.funcargs["runner"]
    runner.run(run())
    return True
