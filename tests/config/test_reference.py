"""docs/configuration.md is what the schema says."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from sniproxy.config import json_schema, parse

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "docs" / "configuration.md"
script = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))


def test_the_reference_is_up_to_date():
    assert REFERENCE.read_text(encoding="utf-8") == script["render"](), "run scripts/config_reference.py"


def test_every_key_is_in_it():
    text = REFERENCE.read_text(encoding="utf-8")
    schema = json_schema()
    for section in schema["properties"].values():
        inner = section.get("items") or section.get("additionalProperties") or section
        for key in schema["$defs"][inner["$ref"].rpartition("/")[2]]["properties"]:
            assert f"\n| `{key}` | " in text


def test_its_tables_are_tables():
    """No cell has a bar in it that begins another."""
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5, line


@pytest.mark.parametrize("key", ["listen", "shutdown_grace", "balance", "target", "workers", "reload_command"])
def test_defaults_are_toml(key):
    (default,) = re.findall(
        rf"^\| `{key}` \|(?:[^|`]|`[^`]*`|\\\|)*\| `([^`]*)` \|", REFERENCE.read_text("utf-8"), re.MULTILINE
    )[:1]
    tomllib.loads(f"value = {default}")


def test_its_example_is_a_configuration():
    (example,) = re.findall(r"```toml\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    assert parse(example, file="example").backends
