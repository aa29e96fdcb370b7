"""What README.md and the pages in docs/ show is there: configurations parse, commands and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from sniproxy.app.demo import setup as demo_setup
from sniproxy.app.demo.story import Demo
from sniproxy.cli.program import program
from sniproxy.config import parse
from sniproxy.model import Outcome

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Code blocks of a language in all pages, each with where it is."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            yield pytest.param(match[1], id=f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}")


def commands():
    """Everything after "sniproxy" that stands in code: in backticks, or on a line that a shell is given."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"`(?:\S*/)?sniproxy ([a-z-][^`\n]*)`", text)
        found += re.findall(r"^[$#] (?:\S*/)?sniproxy ([a-z-].*)$", text, re.MULTILINE)
        for words in dict.fromkeys(found):
            yield pytest.param(words, id=f"{page.name}: {words}")


@pytest.mark.parametrize("text", list(blocks("toml")))
def test_configurations_are_good(text):
    assert parse(text, file="block").backends


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_there(words):
    name, *arguments = shlex.split(words)
    context = click.Context(program)
    if name.startswith("-"):
        found: click.Command | None = program
        arguments = [name]
    else:
        found = program.get_command(context, name)
    assert found is not None, f"there is no command {name}"
    options = {option for parameter in found.get_params(context) for option in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= options


def test_every_command_is_in_the_table():
    named = set(re.findall(r"^\| `sniproxy ([a-z-]+)", README, re.MULTILINE))
    assert named == set(program.list_commands(click.Context(program)))


def test_files_that_are_linked_to_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_modules_that_are_named_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:relay|wire|policy|app|cli|config|http|observe|acme|haproxy)/[a-z_0-9]+\.py)`", text):
        assert (ROOT / "src" / "sniproxy" / name).exists(), name


def test_functions_that_are_named_are_there():
    """In architecture.md, `module.function` and `Class.method` are the code's own names."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text() for path in (ROOT / "src" / "sniproxy").rglob("*.py"))
    for owner, name in re.findall(r"`([A-Z]\w+)\.(_?\w+)`", text):
        assert f"class {owner}" in source, owner
        assert re.search(rf"\b(?:def|self\.) ?{name}\b", source), f"{owner}.{name}"


def test_outcomes_and_terminations_are_all_in_the_table():
    table = README.partition("| ended with |")[2].partition("\n\n")[0]
    assert {outcome.value for outcome in Outcome} <= set(re.findall(r"`([a-z_]+)`", table))
    connection = (ROOT / "src" / "sniproxy" / "relay" / "connection.py").read_text()
    used = set(re.findall(r'"(--|[CScsPLRKI][RCDHTQ]|SC)"', connection))
    assert used <= set(re.findall(r"`(\S\S)`", table))
    assert len(used) > 8


def test_the_demos_steps_are_those_that_are_shown(monkeypatch):
    monkeypatch.setattr(demo_setup, "find_programs", dict)
    demo = Demo()
    shown = re.findall(r"^  ✓ (.{12}) ", README, re.MULTILINE)
    assert [title.rstrip() for title in shown] == [
        *(step.title for step in demo.steps),
        demo.drain(guests=True).title,
    ]


def test_lines_are_not_longer_than_code():
    """Tables and what programs print cannot be wrapped."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
        assert not long, f"{page.name}: {long}"
