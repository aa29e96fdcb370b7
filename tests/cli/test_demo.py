"""What `sniproxy demo` prints, and how it exits, where no programs are needed for it."""

from __future__ import annotations

import signal

import pytest
from click.testing import CliRunner

from sniproxy.app import demo as app
from sniproxy.app import demo_programs
from sniproxy.app.demo import Step
from sniproxy.app.demo_programs import StepFailed
from sniproxy.cli.demo import _signals_as_interrupts, _Terminal, demo


@pytest.fixture
def no_haproxy(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(demo_programs, "MORE_PATH", "/nonexistent")


class Fake:
    """A demo whose steps do nothing."""

    def __init__(self, directory, steps, drain):
        self.directory = directory
        self.steps = steps
        self.last = drain

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def drain(self, *, guests):
        return self.last

    def run(self, step):
        return step.work()


@pytest.fixture
def fake(monkeypatch, tmp_path):
    def use(*steps):
        *first, last = [Step(f"step {number}", work, "look there") for number, work in enumerate(steps, 1)]
        monkeypatch.setattr(app, "Demo", lambda **_: Fake(tmp_path / "gone", first, last))

    return use


def test_without_haproxy_there_is_one_line_that_says_what_to_do(no_haproxy):
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "demo: needs haproxy, neither in PATH nor in /usr/sbin: apt-get install haproxy\n"


def test_a_line_for_each_step(fake):
    fake(lambda: "found this", lambda: "and that,\nand more", lambda: "the end")
    result = CliRunner().invoke(demo, ["--once"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1:5] == [
        "  ✓ step 1       found this (0.00 s)",
        "  ✓ step 2       and that, (0.00 s)",
        "                 and more",
        "  ✓ step 3       the end (0.00 s)",
    ]
    assert lines[5].startswith("All 3 steps worked, in ")


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


def test_a_terminal_gets_the_same_text(capsys):
    screen = _Terminal()
    with screen.doing("HAProxy"):
        pass
    screen.done("HAProxy", "2.6.12 [not markup]\nand more", 0.25)
    screen.failed("HAProxy", "[no]")
    out, err = capsys.readouterr()
    assert "✓ HAProxy      2.6.12 [not markup] (0.25 s)\n" in out
    assert "and more" in out
    assert "✗ HAProxy      [no]" in err
