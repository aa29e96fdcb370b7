"""`sniproxy revoke`; what comes of it with a real CA is in tests/scenarios."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sniproxy.cli import revoke as module
from sniproxy.cli.revoke import REASONS

CONFIG = """
[backends.haproxy]
servers = ["unix:/nowhere.sock"]
[acme]
agree_to_terms = true
[[certificates]]
names = ["a.example"]
"""


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, and what it is answered."""
    seen: dict[str, Any] = {
        "requests": [],
        "result": {"name": "a.example", "result": "renewed", "error": None, "revoked": "0abc"},
    }

    def result_of(_config, _path, request, _errand):
        seen["requests"].append(request)
        return seen["result"]

    monkeypatch.setattr(module, "result_of", result_of)
    return seen


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sniproxy.toml"
    path.write_text(CONFIG)
    return path


def test_what_was_revoked_is_told(sniproxy, path, asked):
    result = sniproxy("revoke", "-c", path, "a.example", "--reason", "keyCompromise")
    assert result.exit_code == 0
    assert result.stdout == "a.example  renewed, and served\nrevoked: serial 0abc (keyCompromise)\n"
    assert asked["requests"] == [{"command": "revoke", "name": "a.example", "reason": 1}]


def test_where_nothing_was_it_fails(sniproxy, path, asked):
    asked["result"] = {"name": "a.example", "result": "failed", "error": "the CA: no", "revoked": None}
    result = sniproxy("revoke", "-c", path, "a.example")
    assert result.exit_code == 1
    assert result.stdout == "a.example  failed: the CA: no\n"


def test_json_is_the_whole_result(sniproxy, path, asked):
    result = sniproxy("revoke", "-c", path, "a.example", "--json")
    assert json.loads(result.stdout) == asked["result"]


@pytest.mark.parametrize("arguments", [(), ("b.example",), ("a.example", "--reason", "cACompromise")])
def test_bad_arguments(sniproxy, path, asked, arguments):
    """Contract section 1: exit status 2. RFC 5280 section 5.3.1 has reasons that are not for those who hold one."""
    assert sniproxy("revoke", "-c", path, *arguments).exit_code == 2
    assert asked["requests"] == []


def test_the_reasons_have_the_numbers_of_rfc_5280():
    """Section 5.3.1: CRLReason."""
    assert REASONS == {"unspecified": 0, "keyCompromise": 1, "superseded": 4, "cessationOfOperation": 5}
