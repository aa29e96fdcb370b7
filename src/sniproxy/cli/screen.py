"""Steps as they are done: with colour on a terminal, a plain line each in a pipe or a file."""

from __future__ import annotations

import contextlib
import sys
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import click

from sniproxy.cli.table import printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

TITLE_WIDTH = 12
INDENT = " " * (TITLE_WIDTH + 5)


class Mark(Enum):
    """What a step has come to: its sign, and its colour in rich's words."""

    DONE = ("✓", "green")
    WARNING = ("!", "yellow")
    FAILED = ("✗", "red")
    SKIPPED = ("–", "dim")  # noqa: RUF001  a dash that is seen

    @property
    def sign(self) -> str:
        return self.value[0]

    @property
    def style(self) -> str:
        return self.value[1]


class Screen(Protocol):
    """What a command that does steps needs of it."""

    def line(self, text: str) -> None:
        """A line of text."""

    def heading(self, text: str) -> None:
        """A line above the steps that follow."""

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:
        """A step is being done."""

    def waiting(self, text: str) -> None:
        """It waits for something, which may be told anew as often as one likes."""

    def done(self, title: str, found: str, seconds: float) -> None:
        """It worked."""

    def failed(self, title: str, message: str) -> None:
        """It did not, and that is the end: to standard error."""

    def finding(self, mark: Mark, title: str, found: str, *, note: str = "", advice: str = "") -> None:
        """What came of it, one of many; `found` may have several lines. To standard output, whatever it is."""


def open_screen() -> Screen:
    """The one that fits standard output."""
    if sys.stdout.isatty():
        return Terminal()
    return Plain()


class Plain:
    """For pipes and files: a line at a time, at once, and nothing but text."""

    def __init__(self) -> None:
        self._title = ""
        self._waits = False

    def line(self, text: str) -> None:
        click.echo(printable(text, sys.stdout.encoding))

    def heading(self, text: str) -> None:
        self.line(text)

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:
        self._title, self._waits = title, False
        return contextlib.nullcontext()

    def waiting(self, text: str) -> None:
        """Only what it says first: there is no taking back."""
        if not self._waits:
            self._waits = True
            self.line(f"  … {self._title:<{TITLE_WIDTH}} {text}")

    def done(self, title: str, found: str, seconds: float) -> None:
        self.finding(Mark.DONE, title, found, note=f" ({seconds:.2f} s)")

    def failed(self, title: str, message: str) -> None:
        click.echo(printable(f"  {Mark.FAILED.sign} {title:<{TITLE_WIDTH}} {message}", sys.stderr.encoding), err=True)

    def finding(self, mark: Mark, title: str, found: str, *, note: str = "", advice: str = "") -> None:
        first, *rest = found.splitlines() or [""]
        self.line(f"  {mark.sign} {title:<{TITLE_WIDTH}} {first}{note}")
        for line in rest:
            self.line(f"{INDENT}{line}")
        if advice:
            self.line(f"{INDENT}→ {advice}")


class Terminal(Plain):
    """For people: colour, and what is being done while it takes time."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._shown = ""

    def heading(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style="bold"))

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:
        from rich.live import Live

        self._title, self._shown = title, ""
        # No spinner: it would turn in a thread of its own, and programs are started meanwhile.
        self._live = Live(
            _dim(f"  … {title}"), console=self._console, transient=True, auto_refresh=False, redirect_stdout=False
        )
        return self._live

    def waiting(self, text: str) -> None:
        if self._live is not None and text != self._shown:
            self._shown = text
            self._live.update(_dim(f"  … {self._title:<{TITLE_WIDTH}} {text}"), refresh=True)

    def failed(self, title: str, message: str) -> None:
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(_marked(Mark.FAILED, title, message, ""))

    def finding(self, mark: Mark, title: str, found: str, *, note: str = "", advice: str = "") -> None:
        from rich.text import Text

        first, *rest = found.splitlines() or [""]
        self._console.print(_marked(mark, title, first, note))
        for line in rest:
            self._console.print(Text(f"{INDENT}{line}"))
        if advice:
            self._console.print(Text.assemble(INDENT, ("→ ", "bold"), advice))


def _marked(mark: Mark, title: str, found: str, note: str) -> Text:
    from rich.text import Text

    name = (f"{title:<{TITLE_WIDTH}} ", "bold")
    return Text.assemble((f"  {mark.sign} ", mark.style), name, found, (note, "dim"))


def _dim(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")
