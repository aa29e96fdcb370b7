"""Whose rights the program has: root's until everything is bound, then those of `proxy.user` and `proxy.group`."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sniproxy.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sniproxy.config import Config


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, None to stay who we are; a group; and all the groups, HAProxy's among them."""

    uid: int | None
    gid: int
    groups: tuple[int, ...]


def identity(user: str, group: str) -> Identity | None:
    """What a process that was started as root becomes; None where it stays as it is. Raises StartError."""
    if os.geteuid() != 0 or not (user or group):
        return None
    try:
        entry = pwd.getpwnam(user) if user else None
    except KeyError:
        raise StartError(f'proxy.user: this machine has no user "{user}"') from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid if entry else os.getgid()
    except KeyError:
        raise StartError(f'proxy.group: this machine has no group "{group}"') from None
    groups = os.getgrouplist(user, gid) if user else [gid]
    return Identity(entry.pw_uid if entry else None, gid, tuple(groups))


def drop_privileges(user: str, group: str) -> None:
    """Becomes another user, for good, when started as root. Raises StartError where that cannot be."""
    become = identity(user, group)
    if become is None:
        return
    os.setgroups(become.groups)
    os.setresgid(become.gid, become.gid, become.gid)
    if become.uid is not None:
        os.setresuid(become.uid, become.uid, become.uid)


def hand_over(path: Path | str, user: str, group: str) -> None:
    """Gives a file or a directory to whom the program will become. Raises StartError."""
    become = identity(user, group)
    if become is None:
        return
    try:
        os.chown(path, become.uid if become.uid is not None else -1, become.gid, follow_symlinks=False)
    except OSError as error:
        raise StartError(f"cannot give {path} to {user or f'group {group}'}: {error.strerror}") from error


def make_directories(config: Config) -> None:
    """Makes the directories of certificates where they are missing, as long as root's rights allow it.

    One that is there is left as it is: whether it can be used is for the store and for deliveries to say, and neither
    keeps the proxy from starting. Raises StartError.
    """
    if not config.certificates or os.geteuid() != 0:
        return
    proxy = config.proxy
    wanted = [(config.acme.state_dir, 0o700)] if config.acme is not None else []
    wanted += [(config.haproxy.certificate_dir, 0o750)] if config.haproxy is not None else []
    for directory, mode in wanted:
        if directory.exists():
            continue
        try:
            directory.mkdir(mode=mode, parents=True)
            directory.chmod(mode)  # the umask took some of it
        except OSError as error:
            raise StartError(f"cannot make {directory}: {error.strerror}") from error
        hand_over(directory, proxy.user, proxy.group)


def as_after_the_start(user: str, group: str) -> contextlib.AbstractContextManager[None]:
    """For as long as it lasts, files and sockets open as they will for the running program. Raises StartError."""
    return acting_as(identity(user, group))


@contextlib.contextmanager
def acting_as(become: Identity | None) -> Iterator[None]:
    """Likewise, as somebody else; None to stay who we are. Only root may. It holds for all threads."""
    if become is None:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups(become.groups)
    os.setegid(become.gid)
    try:
        if become.uid is not None:
            os.seteuid(become.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
