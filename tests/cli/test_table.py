"""Tables: plain and aligned in pipes, folded and in colour on terminals, JSON being another matter."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from sniproxy.cli.table import Cell, print_table, printable

PROGRAM = """
from sniproxy.cli.table import Cell, print_table
print_table(["name", "days left"], [[Cell("a.example", "bold"), Cell("43.2", "red")], ["b.example", "-"]], right=("days left",))
"""


def on_a_terminal(**environment):
    """What the program writes to a terminal of eighty columns."""
    ours, theirs = pty.openpty()
    try:
        env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
        env |= {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
        done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=subprocess.PIPE, env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        os.close(theirs)
        theirs = -1
        written = b""
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # EIO: Linux's way to say that the other end is closed
            pass
        return written.decode()
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def test_in_a_pipe_it_is_plain_text(capsys):
    """Columns in line, numbers to the right, nothing behind the last word."""
    print_table(
        ["name", "days left", "note"],
        [["a.example", "3.1", "ok"], [Cell("b", "red"), "143.1", ""]],
        right=["days left"],
    )

    assert capsys.readouterr().out == (
        "NAME       DAYS LEFT  NOTE\n"
        "a.example        3.1  ok\n"
        "b              143.1\n"
    )  # fmt: skip


def test_without_rows_there_is_the_head(capsys):
    print_table(["name", "note"], [])

    assert capsys.readouterr().out == "NAME  NOTE\n"


def test_on_a_terminal_it_has_colour():
    """Escape sequences of the styles that cells have."""
    shown = on_a_terminal()

    assert "a.example" in shown
    assert "\x1b[31m43.2" in shown or "\x1b[31m     43.2" in shown


def test_no_color_is_obeyed():
    """no-color.org: set and not empty, whatever it is."""
    assert "\x1b[31m" not in on_a_terminal(NO_COLOR="1")


def test_a_name_that_is_too_long_is_folded_on_a_terminal():
    """Nothing is cut off: a serial number has to be all there."""
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(COLUMNS="12"))

    assert max(map(len, shown.splitlines())) <= 12
    assert "".join(re.findall("[a-z]+", shown)).endswith("aexamplebexample")


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "bücher ✓"), ("latin-1", "bücher ?"), ("ascii", "b?cher ?")])
def test_what_the_encoding_has_not_is_a_question_mark(encoding, shown):
    """LANG=C has hardly anything."""
    assert printable("bücher ✓", encoding) == shown
