"""`sniproxy demo`: a complete set-up on this machine's loopback, proven step by step."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from sniproxy import __version__
from sniproxy.cli.program import FAILED, fail
from sniproxy.cli.screen import INDENT, Screen, open_screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sniproxy.app.demo.programs import StepFailed
    from sniproxy.app.demo.story import Demo, Step


@click.command()
@click.option("--once", is_flag=True, help="Go through it, end it, and exit with 0 if all of it worked.")
@click.option("--keep", is_flag=True, help="Leave the directory with its configurations, keys and logs in place.")
def demo(*, once: bool, keep: bool) -> None:
    """Set everything up on 127.0.0.1, and prove that it works.

    An ACME CA, the proxy, HAProxy, and certificates that are renewed while they are used: no configuration, no root,
    no internet. Runs until Ctrl-C.
    """
    from sniproxy.app.demo.programs import StepFailed
    from sniproxy.app.demo.story import Demo

    screen = open_screen()
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


def _show(screen: Screen, subject: Demo, step: Step) -> None:
    """Does one step and shows what it found; where it fails, says who said what, and exits."""
    from sniproxy.app.demo.programs import StepFailed

    began = time.monotonic()
    try:
        with screen.doing(step.title):
            found = subject.run(step)
    except StepFailed as failure:
        _give_up(screen, subject, step, failure)
    screen.done(step.title, found, time.monotonic() - began)


def _give_up(screen: Screen, subject: Demo, step: Step, failure: StepFailed) -> NoReturn:
    screen.failed(step.title, str(failure))
    for line in failure.words:
        click.echo(f"{INDENT}{line}", err=True)
    click.echo(f"what to do: {failure.advice or step.advice}", err=True)
    if subject.setup.directory.exists():
        click.echo("            `sniproxy demo --keep` leaves configurations and logs to look at", err=True)
    sys.exit(FAILED)


def _invite(screen: Screen, subject: Demo, seconds: float) -> None:
    """What to try while it runs."""
    from sniproxy.app.demo.files import CLIENT, INTERNAL_NAME, NAME

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
