"""Waiting for a lock that another process has: a running proxy and a command may be at the same certificate."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sniproxy.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOCK_SECONDS = 60.0
"""For the other to be done: public CAs take seconds. Later it is a failure, and tried again as any other."""

LOCK_POLL_SECONDS = 0.2


class Lockable(Protocol):
    """A lock on disk (durable.Lock)."""

    def try_acquire(self) -> bool:
        """Takes it, if nobody else has it; may block for the disk."""

    def release(self) -> None:
        """Gives it back."""


@asynccontextmanager
async def held(lock: Lockable, what: str) -> AsyncIterator[None]:
    """Takes the lock as soon as whoever has it is done. Raises StoreError, naming `what` it is for, if that is long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LOCK_SECONDS
    while not await _taken(lock):
        if loop.time() > deadline:
            raise StoreError(f"another sniproxy is at {what}, and has not finished")
        await asyncio.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


async def _taken(lock: Lockable) -> bool:
    """Whether nobody else has it; whoever is cancelled meanwhile does not have it in the end."""
    trying = asyncio.get_running_loop().run_in_executor(None, lock.try_acquire)
    try:
        return await asyncio.shield(trying)
    except asyncio.CancelledError:
        # A thread cannot be cancelled: it may take the lock yet, and this process would have it for good.
        trying.add_done_callback(partial(_give_back, lock))
        raise


def _give_back(lock: Lockable, tried: asyncio.Future[bool]) -> None:
    if tried.exception() is None:
        lock.release()
