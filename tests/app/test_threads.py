"""Work in a thread that nobody waits for longer than he likes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sniproxy.app.threads import in_own_thread
from tests.support.processes import PATIENCE_SECONDS


async def test_what_it_returns_is_returned(runner):
    assert await in_own_thread(lambda: 7, PATIENCE_SECONDS) == 7


async def test_what_it_raises_is_raised(runner):
    def fails():
        raise PermissionError("no")

    with pytest.raises(PermissionError, match="no"):
        await in_own_thread(fails, PATIENCE_SECONDS)


async def test_the_loop_goes_on_meanwhile(runner):
    go = threading.Event()

    async def later():
        go.set()

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(in_own_thread(lambda: go.wait(PATIENCE_SECONDS), PATIENCE_SECONDS))
        await asyncio.sleep(0)
        tasks.create_task(later())
    assert waiting.result() is True


async def test_one_that_hangs_is_left_behind(runner):
    go = threading.Event()
    try:
        with pytest.raises(TimeoutError):
            await in_own_thread(go.wait, 0.01)
        hanging = [thread for thread in threading.enumerate() if thread.name == "sniproxy-look"]
        assert hanging
        assert all(thread.daemon for thread in hanging)
    finally:
        go.set()


def test_one_that_ends_after_its_loop_harms_nobody(monkeypatch):
    go = threading.Event()
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    async def give_up():
        with pytest.raises(TimeoutError):
            await in_own_thread(go.wait, 0.01)

    asyncio.run(give_up())
    (left,) = (thread for thread in threading.enumerate() if thread.name == "sniproxy-look")
    go.set()
    left.join(PATIENCE_SECONDS)
    assert not left.is_alive()
    assert failures == []
