"""Whose rights the program has; what root is needed for is in tests/scenarios/test_lifecycle.py."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING

import pytest

from sniproxy.app.rights import (
    Identity,
    acting_as,
    as_after_the_start,
    drop_privileges,
    hand_over,
    identity,
    make_directories,
)
from sniproxy.config import parse
from sniproxy.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sniproxy.config import Config

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


def test_nobody_in_particular_changes_nothing() -> None:
    """`user = ""`: stay."""
    assert identity("", "") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root would become somebody else")
def test_who_is_not_root_stays() -> None:
    """`user`: to become after binding, when started as root."""
    drop_privileges("nobody", "")

    assert identity("nosuch-user", "nosuch-group") is None


@needs_root
def test_a_user_has_its_own_group_and_all_the_others() -> None:
    """`group = ""` is the user's own; further groups, HAProxy's say, are kept for its socket."""
    nobody = pwd.getpwnam("nobody")
    become = identity("nobody", "")

    assert become is not None
    assert (become.uid, become.gid) == (nobody.pw_uid, nobody.pw_gid)
    assert set(become.groups) == set(os.getgrouplist("nobody", nobody.pw_gid))


@needs_root
def test_a_group_goes_before_the_users_own() -> None:
    """`group`, HAProxy's word."""
    daemon = grp.getgrnam("daemon").gr_gid
    become = identity("nobody", "daemon")

    assert become is not None
    assert become.gid == daemon
    assert daemon in become.groups


@needs_root
def test_a_group_alone_leaves_the_user() -> None:
    """Either key works without the other."""
    become = identity("", "daemon")

    assert become is not None
    assert become.uid is None
    assert become.groups == (become.gid,)


@needs_root
@pytest.mark.parametrize(
    ("user", "group", "message"),
    [
        ("nosuch-user", "", 'proxy.user: this machine has no user "nosuch-user"'),
        ("nobody", "nosuch-group", 'proxy.group: this machine has no group "nosuch-group"'),
        ("", "nosuch-group", 'proxy.group: this machine has no group "nosuch-group"'),
    ],
)
def test_an_unknown_name_is_an_error(user: str, group: str, message: str) -> None:
    """Never on as root because of a typing mistake."""
    with pytest.raises(StartError, match=message):
        identity(user, group)


@needs_root
def test_for_a_while_ends() -> None:
    """Inside, the effective ids are the user's; behind it they are root's again."""
    before = (os.geteuid(), os.getegid(), os.getgroups())
    with as_after_the_start("nobody", ""):
        assert os.geteuid() == pwd.getpwnam("nobody").pw_uid
        assert 0 not in os.getgroups()

    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


@needs_root
def test_as_somebody_who_is_not_in_the_configuration() -> None:
    """The user of a service manager's unit."""
    nobody = pwd.getpwnam("nobody")
    with acting_as(Identity(nobody.pw_uid, nobody.pw_gid, (nobody.pw_gid,))):
        assert (os.geteuid(), os.getegid()) == (nobody.pw_uid, nobody.pw_gid)

    assert os.geteuid() == 0


def test_as_nobody_else() -> None:
    """Nothing to change, and no right to change it needed."""
    with acting_as(None):
        assert os.geteuid() == os.getuid()


# ------------------------------------------------------------------------------------------- directories of certificates


def config(place: Path, *, user: str = "nobody", group: str = "daemon", certificates: bool = True) -> Config:
    more = f"""
[acme]
agree_to_terms = true
state_dir = "{place}/lib/state"
[[certificates]]
names = ["a.example"]
[haproxy]
certificate_dir = "{place}/srv/certs"
"""
    return parse(
        f"""
[proxy]
listen = ["127.0.0.1:8443"]
user = "{user}"
group = "{group}"
[backends.haproxy]
servers = ["unix:/nowhere.sock"]
{more if certificates else ""}
""",
        file="sniproxy.toml",
    )


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o037)
    yield
    os.umask(before)


def rights(path: Path) -> tuple[str, str, int]:
    status = path.stat()
    return pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name, stat.S_IMODE(status.st_mode)


@needs_root
def test_directories_are_made_while_root_is_there(tmp_path: Path, umask: None) -> None:
    """Contract section 4: state_dir 0700; and HAProxy's group reads certificates. Both are the later user's."""
    make_directories(config(tmp_path))

    assert rights(tmp_path / "lib/state") == ("nobody", "daemon", 0o700)
    assert rights(tmp_path / "srv/certs") == ("nobody", "daemon", 0o750)
    assert rights(tmp_path / "lib")[0] == "root"


@needs_root
def test_those_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    """An administrator's word goes before ours; whether they can be used is said by who uses them."""
    for path in (tmp_path / "lib/state", tmp_path / "srv/certs"):
        path.mkdir(parents=True)
        path.chmod(0o711)
    make_directories(config(tmp_path))

    assert {rights(tmp_path / "lib/state"), rights(tmp_path / "srv/certs")} == {("root", "root", 0o711)}


@needs_root
def test_without_certificates_there_is_nothing_to_make(tmp_path: Path) -> None:
    """A relay alone."""
    make_directories(config(tmp_path, certificates=False))

    assert list(tmp_path.iterdir()) == []


@needs_root
def test_without_a_user_they_are_roots(tmp_path: Path) -> None:
    """`user = ""`: stay."""
    make_directories(config(tmp_path, user="", group=""))

    assert rights(tmp_path / "lib/state") == ("root", "root", 0o700)


@needs_root
def test_one_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Which one, and why."""
    (tmp_path / "srv").write_text("not a directory")
    with pytest.raises(StartError, match=rf"cannot make {tmp_path}/srv/certs: Not a directory"):
        make_directories(config(tmp_path))


@needs_root
def test_a_user_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Not on with root's."""
    with pytest.raises(StartError, match=r"proxy\.user"):
        make_directories(config(tmp_path, user="nosuch-user"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root would make them")
def test_who_is_not_root_makes_none(tmp_path: Path) -> None:
    """The store makes its own, with the rights that there are."""
    make_directories(config(tmp_path))

    assert list(tmp_path.iterdir()) == []


@needs_root
def test_what_is_handed_over_belongs_to_the_user(tmp_path: Path) -> None:
    """A link itself, and not what it leads to (chown(2) would follow)."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("")
    link.symlink_to(target)
    hand_over(link, "nobody", "")

    assert rights(target)[0] == "root"
    assert link.lstat().st_uid == pwd.getpwnam("nobody").pw_uid


@needs_root
def test_what_cannot_be_handed_over_is_told(tmp_path: Path) -> None:
    """To whom, and why: the program would not start for a reason nobody could see."""
    with pytest.raises(StartError, match=r"cannot give .*/nosuch to nobody: No such file or directory"):
        hand_over(tmp_path / "nosuch", "nobody", "")
    with pytest.raises(StartError, match="to group daemon: No such file"):
        hand_over(tmp_path / "nosuch", "", "daemon")


@needs_root
def test_handed_over_to_a_group_the_user_stays(tmp_path: Path) -> None:
    """`group` alone; and to nobody, nothing is done."""
    path = tmp_path / "file"
    path.write_text("")
    hand_over(path, "", "daemon")
    assert rights(path)[:2] == ("root", "daemon")

    hand_over(path, "", "")
    assert rights(path)[:2] == ("root", "daemon")
