"""The bundle's file: whole, for as few as need it, and never through a symlink."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from sniproxy.bundle import Bundle, Leaf
from sniproxy.haproxy import disk
from tests.support.bundles import bundle, issuer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pem"


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """What a careless administrator may have."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_key_leaf_and_chain(path: Path) -> None:
    """What HAProxy's crt reads, from one file (configuration manual, section 5.1)."""
    new = bundle("a.test")

    assert disk.write(path, new)
    assert path.read_bytes() == new.pem
    assert Bundle.parse(path.read_bytes()).chain == new.chain
    assert [entry.name for entry in path.parent.iterdir()] == ["a.pem"]
    assert disk.difference(path, new) is None


def test_what_is_there_already_is_not_written_again(path: Path) -> None:
    new = bundle("a.test")
    disk.write(path, new)
    before = path.stat()

    assert not disk.write(path, new)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_owner_and_group_and_nobody_else(path: Path) -> None:
    disk.write(path, bundle("a.test"))

    assert mode(path) == 0o640
    assert path.stat().st_gid == path.parent.stat().st_gid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other groups to give files to")
def test_it_gets_the_group_of_its_directory(path: Path) -> None:
    os.chown(path.parent, -1, 12345)
    disk.write(path, bundle("a.test"))

    assert (mode(path), path.stat().st_gid) == (0o640, 12345)


def test_a_group_that_we_may_not_give_it_to_gets_no_rights(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", denied)
    disk.write(path, bundle("a.test"))

    assert mode(path) == 0o600


@pytest.mark.parametrize("too_much", [0o644, 0o660, 0o777, 0o4640])
def test_a_file_that_too_many_may_read_or_write_is_made_anew(path: Path, too_much: int) -> None:
    new = bundle("a.test")
    path.write_bytes(new.pem)
    path.chmod(too_much)
    assert disk.difference(path, new) == f"{path} has mode {too_much:04o}, more than 0640"

    assert disk.write(path, new)
    assert mode(path) == 0o640


@pytest.mark.parametrize("tighter", [0o640, 0o600, 0o400, 0o440])
def test_a_tighter_mode_stays(path: Path, tighter: int) -> None:
    new = bundle("a.test")
    path.write_bytes(new.pem)
    path.chmod(tighter)

    assert not disk.write(path, new)
    assert mode(path) == tighter


def test_a_symlink_is_replaced_and_not_followed(path: Path) -> None:
    new = bundle("a.test")
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_bytes(new.pem)
    elsewhere.chmod(0o600)
    path.symlink_to(elsewhere)
    assert disk.difference(path, new) == f"{path} is a symlink"

    assert disk.write(path, bundle("a.test"))
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == new.pem


def test_the_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "srv" / "certs" / "a.pem"

    assert disk.write(path, bundle("a.test"))
    assert mode(path.parent) == 0o750


def test_the_rights_of_a_directory_that_is_there_are_left_alone(path: Path) -> None:
    path.parent.chmod(0o755)
    disk.write(path, bundle("a.test"))

    assert mode(path.parent) == 0o755


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a.pem").mkdir()

    with pytest.raises(NotADirectoryError):
        disk.write(tmp_path / "file" / "a.pem", bundle("a.test"))
    with pytest.raises(IsADirectoryError):
        disk.write(tmp_path / "a.pem", bundle("a.test"))


def test_a_failure_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = bundle("a.test")
    disk.write(path, old)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.write(path, bundle("a.test"))
    assert path.read_bytes() == old.pem
    assert [entry.name for entry in path.parent.iterdir()] == ["a.pem"]


# ---------------------------------------------------------------------------------------------------- differences


def test_what_may_be_different(path: Path) -> None:
    new, other = bundle("a.test"), bundle("a.test")
    assert disk.difference(path, new) == f"{path} is missing"

    path.write_bytes(other.pem)
    told = str(disk.difference(path, new))
    assert f"the certificate with serial {other.leaf.serial}, not {new.leaf.serial}" in told

    path.write_bytes(Bundle(new.key, new.chain[:1]).pem)
    assert "the right certificate, with another key or chain" in str(disk.difference(path, new))

    for content in (b"", b"rubbish", new.pem[:200]):
        path.write_bytes(content)
        assert "no certificate" in str(disk.difference(path, new))


def test_what_is_no_file(path: Path, tmp_path: Path) -> None:
    """A FIFO would be waited for."""
    new = bundle("a.test")
    os.mkfifo(path)
    assert disk.difference(path, new) == f"{path} is no file"
    assert disk.write(path, new)

    assert "is no file" in str(disk.difference(tmp_path, new))


def test_what_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)

    assert disk.difference(path, bundle("a.test")) == f"{path} cannot be read: Permission denied"


def test_no_difference_shows_a_key(path: Path) -> None:
    new = bundle("a.test")
    path.write_bytes(new.pem.replace(b"PRIVATE KEY", b"PRIVATE BAY"))
    told = str(disk.difference(path, new))

    assert not any(line and line in told for line in new.pem.decode().splitlines())


# ---------------------------------------------------------------------------------------------------- where it is from


def test_the_file_that_has_a_certificate(tmp_path: Path) -> None:
    """The first, in the order in which HAProxy reads a directory; files that it passes over are passed over."""
    wanted, other = bundle("a.test"), bundle("a.test")
    (tmp_path / ".a.pem").write_bytes(wanted.pem)
    (tmp_path / "a.pem").write_bytes(other.pem)
    (tmp_path / "b").mkdir()
    (tmp_path / "c.pem").write_bytes(b"\xff" * 10)
    (tmp_path / "d.pem").write_bytes(wanted.pem)
    (tmp_path / "e.pem").write_bytes(wanted.pem)
    (tmp_path / "f.pem").symlink_to(tmp_path / "nowhere")

    assert disk.file_with(tmp_path, wanted.leaf) == tmp_path / "d.pem"
    assert disk.file_with(tmp_path, other.leaf) == tmp_path / "a.pem"


def test_a_certificate_that_no_file_has(tmp_path: Path) -> None:
    """Nor is it found as the issuer of another."""
    (tmp_path / "a.pem").write_bytes(bundle("a.test").pem)
    (tmp_path / "large.pem").write_bytes(b"-" * 300_000)

    assert disk.file_with(tmp_path, bundle("a.test").leaf) is None
    assert disk.file_with(tmp_path, Leaf(issuer().certificate)) is None
    assert disk.file_with(tmp_path / "nowhere", bundle("a.test").leaf) is None
