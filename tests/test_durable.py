"""Files that are there whole or not at all (contract section 4: a crash leaves the old or the new set, whole)."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy import durable
from sniproxy.durable import Lock
from tests.support.disks import (
    NOBODY,
    child_after,
    directory_for_all,
    each_kill,
    fill,
    fork,
    make_read_only,
    small_disk,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = b"old " * 1000, b"new " * 2000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to others")


@pytest.fixture
def umask() -> Iterator[None]:
    """For those that set one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def failing(monkeypatch: pytest.MonkeyPatch, function: str, error: int) -> None:
    """This function of `os` fails from now on."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, function, fail)


# -- write


def test_what_was_written_is_there(tmp_path: Path) -> None:
    """The plain case, and a file of nothing."""
    durable.write(tmp_path / "file", NEW)
    durable.write(tmp_path / "empty", b"")

    assert (tmp_path / "file").read_bytes() == NEW
    assert (tmp_path / "empty").read_bytes() == b""
    assert names(tmp_path) == ["empty", "file"]


def test_a_path_without_a_directory_is_in_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path("file").parent is "."."""
    monkeypatch.chdir(tmp_path)
    durable.write(type(tmp_path)("file"), NEW)

    assert (tmp_path / "file").read_bytes() == NEW


def test_killed_at_any_step_the_old_or_the_new_file_is_there(tmp_path: Path) -> None:
    """Reliability F1: kill -9 at each step of a write. What is left besides is removed by its name."""
    path, outcomes = tmp_path / "file", []
    path.write_bytes(OLD)
    for step in each_kill(lambda: durable.write(path, NEW, mode=0o640, group=os.getegid())):
        content = path.read_bytes()
        assert content in (OLD, NEW)
        outcomes.append(content)
        others = [name for name in names(tmp_path) if name != "file"]
        assert all(name.startswith(".file.") for name in others)
        assert durable.remove_leftovers(tmp_path, 0) == len(others)
        assert names(tmp_path) == ["file"]
        if step:
            path.write_bytes(OLD)

    assert len(outcomes) > 8
    assert outcomes[0] == OLD
    assert outcomes[-1] == NEW


def test_killed_at_any_step_a_first_file_is_there_or_not(tmp_path: Path) -> None:
    """Reliability F1: never empty, never a part."""
    path = tmp_path / "file"
    for step in each_kill(lambda: durable.write(path, NEW)):
        assert not path.exists() or path.read_bytes() == NEW
        if step:
            path.unlink(missing_ok=True)

    assert path.read_bytes() == NEW


def test_content_is_flushed_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync(2): flushing a file does not flush its entry in the directory."""
    calls: list[str] = []

    def recorded(name: str) -> Any:
        function = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            kind = "directory" if name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else ""
            calls.append(f"{name} {kind}".strip())
            return function(*arguments, **options)

        return call

    for name in ("write", "fsync", "rename"):
        monkeypatch.setattr(os, name, recorded(name))
    durable.write(tmp_path / "file", NEW)

    assert calls == ["write", "fsync", "rename", "fsync directory"]


def test_writes_that_are_taken_in_part_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2): the number of bytes written may be less than asked for."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    durable.write(tmp_path / "file", NEW)

    assert (tmp_path / "file").read_bytes() == NEW


@pytest.mark.parametrize("function", ["write", "fsync", "rename", "fchmod"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_where_a_step_fails_the_old_file_is_as_it_was(
    function: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability F1: EIO and a full disk, at any step; the kernel's error comes out as it is."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    failing(monkeypatch, function, error)
    with pytest.raises(OSError) as caught:
        durable.write(path, NEW)

    assert caught.value.errno == error
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_a_directory_that_cannot_be_flushed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one step after the rename: the new file is there, and the caller is told that it may not stay."""
    fsync = os.fsync

    def flush(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(file)

    monkeypatch.setattr(os, "fsync", flush)
    with pytest.raises(OSError, match="Input/output error"):
        durable.write(tmp_path / "file", NEW)

    assert (tmp_path / "file").read_bytes() == NEW


def test_a_file_system_that_flushes_no_directories_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync(2): EINVAL, where a descriptor does not support synchronisation."""
    fsync = os.fsync

    def flush(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(file)

    monkeypatch.setattr(os, "fsync", flush)
    durable.write(tmp_path / "file", NEW)

    assert (tmp_path / "file").read_bytes() == NEW


def test_on_a_full_disk_the_old_file_is_as_it_was(tmp_path: Path) -> None:
    """Reliability F1: ENOSPC on a real file system, and room again afterwards."""
    with small_disk(tmp_path) as disk:
        path = disk / "file"
        durable.write(path, OLD)
        filler = fill(disk)
        with pytest.raises(OSError) as caught:
            durable.write(path, NEW)

        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == OLD
        assert names(disk) == ["file", "filler"]
        filler.unlink()
        durable.write(path, NEW)
        assert path.read_bytes() == NEW


def test_on_a_read_only_disk_the_old_file_is_as_it_was(tmp_path: Path) -> None:
    """Reliability F1: EROFS, as after an error of the disk with ext4's errors=remount-ro."""
    with small_disk(tmp_path) as disk:
        path = disk / "file"
        durable.write(path, OLD)
        make_read_only(disk)
        with pytest.raises(OSError) as caught:
            durable.write(path, NEW)
        assert caught.value.errno == errno.EROFS
        assert path.read_bytes() == OLD
        make_read_only(disk, read_only=False)


def test_without_the_right_to_write_the_old_file_is_as_it_was() -> None:
    """Reliability F1: EACCES; nobody may write to a directory of mode 0555."""
    with directory_for_all() as directory:
        path = directory / "file"
        path.write_bytes(OLD)
        directory.chmod(0o555)

        def attempt() -> None:
            with pytest.raises(PermissionError):
                durable.write(path, NEW)

        assert fork(attempt, user=NOBODY) == 0
        assert path.read_bytes() == OLD
        assert names(directory) == ["file"]
        directory.chmod(0o755)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777], ids=oct)
@pytest.mark.parametrize("wanted", [0o600, 0o640], ids=oct)
def test_the_mode_is_the_one_asked_for_whatever_the_umask(mask: int, wanted: int, tmp_path: Path, umask: None) -> None:
    """Reliability F2: umask 000."""
    os.umask(mask)
    durable.write(tmp_path / "file", NEW, mode=wanted)

    assert mode(tmp_path / "file") == wanted


def test_nobody_else_may_read_a_single_byte_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: None
) -> None:
    """Reliability F2: the mode is given when the file is opened, not by chmod later."""
    os.umask(0)
    opened: list[int] = []
    real = os.open

    def spy(*arguments: Any, **options: Any) -> int:
        file = real(*arguments, **options)
        if arguments[1] & os.O_CREAT:
            opened.append(stat.S_IMODE(os.fstat(file).st_mode))
        return file

    monkeypatch.setattr(os, "open", spy)
    durable.write(tmp_path / "file", NEW, mode=0o640)

    assert opened == [0o600]


def test_a_file_that_all_could_read_is_replaced_by_one_they_cannot(tmp_path: Path) -> None:
    """Reliability F2: a pre-existing 0644 file."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    path.chmod(0o644)
    durable.write(path, NEW)

    assert mode(path) == 0o600


def test_a_symlink_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """Reliability F2: a symlink at the target."""
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_bytes(OLD)
    path.symlink_to(elsewhere)
    durable.write(path, NEW)

    assert not path.is_symlink()
    assert path.read_bytes() == NEW
    assert elsewhere.read_bytes() == OLD


def test_a_symlink_where_the_temporary_goes_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open(2), O_EXCL: a name that is taken, by a symlink too, is EEXIST; what has that name is not ours to remove."""
    monkeypatch.setattr(secrets, "token_hex", lambda number: "0123456789ab")
    link = tmp_path / ".file.sniproxy-0123456789ab"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        durable.write(tmp_path / "file", NEW)

    assert names(tmp_path) == [link.name]


def test_a_directory_in_the_way_is_an_error(tmp_path: Path) -> None:
    """rename(2): EISDIR."""
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        durable.write(tmp_path / "file", NEW)

    assert names(tmp_path) == ["file"]


def test_without_its_directory_nothing_is_written(tmp_path: Path) -> None:
    """A directory is made by those who know its mode."""
    with pytest.raises(FileNotFoundError):
        durable.write(tmp_path / "nowhere" / "file", NEW)


@needs_root
def test_the_group_is_the_one_asked_for(tmp_path: Path) -> None:
    """Contract section 4: 0640 or tighter, so that HAProxy's group can read it."""
    durable.write(tmp_path / "file", NEW, mode=0o640, group=NOBODY)

    assert (tmp_path / "file").stat().st_gid == NOBODY
    assert mode(tmp_path / "file") == 0o640


@needs_root
def test_where_the_file_may_not_be_given_away_no_group_may_read_it() -> None:
    """chown(2): EPERM. The rights were meant for another group than the one it then has."""
    with directory_for_all() as directory:
        path = directory / "file"

        assert fork(lambda: durable.write(path, NEW, mode=0o640, group=0), user=NOBODY) == 0
        assert path.stat().st_gid == NOBODY
        assert mode(path) == 0o600


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewal goes on for years."""
    (tmp_path / "directory").mkdir()
    before = len(names(type(tmp_path)("/proc/self/fd")))
    durable.write(tmp_path / "file", NEW)
    durable.read(tmp_path / "file", 10_000)
    durable.make_directory(tmp_path / "other" / "one")
    durable.rename(tmp_path / "file", "renamed")
    durable.remove(tmp_path / "renamed")
    with pytest.raises(IsADirectoryError):
        durable.write(tmp_path / "directory", NEW)
    with pytest.raises(OSError):
        durable.read(tmp_path / "directory", 10_000)
    failing(monkeypatch, "rename", errno.EIO)
    with pytest.raises(OSError):
        durable.write(tmp_path / "file", NEW)

    assert len(names(type(tmp_path)("/proc/self/fd"))) == before


# -- read


def test_a_file_is_read_whole_up_to_its_cap(tmp_path: Path) -> None:
    """A cap for every buffer; a byte more is EFBIG, never a file cut short."""
    (tmp_path / "file").write_bytes(bytes(200_000))

    assert durable.read(tmp_path / "file", 200_000) == bytes(200_000)
    with pytest.raises(OSError) as caught:
        durable.read(tmp_path / "file", 199_999)
    assert caught.value.errno == errno.EFBIG


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """fifo(7): opening one for reading blocks until somebody writes."""
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError) as caught:
        durable.read(tmp_path / "file", 100)

    assert caught.value.errno == errno.EINVAL


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    """Absence has an error of its own; all others are failures."""
    with pytest.raises(FileNotFoundError):
        durable.read(tmp_path / "file", 100)


# -- rename and remove


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    """rename(2): replaces atomically."""
    (tmp_path / "next").write_bytes(NEW)
    (tmp_path / "file").write_bytes(OLD)
    durable.rename(tmp_path / "next", "file")

    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_file_is_removed_once_or_more_often(tmp_path: Path) -> None:
    """After a crash nobody knows whether it had been."""
    (tmp_path / "file").write_bytes(OLD)
    durable.remove(tmp_path / "file")
    durable.remove(tmp_path / "file")
    durable.remove(tmp_path / "nowhere" / "file")

    assert names(tmp_path) == []


# -- directories


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)
def test_a_directory_has_its_mode_whatever_the_umask(mask: int, tmp_path: Path, umask: None) -> None:
    """Reliability F2: directories 0700; those above it are the system's business, and not for all to write to."""
    os.umask(mask)

    assert durable.make_directory(tmp_path / "a" / "b" / "c") is False
    assert mode(tmp_path / "a" / "b" / "c") == 0o700
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o755 & ~mask


def test_a_directory_that_is_there_loses_what_it_has_too_much(tmp_path: Path) -> None:
    """Reliability F2, of a directory made by hand; the setgid bit is nobody's right."""
    directory = tmp_path / "directory"
    directory.mkdir()
    directory.chmod(0o2755)

    assert durable.make_directory(directory) is True
    assert mode(directory) == 0o2700
    assert durable.make_directory(directory) is False
    assert durable.make_directory(directory, 0o755) is False
    assert mode(directory) == 0o2700


@needs_root
def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """Who owns it decides."""
    directory = tmp_path / "directory"
    directory.mkdir()
    directory.chmod(0o755)
    os.chown(directory, NOBODY, NOBODY)

    assert durable.make_directory(directory) is False
    assert mode(directory) == 0o755


def test_a_symlink_to_a_directory_will_do(tmp_path: Path) -> None:
    """State on another disk."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "directory").symlink_to("elsewhere")
    durable.make_directory(tmp_path / "directory")

    assert (tmp_path / "directory").is_symlink()


def test_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    """A file in its place, in that of a parent, or a symlink to nowhere in the place of one."""
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(NotADirectoryError):
        durable.make_directory(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        durable.make_directory(tmp_path / "file" / "directory")
    with pytest.raises(FileNotFoundError):
        durable.make_directory(tmp_path / "link" / "directory")


def test_killed_at_any_step_a_directory_can_be_made_afterwards(tmp_path: Path) -> None:
    """Reliability F1: the next start works."""
    directory = tmp_path / "a" / "b"
    for step in each_kill(lambda: durable.make_directory(directory)):
        durable.make_directory(directory)
        assert mode(directory) == 0o700
        if step:
            directory.rmdir()
            directory.parent.rmdir()


# -- leftovers


def test_only_our_own_temporaries_are_leftovers(tmp_path: Path) -> None:
    """Others keep files beside ours: dot files, and names that look a little like ours."""
    ours = tmp_path / ".example.com.pem.sniproxy-0123456789ab"
    others = [
        ".hidden",
        ".file.swp",
        ".example.com.pem.0123456789ab",
        ".sniproxy-0123456789ab",
        "x.sniproxy-0123456789ab",
        ".x.sniproxy-0123456789AB",
        ".x.sniproxy-0123456789abc",
    ]
    for name in [ours.name, *others]:
        (tmp_path / name).write_bytes(OLD)
    (tmp_path / ".directory.sniproxy-0123456789ab").mkdir()
    (tmp_path / ".link.sniproxy-0123456789ab").symlink_to("nowhere")

    assert durable.remove_leftovers(tmp_path, 0) == 1
    assert names(tmp_path) == sorted([*others, ".directory.sniproxy-0123456789ab", ".link.sniproxy-0123456789ab"])


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    """Another process may be at it; and one with a time in the future was written before the clock was set back."""
    path = tmp_path / ".file.sniproxy-0123456789ab"
    path.write_bytes(OLD)
    now = time.time()
    for age, removed in ((0, 0), (-7200, 0), (3500, 0), (3700, 1)):
        os.utime(path, (now - age, now - age))

        assert durable.remove_leftovers(tmp_path, 3600) == removed
    assert names(tmp_path) == []


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Failure is not absence."""
    with pytest.raises(FileNotFoundError):
        durable.remove_leftovers(tmp_path / "nowhere", 0)


# -- the lock


def test_one_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    """flock(2): two descriptors exclude each other in one process too."""
    one, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")

    assert one.try_acquire()
    assert one.is_held()
    assert not other.try_acquire()
    assert not one.try_acquire()
    one.release()
    assert not one.is_held()
    assert other.try_acquire()
    one.release()  # fine, and takes nothing from the other
    assert not one.try_acquire()
    other.release()


def test_a_block_holds_it_to_its_end(tmp_path: Path) -> None:
    """Taken on the way in unless it was before, and let go whatever happens."""
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    with lock:
        assert not other.try_acquire()
    assert other.try_acquire()
    with pytest.raises(BlockingIOError), lock:
        pass
    with other, pytest.raises(BlockingIOError), lock:
        pass
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert other.try_acquire()
    other.release()


def test_a_process_that_was_killed_holds_no_lock(tmp_path: Path) -> None:
    """Reliability A9: a stale lock never blocks for ever; the kernel frees it (flock(2))."""
    lock, others = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    with child_after(others.try_acquire):
        assert not lock.try_acquire()

    assert lock.try_acquire()
    lock.release()


def test_a_lock_that_was_let_go_is_free_whatever_children_there_are(tmp_path: Path) -> None:
    """flock(2): a forked child has the same open file; a program that is started (execve(2)) does not."""
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert lock.try_acquire()
    assert lock._file is not None
    assert not os.get_inheritable(lock._file)
    with child_after(lambda: None):
        lock.release()
        assert other.try_acquire()
    other.release()


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking another may delete the file, and a third make a new one and lock that."""
    path = tmp_path / "lock"
    flock, deletions = fcntl.flock, iter([True, True, False])

    def late(file: int, operation: int) -> None:
        if next(deletions):
            path.unlink()
        flock(file, operation)

    lock = Lock(path)
    monkeypatch.setattr(fcntl, "flock", late)
    assert lock.try_acquire()
    monkeypatch.undo()

    assert lock.is_held()
    assert not Lock(path).try_acquire()
    path.unlink()
    assert not lock.is_held()
    path.write_bytes(b"")
    assert not lock.is_held()
    lock.release()


def test_a_lock_file_that_is_always_deleted_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything has an end."""
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: (tmp_path / "lock").unlink())

    assert not Lock(tmp_path / "lock").try_acquire()


def test_a_lock_is_never_made_through_a_symlink(tmp_path: Path) -> None:
    """open(2), O_NOFOLLOW: ELOOP."""
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError) as caught:
        Lock(tmp_path / "lock").try_acquire()

    assert caught.value.errno == errno.ELOOP
    assert names(tmp_path) == ["lock"]


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """Failure is not "somebody else has it"."""
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "nowhere" / "lock").try_acquire()
