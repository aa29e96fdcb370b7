"""How late the event loop is, as the benchmark tells it."""

from __future__ import annotations

import asyncio
import time

from bench.certificates import Heartbeat


def test_a_loop_that_is_held_up_is_late_by_as_much():
    async def scene():
        heartbeat = Heartbeat()
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(heartbeat.beat())
            await asyncio.sleep(0)
            _busy(0.05)
            await asyncio.sleep(0.05)
            beating.cancel()
        return heartbeat.since(0)

    worst, _, median = map(float, asyncio.run(scene()).split(" | "))
    assert worst >= 45
    assert median <= worst


def _busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
