"""What `sniproxy demo` prints, and how it exits, where no programs are needed for it."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from sniproxy.app.demo import programs as demo_programs
from sniproxy.app.demo import story as app
from sniproxy.app.demo.programs import StepFailed
from sniproxy.app.demo.story import Step
from sniproxy.cli.demo import _signals_as_interrupts, demo


@pytest.fixture
def only(monkeypatch, tmp_path):
    """The only programs there are."""

    def only(*names):
        for name in names:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(demo_programs, "MORE_PATH", str(tmp_path))
    return only


class Fake:
    """A demo whose steps do nothing."""

    about_seconds = 55

    def __init__(self, directory, steps, drain):
        self.setup = SimpleNamespace(
            directory=directory,
            port=1443,
            admin_port=1404,
            ca_file=directory / "ca.pem",
            config_file=directory / "sniproxy.toml",
            haproxy_cfg=directory / "haproxy.cfg",
        )
        self.steps = steps
        self.last = drain
        self.live = iter(())
        self.waiting = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def drain(self, *, guests):
        return self.last

    def run(self, step):
        return step.work()

    def go_on(self):
        return self.live


@pytest.fixture
def fake(monkeypatch, tmp_path):
    def use(*steps):
        *first, last = [Step(f"step {number}", work, "look there") for number, work in enumerate(steps, 1)]
        subject = Fake(tmp_path / "gone", first, last)

        def make(*, keep, waiting):
            subject.waiting = waiting
            return subject

        monkeypatch.setattr(app, "Demo", make)
        return subject

    return use


@pytest.mark.parametrize(
    ("there", "needs", "package"),
    [
        (("pebble", "pebble-challtestsrv"), "haproxy", "haproxy"),
        (("haproxy",), "pebble and pebble-challtestsrv", "pebble"),
    ],
)
def test_without_a_program_there_is_one_line_that_says_what_to_do(only, there, needs, package):
    only(*there)
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"demo: needs {needs}, neither in PATH nor in /usr/sbin: apt-get install {package}\n"


def test_a_line_for_each_step(fake):
    fake(lambda: "found this", lambda: "and that,\nand more", lambda: "the end")
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1] == "It takes about 55 s, most of which is waiting for a renewal."
    assert lines[2:6] == [
        "  ✓ step 1       found this (0.00 s)",
        "  ✓ step 2       and that, (0.00 s)",
        "                 and more",
        "  ✓ step 3       the end (0.00 s)",
    ]
    assert lines[6].startswith("All 3 steps worked, in ")


def test_a_step_that_fails_is_the_last(fake):
    def fails():
        raise StepFailed("haproxy ended with exit status 1", ["haproxy: [ALERT] no"])

    fake(lambda: "good", fails, pytest.fail)
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 1
    assert "✓ step 1" in result.stdout
    assert result.stderr.splitlines()[:3] == [
        "  ✗ step 2       haproxy ended with exit status 1",
        "                 haproxy: [ALERT] no",
        "what to do: look there",
    ]


def test_what_to_do_about_this_failure_goes_before_what_to_do_about_the_step(fake):
    def fails():
        raise StepFailed("2 of 90 requests failed", advice="look elsewhere")

    fake(fails, pytest.fail)
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 1
    assert "what to do: look elsewhere\n" in result.stderr
    assert "look there" not in result.stderr


def test_a_wait_is_told_once_where_nothing_can_be_taken_back(fake):
    def waits():
        for seconds in (44, 43, 42):
            subject.waiting(f"in {seconds} s")
        return "it came"

    subject = fake(waits, waits, lambda: "the end")
    result = CliRunner().invoke(demo, ["--once"])
    assert result.stdout.splitlines()[2:6] == [
        "  … step 1       in 44 s",
        "  ✓ step 1       it came (0.00 s)",
        "  … step 2       in 44 s",
        "  ✓ step 2       it came (0.00 s)",
    ]


def interrupted(*lines):
    """What goes on, until Ctrl-C."""
    yield from lines
    raise KeyboardInterrupt


def test_it_goes_on_until_ctrl_c(fake):
    subject = fake(lambda: "good", lambda: "the end")
    subject.live = interrupted(("sniproxy", "a line"), ("traffic", "renewed"))
    result = CliRunner().invoke(demo)
    assert result.exit_code == 0
    before, after = result.stdout.split("until Ctrl-C:\n")
    assert "curl --cacert " in before
    assert " certs -c " in before
    assert after.splitlines() == [
        "sniproxy  a line",
        "traffic   renewed",
        "",
        "  ✓ step 2       the end (0.00 s)",
        "No process and no file is left.",
    ]


def test_a_request_that_fails_meanwhile_ends_it(fake):
    def failing():
        yield "sniproxy", "a line"
        raise StepFailed("2 of 90 requests failed", ["sniproxy: SC"], "look elsewhere")

    fake(lambda: "good", pytest.fail).live = failing()
    result = CliRunner().invoke(demo)
    assert result.exit_code == 1
    assert result.stderr == "2 of 90 requests failed\nsniproxy: SC\nwhat to do: look elsewhere\n"


def test_stopped_before_the_end(fake):
    def stopped():
        raise KeyboardInterrupt

    fake(stopped, pytest.fail)
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 1
    assert result.stderr == "demo: stopped before the end\n"


def test_signals_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _signals_as_interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _signals_as_interrupts():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
