"""`sniproxy renew`: certificates now, by the running proxy or, where there is none, by this command itself."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sniproxy.cli.program import FAILED, config_option, json_option
from sniproxy.cli.running import load_with_certificates, result_of, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sniproxy.app.certificates import Certificates

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
    config = load_with_certificates(path, *names)

    async def errand(certificates: Certificates) -> list[dict[str, Any]]:
        return await certificates.renew(names, force=force, dry_run=dry_run, tell=say)

    request = {"command": "renew", "names": list(names), "force": force, "dry_run": dry_run}
    results: list[dict[str, Any]] = result_of(config, path, request, errand)
    if as_json:
        click.echo(json.dumps(results))
    else:
        print_results(results)
    if any(is_bad(result) for result in results):
        sys.exit(FAILED)


def is_bad(result: Mapping[str, Any]) -> bool:
    """Whether a certificate could not be obtained, or is not served."""
    return result["result"] in ("failed", "not_deployed")


def print_results(results: Sequence[Mapping[str, Any]]) -> None:
    """A line for each certificate."""
    width = max(len(result["name"]) for result in results)
    for result in results:
        words = _WORDS.get(result["result"], result["result"])
        error = f": {result['error']}" if result["error"] else ""
        click.echo(f"{result['name']:<{width}}  {words}{error}")
