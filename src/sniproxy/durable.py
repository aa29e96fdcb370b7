"""Files that are there whole or not at all, whenever the machine or the process stops.

Everything here blocks, on disks for seconds at times: it is for a thread. Errors are OSError, as the kernel gave them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_READ_BYTES = 64 * 1024
_LOCK_TRIES = 100
"""A lock file that is gone each time it has been locked: somebody deletes it without end, and is not raced for ever."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# `.NAME.sniproxy-0123456789ab`: what nobody else calls a file. HAProxy's `crt DIR` passes over names with a dot first.
_temporary_name = ".{}.sniproxy-{}".format
_is_temporary = re.compile(r"\..+\.sniproxy-[0-9a-f]{12}").fullmatch


def write(path: Path, data: bytes, *, mode: int = 0o600, group: int | None = None) -> None:
    """Puts `data` at `path`, whatever was there: the old content or the new one is there at any time, never a part.

    The file has `mode` whatever the umask, and no more from its first byte on; with `group`, that group. Where we may
    not give it away, it keeps ours, and the group gets no rights. A symlink at `path` is replaced, not followed.

    Raises OSError. The old file is then as it was and nothing is left behind, with one exception: when only the very
    last step fails, flushing the directory, the new file is in place but may not outlive a power cut.
    """
    # Opened first: where this fails nothing has been done yet, and all that follows happens in this one directory.
    directory = os.open(path.parent, _DIRECTORY)
    try:
        temporary = _temporary_name(path.name, secrets.token_hex(6))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # For the owner alone until it is the right group's.
        file = os.open(temporary, flags, mode & stat.S_IRWXU, dir_fd=directory)
        try:
            try:
                _fill(file, data, mode, group)
            finally:
                os.close(file)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        _flush(directory)
    finally:
        os.close(directory)


def read(path: Path, max_bytes: int) -> bytes:
    """The whole file. Raises OSError; EFBIG where it has more than `max_bytes`, EINVAL where it is no regular file."""
    # Not blocking: opening a FIFO would wait for a writer.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        parts: list[bytes] = []
        left = max_bytes
        while part := os.read(file, min(_READ_BYTES, left + 1)):
            if len(part) > left:
                raise OSError(errno.EFBIG, f"File has more than {max_bytes} bytes", str(path))
            left -= len(part)
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)


def rename(source: Path, name: str) -> None:
    """Gives a file another name in its directory, in place of whatever has that name. Raises OSError."""
    directory = os.open(source.parent, _DIRECTORY)
    try:
        os.rename(source.name, name, src_dir_fd=directory, dst_dir_fd=directory)
        _flush(directory)
    finally:
        os.close(directory)


def remove(path: Path) -> None:
    """Removes a file; fine if there is none. Raises OSError."""
    try:
        directory = os.open(path.parent, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=directory)
        _flush(directory)
    finally:
        os.close(directory)


def make_directory(path: Path, mode: int = 0o700) -> bool:
    """Makes it with this mode whatever the umask, and parents that are missing with 0755 less the umask.

    One that is there and ours is tightened where others have more rights than in `mode`: True, if so. Raises OSError.
    """
    if _make_one(path, mode):
        os.chmod(path, mode)  # noqa: PTH101  the umask took some of it
        return False
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    too_much = status.st_mode & 0o777 & ~mode
    if not too_much or status.st_uid != os.geteuid():
        return False
    os.chmod(path, stat.S_IMODE(status.st_mode) & ~too_much)  # noqa: PTH101
    return True


def remove_leftovers(directory: Path, older_than_seconds: float) -> int:
    """Removes temporaries of `write` whose process was killed, by name and age; how many there were. Raises OSError.

    The age is there for those that are being written at this moment, by another process.
    """
    removed = 0
    latest = time.time() - older_than_seconds
    with os.scandir(directory) as entries:
        for entry in entries:
            if not _is_temporary(entry.name):
                continue
            with suppress(FileNotFoundError):  # its process has come to an end by itself
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_mtime <= latest:
                    os.unlink(entry.path)  # noqa: PTH108
                    removed += 1
    return removed


class Lock:
    """One holder at a time, among processes and within one: flock(2) on a file, which stays there.

    The kernel frees it when the holder's process dies, so it is never stale; a program that is started does not inherit
    it. One object is not for two threads at once, but any thread may release it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def is_held(self) -> bool:
        """Whether this object holds it, and others cannot: the file is still the one at that path. Raises OSError."""
        return self._file is not None and self._is_in_place(self._file)

    def try_acquire(self) -> bool:
        """Takes it, or returns False at once where it is taken, by this very object too. Raises OSError."""
        if self._file is not None:
            return False
        for _ in range(_LOCK_TRIES):
            # For writing, because NFS gives exclusive locks only then.
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place(file):
                    self._file, file = file, -1
                    return True
            except BlockingIOError:
                return False
            finally:
                if file >= 0:
                    os.close(file)
        return False

    def release(self) -> None:
        """Lets it go; fine if it is not held."""
        file, self._file = self._file, None
        if file is not None:
            try:
                # Closing alone frees it only once the last copy is closed, and a forked child would have one.
                fcntl.flock(file, fcntl.LOCK_UN)
            finally:
                os.close(file)

    def __enter__(self) -> Self:
        """Takes it unless it is held already. Raises BlockingIOError where another has it, and OSError."""
        if self._file is None and not self.try_acquire():
            raise BlockingIOError(errno.EWOULDBLOCK, "Locked by another", str(self.path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _is_in_place(self, file: int) -> bool:
        """Between opening and locking the file may have been deleted; a lock on it then excludes nobody."""
        try:
            there = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(file))


def _fill(file: int, data: bytes, mode: int, group: int | None) -> None:
    if group is not None:
        try:
            os.fchown(file, -1, group)
        except PermissionError:
            mode &= ~stat.S_IRWXG
    os.fchmod(file, mode)
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
    os.fsync(file)


def _flush(directory: int) -> None:
    """Makes names durable. Some network and FUSE file systems have nothing to flush there: EINVAL (fsync(2))."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _make_one(path: Path, mode: int) -> bool:
    """Makes a directory, its parents before it; False where something has that name already."""
    try:
        os.mkdir(path, mode)  # noqa: PTH102
    except FileExistsError:
        return False
    except FileNotFoundError:
        if path.parent == path:
            raise
        _make_one(path.parent, 0o755)
        try:
            os.mkdir(path, mode)  # noqa: PTH102
        except FileExistsError:
            return False
    parent = os.open(path.parent, _DIRECTORY)
    try:
        _flush(parent)
    finally:
        os.close(parent)
    return True
