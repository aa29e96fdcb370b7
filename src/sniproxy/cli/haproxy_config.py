"""`sniproxy haproxy-config`: the lines of haproxy.cfg that fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sniproxy.cli.program import config_option, load_or_exit

if TYPE_CHECKING:
    from pathlib import Path


@click.command("haproxy-config")
@config_option
def haproxy_config(path: Path) -> None:
    """Print the HAProxy lines that fit this configuration."""
    config = load_or_exit(path)
    from sniproxy.app.haproxy_lines import haproxy_lines

    for line in haproxy_lines(config):
        click.echo(line)
