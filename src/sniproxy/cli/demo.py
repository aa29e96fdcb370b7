"""`sniproxy demo`: a complete set-up on this machine's loopback, proven step by step."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import click

from sniproxy import __version__
from sniproxy.cli.program import FAILED, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.live import Live
    from rich.text import Text

    from sniproxy.app.demo import Demo, Step
    from sniproxy.app.demo_programs import StepFailed

_TITLE_WIDTH = 12
_INDENT = " " * (_TITLE_WIDTH + 5)


@click.command()
@click.option("--once", is_flag=True, help="Go through it, end it, and exit with 0 if all of it worked.")
@click.option("--keep", is_flag=True, help="Leave the directory with its configurations, keys and logs in place.")
def demo(*, once: bool, keep: bool) -> None:
    """Set everything up on 127.0.0.1, and prove that it works.

    An ACME CA, the proxy, HAProxy, and certificates that are renewed while they are used: no configuration, no root,
    no internet. Runs until Ctrl-C.
    """
    from sniproxy.app.demo import Demo
    from sniproxy.app.demo_programs import StepFailed

    screen = _screen()
    with _signals_as_interrupts():
        try:
            subject = Demo(keep=keep, waiting=screen.waiting)
            end = "its files are kept" if keep else "everything is removed in the end"
            screen.line(f"sniproxy {__version__} demo: nothing leaves this machine, {end}")
            screen.line(f"It takes about {subject.about_seconds} s, most of which is waiting for a renewal.")
            began = time.monotonic()
            with subject:
                for step in subject.steps:
                    _show(screen, subject, step)
                if not once:
                    with contextlib.suppress(KeyboardInterrupt):
                        _invite(screen, subject, time.monotonic() - began)
                        for speaker, line in subject.go_on():
                            screen.line(f"{speaker:<9} {line}")
                    screen.line("")
                _show(screen, subject, subject.drain(guests=not once))
        except StepFailed as error:
            advice = (f"what to do: {error.advice}",) if error.advice else ()
            fail("\n".join((str(error), *error.words, *advice)))
        except KeyboardInterrupt:
            fail("demo: stopped before the end")
    if once:
        screen.line(f"All {len(subject.steps) + 1} steps worked, in {time.monotonic() - began:.1f} s.")
    if keep:
        screen.line(f"Left in place: {subject.setup.directory}")
    elif subject.setup.directory.exists():
        fail(f"demo: {subject.setup.directory} could not be removed")
    else:
        screen.line("No process and no file is left.")


def _show(screen: _Screen, subject: Demo, step: Step) -> None:
    """Does one step and shows what it found; where it fails, says who said what, and exits."""
    from sniproxy.app.demo_programs import StepFailed

    began = time.monotonic()
    try:
        with screen.doing(step.title):
            found = subject.run(step)
    except StepFailed as failure:
        _give_up(screen, subject, step, failure)
    screen.done(step.title, found, time.monotonic() - began)


def _give_up(screen: _Screen, subject: Demo, step: Step, failure: StepFailed) -> NoReturn:
    screen.failed(step.title, str(failure))
    for line in failure.words:
        click.echo(f"{_INDENT}{line}", err=True)
    click.echo(f"what to do: {failure.advice or step.advice}", err=True)
    if subject.setup.directory.exists():
        click.echo("            `sniproxy demo --keep` leaves configurations and logs to look at", err=True)
    sys.exit(FAILED)


def _invite(screen: _Screen, subject: Demo, seconds: float) -> None:
    """What to try while it runs."""
    from sniproxy.app.demo_files import CLIENT, INTERNAL_NAME, NAME

    setup = subject.setup

    def curl(name: str, *more: str) -> str:
        words = ("curl", *more, "--cacert", str(setup.ca_file))
        return " ".join((*words, "--resolve", f"{name}:{setup.port}:127.0.0.1", f"https://{name}:{setup.port}/"))

    admin = f"http://127.0.0.1:{setup.admin_port}"
    text = f"""
Ready in {seconds:.1f} s. Try it from another terminal:

{curl(NAME)}
    the page of HAProxy, over HTTP/2
{curl(NAME, "--http1.1", "--interface", "127.0.0.9")}
    the same over HTTP/1.1, from another client
{curl(INTERNAL_NAME)}
    refused; with --interface {CLIENT} it is let through
{_myself()} explain -c {setup.config_file} --sni {INTERNAL_NAME} --from {CLIENT}
    why
{_myself()} renew -c {setup.config_file} --force
    another certificate now
{_myself()} certs -c {setup.config_file}
    which one there is, and when the next one comes

configuration   {setup.config_file}
haproxy.cfg     {setup.haproxy_cfg}
admin           {admin}/metrics  {admin}/readyz

Requests go on. The log of both, without these requests, and each renewal follow until Ctrl-C:
"""
    for line in text.splitlines():
        screen.line(line)


def _myself() -> str:
    """How to call this program again, from anywhere."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return f"{sys.executable} -m sniproxy"
    found = shutil.which("sniproxy")
    return "sniproxy" if found and Path(found).resolve() == own.resolve() else str(own.resolve())


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """TERM and HUP end the demo as Ctrl-C does, with everything removed."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, was in before.items():
        if was is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


# ---------------------------------------------------------------------- how it looks


class _Screen(Protocol):
    def line(self, text: str) -> None:
        """A line of text."""

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:
        """A step is being done."""

    def waiting(self, text: str) -> None:
        """It waits for something, which may be told anew as often as one likes."""

    def done(self, title: str, found: str, seconds: float) -> None:
        """It worked."""

    def failed(self, title: str, message: str) -> None:
        """It did not."""


def _screen() -> _Screen:
    if sys.stdout.isatty():
        return _Terminal()
    return _Plain()


class _Plain:
    """For pipes and files: a line at a time, at once, and nothing but text."""

    def __init__(self) -> None:
        self._title = ""
        self._waits = False

    def line(self, text: str) -> None:
        click.echo(_printable(text, sys.stdout.encoding))

    def doing(self, title: str) -> contextlib.AbstractContextManager[object]:
        self._title, self._waits = title, False
        return contextlib.nullcontext()

    def waiting(self, text: str) -> None:
        """Only what it says first: there is no taking back."""
        if not self._waits:
            self._waits = True
            self.line(f"  … {self._title:<{_TITLE_WIDTH}} {text}")

    def done(self, title: str, found: str, seconds: float) -> None:
        first, *rest = found.splitlines()
        self.line(f"  ✓ {title:<{_TITLE_WIDTH}} {first} ({seconds:.2f} s)")
        for line in rest:
            self.line(f"{_INDENT}{line}")

    def failed(self, title: str, message: str) -> None:
        click.echo(_printable(f"  ✗ {title:<{_TITLE_WIDTH}} {message}", sys.stderr.encoding), err=True)


class _Terminal(_Plain):
    """For people: colour, and what is being done while it takes time."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._shown = ""

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
            self._live.update(_dim(f"  … {self._title:<{_TITLE_WIDTH}} {text}"), refresh=True)

    def done(self, title: str, found: str, seconds: float) -> None:
        from rich.text import Text

        first, *rest = found.splitlines()
        took = (f" ({seconds:.2f} s)", "dim")
        self._console.print(Text.assemble(("  ✓ ", "green"), (f"{title:<{_TITLE_WIDTH}} ", "bold"), first, took))
        for line in rest:
            self._console.print(Text(f"{_INDENT}{line}"))

    def failed(self, title: str, message: str) -> None:
        from rich.console import Console
        from rich.text import Text

        text = Text.assemble(("  ✗ ", "red"), (f"{title:<{_TITLE_WIDTH}} ", "bold"), message)
        Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def _dim(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")


def _printable(text: str, encoding: str) -> str:
    """`text` with what the encoding does not have as a question mark."""
    return text.encode(encoding, "replace").decode(encoding)
