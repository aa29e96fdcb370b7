"""Whether what has to be written can be: acme.state_dir, and haproxy.certificate_dir. Looks, and changes nothing.

All of it is with the rights of whoever calls, and for a thread: disks hang.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING, Final

from sniproxy.app.doctor.diagnosis import Diagnosis, Verdict, failed, good, warning
from sniproxy.bundle import MAX_PEM_BYTES, PLACEHOLDER, Leaf, read_certificates
from sniproxy.durable import read
from sniproxy.errors import BundleError
from sniproxy.haproxy import disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sniproxy.bundle import Bundle

LITTLE_SPACE: Final = 16 * 1024 * 1024
NO_SPACE: Final = 1024 * 1024
"""Bytes that are free. A certificate takes 10 KB for each generation, and what is all but full soon is."""

MAX_FILES: Final = 20_000
"""That are looked at: two thousand certificates have ten each."""

_SHOWN = 3
_ALL = os.R_OK | os.W_OK | os.X_OK

STORE, BUNDLES = "store", "bundles"


def check_store(directory: Path, *, made_by_root: bool) -> list[Diagnosis]:
    """acme.state_dir, as `acme.store` keeps it: there, ours alone, all in it to be read, and room for more.

    made_by_root: the proxy makes it as root, before it becomes another user.
    """
    missing = _missing(STORE, directory, made_by_root=made_by_root)
    if missing is not None:
        return [missing]
    status = directory.stat()
    owner, us = user_name(status.st_uid), user_name(os.geteuid())
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    found = [*_may(STORE, directory, _ALL), *_space(STORE, directory)]
    if any(each.verdict == Verdict.FAILED for each in found):
        return found
    if status.st_uid != os.geteuid():
        advice = f"run sniproxy as {owner}, or `chown -R {us} {directory}`: what one writes, the other cannot read"
        found.append(warning(STORE, f"{directory} belongs to {owner}, and this is {us}", advice))
    if status.st_mode & 0o077:
        advice = f"`chmod 700 {directory}`; keys in it that others could read should be replaced"
        found.append(warning(STORE, f"{directory} has {mode}, so that others may look in", advice))
    found += _below(directory)
    return found or [good(STORE, f"{directory} is {owner}'s, {mode}, {_free(directory)} free")]


def check_bundles(directory: Path, bundles: Mapping[str, Bundle | None], *, made_by_root: bool) -> list[Diagnosis]:
    """haproxy.certificate_dir, and the files in it: what the store has, or a placeholder where it has nothing yet.

    bundles: by the name of the certificate.
    """
    missing = _missing(BUNDLES, directory, made_by_root=made_by_root)
    if missing is not None:
        return [missing]
    found = [*_may(BUNDLES, directory, os.W_OK | os.X_OK), *_space(BUNDLES, directory)]
    if any(each.verdict == Verdict.FAILED for each in found):
        return found
    status = directory.stat()
    group = _group_name(status.st_gid)
    # Giving a file to a group takes being in it (chown(2)).
    if os.geteuid() != 0 and status.st_gid not in (os.getegid(), *os.getgroups()):
        us = user_name(os.geteuid())
        advice = f"add {us} to the group {group}, if HAProxy is to read bundles when it no longer is root"
        found.append(warning(BUNDLES, f"{us} may not give files to {group}, the group of {directory}", advice))
    notes = []
    for name, bundle in bundles.items():
        path = directory / f"{name}.pem"
        difference = _difference(path, bundle)
        if difference:
            found.append(warning(BUNDLES, difference, "the running proxy puts it there within two minutes"))
        elif bundle is None and _is_placeholder(path):
            notes.append(f"{path.name} is a placeholder")
    if found:
        return found
    there = ", ".join(notes) or f"{len(bundles)} of ours in it"
    return [good(BUNDLES, f"{directory} can be written to, its files are {group}'s; {there}")]


def user_name(uid: int) -> str:
    """Of this machine's users; the number of one that it does not know."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def _missing(step: str, directory: Path, *, made_by_root: bool) -> Diagnosis | None:
    """None where the directory is there."""
    us = user_name(os.geteuid())
    try:
        if stat.S_ISDIR(directory.stat().st_mode):
            return None
        return failed(step, f"{directory} is no directory", "remove it, or name another one")
    except FileNotFoundError:
        pass
    except OSError as error:
        advice = f"{us} needs the right to pass through the directories above it"
        return failed(step, f"{directory} cannot be reached: {error.strerror}", advice)
    nearest = directory
    while not nearest.exists():
        nearest = nearest.parent
    if made_by_root or (nearest.is_dir() and _access(nearest, os.W_OK | os.X_OK)):
        return good(step, f"{directory} is not there yet, and is made when it is needed")
    advice = f"`install -d -m {'700' if step == STORE else '750'} -o {us} {directory}`"
    return failed(step, f"{directory} is not there, and {us} may not make it in {nearest}", advice)


def _may(step: str, directory: Path, rights: int) -> Iterator[Diagnosis]:
    if _access(directory, rights):
        return
    us, status = user_name(os.geteuid()), directory.stat()
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        advice = "after an error of the disk `dmesg` says more; under systemd, see ReadWritePaths= and StateDirectory="
        yield failed(step, f"{directory} is on a file system that is read-only", advice)
        return
    found = (
        f"{us} may not use {directory}, which belongs to {user_name(status.st_uid)} and has mode"
        f" {stat.S_IMODE(status.st_mode):04o}"
    )
    yield failed(step, found, f"`chown -R {us} {directory}`, or run sniproxy (and doctor) as its owner")


def _space(step: str, directory: Path) -> Iterator[Diagnosis]:
    system = os.statvfs(directory)
    free = system.f_bavail * system.f_frsize
    advice = "make room there: what is there stays as it was, and nothing new can be kept"
    if free < NO_SPACE:
        yield failed(step, f"{directory} has {_bytes(free)} free", advice)
    elif system.f_files and not system.f_favail:
        yield failed(step, f"{directory} is on a file system without a free inode", advice)
    elif free < LITTLE_SPACE:
        yield warning(step, f"{directory} has {_bytes(free)} free", advice)


def _free(directory: Path) -> str:
    system = os.statvfs(directory)
    return _bytes(system.f_bavail * system.f_frsize)


def _bytes(number: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.0f} GB"


def _below(directory: Path) -> list[Diagnosis]:
    """What is not in order in the store: what cannot be read, what others can, what was broken and set aside."""
    unusable, shared, broken = [], [], []
    for path in _entries(directory):
        try:
            status = path.lstat()
        except OSError:
            continue  # gone, as files are replaced all the time
        is_directory = stat.S_ISDIR(status.st_mode)
        if not _access(path, _ALL if is_directory else os.R_OK):
            unusable.append(path)
        elif status.st_mode & 0o077 and not stat.S_ISLNK(status.st_mode):
            shared.append(path)
        if path.suffix == ".broken":
            broken.append(path)
    us = user_name(os.geteuid())
    found = []
    if unusable:
        advice = f"`chown -R {us} {directory}`, or run sniproxy (and doctor) as their owner"
        found.append(failed(STORE, f"{us} may not use {_listed(unusable)}", advice))
    if shared:
        advice = "the next start takes these rights away; keys that others could read should be replaced"
        found.append(warning(STORE, f"others may read {_listed(shared)}", advice))
    if broken:
        advice = "they were set aside, and done without; remove them once you have looked"
        found.append(warning(STORE, f"{_listed(broken)} could not be made sense of", advice))
    return found


def _entries(directory: Path) -> Iterator[Path]:
    """All files and directories of the store that can be seen, up to a number."""
    left = MAX_FILES
    for kind in ("accounts", "certificates"):
        for top, names, files in os.walk(directory / kind):
            for name in [*names, *files]:
                if left == 0:
                    return
                left -= 1
                yield directory.__class__(top) / name


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more


def _difference(path: Path, bundle: Bundle | None) -> str | None:
    if bundle is not None:
        return disk.difference(path, bundle)
    return None if os.path.lexists(path) else f"{path} is missing: HAProxy has nothing to start with"


def _is_placeholder(path: Path) -> bool:
    try:
        return Leaf(read_certificates(read(path, MAX_PEM_BYTES))[0]).issuer == PLACEHOLDER
    except (OSError, BundleError):
        return False


def _access(path: Path, rights: int) -> bool:
    try:
        return os.access(path, rights, effective_ids=True)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False
