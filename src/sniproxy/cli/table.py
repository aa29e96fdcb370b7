"""Tables: with colour and folded to its width on a terminal, plain aligned text in a pipe or a file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import JustifyMethod


class Cell(NamedTuple):
    """What stands in one place of a table; style is one of rich's, for terminals."""

    text: str
    style: str = ""


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """Prints a table to standard output; `right` are the columns of numbers, `whole` those that are never folded."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _on_terminal(head, cells, right, whole)
    else:
        _as_text(head, cells, right)


def _on_terminal(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str], whole: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        justify: JustifyMethod = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    # Of colour and NO_COLOR it knows by itself.
    Console(highlight=False).print(table)


def _as_text(head: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[str]) -> None:
    lines = [[name.upper() for name in head], *([cell.text for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            text.rjust(width) if name in right else text.ljust(width)
            for name, text, width in zip(head, line, widths, strict=True)
        ]
        click.echo(printable("  ".join(padded).rstrip(), sys.stdout.encoding))


def printable(text: str, encoding: str) -> str:
    """`text` with what the encoding does not have as a question mark."""
    return text.encode(encoding, "replace").decode(encoding)
