"""Steps as they are done: the same text on a terminal and in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from sniproxy.cli.screen import Mark, Plain, Terminal, open_screen


@pytest.fixture(params=[Plain, Terminal])
def either(request):
    return request.param()


def test_a_pipe_gets_plain_lines():
    assert type(open_screen()) is Plain


def test_a_terminal_gets_colour(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert type(open_screen()) is Terminal


@pytest.mark.parametrize(
    ("mark", "sign"),
    [(Mark.DONE, "✓"), (Mark.WARNING, "!"), (Mark.FAILED, "✗"), (Mark.SKIPPED, "–")],  # noqa: RUF001
)
def test_each_mark_has_its_sign(either, mark, sign, capsys):
    either.finding(mark, "dns", "www.example.test: [not markup]")
    assert capsys.readouterr().out == f"  {sign} dns          www.example.test: [not markup]\n"


def test_more_lines_and_what_to_do(either, capsys):
    with either.doing("socket"):
        pass
    either.finding(Mark.FAILED, "socket", "one\ntwo", note=" (so)", advice="do [this]")
    out, err = capsys.readouterr()
    assert out.endswith("  ✗ socket       one (so)\n                 two\n                 → do [this]\n")
    assert err == ""


def test_nothing_was_found(either, capsys):
    either.finding(Mark.DONE, "socket", "")
    assert capsys.readouterr().out.rstrip() == "  ✓ socket"


def test_a_step_that_takes_time(either, capsys):
    either.heading("a title")
    either.done("HAProxy", "2.6.12\nand more", 0.25)
    assert capsys.readouterr().out == "a title\n  ✓ HAProxy      2.6.12 (0.25 s)\n                 and more\n"


def test_the_end_of_all_goes_to_standard_error(either, capsys):
    either.failed("HAProxy", "[no]")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "  ✗ HAProxy      [no]\n")


def test_in_a_pipe_what_is_waited_for_is_said_once(capsys):
    plain = Plain()
    with plain.doing("renewal"):
        plain.waiting("59 s")
        plain.waiting("58 s")
    with plain.doing("the next"):
        plain.waiting("3 s")
    assert capsys.readouterr().out == "  … renewal      59 s\n  … the next     3 s\n"


def test_a_terminal_counts_down(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Terminal()
    with screen.doing("on schedule"):
        for text in ("in 2 s", "in 2 s", "in 1 s"):
            screen.waiting(text)
    out = capsys.readouterr().out
    assert out.count("on schedule  in 2 s") == 1
    assert "on schedule  in 1 s" in out
    assert out.index("in 2 s") < out.index("in 1 s")


def test_an_encoding_without_these_signs(monkeypatch):
    """A service's standard output may be ASCII."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    Plain().finding(Mark.DONE, "dns", "ok")
    out.flush()
    assert out.buffer.getvalue() == b"  ? dns          ok\n"
