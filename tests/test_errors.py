"""The errors say whose fault it is, and print as operators read them."""

from __future__ import annotations

import pytest

from sniproxy import errors
from sniproxy.errors import ConfigError, Mistake, Problem


@pytest.mark.parametrize(
    ("line", "key", "text"),
    [
        (3, "proxy.listen", "site.toml:3: proxy.listen: is missing"),
        (3, "", "site.toml:3: is missing"),
        (0, "", "site.toml: is missing"),
    ],
)
def test_a_mistake_prints_as_file_line_key_message(line, key, text):
    """Commands: errors are `FILE:LINE: key.path: what is wrong`, one line each."""
    assert str(Mistake(file="site.toml", line=line, key=key, message="is missing")) == text


def test_a_config_error_prints_every_mistake_on_its_line():
    """Commands: all mistakes of a config are reported at once."""
    one = Mistake(file="f", line=1, key="a", message="x")
    two = Mistake(file="f", line=2, key="b", message="y")

    assert str(ConfigError([one, two])) == "f:1: a: x\nf:2: b: y"
    assert ConfigError([one, two]).mistakes == (one, two)


def test_every_error_has_one_root():
    """One root, so that the command line can tell what was foreseen from a bug."""
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]

    assert len(found) == 17
    assert all(issubclass(error, errors.SniproxyError) for error in found)


@pytest.mark.parametrize("name", ["NotTls", "MalformedHello", "HelloTooLarge", "BadProxyHeader"])
def test_what_peers_send_is_one_family(name):
    """A parser's third outcome is one family of errors."""
    assert issubclass(getattr(errors, name), errors.WireError)


def test_the_page_at_the_top_draws_the_whole_tree():
    """The tree in the docstring is the way in; it must not drift."""
    found = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]

    assert all(name in (errors.__doc__ or "") for name in found)


def test_a_problem_is_told_whole_and_on_one_line():
    """RFC 8555 section 6.7.1: subproblems say which name it is about; what a CA sends may hold anything."""
    urn = "urn:ietf:params:acme:error:"
    inner = Problem(type=urn + "caa", detail="forbids\nit", identifier="a.example")
    problem = Problem(type=urn + "rateLimited", detail="too many", status=429, subproblems=[inner], retry_after=60)

    assert str(problem) == "rateLimited: too many (a.example: caa: forbids?it)"
    assert (problem.code, problem.status, problem.retry_after) == ("rateLimited", 429, 60)
