"""What is wrong with single keys, in our own words (contract section 1)."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from pydantic import ValidationError

from sniproxy.config.messages import _SECTIONS, findings, suggested_path
from sniproxy.config.schema import Config

# What pydantic would say, in any of its messages.
FOREIGN = re.compile(
    r"pydantic|https?://e|Input should|Value error|validat|tuple|dictionary|None|instance", re.IGNORECASE
)


def messages(document):
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(document)
    return dict(findings(caught.value))


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ({"proxy": {"conect_timeout": 5}}, ("proxy", "conect_timeout"), 'unknown key; did you mean "connect_timeout"?'),
        ({"proxies": {}}, ("proxies",), 'unknown key; did you mean "proxy"?'),
        ({"http": {"state_dir": "/"}}, ("http", "state_dir"), "unknown key here; it belongs in [acme]"),
        ({"http": {"sni": []}}, ("http", "sni"), "unknown key here; it belongs in [[routes]]"),
        ({"http": {"servers": []}}, ("http", "servers"), "unknown key here; it belongs in [backends.NAME]"),
        ({"http": {"zzz": 1}}, ("http", "zzz"), "unknown key; allowed here: listen, redirect_to_https"),
        ({"proxy": {"user": 5}}, ("proxy", "user"), "must be a string, not 5"),
        ({"proxy": {"max_connections": "5"}}, ("proxy", "max_connections"), 'must be a whole number, not "5"'),
        ({"proxy": {"max_connections": 0}}, ("proxy", "max_connections"), "must be at least 1, not 0"),
        ({"http": {"redirect_to_https": 1}}, ("http", "redirect_to_https"), "must be true or false, not 1"),
        ({"log": {"format": "x"}}, ("log", "format"), 'must be "tcplog" or "json", not "x"'),
        (
            {"backends": {"a": {"balance": "x"}}},
            ("backends", "a", "balance"),
            'must be "leastconn", "roundrobin" or "source", not "x"',
        ),
        ({"proxy": {"listen": ":443"}}, ("proxy", "listen"), 'must be a list, not ":443"; write [":443"]'),
        ({"proxy": {"listen": []}}, ("proxy", "listen"), "must not be empty"),
        ({"routes": {}}, ("routes",), "is a list of tables; write [[routes]], in double brackets, above each"),
        ({"proxy": [{}]}, ("proxy",), "is there once only; write [proxy], in single brackets"),
        ({"proxy": 5}, ("proxy",), "must be a table, not 5"),
        ({"backends": 5}, ("backends",), "must be a table, not 5"),
        ({"routes": [5]}, ("routes", 0), "must be a table, not 5"),
    ],
)
def test_a_message_says_what_is_wrong_and_what_is_allowed(document, path, message):
    """Section 1: what is wrong, and what is allowed; section 2: an unknown key names the nearest known one."""
    assert messages(document) == {path: message}


def test_a_list_of_which_nothing_is_left_is_not_empty_on_top():
    """Section 1: one slip, one mistake."""
    assert list(messages({"proxy": {"listen": ["x"]}})) == [("proxy", "listen", 0)]


VALUES = [True, 5, -1, 5.5, float("nan"), "", "x", "\0", [], [5], [[]], {}, {"x": 5}, [{}], dt.date(2026, 1, 2), 10**30]


def documents(section, key, value):
    """The document in which only this key is set, and the one in which the whole section is the value."""
    table = {key: value}
    yield {section: {"backends": {"a": table}, "routes": [table], "certificates": [table]}.get(section, table)}
    yield {section: value}
    yield {section: {"a": value}}
    yield {section: [value]}


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section in Config.model_fields for key in _SECTIONS[section].model_fields]
)
def test_no_message_speaks_of_how_it_is_checked(section, key):
    """Section 1: an operator reads about the file, never about the program."""
    for document in (document for value in VALUES for document in documents(section, key, value)):
        try:
            Config.model_validate(document)
        except ValidationError as error:
            for _, message in findings(error):
                assert not FOREIGN.search(message), message
                assert "has a value that is not allowed" not in message
                assert message.isprintable()


def test_an_unknown_key_probably_means_the_nearest():
    """Section 2: names the nearest known one."""
    assert suggested_path(("backends", "x", "server")) == ("backends", "x", "servers")
    assert suggested_path(("backend",)) == ("backends",)
    assert suggested_path(("proxy", "zzz")) is None
