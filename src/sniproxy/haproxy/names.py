"""Which of HAProxy's names means a path of ours.

HAProxy calls a certificate what its configuration does: relative to where it was started, below crt-base, through a
symlink, or as it is in its container. Everything here looks at the disk, and is for a thread.
"""

from __future__ import annotations

import os.path
from pathlib import PurePath
from typing import TYPE_CHECKING

from sniproxy.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def find_certificate(path: Path, known: Iterable[str]) -> str | None:
    """HAProxy's name, out of those `known`, of the file at `path`; None where it has none.

    Raises DeliveryError where several may be meant.
    """
    # X.pem.rsa and X.pem.ecdsa, which HAProxy loads together as X.pem, are not ours: they have other last parts.
    return _find(path, [name for name in known if PurePath(name).name == path.name])


def find_directory(path: Path, known: Iterable[str]) -> str | None:
    """Likewise of a directory."""
    return _find(path, list(known))


def _find(path: Path, known: list[str]) -> str | None:
    if str(path) in known:
        return str(path)
    here = os.path.realpath(path)
    same = [name for name in known if PurePath(name).is_absolute() and os.path.realpath(name) == here]
    if not same:
        # What is on this machine and is not the same is another one. The rest is relative to a directory that only
        # HAProxy knows, or lies where only HAProxy can look.
        tails = {name: _common_tail(path, name) for name in known if not _is_here(name)}
        longest = max(tails.values(), default=0)
        same = [name for name, tail in tails.items() if tail == longest > 0]
    if len(same) > 1:
        raise DeliveryError(
            f"HAProxy has {' and '.join(sorted(same))}: which of them is {path}? Give haproxy.certificate_dir as"
            " haproxy.cfg has it",
            reload_helps=True,
        )
    return same[0] if same else None


def _is_here(name: str) -> bool:
    return PurePath(name).is_absolute() and os.path.lexists(name)


def _common_tail(path: Path, name: str) -> int:
    """How many parts at the end are the same."""
    count = 0
    for ours, theirs in zip(reversed(path.parts), reversed(PurePath(name).parts), strict=False):
        if ours != theirs or ours == path.anchor:
            break
        count += 1
    return count
