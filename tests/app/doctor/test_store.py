"""Whether the store and the directory of bundles can be used, by whom, and that looking changes nothing."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from sniproxy.acme.store import Store
from sniproxy.app.doctor import store as doctor_store
from sniproxy.app.doctor.diagnosis import Verdict
from sniproxy.app.doctor.store import check_bundles, check_store, user_name
from sniproxy.app.rights import Identity, acting_as
from sniproxy.bundle import generate_key, placeholder, utc_now
from sniproxy.haproxy import disk
from tests.support.bundles import bundle

NOBODY = pwd.getpwnam("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


@pytest.fixture
def place():
    """Where everybody may pass through."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def store(place):
    """With an account and a certificate in it."""
    store = Store(place / "state", pytest.fail)
    store.prepare()
    store.account("https://ca.test/directory").save(generate_key("ecdsa-p256"), "https://ca.test/1", ())
    store.certificate("www.example.test").save(bundle("www.example.test"))
    return store


def as_nobody():
    return acting_as(Identity(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,)))


def give_to_nobody(directory):
    for path in (directory, *directory.rglob("*")):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)


def snapshot(directory):
    """All there is to see of it."""
    paths = [directory, *sorted(directory.rglob("*"))]
    return [(path, path.lstat(), path.read_bytes() if path.is_file() else b"") for path in paths]


def looked(directory, *, made_by_root=False):
    return check_store(directory, made_by_root=made_by_root)


def only(found, verdict):
    (one,) = found
    assert one.verdict == verdict, one
    assert bool(one.advice) == (verdict in (Verdict.FAILED, Verdict.WARNING))
    return one.found


# -- the store


def test_a_store_in_order(store):
    before = snapshot(store.root)
    found = only(looked(store.root), Verdict.GOOD)
    assert found.startswith(f"{store.root} is {user_name(os.geteuid())}'s, mode 0700, ")
    assert found.endswith(" free")
    assert [(path, content) for path, _, content in before] == [
        (path, content) for path, _, content in snapshot(store.root)
    ]


def test_one_that_is_made_when_it_is_needed(place):
    assert "is made when it is needed" in only(looked(place / "a" / "state"), Verdict.GOOD)
    assert list(place.iterdir()) == []


@needs_root
def test_one_that_cannot_be_made(place):
    with as_nobody():
        found = looked(place / "a" / "state")
        assert f"nobody may not make it in {place}" in only(found, Verdict.FAILED)
        assert found[0].advice == f"`install -d -m 700 -o nobody {place}/a/state`"
        only(looked(place / "a" / "state", made_by_root=True), Verdict.GOOD)


def test_no_directory(place):
    (place / "state").write_text("")
    assert only(looked(place / "state"), Verdict.FAILED) == f"{place}/state is no directory"


def test_below_a_file(place):
    (place / "file").write_text("")
    assert "cannot be reached: Not a directory" in only(looked(place / "file" / "state"), Verdict.FAILED)


@needs_root
def test_somebody_elses(store):
    """The unit has a user, and root has made the directory."""
    with as_nobody():
        found = looked(store.root)
    assert only(found, Verdict.FAILED) == (f"nobody may not use {store.root}, which belongs to root and has mode 0700")
    assert found[0].advice.startswith(f"`chown -R nobody {store.root}`")


@needs_root
def test_somebody_elses_for_root(store):
    """Root may do everything, and leaves files that the proxy's user cannot read."""
    give_to_nobody(store.root)
    found = looked(store.root)
    assert "belongs to nobody, and this is root" in only(found, Verdict.WARNING)
    with as_nobody():
        only(looked(store.root), Verdict.GOOD)


@needs_root
def test_out_of_reach(place, store):
    place.chmod(0o700)
    with as_nobody():
        assert "cannot be reached: Permission denied" in only(looked(store.root), Verdict.FAILED)


@needs_root
def test_one_file_that_root_has_written(store):
    """`sudo sniproxy renew`, once."""
    give_to_nobody(store.root)
    (path,) = store.root.glob("certificates/*/0001.pem")
    os.chown(path, 0, 0)
    with as_nobody():
        assert only(looked(store.root), Verdict.FAILED) == f"nobody may not use {path}"


def test_open_to_others(store):
    (key,) = store.root.glob("accounts/*/key.pem")
    key.chmod(0o644)
    store.root.chmod(0o755)
    found = looked(store.root)
    assert [each.verdict for each in found] == [Verdict.WARNING] * 2
    assert found[0].found == f"{store.root} has mode 0755, so that others may look in"
    assert found[1].found == f"others may read {key}"
    assert key.stat().st_mode & 0o777 == 0o644


def test_what_was_set_aside(store):
    (store.root / "certificates" / "www.example.test" / "state.json.broken").touch(0o600)
    assert "state.json.broken could not be made sense of" in only(looked(store.root), Verdict.WARNING)


class FullDisk:
    f_flag, f_frsize, f_files, f_favail = 0, 4096, 1000, 500

    def __init__(self, free, inodes=500):
        self.f_bavail, self.f_favail = free // 4096, inodes


@pytest.mark.parametrize(
    ("system", "verdict", "words"),
    [
        (FullDisk(0), Verdict.FAILED, "has 0 bytes free"),
        (FullDisk(500_000), Verdict.FAILED, "has 500 KB free"),
        (FullDisk(8_000_000), Verdict.WARNING, "has 8 MB free"),
        (FullDisk(10**9, inodes=0), Verdict.FAILED, "without a free inode"),
        (FullDisk(10**10), Verdict.GOOD, "10 GB free"),
    ],
)
def test_room(store, monkeypatch, system, verdict, words):
    monkeypatch.setattr(os, "statvfs", lambda _: system)
    assert words in only(looked(store.root), verdict)


def test_a_disk_that_is_read_only(store, monkeypatch):
    """After an error, or under ProtectSystem=strict."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    system = FullDisk(10**10)
    system.f_flag = os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda _: system)
    found = looked(store.root)
    assert only(found, Verdict.FAILED) == f"{store.root} is on a file system that is read-only"
    assert "StateDirectory=" in found[0].advice


def test_more_files_than_are_looked_at(store, monkeypatch):
    monkeypatch.setattr(doctor_store, "MAX_FILES", 0)
    (key,) = store.root.glob("accounts/*/key.pem")
    key.chmod(0o644)
    only(looked(store.root), Verdict.GOOD)


# -- bundles


@pytest.fixture
def bundles(place):
    """Two of them, delivered; and where."""
    directory = place / "certs"
    directory.mkdir(mode=0o750)
    contents = {name: bundle(name) for name in ("a.test", "b.test")}
    for name, content in contents.items():
        disk.write(directory / f"{name}.pem", content)
    return directory, contents


def test_bundles_in_order(bundles):
    before = snapshot(bundles[0])
    assert "2 of ours in it" in only(check_bundles(*bundles, made_by_root=False), Verdict.GOOD)
    assert [content for _, _, content in before] == [content for _, _, content in snapshot(bundles[0])]


def test_a_placeholder_is_known_for_one(bundles):
    directory, contents = bundles
    disk.write(directory / "new.test.pem", placeholder(["new.test"], utc_now()))
    found = check_bundles(directory, {**contents, "new.test": None}, made_by_root=False)
    assert only(found, Verdict.GOOD).endswith("; new.test.pem is a placeholder")


def test_nothing_there_yet(bundles):
    directory, contents = bundles
    found = check_bundles(directory, {**contents, "new.test": None}, made_by_root=False)
    assert only(found, Verdict.WARNING) == f"{directory}/new.test.pem is missing: HAProxy has nothing to start with"


def test_a_bundle_that_was_overwritten(bundles):
    directory, contents = bundles
    (directory / "a.test.pem").write_bytes(bundle("a.test").pem)
    found = only(check_bundles(directory, contents, made_by_root=False), Verdict.WARNING)
    assert found.startswith(f"{directory}/a.test.pem is not what was delivered")


@needs_root
def test_a_directory_that_may_not_be_written_to(bundles):
    directory, contents = bundles
    with as_nobody():
        found = only(check_bundles(directory, contents, made_by_root=False), Verdict.FAILED)
    assert found.startswith(f"nobody may not use {directory}, which belongs to root")


@needs_root
def test_a_group_that_is_not_ours(bundles):
    """durable.write: the group gets no rights then, and HAProxy reads bundles as root only."""
    directory, contents = bundles
    give_to_nobody(directory)
    os.chown(directory, NOBODY.pw_uid, 0)
    with as_nobody():
        found = check_bundles(directory, contents, made_by_root=False)
    assert only(found, Verdict.WARNING).startswith("nobody may not give files to root, the group of ")


def test_a_user_without_a_name():
    assert user_name(4_000_000_000) == "uid 4000000000"
