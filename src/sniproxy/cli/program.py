"""`sniproxy [--version] COMMAND`: the commands, and the options and exit statuses they share.

0 done · 1 it failed, or a check found a problem · 2 bad arguments or a bad configuration · 3 stopped, but connections
were cut. Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sniproxy import __version__
from sniproxy.errors import ConfigError, SniproxyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sniproxy.config import Config

DEFAULT_CONFIG = "/etc/sniproxy/sniproxy.toml"
FAILED, BAD_CONFIG = 1, 2

# Each in its own module, imported when it is called for: `run` must not pay for `demo`.
_COMMANDS = {
    "run": "sniproxy.cli.program",
    "check": "sniproxy.cli.check",
    "explain": "sniproxy.cli.explain",
    "healthcheck": "sniproxy.cli.healthcheck",
    "haproxy-config": "sniproxy.cli.haproxy_config",
    "certs": "sniproxy.cli.certs",
    "renew": "sniproxy.cli.renew",
    "revoke": "sniproxy.cli.revoke",
    "account": "sniproxy.cli.account",
    "import-certbot": "sniproxy.cli.import_certbot",
    "doctor": "sniproxy.cli.doctor",
    "demo": "sniproxy.cli.demo",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="sniproxy %(version)s")
def program() -> None:
    """One process on :443 in front of HAProxy: routes by server name, hands everything on untouched."""


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """-c/--config, and HAProxy's letter -f: else $SNIPROXY_CONFIG, else the usual place."""
    return click.option(
        "-c",
        "-f",
        "--config",
        "path",
        type=click.Path(path_type=Path),
        default=lambda: Path(os.environ.get("SNIPROXY_CONFIG") or DEFAULT_CONFIG),
        metavar="FILE",
        help=f"The configuration. [default: $SNIPROXY_CONFIG, else {DEFAULT_CONFIG}]",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json, which every command that prints a table has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def load_or_exit(path: Path) -> Config:
    """The configuration of a file; with any mistake in it, all of them on standard error and exit status 2."""
    from sniproxy.config import load

    try:
        return load(path)
    except ConfigError as error:
        fail(error, BAD_CONFIG)


def fail(error: object, status: int = FAILED) -> NoReturn:
    """Says why, one line for each reason, and exits."""
    click.echo(str(error), err=True)
    sys.exit(status)


@program.command()
@config_option
@click.option("--event-loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", hidden=True)
def run(path: Path, event_loop: str) -> None:
    """Run the proxy, in the foreground.

    TERM and INT drain, then stop; a second one stops now. HUP reloads the configuration, USR1 reopens the log file.
    """
    config = load_or_exit(path)
    from sniproxy.app.proxy import Proxy

    async def serve() -> int:
        return await Proxy(config, path).run()

    try:
        with asyncio.Runner(loop_factory=loop_factory(event_loop)) as runner:
            status = runner.run(serve())
    except SniproxyError as error:
        fail(error)
    sys.exit(status)


def loop_factory(name: str = "uvloop") -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop: uvloop, or plain asyncio."""
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def main() -> None:
    """The program's entry."""
    program(prog_name="sniproxy")
