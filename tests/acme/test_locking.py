"""Waiting for a lock that another process has (contract, section 1: a running proxy, and commands beside it)."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from sniproxy import durable
from sniproxy.acme import locking
from sniproxy.acme.locking import held
from sniproxy.errors import StoreError
from tests.support.disks import child_after
from tests.support.kept import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "LOCK_POLL_SECONDS", 0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def is_free(path: Path) -> bool:
    lock = durable.Lock(path)
    try:
        return lock.try_acquire()
    finally:
        lock.release()


async def test_it_is_held_inside_and_free_behind(runner: asyncio.Runner, path: Path) -> None:
    """flock(2): one holder at a time, among open files, so within one process too."""
    async with held(durable.Lock(path), "a thing"):
        assert not is_free(path)

    assert is_free(path)


async def test_it_is_free_after_an_error(runner: asyncio.Runner, path: Path) -> None:
    """Whatever happens inside."""
    with pytest.raises(RuntimeError):
        async with held(durable.Lock(path), "a thing"):
            raise RuntimeError

    assert is_free(path)


class Counting(durable.Lock):
    tries = 0

    def try_acquire(self) -> bool:
        self.tries += 1
        return super().try_acquire()


async def test_it_is_taken_once_the_other_is_done(runner: asyncio.Runner, path: Path) -> None:
    """Waited for, not given up: the other is about to have done what we were about to do."""
    other, lock = durable.Lock(path), Counting(path)
    assert other.try_acquire()
    inside = asyncio.Event()

    async def wait() -> None:
        async with held(lock, "a thing"):
            inside.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait())
        await until(lambda: lock.tries >= 3, "it is tried again and again")
        assert not inside.is_set()
        other.release()
    assert inside.is_set()


async def test_a_holder_that_is_killed_holds_it_no_more(runner: asyncio.Runner, path: Path) -> None:
    """flock(2): the kernel frees it with the last descriptor, so that no lock is ever stale."""
    with child_after(lambda: durable.Lock(path).try_acquire()):
        assert not is_free(path)

    async with held(durable.Lock(path), "a thing"):
        pass


async def test_one_that_takes_long_is_told_of(
    runner: asyncio.Runner, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every wait has a deadline, and an error says what it was for."""
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0.0)
    other = durable.Lock(path)
    assert other.try_acquire()
    with pytest.raises(StoreError, match=r"^another sniproxy is at the same certificate, and has not finished$"):
        async with held(durable.Lock(path), "the same certificate"):
            pytest.fail("it is not free")
    other.release()


class Slow(durable.Lock):
    """Takes its time: a disk in the network."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.began, self.let, self.tried = threading.Event(), threading.Event(), threading.Event()

    def try_acquire(self) -> bool:
        self.began.set()
        assert self.let.wait(60)
        try:
            return super().try_acquire()
        finally:
            self.tried.set()


async def test_who_is_cancelled_while_it_is_being_taken_does_not_keep_it(runner: asyncio.Runner, path: Path) -> None:
    """A thread cannot be cancelled: it takes the lock all the same, and nobody would ever give it back."""
    lock = Slow(path)

    async def wait() -> None:
        async with held(lock, "a thing"):
            pytest.fail("it was cancelled")

    task = asyncio.get_running_loop().create_task(wait())
    await until(lock.began.is_set, "it is being taken")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    lock.let.set()
    await until(lock.tried.is_set, "it was taken")

    await until(lambda: is_free(path), "it is given back")


class Broken(durable.Lock):
    def try_acquire(self) -> bool:
        raise StoreError("the disk is gone")


async def test_a_disk_that_fails_is_not_a_lock_that_is_taken(runner: asyncio.Runner, path: Path) -> None:
    """A failure is never taken for absence."""
    with pytest.raises(StoreError, match="the disk is gone"):
        async with held(Broken(path), "a thing"):
            pytest.fail("it cannot be taken")
