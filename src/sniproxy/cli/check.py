"""`sniproxy check`: the configuration, and what it points at."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from sniproxy.cli.program import BAD_CONFIG, FAILED, config_option, json_option
from sniproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sniproxy.config import Config
    from sniproxy.errors import Mistake


@click.command()
@config_option
@json_option
def check(path: Path, *, as_json: bool) -> None:
    """Validate the configuration and what it points at: files, sockets, ports, rights. Starts nothing.

    Exits with 2 when the configuration is wrong, with 1 when something it points at is.
    """
    from sniproxy.app.check import problems
    from sniproxy.config import parse, read

    try:
        source = read(path)
        config = parse(source.text, file=source.file)
    except ConfigError as error:
        _report(error.mistakes, as_json=as_json)
        sys.exit(BAD_CONFIG)
    found = problems(config, source, running=is_running(config))
    _report(found, as_json=as_json)
    if found:
        sys.exit(FAILED)
    if not as_json:
        names = sum(len(route.sni) for route in config.routes)
        counted = f"backends: {len(config.backends)}, names in routes: {names}"
        if config.certificates:
            counted += f", certificates: {len(config.certificates)}"
        click.echo(f"{path}: good; {counted}", err=True)


def _report(mistakes: Sequence[Mistake], *, as_json: bool) -> None:
    if as_json:
        rows = [{"file": m.file, "line": m.line or None, "key": m.key or None, "message": m.message} for m in mistakes]
        click.echo(json.dumps(rows))
    else:
        for mistake in mistakes:
            click.echo(str(mistake), err=True)


def is_running(config: Config) -> bool:
    """Whether a proxy answers on this configuration's admin listener: then its addresses are taken by itself."""
    from sniproxy.cli.healthcheck import ask

    if config.admin.listen is None:
        return False
    try:
        return "sniproxy_build_info" in ask(config.admin.listen, "/metrics")[1]
    except Exception:  # noqa: BLE001  whatever else listens there, it is not sniproxy
        return False
