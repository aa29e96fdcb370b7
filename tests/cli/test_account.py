"""`sniproxy account`; what comes of it with a real CA is in tests/scenarios."""

from __future__ import annotations

import json

import pytest

from sniproxy.cli import account as module

CONFIG = """
[backends.haproxy]
servers = ["unix:/nowhere.sock"]
[acme]
agree_to_terms = true
[[certificates]]
names = ["a.example"]
"""
RESULT = {"directory": "https://ca.example/directory", "url": "https://ca.example/account/1"}


@pytest.fixture
def requests(monkeypatch):
    """What the command asks for."""
    seen = []

    def result_of(_config, _path, request, _errand, *, listening):
        seen.append((request, listening))
        return RESULT

    monkeypatch.setattr(module, "result_of", result_of)
    return seen


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sniproxy.toml"
    path.write_text(CONFIG)
    return path


def test_it_is_shown(sniproxy, path, requests):
    result = sniproxy("account", "-c", path)
    assert result.exit_code == 0
    assert result.stdout == f"directory  {RESULT['directory']}\naccount    {RESULT['url']}\n"
    assert requests == [({"command": "account", "roll_over": False}, False)]


def test_a_new_key_is_asked_for(sniproxy, path, requests):
    result = sniproxy("account", "-c", path, "--roll-over")
    assert "it has a new key" in result.stderr
    assert requests == [({"command": "account", "roll_over": True}, False)]


def test_json(sniproxy, path, requests):
    assert json.loads(sniproxy("account", "-c", path, "--json").stdout) == RESULT


def test_without_certificates_there_is_no_account(sniproxy, config, requests):
    """Contract section 1: exit status 2 for a bad configuration."""
    assert sniproxy("account", "-c", config).exit_code == 2
    assert requests == []
