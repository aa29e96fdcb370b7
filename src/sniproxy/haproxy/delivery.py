"""A bundle's way into HAProxy: on disk, in the memory of each process, and seen to be served.

    to disk → at each runtime socket: known? → set, or add → [reload_command, where that cannot be] → handshakes

The disk comes first, so that a reload at any moment, whoever makes it, gives the new certificate. A delivery that ends
without an error is proven; one that does not may be made again as often as one likes, and does what is left to do.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sniproxy.errors import DeliveryError
from sniproxy.haproxy import disk
from sniproxy.haproxy.names import find_certificate, find_directory
from sniproxy.haproxy.proof import VERIFIED_NAMES, VerifyTarget, in_words, unproven
from sniproxy.haproxy.reload import run_reload_command
from sniproxy.haproxy.runtime import RuntimeApi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sniproxy.bundle import Bundle
    from sniproxy.haproxy.runtime import CertificateNames
    from sniproxy.model import Address

__all__ = ["Delivery", "DeliverySettings", "VerifyTarget"]

COMMIT_SECONDS = 2.0
"""After a commit, for the first handshake that shows it: new connections get the new certificate at once, and a reload
that happens at the same moment is over."""

RELOAD_SECONDS = 10.0
"""Likewise after the reload command: the new process has to read all certificates first."""

RELOAD_AGAIN_SECONDS = 600.0
"""The command is not run again for the same certificate any sooner, if it ended well and did not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """Where certificates go: [haproxy] of the configuration.

    certificate_dir: absolute. runtime_sockets: one for each HAProxy process, none to do without. verify: where
    handshakes prove it; none for no proof. reload_command: a program and its arguments; empty for none.
    """

    certificate_dir: Path
    runtime_sockets: tuple[Address, ...]
    verify: tuple[VerifyTarget, ...]
    reload_command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A crt-list or directory that HAProxy has, and what a certificate of ours is called in it."""

    crt_list: str
    certificate: str
    is_directory: bool


class Delivery:
    """Brings bundles into HAProxy. `warn` is told what works now and will not for ever; see `deliver`."""

    def __init__(self, settings: DeliverySettings, *, warn: Callable[[str], None]) -> None:
        self._settings = settings
        self._warn = warn
        self._apis = tuple(map(RuntimeApi, settings.runtime_sockets))
        # One at a time: of two bundles for the same file, the same one has to be last on disk and in memory.
        self._turn = asyncio.Lock()
        self._reloaded: dict[Path, tuple[str, float]] = {}

    def bundle_path(self, name: str) -> Path:
        """The file of the certificate of that name."""
        return self._settings.certificate_dir / f"{name}.pem"

    async def place_placeholder(self, name: str, bundle: Bundle) -> bool:
        """Writes the file unless something is there; whether it did. HAProxy's `crt DIR` must not be empty.

        Raises DeliveryError.
        """
        path = self.bundle_path(name)
        async with self._turn:
            return not await asyncio.to_thread(os.path.lexists, path) and await self._to_disk(path, bundle)

    async def deliver(self, name: str, bundle: Bundle) -> None:
        """Returns when `bundle` is on disk, in the memory of every HAProxy, and was seen to be served.

        What is there already is left alone. Where HAProxy does not do it at run time the reload command is run, if
        there is one. `warn` is told that, and of a name added to a crt-list file, which HAProxy forgets at its next
        reload unless somebody writes it into that file.

        Raises DeliveryError. Whatever was done by then stays.
        """
        path = self.bundle_path(name)
        async with self._turn:
            await self._to_disk(path, bundle)
            failures = [failure for api in self._apis if (failure := await self._to_memory(api, path, bundle))]
            helped = [failure for failure in failures if failure.reload_helps]
            if helped or not self._apis:
                await self._by_reload(path, bundle, helped)
            elif not failures:
                await self._verify(path, bundle, COMMIT_SECONDS)
            if len(helped) < len(failures):
                raise _joined([failure for failure in failures if not failure.reload_helps])

    async def differences(self, name: str, bundle: Bundle) -> list[str]:
        """What is not as `deliver` leaves it, in words; empty if nothing. An HAProxy that cannot be asked is one."""
        path = self.bundle_path(name)
        on_disk = await asyncio.to_thread(disk.difference, path, bundle)
        in_memory = [found for api in self._apis if (found := await self._difference_in_memory(api, path, bundle))]
        served = await unproven(self._settings.verify, bundle, 0.0)
        if self._settings.verify and not served and self._none_took(in_memory):
            # Whatever was done, it was by a reload, and it is served.
            in_memory = []
        return [
            *([on_disk] if on_disk else []),
            *map(str, in_memory),
            *([await asyncio.to_thread(in_words, path, bundle, served)] if served else []),
        ]

    # ------------------------------------------------------------------ disk

    async def _to_disk(self, path: Path, bundle: Bundle) -> bool:
        try:
            return await asyncio.to_thread(disk.write, path, bundle)
        except OSError as error:
            hint = {
                errno.EACCES: "; it has to be a directory that this user may write to",
                errno.EROFS: "; under systemd, ReadWritePaths= has to have its directory",
                errno.EISDIR: "; a directory has that name",
                errno.ENOTDIR: "; haproxy.certificate_dir has to be a directory",
            }.get(error.errno or 0, "")
            raise DeliveryError(f"cannot write {path}: {error.strerror or error}{hint}") from None

    # ------------------------------------------------------------------ memory

    async def _to_memory(self, api: RuntimeApi, path: Path, bundle: Bundle) -> DeliveryError | None:
        try:
            await self._push(api, path, bundle)
        except DeliveryError as error:
            return error
        return None

    async def _push(self, api: RuntimeApi, path: Path, bundle: Bundle) -> None:
        known = await api.certificate_names()
        name = await asyncio.to_thread(find_certificate, path, known.names)
        held = await api.certificate(name) if name is not None else None
        if name is not None and held is not None and held.is_used:
            if held.sha1 != bundle.leaf.sha1:
                await api.set_certificate(name, bundle)
            return
        place = await self._place(api, path, known)
        if place is None:
            raise DeliveryError(f"{api}: {_why_unknown(path, name, known)}", reload_helps=True)
        await api.add_certificate(place.crt_list, name or place.certificate, bundle)
        if not place.is_directory:
            self._warn(
                f"{api}: {place.certificate} is served now, and no more after the next reload of HAProxy: add a line"
                f" `{place.certificate}` to {place.crt_list}"
            )

    async def _place(self, api: RuntimeApi, path: Path, known: CertificateNames) -> _Place | None:
        """Where a new name of our directory belongs; None where HAProxy reads single files, or another directory."""
        lists = await api.crt_lists()
        directory = await asyncio.to_thread(find_directory, path.parent, lists)
        if directory is not None:
            return _Place(crt_list=directory, certificate=_below(directory, path), is_directory=True)
        places = []
        for crt_list in lists:
            used = {os.path.dirname(entry) for entry in await api.crt_list(crt_list, known.names)} - {""}  # noqa: PTH120  HAProxy's text
            directory = await asyncio.to_thread(find_directory, path.parent, used)
            if directory is not None:
                places.append(_Place(crt_list=crt_list, certificate=_below(directory, path), is_directory=False))
        if len(places) > 1:
            raise DeliveryError(
                f"{api}: {' and '.join(place.crt_list for place in places)} have certificates of {path.parent}; add"
                f" {path.name} to the one that it belongs to, and reload HAProxy"
            )
        return places[0] if places else None

    async def _difference_in_memory(self, api: RuntimeApi, path: Path, bundle: Bundle) -> DeliveryError | None:
        try:
            known = await api.certificate_names()
            name = await asyncio.to_thread(find_certificate, path, known.names)
            held = await api.certificate(name) if name is not None else None
        except DeliveryError as error:
            return error
        if held is None:
            return DeliveryError(f"{api}: does not have {path}")
        if held.sha1 != bundle.leaf.sha1:
            return DeliveryError(f"{api}: under {name} there is {held}, instead of serial {bundle.leaf.serial}")
        return None if held.is_used else DeliveryError(f"{api}: has {name}, and no bind line uses it")

    def _none_took(self, failures: Sequence[DeliveryError]) -> bool:
        """Whether not one HAProxy can be talked to at run time, for reasons that only a reload gets round."""
        return len(failures) == len(self._apis) and all(failure.reload_helps for failure in failures)

    # ------------------------------------------------------------------ reload

    async def _by_reload(self, path: Path, bundle: Bundle, failures: Sequence[DeliveryError]) -> None:
        command = self._settings.reload_command
        if (
            self._settings.verify
            and self._none_took(failures)
            and not await unproven(self._settings.verify, bundle, 0.0)
        ):
            return  # somebody has reloaded HAProxy already
        if not command:
            if failures:
                raise _joined(failures)
            await self._verify(path, bundle, COMMIT_SECONDS, hint="; HAProxy has not read its files since")
            return
        self._must_not_reload_again(path, bundle, failures)
        for failure in failures:
            self._warn(f"{failure}; running haproxy.reload_command")
        try:
            await run_reload_command(command)
            self._reloaded[path] = (bundle.leaf.serial, asyncio.get_running_loop().time())
            await self._verify(path, bundle, RELOAD_SECONDS, hint="; haproxy.reload_command was run, and ended well")
        except DeliveryError as error:
            raise _joined([error, *failures]) from None
        self._reloaded.pop(path, None)

    def _must_not_reload_again(self, path: Path, bundle: Bundle, failures: Sequence[DeliveryError]) -> None:
        serial, at = self._reloaded.get(path, ("", 0.0))
        if serial == bundle.leaf.serial and asyncio.get_running_loop().time() < at + RELOAD_AGAIN_SECONDS:
            text = f"haproxy.reload_command was run for {path}, ended well, and did not help: what is served is another"
            raise _joined([DeliveryError(text), *failures])

    # ------------------------------------------------------------------ proof

    async def _verify(self, path: Path, bundle: Bundle, patience: float, *, hint: str = "") -> None:
        if self._settings.verify and len(bundle.leaf.names) > VERIFIED_NAMES:
            self._warn(f"{path}: of {len(bundle.leaf.names)} names the first {VERIFIED_NAMES} are checked")
        failures = await unproven(self._settings.verify, bundle, patience)
        if failures:
            raise DeliveryError(await asyncio.to_thread(in_words, path, bundle, failures) + hint)


def _why_unknown(path: Path, name: str | None, known: CertificateNames) -> str:
    if name is not None:
        return f"has {name}, which no bind line uses, and no crt-list or directory to put it into"
    bundled = [other for other in known.names if other.rpartition("/")[2].startswith(f"{path.name}.")]
    if bundled:
        return f"has {path.name} as several files, {', '.join(bundled)}, which are not ours to replace; rename them"
    others = [other for other in known.names if other.rpartition("/")[2] == path.name]
    if others:
        return f"reads {', '.join(others)}, which is another file than {path}; is haproxy.certificate_dir right?"
    return f"does not know {path}, and no bind line has `crt {path.parent}`, where new names could be added"


def _joined(errors: Sequence[DeliveryError]) -> DeliveryError:
    if len(errors) == 1:
        return errors[0]
    return DeliveryError("; ".join(map(str, errors)), reload_helps=all(error.reload_helps for error in errors))


def _below(directory: str, path: Path) -> str:
    return f"{directory.rstrip('/')}/{path.name}"
