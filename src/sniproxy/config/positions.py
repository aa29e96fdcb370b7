"""On which line of a TOML document each key and each list element stands.

`tomllib` gives values without positions. This is a second, smaller reader of the same text, which gives positions
without values. It expects a document that `tomllib` has accepted, so it checks nothing and skips what it need not know.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sniproxy.config.wording import KeyPath

# Blanks, line ends and comments, and in lists and inline tables the commas: all that may stand between two things.
_between_statements = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*+").match
_between_values = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*+").match
_equals = re.compile(r"[ \t]*=[ \t]*").match
_key = re.compile(
    r"""[ \t]*(?:(?P<bare>[A-Za-z0-9_-]+)|"(?P<basic>[^"\\\n]*+(?:\\.[^"\\\n]*+)*+)"|'(?P<literal>[^'\n]*)')"""
    r"[ \t]*(?P<dot>\.)?"
).match
# Triple quotes may be followed by two more that belong to the text. A bare scalar ends where something else begins;
# a date may have a blank in it. The first two are not possessive like the others: Python 3.11.2, which is Debian 12's,
# then fails to match a group with a lookahead in it.
_scalar = re.compile(
    r'''"""(?:[^"\\]|\\[\s\S]|"(?!""))*"{3,5}'''
    r"""|'''(?:[^']|'(?!''))*'{3,5}"""
    r'''|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'''
    r"""|'[^'\n]*'"""
    r"""|[^,\]}#\n]*"""
).match


class Positions:
    """The lines of one document. A path has table keys as str and list positions as int, from the root down."""

    def __init__(self, text: str) -> None:
        self._lines = _Scanner(text).scan()

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._lines

    def line(self, path: KeyPath) -> int:
        """The line, from 1, of what is at `path`, or of the nearest thing around it that the document has."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


class _Scanner:
    """One pass over the text. Tables open inside a value are kept on a list, so that depth costs no recursion."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[KeyPath, int] = {}
        self._last_element: dict[KeyPath, int] = {}  # of each array of tables

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip(_between_statements):
            start = self._position
            if self._text.startswith("[", start):
                table = self._header()
            else:
                self._value(self._keys(table))
            if self._position == start:  # not TOML after all; what was found so far has to do
                break
        return self._lines

    def _skip(self, between: object) -> bool:
        """Goes on to the next thing; False at the end of the text."""
        match = between(self._text, self._position)  # type: ignore[operator]
        self._position = match.end()
        return self._position < len(self._text)

    def _mark(self, path: KeyPath, offset: int) -> None:
        self._lines[path] = bisect_right(self._line_starts, offset)

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`; gives the path of the table it opens."""
        start = self._position
        is_array = self._text.startswith("[[", start)
        self._position += 2 if is_array else 1
        path: KeyPath = ()
        keys = self._dotted()
        for depth, key in enumerate(keys, 1):
            path = (*path, key)
            self._lines.setdefault(path, bisect_right(self._line_starts, start))
            if depth == len(keys) and is_array:
                self._last_element[path] = self._last_element.get(path, -1) + 1
            if path in self._last_element:
                path = (*path, self._last_element[path])
        self._mark(path, start)
        self._position += 2 if is_array else 1
        return path

    def _keys(self, table: KeyPath) -> KeyPath:
        """`a.b =`; gives the path of the value that follows."""
        self._skip(_between_statements)
        start, path = self._position, table
        for key in self._dotted():
            path = (*path, key)
            self._lines.setdefault(path, bisect_right(self._line_starts, start))
        match = _equals(self._text, self._position)
        self._position = match.end() if match else self._position
        return path

    def _dotted(self) -> list[str]:
        keys: list[str] = []
        while match := _key(self._text, self._position):
            self._position = match.end()
            keys.append(_unquoted(match))
            if not match["dot"]:
                break
        return keys

    def _value(self, path: KeyPath) -> None:
        """Whatever stands after `=`, lists and inline tables with all that is in them."""
        open_ones: list[tuple[KeyPath, int | None]] = []  # with the next position for a list, None for a table
        while True:
            start = self._position
            if self._text.startswith("[", start):
                open_ones.append((path, 0))
                self._position += 1
            elif self._text.startswith("{", start):
                open_ones.append((path, None))
                self._position += 1
            else:
                match = _scalar(self._text, start)
                self._position = match.end() if match else len(self._text)
            self._close(open_ones)
            if not open_ones:
                return
            around, following = open_ones[-1]
            if following is None:
                path = self._keys(around)
            else:
                path = (*around, following)
                open_ones[-1] = (around, following + 1)
                self._mark(path, self._position)
            if self._position == start:  # as in scan
                return

    def _close(self, open_ones: list[tuple[KeyPath, int | None]]) -> None:
        """Past all that ends here, up to the next value or key; empties the list at the end of the outermost."""
        while open_ones:
            if not self._skip(_between_values):
                open_ones.clear()
            elif self._text[self._position] in "]}":
                open_ones.pop()
                self._position += 1
            else:
                return


def _unquoted(match: re.Match[str]) -> str:
    if match["bare"] is not None:
        return match["bare"]
    if match["literal"] is not None:
        return match["literal"]
    basic = match["basic"]
    if "\\" not in basic:
        return basic
    try:
        return str(tomllib.loads(f'key = "{basic}"')["key"])
    except tomllib.TOMLDecodeError:  # not TOML after all
        return basic
