"""Lines of keys (contract section 1: FILE:LINE)."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.positions import Positions

# Each integer is the line it stands on; so the document is its own expectation.
NUMBERED = r'''a = 1   # b = 99
"quoted key" = 2
'lit.eral' = 3
dotted . "k\u00e9y" . x = 4
s = "# not a comment = \" [x]"
t = 6
multi = """
[no.table]
x = 9 \
"""""
u = 11
lit = \'\'\'
''a = 13
\'\'\'
l = [ 15, 15,
  16, # x, ]

  [18, { y = 18, z.w = [18,
  19]}], "]", ',',
  20,
]
d = [1979-05-27 07:32:00, 07:32:00, 22]
inline = { "x" = 23, 'y' = { z = 23 }, e = {}, f = [] }
[table]
x = 25
[table.sub . "q.r"]
x=27
[[many]]
x = 29
[many.sub]
x = 31
[[many]]
    x = 33
[[many.deep]]
x = 35
[[many.deep]]
x = [
  38]
[later.child]
x = 40
[later]
x = 42
[ "spaced" ]
x = +44
'''.replace("\\'", "'")


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from leaves(below, (*path, index))
    else:
        yield path, value


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_value_has_its_line(ending):
    """Section 1: FILE:LINE."""
    text = NUMBERED.replace("\n", ending)
    positions = Positions(text)
    for path, value in leaves(tomllib.loads(text)):
        assert path in positions
        if isinstance(value, int):
            assert positions.line(path) == value, path


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("s",), 5),
        (("multi",), 7),
        (("lit",), 12),
        (("inline", "e"), 23),
        (("table",), 24),
        (("table", "sub"), 26),
        (("many",), 28),
        (("many", 1), 32),
        (("many", 1, "deep"), 34),
        (("many", 1, "deep", 1), 36),
        (("later",), 41),
        (("l", 2), 16),
        (("l", 3), 18),
        (("l", 3, 1, "z"), 18),
        (("d", 0), 22),
    ],
)
def test_tables_and_lists_have_lines_too(path, line):
    """Section 1: FILE:LINE; a table's is that of its own header where it has one."""
    assert Positions(NUMBERED).line(path) == line


@pytest.mark.parametrize(
    ("path", "line"),
    [(("table", "absent"), 24), (("many", 1, "sub", "x"), 32), (("absent", 3), 1), ((), 1), (("a", "b", "c"), 1)],
)
def test_what_is_absent_has_the_line_of_what_is_around_it(path, line):
    """Section 1: FILE:LINE, also of a key that is missing."""
    assert Positions(NUMBERED).line(path) == line


def test_depth_does_not_matter():
    """Positions never raises on TOML that tomllib reads."""
    text = "x = " + "[" * 100 + "\n1" + "]" * 100
    assert Positions(text).line(("x", *[0] * 100)) == 2


keys = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,3}", fullmatch=True),
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=3),
)
documents = st.recursive(
    st.none(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=3),
    max_leaves=12,
)


class Writer:
    """Writes a tree as TOML in which each integer is the number of its own line."""

    def __init__(self, data) -> None:
        self.data = data
        self.lines = [""]

    def put(self, text) -> None:
        self.lines[-1] += text

    def gap(self, *, may_break) -> None:
        gaps = ["", " ", "\t"] + (["\n", "\n\n", " # x = [ \" ''' \n"] if may_break else [])
        first, *rest = self.data.draw(st.sampled_from(gaps)).split("\n")
        self.put(first)
        self.lines += rest

    def key(self, key) -> None:
        quoted = '"' + "".join(f"\\U{ord(char):08x}" if char in '"\\' else char for char in key) + '"'
        styles = [quoted]
        if key and key.isascii() and key.replace("_", "").replace("-", "").isalnum():
            styles.append(key)
        if "'" not in key:
            styles.append(f"'{key}'")
        self.put(self.data.draw(st.sampled_from(styles)))

    def value(self, value, *, may_break=True) -> None:
        if isinstance(value, list):
            self.put("[")
            for below in value:
                self.gap(may_break=may_break)
                self.value(below, may_break=may_break)
                self.gap(may_break=may_break)
                self.put(",")
            self.gap(may_break=may_break)
            self.put("]")
        elif isinstance(value, dict):
            self.put("{")
            for number, (key, below) in enumerate(value.items()):
                self.put(", " if number else "")
                self.pair(key, below, may_break=False)
            self.put("}")
        else:
            self.put(str(len(self.lines)))

    def pair(self, key, value, *, may_break=True) -> None:
        self.key(key)
        self.gap(may_break=False)
        self.put("=")
        self.gap(may_break=False)
        self.value(value, may_break=may_break)

    def table(self, path, table) -> None:
        below = {
            key: value for key, value in table.items() if isinstance(value, dict) and self.data.draw(st.booleans())
        }
        for key, value in table.items():
            if key not in below:
                self.pair(key, value)
                self.lines.append("")
        for key, value in below.items():
            self.put("[")
            for number, part in enumerate((*path, key)):
                self.put("." if number else "")
                self.key(part)
            self.put("]")
            self.lines.append("")
            self.table((*path, key), value)


@given(st.dictionaries(keys, documents, max_size=4), st.data())
def test_every_leaf_of_any_document_has_its_line(tree, data):
    """Section 1: FILE:LINE, however the file is written."""
    writer = Writer(data)
    writer.table((), tree)
    text = "\n".join(writer.lines)
    positions = Positions(text)
    for path, value in leaves(tomllib.loads(text)):
        assert path in positions
        assert positions.line(path) == value


@given(st.text())
def test_nothing_raises(text):
    """Positions is asked for TOML only; on anything else it ends."""
    Positions(text)
