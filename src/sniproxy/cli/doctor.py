"""`sniproxy doctor`: whether certificates could be obtained and delivered now, and which step would fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sniproxy import __version__
from sniproxy.cli.program import BAD_CONFIG, FAILED, config_option, fail, json_option, loop_factory
from sniproxy.cli.running import load_with_certificates
from sniproxy.cli.screen import Mark, Screen, open_screen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sniproxy.app.doctor.diagnosis import Diagnosis
    from sniproxy.app.doctor.walk import Show
    from sniproxy.model import TcpAddress

_MARKS = {"good": Mark.DONE, "warning": Mark.WARNING, "failed": Mark.FAILED, "skipped": Mark.SKIPPED}


@click.command()
@config_option
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--connect", metavar="HOST:PORT", help="Try validations here, in place of port 443 of each address.")
@click.option("--connect-http", metavar="HOST:PORT", help="Likewise, in place of port 80.")
@click.option("--nameserver", metavar="HOST:PORT", hidden=True, help="Ask this one, not those of /etc/resolv.conf.")
@json_option
def doctor(
    path: Path,
    names: tuple[str, ...],
    connect: str | None,
    connect_http: str | None,
    nameserver: str | None,
    *,
    as_json: bool,
) -> None:
    """Walk the whole path a certificate takes, and say which step would fail and what to do about it.

    The store, the CA and our account there, the clock; of each name DNS, CAA records, and a validation as the CA would
    make it; HAProxy's sockets, and what it serves. Of all certificates, or of those called NAME or with NAME in them.

    Changes nothing: nothing is ordered, written or delivered. Exits with 1 if any step fails. A machine that cannot
    reach its own public address needs --connect, where the proxy listens.
    """
    import logging

    from sniproxy.app.certificates import UnknownCertificate
    from sniproxy.app.doctor.walk import Options, examine

    config = load_with_certificates(path)
    options = Options(
        connect=_address("--connect", connect),
        connect_http=_address("--connect-http", connect_http),
        nameserver=_address("--nameserver", nameserver, is_number=True),
    )
    # What goes wrong is told in steps; the log lines of the parts that are at work would say it again.
    logging.getLogger("sniproxy").addHandler(logging.NullHandler())
    show: Show = _Silent() if as_json else _Shown(open_screen(), f"sniproxy {__version__} doctor: {path}")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            found = runner.run(examine(config, names, options, show))
    except UnknownCertificate as error:
        fail(error, BAD_CONFIG)
    except KeyboardInterrupt:
        fail("doctor: stopped before the end")
    if as_json:
        click.echo(json.dumps([_as_json(diagnosis) for diagnosis in found]))
    _exit(found)


def _address(option: str, text: str | None, *, is_number: bool = False) -> TcpAddress | None:
    from sniproxy.app.resolve import is_ip_address
    from sniproxy.config.addresses import dial_address
    from sniproxy.model import TcpAddress

    if text is None:
        return None
    try:
        address = dial_address(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from None
    if not isinstance(address, TcpAddress):
        raise click.UsageError(f"{option}: {text} is a socket of this machine; write HOST:PORT")
    if is_number and not is_ip_address(address.host):
        raise click.UsageError(f"{option}: write an IP address; {address.host} would have to be looked up")
    return address


def _exit(found: Sequence[Diagnosis]) -> None:
    failures = [diagnosis for diagnosis in found if diagnosis.verdict == "failed"]
    if failures:
        steps = ", ".join(dict.fromkeys(_place(diagnosis) for diagnosis in failures))
        count = f"{len(failures)} of {len(found)} steps fail" if len(failures) > 1 else f"1 of {len(found)} steps fails"
        click.echo(f"doctor: {count}: {steps}", err=True)
        sys.exit(FAILED)
    warnings = sum(diagnosis.verdict == "warning" for diagnosis in found)
    more = f"; {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    click.echo(f"doctor: no step fails{more}", err=True)


def _place(diagnosis: Diagnosis) -> str:
    return f"{diagnosis.certificate} {diagnosis.step}".strip()


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "step": diagnosis.step,
        "verdict": diagnosis.verdict.value,
        "certificate": diagnosis.certificate or None,
        "about": diagnosis.about or None,
        "found": diagnosis.found,
        "advice": diagnosis.advice or None,
    }


class _Silent:
    """All of it is printed in the end."""

    def section(self, title: str) -> None:
        pass

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:  # noqa: ARG002
        return contextlib.nullcontext()

    def found(self, diagnosis: Diagnosis) -> None:
        pass


class _Shown:
    """Each step as soon as it is known, in the order of the way."""

    def __init__(self, screen: Screen, title: str) -> None:
        self._screen = screen
        self._screen.heading(title)

    def section(self, title: str) -> None:
        self._screen.heading(title)

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:
        return self._screen.doing(title)

    def found(self, diagnosis: Diagnosis) -> None:
        mark = _MARKS[diagnosis.verdict.value]
        self._screen.finding(mark, diagnosis.step, str(diagnosis), advice=diagnosis.advice)
