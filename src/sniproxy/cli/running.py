"""What the running proxy is asked for over its control socket and, where none is running, this process does itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from sniproxy.cli.program import BAD_CONFIG, fail, load_or_exit, loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path

    from sniproxy.app.certificates import Certificates
    from sniproxy.config import Config

    Errand = Callable[[Certificates], Coroutine[Any, Any, Any]]

QUIET_SECONDS = 900.0
"""Between two lines of the running proxy: an order that hangs takes ten minutes, and then says so."""


def load_with_certificates(path: Path, *names: str) -> Config:
    """The configuration, which has certificates, those of these names among them; exits with 2 otherwise."""
    config = load_or_exit(path)
    known = [certificate.name for certificate in config.certificates]
    if not known:
        fail(f"{path}: there are no [[certificates]]", BAD_CONFIG)
    for name in names:
        if name not in known:
            fail(f"there is no certificate called {name}; there is {', '.join(known)}", BAD_CONFIG)
    return config


def result_of(config: Config, path: Path, request: Mapping[str, Any], errand: Errand, *, listening: bool = True) -> Any:
    """What comes of a request to the running proxy; of `errand`, where there is none. Exits where it is refused.

    listening: whether the errand needs somebody to answer on :443 and :80, as an order does.
    """
    from sniproxy.app.control import ControlError, NotRunning, ask

    address = config.admin.control_socket
    if address is not None:
        try:
            return ask(address, request, step=say, seconds=QUIET_SECONDS)
        except NotRunning:
            pass
        except ControlError as error:
            fail(error)
    if _is_running(config):
        where = address.path if address is not None else 'admin.control_socket, which is ""'
        fail(f"a proxy is running, and cannot be reached through {where}")
    return _by_itself(config, path, errand, listening=listening)


def say(step: Mapping[str, Any]) -> None:
    """One step of the work, for people."""
    click.echo(f"{step['certificate']}: {step['text']}", err=True)


def _is_running(config: Config) -> bool:
    from sniproxy.cli.check import is_running

    return is_running(config)


def _by_itself(config: Config, path: Path, errand: Errand, *, listening: bool) -> Any:
    from sniproxy.errors import SniproxyError

    results: list[Any] = []

    async def keep(certificates: Certificates) -> None:
        results.append(await errand(certificates))
        await certificates.hooks_done()  # as this process is about to end

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_in_its_place(config, path, keep) if listening else _beside(config, keep))
    except SniproxyError as error:
        fail(error)
    if not results:
        fail("stopped before it was done; what was begun is gone on with next time")
    return results[0]


async def _in_its_place(config: Config, path: Path, errand: Errand) -> None:
    from sniproxy.app.proxy import Proxy

    click.echo("no proxy is running: listening in its place until this is done", err=True)
    # Data goes to standard output, and these are not the lines of a service.
    log = config.log.model_copy(update={"target": "stderr", "level": "error"})
    await Proxy(config.model_copy(update={"log": log}), path).run(errand)


async def _beside(config: Config, errand: Errand) -> None:
    from sniproxy.app.certificates import Certificates, plan
    from sniproxy.app.rights import drop_privileges, make_directories
    from sniproxy.model import CertificateCounts

    # What root would write the proxy could not read.
    make_directories(config)
    drop_privileges(config.proxy.user, config.proxy.group)

    def bug(error: BaseException) -> None:
        raise error

    certificates = Certificates(CertificateCounts(), bug)
    try:
        await certificates.take(plan(config), keep=False)
        await errand(certificates)
    finally:
        await certificates.close()
