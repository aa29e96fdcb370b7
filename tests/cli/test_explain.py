"""`sniproxy explain`: three ways to ask, two to be answered (contract, section 1)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import hellos

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

KEYS = ["id", "kind", "sni", "alpn", "backend", "reason"]


@pytest.fixture
def answers(sniproxy: Callable[..., Result], config: Path) -> Callable[..., list[dict[str, Any]]]:
    """What --jsonl writes for these flights, with ids 0, 1, 2…"""

    def ask(*flights: bytes) -> list[dict[str, Any]]:
        lines = "".join(json.dumps({"id": number, "hex": data.hex()}) + "\n" for number, data in enumerate(flights))
        result = sniproxy("explain", "-c", config, "--jsonl", input=lines)
        assert (result.exit_code, result.stderr) == (0, "")
        return [json.loads(line) for line in result.stdout.splitlines()]

    return ask


def test_a_name(sniproxy: Callable[..., Result], config: Path) -> None:
    """`explain --sni N`: which rule and backend such a connection gets, and why, as a table."""
    result = sniproxy("explain", "-c", config, "--sni", "git.example.com")
    table = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())

    assert (result.exit_code, result.stderr) == (0, "")
    assert table == {
        "kind": "tls",
        "sni": "git.example.com",
        "alpn": "-",
        "backend": "git",
        "reason": 'the route "git.example.com"',
    }


@pytest.mark.parametrize("name", ["GIT.Example.COM", "git.example.com.", "Git.Example.Com."])
def test_a_name_as_it_may_be_sent(sniproxy: Callable[..., Result], config: Path, name: str) -> None:
    """`sni` is lower case, without a trailing dot."""
    answer = json.loads(sniproxy("explain", "-c", config, "--json", "--sni", name).stdout)

    assert (answer["sni"], answer["backend"]) == ("git.example.com", "git")


def test_protocols(sniproxy: Callable[..., Result], config: Path) -> None:
    """`[--alpn P]…`: repeated, in the client's order of preference."""
    with_h2 = sniproxy(
        "explain", "-c", config, "--json", "--sni", "h2.example.com", "--alpn", "http/1.1", "--alpn", "h2"
    )
    without = sniproxy("explain", "-c", config, "--json", "--sni", "h2.example.com", "--alpn", "http/1.1")

    assert json.loads(with_h2.stdout)["alpn"] == ["http/1.1", "h2"]
    assert json.loads(with_h2.stdout)["backend"] == "git"
    assert json.loads(without.stdout)["backend"] == "haproxy"


@pytest.mark.parametrize(("client", "backend"), [("192.0.2.7", "git"), ("198.51.100.7", None), ("2001:db8::1", None)])
def test_the_clients_address(sniproxy: Callable[..., Result], config: Path, client: str, backend: str | None) -> None:
    """`[--from IP]`: routes may allow some clients only."""
    result = sniproxy("explain", "-c", config, "--json", "--sni", "office.example.com", "--from", client)

    assert json.loads(result.stdout)["backend"] == backend


def test_a_refusal_is_an_answer(sniproxy: Callable[..., Result], config: Path) -> None:
    """Exit status 0: done. That such a connection is refused is what was asked."""
    result = sniproxy("explain", "-c", config, "--sni", "x.acme.invalid")

    assert result.exit_code == 0
    assert "backend  none: refused" in result.stdout


def test_first_bytes(sniproxy: Callable[..., Result], config: Path) -> None:
    """`explain --hex HEX`: the same for raw first bytes; --json has the fingerprint as well."""
    result = sniproxy("explain", "-c", config, "--json", "--hex", hellos.hello("a.dev.example.com", b"h2").hex())
    answer = json.loads(result.stdout)

    assert list(answer) == ["kind", "sni", "alpn", "backend", "reason", "ja4"]
    assert (answer["kind"], answer["sni"], answer["alpn"], answer["backend"]) == (
        "tls",
        "a.dev.example.com",
        ["h2"],
        "git",
    )
    assert answer["ja4"].startswith("t13d")


@pytest.mark.parametrize("digits", ["1", "zz", "16 03 0"])
def test_digits_that_are_none(sniproxy: Callable[..., Result], config: Path, digits: str) -> None:
    """Exit status 2: bad arguments."""
    result = sniproxy("explain", "-c", config, "--hex", digits)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--hex" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--sni", "a", "--hex", "16"),
        ("--sni", "a", "--jsonl"),
        ("--hex", "16", "--alpn", "h2"),
        ("--sni", "a", "--from", "nowhere"),
    ],
)
def test_arguments_that_do_not_go_together(
    sniproxy: Callable[..., Result], config: Path, arguments: tuple[str, ...]
) -> None:
    """Exit status 2: bad arguments, and nothing on standard output."""
    result = sniproxy("explain", "-c", config, *arguments)

    assert (result.exit_code, result.stdout) == (2, "")


# -- --jsonl


@pytest.mark.parametrize(
    ("flight", "kind", "sni", "alpn", "backend"),
    [
        pytest.param(hellos.hello("git.example.com", b"h2", b"http/1.1"), "tls", "git.example.com", ["h2", "http/1.1"], "git", id="tls"),
        pytest.param(hellos.hello("GIT.example.com."), "tls", "git.example.com", [], "git", id="upper case, dot"),
        pytest.param(hellos.hello(None), "no_sni", None, [], "haproxy", id="no_sni"),
        pytest.param(hellos.hello(None, b"h2"), "no_sni", None, ["h2"], "haproxy", id="no_sni with ALPN"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "not_tls", None, [], None, id="not_tls"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", "not_tls", None, [], None, id="SSH"),
        pytest.param(hellos.sslv2_hello(), "not_tls", None, [], None, id="SSLv2 framing"),
        pytest.param(
            hellos.record(hellos.client_hello(hellos.server_name("a.example"), hellos.server_name("b.example"))),
            "malformed", None, [], None, id="malformed",
        ),
        pytest.param(hellos.records(hellos.padded_hello(16_385), 16_000), "too_large", None, [], None, id="too_large"),
        pytest.param(hellos.hello("git.example.com")[:-1], "incomplete", None, [], None, id="incomplete"),
        pytest.param(b"\x16", "incomplete", None, [], None, id="one byte"),
        pytest.param(b"", "incomplete", None, [], None, id="nothing"),
        pytest.param(hellos.hello("x.acme.invalid"), "tls", "x.acme.invalid", [], None, id="acme.invalid"),
        pytest.param(hellos.hello("git.example.com", b"acme-tls/1"), "tls", "git.example.com", ["acme-tls/1"], "git", id="acme-tls/1"),
    ],
)  # fmt: skip
def test_each_kind(
    answers: Callable[..., list[dict[str, Any]]],
    flight: bytes,
    kind: str,
    sni: str | None,
    alpn: list[str],
    backend: str | None,
) -> None:
    """`kind` is one of tls, no_sni, not_tls, malformed, too_large, incomplete; `sni` or null; `alpn` is a list."""
    (answer,) = answers(flight)

    assert list(answer) == KEYS
    assert (answer["id"], answer["kind"], answer["sni"], answer["alpn"], answer["backend"]) == (
        0,
        kind,
        sni,
        alpn,
        backend,
    )
    assert isinstance(answer["reason"], str)
    assert answer["reason"]


def test_one_line_for_each_in_their_order(answers: Callable[..., list[dict[str, Any]]]) -> None:
    """`--jsonl` writes one line per input."""
    written = answers(*[hellos.hello("git.example.com"), b"x", b""] * 50)

    assert [answer["id"] for answer in written] == list(range(150))


@pytest.mark.parametrize("identity", [7, "seven", None, [1, {"a": 2}], "ümläut 😀"])
def test_the_id_comes_back_as_it_was(sniproxy: Callable[..., Result], config: Path, identity: object) -> None:
    """`{"id":…,"hex":…}`: whatever JSON the id is."""
    result = sniproxy("explain", "-c", config, "--jsonl", input=json.dumps({"id": identity, "hex": "16"}))

    assert json.loads(result.stdout)["id"] == identity


def test_empty_lines_and_further_keys_are_passed_over(sniproxy: Callable[..., Result], config: Path) -> None:
    """A file of recorded flights may say more about each."""
    text = '\n{"id": 1, "hex": "16", "source": "curl"}\n\n{"id": 2, "hex": "1603"}'
    result = sniproxy("explain", "-c", config, "--jsonl", input=text)

    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "7",
        '{"id": 1}',
        '{"hex": "16"}',
        '{"id": 1, "hex": "1"}',
        '{"id": 1, "hex": "zz"}',
        '{"id": 1, "hex": 16}',
        '{"id": 1, "hex": null}',
        "[" * 100_000,
        b'{"id": "\xff", "hex": "16"}',
    ],
    ids=range(11),
)
def test_a_bad_line_is_named(sniproxy: Callable[..., Result], config: Path, line: str | bytes) -> None:
    """Exit status 1: it failed; those before are answered, the line is named on standard error."""
    bad = line.encode() if isinstance(line, str) else line
    result = sniproxy("explain", "-c", config, "--jsonl", input=b'{"id": 1, "hex": "16"}\n' + bad + b"\n")

    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.startswith("line 2: ")
    assert len(result.stderr.splitlines()) == 1


def test_text_from_the_wire_moves_no_cursor(sniproxy: Callable[..., Result], config: Path) -> None:
    """Whoever prints a name escapes it (model: "may hold anything")."""
    hello = hellos.hello("a\x1b[2J\r\nb", b"\x1b]0;x\x07")
    result = sniproxy("explain", "-c", config, "--hex", hello.hex())

    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert len(result.stdout.splitlines()) == 6
