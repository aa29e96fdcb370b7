"""How mistakes are worded (contract section 1: one line each, `FILE:LINE: key.path: …`)."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.wording import key_path, listed, nearest, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (5, "5"),
        ("a", '"a"'),
        ('say "x"', '"say \\"x\\""'),
        ("bücher", '"bücher"'),
        ("a\nb\x1b", '"a\\nb\\u001b"'),
        ([1], "a list"),
        ({}, "a table"),
        (dt.date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_values_are_shown_as_toml_writes_them(value, text):
    """Section 1: a message says what is wrong, in the words of the file."""
    assert shown(value) == text


def test_a_number_that_python_will_not_print_has_words_instead():
    """Section 1: one line each, whatever the file holds."""
    assert shown(16**5000) == "a huge number"


@given(st.text())
def test_whatever_is_shown_stays_on_its_line(value):
    """Section 1: one line each; the file's own text must not make two of it, or move the cursor."""
    assert shown(value).isprintable()


def test_long_values_are_cut():
    """Section 1: one line each, and one that can be read."""
    assert len(shown("x" * 10_000)) < 100


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("proxy", "listen", 1), "proxy.listen[1]"),
        (("backends", "a b", "servers"), 'backends."a b".servers'),
        (("routes", 0), "routes[0]"),
    ],
)
def test_key_paths_are_dotted_with_quotes_where_toml_needs_them(path, text):
    """Section 1: `key.path`."""
    assert key_path(path) == text


def test_the_nearest_word_is_found_whatever_its_case():
    """Section 2: an unknown key is an error that names the nearest known one."""
    assert nearest("Connect_Timout", ["idle_timeout", "connect_timeout"]) == "connect_timeout"


def test_no_word_is_guessed_when_none_is_near():
    """Section 2: a wrong guess would mislead."""
    assert nearest("zzz", ["idle_timeout", "connect_timeout"]) is None


def test_nothing_is_compared_with_a_hundred_thousand_words():
    """A mistake in a file with very many backends is told at once."""
    assert nearest("b1", {f"b{number}": None for number in range(100_000)}) is None


@pytest.mark.parametrize(("words", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a or b"), ("abc", "a, b or c")])
def test_lists_read_as_a_sentence(words, text):
    """Section 1: … and what is allowed."""
    assert listed(words) == text


def test_long_lists_are_cut():
    """Section 1: one line each, and one that can be read."""
    assert listed(map(str, range(100))).endswith("11 …")
