"""Whose rights the program has; what root is needed for is in tests/scenarios/test_lifecycle.py."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from sniproxy.app.rights import Identity, acting_as, as_after_the_start, drop_privileges, identity
from sniproxy.errors import StartError

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
