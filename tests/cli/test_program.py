"""The program as a whole: its commands, and the options and exit statuses they share (contract, section 1)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sniproxy import __version__
from sniproxy.cli.program import DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

TAKES_A_CONFIG = [
    ("check",),
    ("explain", "--sni", "a.example.com"),
    ("healthcheck",),
    ("haproxy-config",),
    ("run",),
]


def test_the_version(sniproxy: Callable[..., Result]) -> None:
    """`sniproxy [--version] COMMAND`."""
    result = sniproxy("--version")

    assert (result.exit_code, result.stdout) == (0, f"sniproxy {__version__}\n")


@pytest.mark.parametrize(
    "command", [[str(Path(sys.executable).with_name("sniproxy"))], [sys.executable, "-m", "sniproxy"]]
)
def test_it_is_the_same_program_by_both_names(command: list[str]) -> None:
    """`python -m sniproxy` is the same program."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"sniproxy {__version__}\n", "")


def test_help_lists_every_command(sniproxy: Callable[..., Result]) -> None:
    """--help, and -h, go to standard output and succeed."""
    result = sniproxy("--help")

    assert result.exit_code == 0
    assert sniproxy("-h").stdout == result.stdout
    listed = re.findall(r"(?m)^  ([a-z-]+)  ", result.stdout)
    assert {"run", "check", "explain", "healthcheck", "haproxy-config"} <= set(listed)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("--nosuch",),
        ("check", "--nosuch"),
        ("explain",),
        ("check", "surplus"),
        ("run", "--event-loop", "x"),
    ],
)
def test_bad_arguments_exit_with_2(sniproxy: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    """Exit status 2: bad arguments; said on standard error."""
    result = sniproxy(*arguments)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


@pytest.mark.parametrize("option", ["-c", "--config", "-f"])
def test_the_configuration_is_named_by_either_letter(
    sniproxy: Callable[..., Result], config: Path, option: str
) -> None:
    """`-c/--config`, and `-f`, HAProxy's letter."""
    assert sniproxy("explain", option, config, "--sni", "git.example.com").exit_code == 0


def test_the_configuration_is_named_by_the_environment(
    sniproxy: Callable[..., Result], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else $SNIPROXY_CONFIG."""
    monkeypatch.setenv("SNIPROXY_CONFIG", str(config))

    assert "git" in sniproxy("explain", "--sni", "git.example.com").stdout


def test_an_option_goes_before_the_environment(
    sniproxy: Callable[..., Result], config: Path, mistaken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order: -c, then $SNIPROXY_CONFIG, then the usual place."""
    monkeypatch.setenv("SNIPROXY_CONFIG", str(mistaken))

    assert sniproxy("explain", "-c", config, "--sni", "git.example.com").exit_code == 0


@pytest.mark.skipif(Path(DEFAULT_CONFIG).exists(), reason=f"there is a {DEFAULT_CONFIG}")
def test_else_it_is_in_its_usual_place(sniproxy: Callable[..., Result]) -> None:
    """Else /etc/sniproxy/sniproxy.toml; a file that cannot be read is a bad configuration."""
    result = sniproxy("explain", "--sni", "a")

    assert result.exit_code == 2
    assert result.stderr == "/etc/sniproxy/sniproxy.toml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("arguments", TAKES_A_CONFIG, ids=lambda arguments: arguments[0])
def test_every_command_tells_all_mistakes_at_once(
    sniproxy: Callable[..., Result], mistaken: Path, arguments: tuple[str, ...]
) -> None:
    """Exit status 2; one line each to standard error: `FILE:LINE: key.path: what is wrong, and what is allowed`."""
    result = sniproxy(*arguments, "-c", mistaken)

    assert result.exit_code == 2
    assert result.stdout == ""
    found = re.findall(rf"(?m)^{re.escape(str(mistaken))}:(\d+): (\S+): .+$", result.stderr)
    assert found == [
        ("2", "proxy.lisen"),
        ("3", "proxy.max_hello"),
        ("4", "proxy.workers"),
        ("5", "proxy.default_backend"),
        ("8", "backends.haproxy.servers[0]"),
    ]
    assert len(result.stderr.splitlines()) == len(found)


def test_an_unknown_key_names_the_nearest(sniproxy: Callable[..., Result], mistaken: Path) -> None:
    """An unknown key is an error that names the nearest known one."""
    first = sniproxy("check", "-c", mistaken).stderr.splitlines()[0]

    assert 'did you mean "listen"?' in first or "listen" in first.split(":", 3)[3]


def test_nothing_of_the_running_proxy_is_imported_for_help() -> None:
    """Each command in its own module, imported when it is called for: --help is quick."""
    code = "import sys; import sniproxy.cli; print(sorted(m for m in sys.modules if m.startswith('sniproxy.relay')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
