"""HAProxy's own log analyser reads our log as it reads HAProxy's.

halog was written for HTTP lines; of TCP lines it counts, selects by time, finds holes between accepts and lists
servers. Whatever it makes of a line of `option tcplog`, it makes of ours: the same connections go through a HAProxy
and through sniproxy, and its answers are compared.
"""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import hellos
from tests.support.clients import connected, everything
from tests.support.haproxy import HALOG, HAPROXY, MISSING, Haproxy
from tests.support.origins import NamedServer
from tests.support.processes import LOCALHOST, Programs, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(HAPROXY is None, reason=MISSING),
    pytest.mark.skipif(HALOG is None, reason="halog is not installed"),
]

# The server's names at HAProxy are what ours are called by themselves: their addresses.
HAPROXY_SECTIONS = """
defaults
    mode tcp
    retries 0
    timeout connect 10s
    timeout client 60s
    timeout server 60s

frontend public
    bind 127.0.0.1:{plain}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    log stderr format raw local0
    option tcplog
    use_backend git if {{ req.ssl_sni -i git.example.com }}
    use_backend gone if {{ req.ssl_sni -i gone.example.com }}
    default_backend web

frontend named
    bind 127.0.0.1:{named}
    log stderr format rfc3164 local0
    log-format "{tcplog} {{%[var(sess.sni)]|%[var(sess.alpn)]}} %ID"
    unique-id-format %rt
    tcp-request inspect-delay 5s
    tcp-request content set-var(sess.sni) req.ssl_sni if {{ req.ssl_hello_type 1 }}
    tcp-request content set-var(sess.alpn) req.ssl_alpn if {{ req.ssl_hello_type 1 }}
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend git if {{ req.ssl_sni -i git.example.com }}
    use_backend gone if {{ req.ssl_sni -i gone.example.com }}
    default_backend web

backend web
    server 127.0.0.1:{web} 127.0.0.1:{web}
backend git
    server 127.0.0.1:{git} 127.0.0.1:{git}
backend gone
    server 127.0.0.1:{gone} 127.0.0.1:{gone}
"""
TCPLOG = "%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq"  # the manual's, section 8.2.2

CONFIG = """
[proxy]
listen = ["127.0.0.1:{ours}"]
default_backend = "web"

[backends.web]
servers = ["127.0.0.1:{web}"]
proxy_protocol = "off"

[backends.git]
servers = ["127.0.0.1:{git}"]
proxy_protocol = "off"

[backends.gone]
servers = ["127.0.0.1:{gone}"]
proxy_protocol = "off"

[[routes]]
sni = ["git.example.com"]
backend = "git"

[[routes]]
sni = ["gone.example.com"]
backend = "gone"

[log]
target = "{directory}/sniproxy.log"
"""

CONNECTIONS = ["www.example.com"] * 5 + ["git.example.com"] * 3 + ["gone.example.com"] * 2
NO_HEADER = ("-s", "-4")
"""halog counts on the five fields that syslog puts before a line; our file and `format raw` have none of them."""


@dataclass(frozen=True, kw_only=True)
class Logs:
    """The lines of the same connections: HAProxy's tcplog, HAProxy's tcplog with our two fields more, ours."""

    tcplog: list[str]
    with_names: list[str]
    ours: list[str]
    file: str


@pytest.fixture(scope="module")
def logs(module_programs: Programs) -> Iterator[Logs]:
    directory = module_programs.directory
    ports = {name: free_port() for name in ("plain", "named", "ours", "gone")}
    with ExitStack() as stack:
        for name in ("web", "git"):
            ports[name] = free_port()
            server = NamedServer(name, ports[name])
            stack.callback(server.close)
        stack.callback(module_programs.end)
        haproxy = module_programs.start(Haproxy(HAPROXY_SECTIONS.format(tcplog=TCPLOG, **ports), directory))
        module_programs.sniproxy(CONFIG.format(directory=directory, **ports))
        clients = {name: make_connections(ports[name]) for name in ("plain", "named", "ours")}
        log = directory / "sniproxy.log"
        yield Logs(
            tcplog=until(lambda: in_order(haproxy.stderr, "public", clients["plain"]), "HAProxy's lines"),
            with_names=until(lambda: in_order(haproxy.stderr, "named", clients["named"]), "HAProxy's other lines"),
            ours=until(lambda: in_order(log.read_text(), f"{LOCALHOST}:{ports['ours']}", clients["ours"]), "our lines"),
            file=log.read_text(),
        )


def make_connections(port: int) -> list[str]:
    """The clients' addresses, in the order of CONNECTIONS."""
    made = []
    for name in CONNECTIONS:
        with connected(LOCALHOST, port) as client:
            made.append(f"{LOCALHOST}:{client.getsockname()[1]}")
            client.sendall(hellos.hello(name, b"h2"))
            try:
                everything(client)
            except ConnectionResetError:
                assert name == "gone.example.com"
    return made


def in_order(text: str, frontend: str, made: list[str]) -> list[str]:
    """The line of each of these clients; nothing while one is missing. They are logged as they end."""
    lines = [re.sub(r"^<\d+>", "", line) for line in text.splitlines() if f"] {frontend} " in line]
    found = [line for client in made for line in lines if f"{client} [" in line]
    return found if len(found) == len(made) else []


def halog(lines: list[str], *arguments: str) -> tuple[str, str]:
    """What halog answers, and its account of lines read."""
    assert HALOG is not None
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run((HALOG, *arguments), input=text, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def shape(line: str) -> list[str]:
    """Its fields, digits as 0."""
    return [re.sub(r"[0-9]+", "0", field) for field in line.split()]


def test_our_fields_are_those_of_tcplog(logs: Logs) -> None:
    """HAProxy's manual, section 8.2.2: nine fields, in this order; ours has two more behind them."""
    for theirs, ours in zip(map(shape, logs.tcplog), map(shape, logs.ours), strict=True):
        assert len(ours) == len(theirs) + 2 == 11
        # Not the listener, whose names differ, nor backend/server, which have a test of their own.
        assert (ours[:2], ours[4:9]) == (theirs[:2], theirs[4:])


def test_backend_server_bytes_and_termination_are_haproxys(logs: Logs) -> None:
    """The same, field by field: backend/server, bytes to the client, termination state."""
    for theirs, ours, name in zip(logs.tcplog, logs.ours, CONNECTIONS, strict=True):
        if name == "gone.example.com":
            assert theirs.split()[6] == ours.split()[6] == "SC"
            assert theirs.split()[4].split("/")[1] == ours.split()[4].split("/")[1] == "-1"
            assert theirs.split()[3].startswith("gone/")
            assert ours.split()[3].startswith("gone/")
        else:
            assert ours.split()[3] == theirs.split()[3]
            assert ours.split()[5:7] == theirs.split()[5:7]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c",),
        ("-c", "-e"),
        ("-c", "-E"),
        ("-c", "-v", "-E"),
        ("-c", "-H"),
        ("-c", "-rt", "0"),
        ("-c", "-hs", "0:9"),
        ("-st",),
        ("-pct",),
        ("-gt",),
        ("-ic",),
        ("-uc",),
        ("-c", "-time", "0:1"),
    ],
    ids=" ".join,
)
def test_halog_makes_the_same_of_our_lines(logs: Logs, arguments: tuple[str, ...]) -> None:
    """halog -h: what it counts, and what it says it cannot read in TCP lines (five timers, a request)."""
    assert halog(logs.ours, *NO_HEADER, *arguments) == halog(logs.tcplog, *NO_HEADER, *arguments)


def test_halog_counts_all_connections(logs: Logs) -> None:
    """halog -c with a filter that all lines pass: each has the date where halog looks for it."""
    printed, errors = halog(logs.ours, *NO_HEADER, "-c", "-E")

    assert printed == f"{len(CONNECTIONS)}\n"
    assert errors == ""


def test_halog_selects_by_time(logs: Logs) -> None:
    """halog -time: it reads our date, in local time, as it reads HAProxy's."""
    now = int(time.time())
    for lines in (logs.ours, logs.tcplog):
        assert halog(lines, *NO_HEADER, "-c", "-time", f"{now - 600}:{now + 600}")[0] == f"{len(CONNECTIONS)}\n"
        assert halog(lines, *NO_HEADER, "-c", "-time", f"{now + 600}:")[0] == "0\n"


def test_halog_reads_the_milliseconds_of_our_date(logs: Logs) -> None:
    """halog -ac 1 -ad 0: one row for each instant with accepts; the rows are those in the lines."""
    for lines in (logs.ours, logs.tcplog):
        # The first instant has no other before it, and is never shown.
        dates = sorted({re.findall(r":(\d\d:\d\d:\d\d\.\d{3})\]", line)[0] for line in lines})[1:]
        printed = halog(lines, *NO_HEADER, "-q", "-ad", "1", "-ac", "1")[0]

        assert [row.split()[0] for row in printed.splitlines()] == dates


def test_halog_lists_our_servers(logs: Logs) -> None:
    """halog -srv: a row for each backend/server, in the same form."""

    def rows(lines: list[str]) -> set[str]:
        return {row for row in halog(lines, *NO_HEADER, "-srv")[0].splitlines() if not row.startswith("gone/")}

    assert rows(logs.ours) == rows(logs.tcplog)
    assert len(rows(logs.ours)) == 3  # a headline, web and git


@pytest.mark.parametrize("option", ["-c", "-tc", "-cc", "-srv", "-st", "-pct", "-Q", "-QS", "-hdr"])
def test_halog_makes_the_same_of_haproxys_lines_with_names(logs: Logs, option: str) -> None:
    """A HAProxy that logs name, protocols and id behind its tcplog fields writes what we do, for halog.

    Without those to `gone`, where HAProxy tells the server that it tried.
    """
    arguments = (option, "1:1") if option == "-hdr" else (option,)

    def answer(lines: list[str], *skip: str) -> tuple[str, list[str]]:
        printed, errors = halog([line for line in lines if " gone/" not in line], *skip, *arguments)
        return printed, [re.sub(r"(Truncated line \d+): .*", r"\1", line) for line in errors.splitlines()]

    assert answer(logs.ours, *NO_HEADER) == answer(logs.with_names)


def test_what_the_program_says_is_no_connection(logs: Logs) -> None:
    """Lines of the program itself are in the file too; halog passes over them, as over HAProxy's own."""
    assert len(logs.file.splitlines()) > len(CONNECTIONS)

    printed, errors = halog(logs.file.splitlines(), *NO_HEADER, "-E")

    assert sorted(printed.splitlines()) == sorted(logs.ours)
    assert f"{len(CONNECTIONS)} lines out" in errors
