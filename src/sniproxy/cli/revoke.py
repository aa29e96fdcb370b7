"""`sniproxy revoke`: a new certificate in the place of one that must not be trusted any more."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sniproxy.cli.program import FAILED, config_option, json_option
from sniproxy.cli.renew import is_bad, print_results
from sniproxy.cli.running import load_with_certificates, result_of, say

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.app.certificates import Certificates

# RFC 5280 section 5.3.1; the others are not for those who hold a certificate (RFC 8555 section 7.6, CA/Browser Forum).
REASONS = {"unspecified": 0, "keyCompromise": 1, "superseded": 4, "cessationOfOperation": 5}


@click.command()
@config_option
@click.argument("name")
@click.option("--reason", type=click.Choice(list(REASONS)), default="unspecified", show_default=True)
@json_option
def revoke(path: Path, name: str, reason: str, *, as_json: bool) -> None:
    """Replace the certificate called NAME, and revoke the one that was replaced.

    In this order: nobody is served a revoked certificate. Where the new one cannot be had, or HAProxy does not serve
    it, nothing is revoked, and the exit status is 1.
    """
    config = load_with_certificates(path, name)
    number = REASONS[reason]

    async def errand(certificates: Certificates) -> dict[str, Any]:
        return await certificates.revoke(name, number, tell=say)

    request = {"command": "revoke", "name": name, "reason": number}
    result: dict[str, Any] = result_of(config, path, request, errand)
    if as_json:
        click.echo(json.dumps(result))
    else:
        print_results([result])
        if result["revoked"]:
            click.echo(f"revoked: serial {result['revoked']} ({reason})")
    if is_bad(result):
        sys.exit(FAILED)
