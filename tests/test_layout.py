"""The tree keeps its own promises: each module has its tests, names say something, nothing local is checked in."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sniproxy"

# Modules without a test module of their own, each with the reason.
TESTED_ELSEWHERE: dict[str, str] = {}

# They say nothing about what is inside, so everything ends up inside.
EMPTY_NAMES = {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}

# Spelt in parts, or this file would be its own first finding.
REGISTRIES = [
    ("pypi", "org"),
    ("pythonhosted", "org"),
    ("deb", "debian", "org"),
    ("security", "debian", "org"),
    ("archive", "ubuntu", "com"),
    ("security", "ubuntu", "com"),
    ("registry", "npmjs", "org"),
]
HOMES = ["home/[a-z]", "Users/[A-Za-z]", "work/"]
FORBIDDEN = {
    "a package registry's host": re.compile("|".join(re.escape(".".join(parts)) for parts in REGISTRIES)),
    "a path of somebody's machine": re.compile(rf"(?<![\w.~-])/({'|'.join(HOMES)})"),
}


def modules() -> list[str]:
    found = (path for path in SOURCE.rglob("*.py") if path.stem not in {"__init__", "__main__"})
    return sorted(path.relative_to(SOURCE).as_posix() for path in found)


def checked_in() -> list[Path]:
    """What git tracks, or would if all were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [path for path in (ROOT / name for name in names.split("\0") if name) if path.is_file()]


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_test_module(module: str) -> None:
    path = Path(module)
    mirrored = ROOT / "tests" / path.parent / f"test_{path.name}"
    if module in TESTED_ELSEWHERE:
        assert not mirrored.exists(), "has tests by now: take it out of TESTED_ELSEWHERE"
    else:
        assert mirrored.exists(), f"{mirrored.relative_to(ROOT)} is missing"


def test_the_exceptions_are_modules_and_have_reasons() -> None:
    assert set(TESTED_ELSEWHERE) <= set(modules())
    assert all(TESTED_ELSEWHERE.values())


def test_the_version_is_the_installed_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("sniproxy") == project["version"]


def test_the_lock_says_what_to_install_and_not_from_where() -> None:
    assert "://" not in (ROOT / "uv.lock").read_text()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_local_is_checked_in(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in checked_in()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        for match in FORBIDDEN[what].finditer(line)
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_names_say_what_is_inside() -> None:
    assert not [path for path in checked_in() if path.stem.lower() in EMPTY_NAMES]
