"""`sniproxy import-certbot`: what certbot has obtained, so that nothing is ordered again on the day of the switch."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sniproxy.cli.program import FAILED, config_option, fail, load_or_exit
from sniproxy.errors import SniproxyError

if TYPE_CHECKING:
    from sniproxy.app.adoption import Remark, Takeover
    from sniproxy.config import Config


@click.command("import-certbot")
@config_option
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
def import_certbot(path: Path, directory: Path, *, dry_run: bool) -> None:
    """Take over what certbot keeps in DIR (/etc/letsencrypt): the account, and certificates that are valid.

    They go into acme.state_dir, each to the [[certificates]] entry for the same names; entries that are missing are
    printed. What cannot be carried over is told. DIR is only read, and may be a copy. May be repeated.
    """
    config = load_or_exit(path)
    from sniproxy.app.adoption import carry_over, examine, make_state_dir
    from sniproxy.app.rights import as_after_the_start

    now = datetime.now(UTC)
    try:
        takeover = examine(directory, config, now)
        failed = [_say(remark) for remark in takeover.remarks]
        if not dry_run:
            make_state_dir(config)
        # Read as root, if need be; written as the user who will have to read it.
        with as_after_the_start(config.proxy.user, config.proxy.group):
            failed += [_say(remark) for remark in carry_over(takeover, config, now, dry_run=dry_run)]
    except SniproxyError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename or directory}: {error.strerror or error}")
    if takeover.toml:
        click.echo(takeover.toml, nl=False)
    _say_what_to_do(takeover, config, path, dry_run=dry_run)
    if any(failed):
        sys.exit(FAILED)


def _say(remark: Remark) -> bool:
    """Tells it; whether it is of something that failed."""
    click.echo(remark.text, err=True)
    return remark.is_failure


def _say_what_to_do(takeover: Takeover, config: Config, path: Path, *, dry_run: bool) -> None:
    if takeover.toml:
        click.echo(
            f"what to do: add the above to {path}, and run this again before sniproxy is started or reloaded with it:"
            " it orders whatever it does not find",
            err=True,
        )
    if not takeover.certificates and takeover.account is None:
        return
    if dry_run:
        click.echo("nothing was changed: this was a dry run", err=True)
        return
    from sniproxy.cli.check import is_running

    if is_running(config):
        click.echo(
            "sniproxy is running: it finds the certificates within a minute, once their [[certificates]] are loaded"
            " (HUP); the account takes a restart",
            err=True,
        )
    if takeover.certificates:
        click.echo(
            "certbot still renews them: stop that (systemctl disable --now certbot.timer, and what cron has)", err=True
        )
