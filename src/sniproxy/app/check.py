"""Whether what a valid configuration points at is there: files, sockets, ports, rights. Starts nothing.

It may be run while the proxy is up, before a reload: then a port that is taken is taken by ourselves.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import pwd
import resource
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sniproxy.app import build
from sniproxy.app.rights import as_after_the_start
from sniproxy.errors import DeliveryError, StartError
from sniproxy.haproxy.runtime import RuntimeApi
from sniproxy.model import UnixAddress
from sniproxy.relay.listener import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sniproxy.config import Config, Source
    from sniproxy.errors import Mistake
    from sniproxy.model import Address

CONNECT_SECONDS = 2.0

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]


def problems(config: Config, source: Source, *, running: bool) -> list[Mistake]:
    """Everything that would be in the way, in the order of the file.

    `running`: a proxy with this configuration is up; addresses that are taken are taken by itself.
    """
    found: list[Problem] = [*_listeners(config, running=running), *_descriptors(config)]
    unknown = list(_user(config))
    found += unknown
    # What root may open, the user that it becomes may perhaps not.
    with nullcontext() if unknown else as_after_the_start(config.proxy.user, config.proxy.group):
        found += asyncio.run(_sockets(config))
        found += _files(config)
    mistakes = [source.mistake(path, message) for path, message in found]
    return sorted(mistakes, key=lambda mistake: (mistake.line, mistake.key))


def _listeners(config: Config, *, running: bool) -> Iterator[Problem]:
    wanted: list[tuple[KeyPath, Address]] = [
        (("proxy", "listen", index), address) for index, address in enumerate(config.proxy.listen)
    ]
    if config.http is not None:
        wanted += [(("http", "listen", index), address) for index, address in enumerate(config.http.listen)]
    if config.admin.listen is not None:
        wanted.append((("admin", "listen"), config.admin.listen))
    bound = []
    for path, address in wanted:
        try:
            bound.append(bind(address))
        except StartError as error:
            taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not (running and taken):
                yield path, str(error)
        else:
            if isinstance(address, UnixAddress) and not address.is_abstract:
                Path(address.path).unlink()
    for listener in bound:
        listener.close()


def _descriptors(config: Config) -> Iterator[Problem]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fits = build.connections_for(hard, config)
    if "max_connections" not in config.proxy.model_fields_set:
        return  # nobody asked for that many: the proxy takes what fits, and says so
    if hard != resource.RLIM_INFINITY and config.proxy.max_connections > fits:
        message = (
            f"{config.proxy.max_connections} connections need more descriptors than the limit of {hard} here allows,"
            f" which is enough for {fits}; raise LimitNOFILE (ulimit -Hn) or lower it"
        )
        yield ("proxy", "max_connections"), message


def _user(config: Config) -> Iterator[Problem]:
    for key, look_up in (("user", pwd.getpwnam), ("group", grp.getgrnam)):
        name = getattr(config.proxy, key)
        if name:
            try:
                look_up(name)
            except KeyError:
                yield ("proxy", key), f'this machine has no {key} "{name}"'


async def _sockets(config: Config) -> list[Problem]:
    servers, runtime = await asyncio.gather(_servers(config), _runtime_sockets(config))
    return [*servers, *runtime]


async def _servers(config: Config) -> list[Problem]:
    wanted = [
        (("backends", name, "servers", index), address)
        for name, backend in config.backends.items()
        for index, address in enumerate(backend.servers)
    ]
    answers = await asyncio.gather(*(_why_unreachable(address) for _, address in wanted))
    return [
        (path, f"nothing can be reached at {address}: {answer}")
        for (path, address), answer in zip(wanted, answers, strict=True)
        if answer
    ]


async def _why_unreachable(address: Address) -> str:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            if isinstance(address, UnixAddress):
                _, writer = await asyncio.open_unix_connection(address.socket_address)
            else:
                _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        return _reason(error)
    writer.close()
    return ""


async def _runtime_sockets(config: Config) -> list[Problem]:
    if config.haproxy is None or not config.certificates:
        return []
    answers = await asyncio.gather(*map(_why_no_admin, config.haproxy.runtime_sockets))
    return [
        (("haproxy", "runtime_sockets", index), answer) for index, answer in enumerate(answers) if answer is not None
    ]


async def _why_no_admin(address: Address) -> str | None:
    """What keeps certificates from being changed at a runtime socket; None where nothing does."""
    try:
        level = await RuntimeApi(address).level()
    except DeliveryError as error:
        return str(error)
    if level == "admin":
        return None
    return f"HAProxy at {address}: its level is {level[:20]!r} there; certificates need `stats socket … level admin`"


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name cannot be looked up ({error.strerror})"
    hint = {
        errno.ENOENT: "there is no such socket; HAProxy makes it when it starts",
        errno.ECONNREFUSED: "nobody listens there; is HAProxy running?",
        errno.EACCES: "this user may not connect; join HAProxy's group",
    }.get(error.errno or 0)
    return hint or error.strerror or str(error)


def _files(config: Config) -> Iterator[Problem]:
    if isinstance(config.log.target, Path):
        yield from _log_file(config.log.target)
    if config.acme is not None:
        for key in ("ca_file", "eab_hmac_file"):
            path = getattr(config.acme, key)
            if path is not None and not _may(path, os.R_OK):
                yield ("acme", key), f"{path} cannot be read"
        if config.certificates:
            yield from _writable_place(("acme", "state_dir"), config.acme.state_dir, made_by_root=True)
    if config.haproxy is not None and config.certificates:
        yield from _writable_place(("haproxy", "certificate_dir"), config.haproxy.certificate_dir, made_by_root=True)
    if config.certificates:
        yield from _programs(config)


def _programs(config: Config) -> Iterator[Problem]:
    commands: list[tuple[KeyPath, tuple[str, ...]]] = [
        (("hooks", "on_renewed"), config.hooks.on_renewed),
        (("hooks", "on_failed"), config.hooks.on_failed),
    ]
    if config.haproxy is not None:
        commands.append((("haproxy", "reload_command"), config.haproxy.reload_command))
    for key, command in commands:
        if command and not _is_program(command[0]):
            where = "" if "/" in command[0] else ", in no directory of PATH"
            yield key, f"there is no program {command[0]} that this user may run{where}"


def _is_program(name: str) -> bool:
    """As execvp(3) looks for it."""
    places = [""] if "/" in name else os.get_exec_path()
    return any(Path(place, name).is_file() and _may(Path(place, name), os.X_OK) for place in places)


def _log_file(path: Path) -> Iterator[Problem]:
    key: KeyPath = ("log", "target")
    try:
        if path.is_dir():
            yield key, f"{path} is a directory; name a file"
        elif path.exists():
            if not _may(path, os.W_OK):
                yield key, f"{path} cannot be written to by this user"
        elif not path.parent.is_dir():
            yield key, f"there is no directory {path.parent}"
        else:
            yield from _writable_place(key, path.parent)
    except PermissionError:
        yield key, f"{path} cannot be written to by this user"


def _writable_place(key: KeyPath, directory: Path, *, made_by_root: bool = False) -> Iterator[Problem]:
    """A directory that is there and can be written to, or can be made.

    made_by_root: a start as root makes it before it becomes another user, and gives it away (rights.make_directories).
    """
    nearest = directory
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            yield key, f"{nearest} is not a directory"
            return
    except PermissionError:
        pass  # somewhere on the way, so that the rest is out of reach as well
    # Of the two users that we are, the real one is still root.
    may = os.access if made_by_root and nearest != directory else _may
    if not may(nearest, os.W_OK | os.X_OK):
        yield key, f"{directory} cannot be written to by this user"


def _may(path: Path | str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)
