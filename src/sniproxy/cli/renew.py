"""`sniproxy renew`: certificates now, by the running proxy or, where there is none, by this command itself."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sniproxy.cli.program import BAD_CONFIG, FAILED, config_option, fail, json_option, load_or_exit, loop_factory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sniproxy.app.certificates import Certificates
    from sniproxy.config import Config

QUIET_SECONDS = 900.0
"""Between two lines of the running proxy: an order that hangs takes ten minutes, and then says so."""

_WORDS = {
    "renewed": "renewed, and served",
    "not_due": "not due",
    "rehearsed": "would be renewed; nothing was kept",
    "failed": "failed",
    "not_deployed": "not deployed",
}


@click.command()
@config_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--force", is_flag=True, help="Order anew even what is not due. CAs have limits: five a week for a name.")
@click.option("--dry-run", is_flag=True, help="Order from acme.dry_run_directory, and keep nothing.")
@json_option
def renew(path: Path, names: tuple[str, ...], *, force: bool, dry_run: bool, as_json: bool) -> None:
    """Renew what is due now, without waiting for its time or for the back-off after a failure.

    All certificates, or those called NAME. The running proxy does it, and this waits for what comes of it; where none
    is running, this command listens where the proxy would until it is done. Exits with 1 if a certificate could not be
    obtained, or is not served.
    """
    config = load_or_exit(path)
    known = [certificate.name for certificate in config.certificates]
    if not known:
        fail(f"{path}: there are no [[certificates]] to renew", BAD_CONFIG)
    for name in names:
        if name not in known:
            fail(f"there is no certificate called {name}; there is {', '.join(known)}", BAD_CONFIG)
    request = {"command": "renew", "names": list(names), "force": force, "dry_run": dry_run}
    results = _by_the_running(config, request)
    if results is None:
        results = _by_itself(config, path, request)
    if as_json:
        click.echo(json.dumps(results))
    else:
        _print(results)
    if any(result["result"] in ("failed", "not_deployed") for result in results):
        sys.exit(FAILED)


def _by_the_running(config: Config, request: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What came of each, as the running proxy tells; None where none is running."""
    from sniproxy.app.control import ControlError, NotRunning, ask

    address = config.admin.control_socket
    if address is not None:
        try:
            results: list[dict[str, Any]] = ask(address, request, step=_say, seconds=QUIET_SECONDS)
        except NotRunning:
            pass
        except ControlError as error:
            fail(error)
        else:
            return results
    if _is_running(config):
        where = address.path if address is not None else 'admin.control_socket, which is ""'
        fail(f"a proxy is running, and cannot be reached through {where}")
    return None


def _is_running(config: Config) -> bool:
    from sniproxy.cli.check import is_running

    return is_running(config)


def _by_itself(config: Config, path: Path, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Does it in this process, which listens on :443 and :80 as long as that takes."""
    from sniproxy.app.proxy import Proxy
    from sniproxy.errors import SniproxyError

    click.echo("no proxy is running: listening in its place until this is done", err=True)
    results: list[dict[str, Any]] = []

    async def errand(certificates: Certificates) -> None:
        results.extend(
            await certificates.renew(request["names"], force=request["force"], dry_run=request["dry_run"], tell=_say)
        )

    # Data goes to standard output, and these are not the lines of a service.
    log = config.log.model_copy(update={"target": "stderr", "level": "error"})
    config = config.model_copy(update={"log": log})

    async def serve() -> None:
        await Proxy(config, path).run(errand)

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve())
    except SniproxyError as error:
        fail(error)
    return results


def _say(step: Mapping[str, Any]) -> None:
    click.echo(f"{step['certificate']}: {step['text']}", err=True)


def _print(results: Sequence[Mapping[str, Any]]) -> None:
    width = max(len(result["name"]) for result in results)
    for result in results:
        words = _WORDS.get(result["result"], result["result"])
        error = f": {result['error']}" if result["error"] else ""
        click.echo(f"{result['name']:<{width}}  {words}{error}")
