"""Work that may hang in the kernel, where no deadline reaches it: a name that is looked up, a disk in the network."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns, or raises. TimeoutError after so many seconds.

    The thread is then left behind: unlike those of an executor, neither the loop nor the program waits for it in the
    end.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(deliver: Callable[[], None]) -> None:
        if not outcome.done():  # else nobody waits any more
            deliver()

    def run() -> None:
        try:
            deliver = partial(outcome.set_result, work())
        except BaseException as error:  # noqa: BLE001  it is raised again, where it is waited for
            deliver = partial(outcome.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, deliver)

    threading.Thread(target=run, daemon=True, name="sniproxy-look").start()
    async with asyncio.timeout(seconds):
        return await outcome
