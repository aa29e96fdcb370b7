"""`sniproxy certs`: how long certificates last, the managed ones or any others."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sniproxy.cli.program import BAD_CONFIG, FAILED, config_option, fail, json_option
from sniproxy.errors import ConfigError, SniproxyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sniproxy.app.expiry import Finding
    from sniproxy.config import Config
    from sniproxy.model import CertificateStatus

MOST_NAMES = 3
"""Of one certificate, in the table: some have a hundred, and --json has all of them."""

_KEYS = (
    "name",
    "names",
    "issuer",
    "serial",
    "not_before",
    "not_after",
    "renew_at",
    "days_left",
    "reason",
    "deployed",
    "last_error",
    "next_attempt",
)
"""Of an object of --json, in this order."""

_OF_MANAGED_ONES = ("renew_at", "reason", "deployed", "last_error", "next_attempt")


@click.command()
@config_option
@click.option("--check", "is_check", is_flag=True, help="Look at the TARGETs instead; takes no configuration.")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--sni", metavar="NAME", help="With --check: the server name to ask for. [default: the HOST]")
@click.option("--send-proxy", is_flag=True, help="With --check: send a PROXY header v2, for HAProxy's accept-proxy.")
@click.option("--warn", type=click.FloatRange(min=0), metavar="DAYS", help="Exit with 1 if any has fewer days left.")
@click.option("--nagios", "is_plugin", is_flag=True, help="One line, and exit with 0, 1, 2 or 3, as a Nagios plugin.")
@click.option("--critical", type=click.FloatRange(min=0), metavar="DAYS", help="With --nagios: exit with 2 below this.")
@json_option
def certs(
    path: Path,
    targets: tuple[str, ...],
    sni: str | None,
    warn: float | None,
    critical: float | None,
    *,
    is_check: bool,
    send_proxy: bool,
    is_plugin: bool,
    as_json: bool,
) -> None:
    """List every managed certificate: issuer, days left, next renewal and why, deployed or not.

    With --check, look at other certificates. A TARGET is a PEM or DER file, a directory of such, or a live endpoint:
    HOST:PORT, [::1]:443 or unix:/path, with NAME@ before it to ask for another name than HOST.
    """
    _check_usage(targets, sni, warn, critical, is_check=is_check, send_proxy=send_proxy, is_plugin=is_plugin)
    if is_plugin and as_json:
        raise click.UsageError("give one of --json and --nagios")
    now = datetime.now(UTC)
    if is_check:
        findings = _checked(targets, sni, now, send_proxy=send_proxy, is_plugin=is_plugin)
    else:
        findings = _managed(path, is_plugin=is_plugin)
        if not findings and not is_plugin:
            click.echo(f"{path}: no [[certificates]] are configured", err=True)
    if is_plugin:
        _exit_as_plugin(findings, warn, critical, now)
    if as_json:
        click.echo(json.dumps([_as_json(finding, now) for finding in findings]))
    elif findings:
        _print(findings, now)
    _exit(findings, warn, now)


def _check_usage(
    targets: tuple[str, ...],
    sni: str | None,
    warn: float | None,
    critical: float | None,
    *,
    is_check: bool,
    send_proxy: bool,
    is_plugin: bool,
) -> None:
    if is_check and not targets:
        raise click.UsageError("--check takes files, directories, or endpoints such as www.example.com:443")
    if not is_check and targets:
        raise click.UsageError("files and endpoints are looked at with --check")
    if not is_check and (sni is not None or send_proxy):
        raise click.UsageError("--sni and --send-proxy go with --check")
    if critical is not None and not is_plugin:
        raise click.UsageError("--critical goes with --nagios")
    if warn is not None and critical is not None and critical > warn:
        raise click.UsageError("--critical has to be fewer days than --warn")


# ---------------------------------------------------------------------- looked at


def _checked(
    targets: tuple[str, ...], sni: str | None, now: datetime, *, send_proxy: bool, is_plugin: bool
) -> Sequence[Finding]:
    import warnings

    from cryptography.utils import CryptographyDeprecationWarning

    from sniproxy.app.expiry import check
    from sniproxy.config.names import host_name
    from sniproxy.model import ProxyProtocol

    try:
        name = None if sni is None else host_name(sni)
    except ValueError as error:
        raise click.UsageError(f"--sni: {error}") from None
    header = ProxyProtocol.V2 if send_proxy else ProxyProtocol.OFF
    with warnings.catch_warnings():
        # Of serial numbers below zero and the like: it is for developers, and the roots of systems have them.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        checked = check(targets, server_name=name, proxy_protocol=header, now=now)
    if not is_plugin:
        for skipped in checked.skipped:
            click.echo(skipped, err=True)
    return checked.findings


def _managed(path: Path, *, is_plugin: bool) -> Sequence[Finding]:
    from sniproxy.app.expiry import Finding
    from sniproxy.config import load

    try:
        config = load(path)
        statuses = _statuses(config) if config.certificates else []
    except ConfigError as error:
        if is_plugin:
            _exit_unknown(error)
        fail(error, BAD_CONFIG)
    except SniproxyError as error:
        if is_plugin:
            _exit_unknown(error)
        fail(error)
    return [Finding(status=status, is_managed=True) for status in statuses]


def _statuses(config: Config) -> list[CertificateStatus]:
    """From the store; where that is not for us to read, from the running proxy. Raises SniproxyError."""
    from sniproxy.app.certificates import stored_statuses

    try:
        return stored_statuses(config)
    except (StoreError, PermissionError) as unreadable:
        try:
            return _ask_the_proxy(config)
        except SniproxyError as error:
            raise StoreError(f"{unreadable}; nor can the running proxy be asked: {error}") from unreadable


def _ask_the_proxy(config: Config) -> list[CertificateStatus]:
    from sniproxy.app.certificate_json import from_json
    from sniproxy.app.control import ControlError, ask

    if config.admin.control_socket is None:
        raise ControlError("admin.control_socket is off")
    answer = ask(config.admin.control_socket, {"command": "certificates"})
    try:
        return [from_json(document) for document in answer]
    except (KeyError, ValueError, TypeError):
        raise ControlError("its answer is not a list of certificates; is it of another version?") from None


# ---------------------------------------------------------------------- how it ends


def _exit_as_plugin(findings: Sequence[Finding], warn: float | None, critical: float | None, now: datetime) -> NoReturn:
    from sniproxy.cli.nagios import report
    from sniproxy.cli.table import printable

    status, line = report(findings, warn=warn, critical=critical, now=now)
    click.echo(printable(line, sys.stdout.encoding))
    sys.exit(status)


def _exit_unknown(error: object) -> NoReturn:
    from sniproxy.cli.nagios import Status, line

    click.echo(line(Status.UNKNOWN, str(error)))
    sys.exit(Status.UNKNOWN)


def _exit(findings: Sequence[Finding], warn: float | None, now: datetime) -> None:
    has_failed = any(finding.error is not None or finding.is_wrong for finding in findings)
    for finding in findings:
        left = finding.status.days_left(now)
        if warn is None or finding.error is not None or (left is not None and left >= warn):
            continue
        has_failed = True
        what = "there is no certificate yet" if left is None else f"{left:.1f} days left, fewer than {warn:g}"
        click.echo(f"{finding.status.name}: {what}", err=True)
    if has_failed:
        sys.exit(FAILED)


# ---------------------------------------------------------------------- how it looks


def _as_json(finding: Finding, now: datetime) -> dict[str, Any]:
    from sniproxy.app.certificate_json import as_json

    document = as_json(finding.status, now)
    row = {key: document[key] for key in _KEYS}
    if finding.is_managed:
        return row
    row |= dict.fromkeys(_OF_MANAGED_ONES)
    return row | {"error": finding.error, "notes": list(finding.notes)}


def _print(findings: Sequence[Finding], now: datetime) -> None:
    from sniproxy.cli.table import print_table

    managed = any(finding.is_managed for finding in findings)
    head = ["name" if managed else "target", "names", "issuer", "serial", "not after (UTC)", "days left"]
    head += ["renewal (UTC)", "deployed", "note"] if managed else ["note"]
    rows = [_row(finding, now) for finding in findings]
    print_table(head, rows, right=("days left",), whole=("not after (UTC)", "days left", "deployed"))


def _row(finding: Finding, now: datetime) -> list[Any]:
    from sniproxy.cli.table import Cell

    seen = finding.status
    style = _style(finding, now)
    row: list[Cell | str] = [
        Cell(seen.name, "bold"),
        _names(seen.names),
        seen.issuer or "-",
        seen.serial or "-",
        _instant(seen.not_after),
        Cell(_days(seen.days_left(now)), style),
    ]
    if finding.is_managed:
        reason = f" ({seen.reason})" if seen.reason else ""
        row += [f"{_instant(seen.renew_at)}{reason}", Cell("yes", "green") if seen.deployed else Cell("no", "red")]
    notes = [finding.error] if finding.error is not None else list(finding.notes)
    if finding.is_managed and seen.last_error is not None:
        again = f"; next attempt {_instant(seen.next_attempt)}" if seen.next_attempt is not None else ""
        notes.append(f"{seen.last_error}{again}")
    is_bad = finding.error is not None or finding.is_wrong or seen.last_error is not None
    return [*row, Cell(", ".join(notes), "red" if is_bad else "")]


def _style(finding: Finding, now: datetime) -> str:
    from sniproxy.app.expiry import thresholds

    left = finding.status.days_left(now)
    warn, critical = thresholds(finding.status)
    if left is None or left < critical:
        return "red"
    return "yellow" if left < warn else "green"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more}" or "-"


def _days(left: float | None) -> str:
    return "-" if left is None else f"{left:.1f}"


def _instant(instant: datetime | None) -> str:
    return "-" if instant is None else f"{instant:%Y-%m-%d %H:%M}"
