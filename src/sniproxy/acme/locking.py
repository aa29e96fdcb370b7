"""Waiting for a lock that another process has: a running proxy and a command may be at the same certificate."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
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
    while not await asyncio.to_thread(lock.try_acquire):
        if loop.time() > deadline:
            raise StoreError(f"another sniproxy is at {what}, and has not finished")
        await asyncio.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
