"""`sniproxy account`: who we are to the CA."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sniproxy.cli.program import config_option, json_option
from sniproxy.cli.running import load_with_certificates, result_of

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.app.certificates import Certificates


@click.command()
@config_option
@click.option("--roll-over", is_flag=True, help="Give it a new key: after the old one may have been seen by others.")
@json_option
def account(path: Path, *, roll_over: bool, as_json: bool) -> None:
    """Show the account at the CA, which is made where there is none; or give it a new key.

    A CAA record with accounturi (RFC 8657) takes the URL shown here, which a new key does not change.
    """
    config = load_with_certificates(path)

    async def errand(certificates: Certificates) -> dict[str, Any]:
        return await certificates.account(roll_over=roll_over)

    request = {"command": "account", "roll_over": roll_over}
    result: dict[str, Any] = result_of(config, path, request, errand, listening=False)
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"directory  {result['directory']}\naccount    {result['url']}")
        if roll_over:
            click.echo("it has a new key", err=True)
