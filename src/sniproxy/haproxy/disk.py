"""The bundle's file in certificate_dir: what HAProxy reads when it starts and reloads. All of it is for a thread."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from sniproxy import durable
from sniproxy.bundle import MAX_PEM_BYTES, Leaf, read_certificates
from sniproxy.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.bundle import Bundle

FILE_MODE: Final = 0o640
"""For its owner and HAProxy's group; for the owner alone, where we may not give it to that group."""

DIRECTORY_MODE: Final = 0o750
"""Of certificate_dir, where it has to be made. HAProxy reads it before it stops being root."""

FILES_SEARCHED: Final = 2000
"""For a certificate that should not be served, to say where it comes from. Reading so many takes half a second."""


def write(path: Path, bundle: Bundle) -> bool:
    """Puts the bundle there, if it is not there yet: then True. Raises OSError.

    The file gets the directory's group, and never more than FILE_MODE; a symlink is replaced, not followed.
    """
    if difference(path, bundle) is None:
        return False
    directory = path.parent
    if not directory.exists():
        durable.make_directory(directory, DIRECTORY_MODE)
    durable.write(path, bundle.pem, mode=FILE_MODE, group=directory.stat().st_gid)
    return True


def difference(path: Path, bundle: Bundle) -> str | None:
    """What is not as `write` leaves it, in words; None if nothing."""
    try:
        # A symlink is somebody else's, and leads to somebody else's file; a FIFO would be waited for.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = {errno.ELOOP: "is a symlink", errno.ENOENT: "is missing"}.get(error.errno or 0)
        return f"{path} {what or f'cannot be read: {error.strerror}'}"
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no file"
        with os.fdopen(file, "rb", closefd=False) as stream:
            content = stream.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    finally:
        os.close(file)
    if content != bundle.pem:
        return f"{path} is not what was delivered: {_content(content, bundle)}"
    mode = stat.S_IMODE(status.st_mode)
    return f"{path} has mode {mode:04o}, more than {FILE_MODE:04o}" if mode & ~FILE_MODE else None


def file_with(directory: Path, leaf: Leaf) -> Path | None:
    """The first file that HAProxy would have this certificate from, in the order in which it reads a directory."""
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return None
    for entry in entries[:FILES_SEARCHED]:
        try:
            # HAProxy passes over names with a dot first.
            if entry.name.startswith(".") or not entry.is_file() or entry.stat().st_size > MAX_PEM_BYTES:
                continue
            if read_certificates(entry.read_bytes())[0] == leaf.certificate:
                return entry
        except (OSError, BundleError):
            continue
    return None


def _content(content: bytes, bundle: Bundle) -> str:
    try:
        leaf = Leaf(read_certificates(content)[0])
    except BundleError as error:
        return str(error)
    if leaf == bundle.leaf:
        return "it has the right certificate, with another key or chain or written otherwise"
    return f"it has the certificate with serial {leaf.serial}, not {bundle.leaf.serial}"
