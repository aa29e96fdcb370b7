"""What happens to programs that write files: killed at any step, no space, no right, a disk that is read-only."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
STEPS = ("open", "write", "fsync", "close", "rename", "fchown", "fchmod", "chmod", "mkdir", "unlink", "rmdir")
"""The functions of `os` that change something on disk, or say that it has to be there."""
MAX_STEPS = 200
_CHILD_SECONDS = 60


def each_kill(action: Callable[[], object]) -> Iterator[int]:
    """Runs `action` in a child process again and again, killed by SIGKILL at its first step, its second, …

    Yields the step after each of them, for the caller to look at what is there and to put back what there was. The last
    one yielded is 0: that child came to its end. A kill at a write leaves half of it written.
    """
    for step in range(1, MAX_STEPS):
        killed = fork(lambda step=step: _dying_at(step, action)) == -signal.SIGKILL  # type: ignore[misc]
        yield step if killed else 0
        if not killed:
            return
    raise AssertionError(f"{MAX_STEPS} steps, and no end")


def fork(action: Callable[[], object], *, user: int | None = None) -> int:
    """Runs `action` in a child process, as another user if root; its exit status, negative for a signal.

    An exception in it fails the test, with its traceback on standard error.
    """

    def live() -> None:
        if user is not None and os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        action()

    status = os.waitstatus_to_exitcode(os.waitpid(_start(live), 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child ended with {status}; its standard error says why"
    return status


@contextmanager
def child_after(action: Callable[[], object]) -> Iterator[int]:
    """A child process that has done `action` and does nothing more; killed at the end, by the caller or here."""
    reader, writer = os.pipe()

    def live() -> None:
        action()
        os.write(writer, b"done")
        signal.pause()

    pid = _start(live)
    os.close(writer)
    try:
        assert os.read(reader, 4) == b"done"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


@contextmanager
def directory_for_all() -> Iterator[Path]:
    """A directory that any user may enter and, for now, write to; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


@contextmanager
def small_disk(directory: Path, size: str = "64k") -> Iterator[Path]:
    """A file system of this size, at `directory`. The test is skipped where none can be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", directory], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(disk: Path) -> Path:
    """Takes all the space that is left, in a file that is returned."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError("a disk without an end")


def make_read_only(disk: Path, *, read_only: bool = True) -> None:
    """Mounts it again, without the right to write or with it."""
    subprocess.run(["mount", "-o", f"remount,{'ro' if read_only else 'rw'}", disk], check=True)


def _start(live: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        # Python warns of other threads, which may hold locks; these children do nothing but touch files and end.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # A child that hangs ends; pytest's own alarm is not for it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_CHILD_SECONDS)
        live()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _dying_at(step: int, action: Callable[[], object]) -> None:
    """The rest of this process's life."""
    so_far = 0
    write = os.write

    def dying(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal so_far
            so_far += 1
            if so_far == step:
                if name == "write":
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in STEPS:
        setattr(os, name, dying(name, getattr(os, name)))
    action()
