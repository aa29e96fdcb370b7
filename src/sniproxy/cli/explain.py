"""`sniproxy explain`: what would become of a connection, and why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from sniproxy.cli.program import config_option, fail, json_option, load_or_exit

if TYPE_CHECKING:
    from pathlib import Path

    from sniproxy.app.explain import Explainer, Explanation

MAX_LINE_BYTES = 4 << 20
"""A line of --jsonl holds one first flight in hex, twice max_hello at most; beyond that it is none."""


@click.command()
@config_option
@click.option("--sni", metavar="NAME", help="The server name that the client asks for.")
@click.option("--alpn", multiple=True, metavar="P", help="A protocol it offers; repeat for more, its favourite first.")
@click.option("--from", "client", default="127.0.0.1", metavar="IP", show_default=True, help="The client's address.")
@click.option("--hex", "hex_bytes", metavar="HEX", help="Instead of a name, the first bytes that it sends.")
@click.option("--jsonl", is_flag=True, help='Read lines {"id": …, "hex": …} and write one line for each.')
@json_option
def explain(
    path: Path,
    sni: str | None,
    alpn: tuple[str, ...],
    client: str,
    hex_bytes: str | None,
    *,
    jsonl: bool,
    as_json: bool,
) -> None:
    """Tell which rule and backend a connection gets, and why, without making one."""
    if [sni is not None, hex_bytes is not None, jsonl].count(True) != 1:
        raise click.UsageError("give one of --sni, --hex and --jsonl")
    if alpn and sni is None:
        raise click.UsageError("--alpn goes with --sni")
    config = load_or_exit(path)
    from ipaddress import ip_address

    from sniproxy.app.explain import Explainer

    try:
        client = str(ip_address(client))
    except ValueError:
        raise click.UsageError(f"--from takes an IP address, not {client!r}") from None
    explainer = Explainer(config)
    if jsonl:
        _each_line(explainer, client)
        return
    if hex_bytes is not None:
        explanation = explainer.first_bytes(_from_hex(hex_bytes), client)
    else:
        explanation = explainer.name(sni, alpn, client)
    if as_json:
        click.echo(json.dumps(explanation.as_dict()))
    else:
        _print(explanation)


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise click.UsageError(f"--hex: {error}") from None


def _print(explanation: Explanation) -> None:
    rows: dict[str, Any] = {
        "kind": explanation.kind.value,
        "sni": _visible(explanation.sni or "-"),
        "alpn": _visible(", ".join(explanation.alpn) or "-"),
        "ja4": explanation.ja4,
        "backend": explanation.backend or "none: refused",
        "reason": explanation.reason,
    }
    for key, value in rows.items():
        if value is not None:
            click.echo(f"{key:<8} {value}")


def _visible(text: str) -> str:
    """Text from the wire, with what could move a cursor made visible."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _each_line(explainer: Explainer, client: str) -> None:
    stdin, number = sys.stdin.buffer, 0
    while line := stdin.readline(MAX_LINE_BYTES):
        number += 1
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            identity, data = entry["id"], bytes.fromhex(entry["hex"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            fail(f'line {number}: not a line {{"id": …, "hex": …}}: {error}')
        answer = explainer.first_bytes(data, client).as_dict()
        del answer["ja4"]
        click.echo(json.dumps({"id": identity, **answer}))
