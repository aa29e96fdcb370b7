"""A complete set-up on this machine's loopback, and the proof that it works.

    directory → certificate → HAProxy → the proxy → requests through it → drain → all of it removed

`Demo` is the story: its steps, in this order. Each does one thing, waits until that shows, and returns what it found;
nothing waits without a deadline. Below it are the files that it writes. `demo_programs` starts and ends what runs,
`demo_certificate` has the step that another source of certificates would replace.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sniproxy.app.demo_certificate import Issued, private_ca
from sniproxy.app.demo_programs import (
    Program,
    StepFailed,
    find_haproxy,
    haproxy_version,
    removed,
    reserved_port,
    undisturbed,
    usable_for_sockets,
)
from sniproxy.app.proxy import CUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

NAME = "www.demo.test"
INTERNAL_NAME = "internal.demo.test"
"""A second name, which the configuration keeps for one client."""

CLIENT, STRANGER = "127.0.0.2", "127.0.0.3"
"""Two clients' addresses. All of 127.0.0.0/8 is this machine, and neither is what a connection has by itself."""

START_SECONDS = 15.0
"""For a program to be ready: it takes half a second, and much longer on a machine that is busy."""
ANSWER_SECONDS = 5.0
COMMAND_SECONDS = 15.0
DRAIN_SECONDS = 5
"""The demo's shutdown_grace."""


@dataclass(frozen=True, slots=True)
class Step:
    """`work` returns what it found, for people. `advice` is what to do when it fails."""

    title: str
    work: Callable[[], str]
    advice: str


class Demo:
    """One run. As a context manager it gives back everything at the end: programs, ports, files.

    `obtain` gets the certificate: it is called with the names and the directory that HAProxy reads. `keep` leaves the
    files where they are. `start_seconds` is how long a program may take to be ready.
    """

    def __init__(
        self,
        *,
        obtain: Callable[[Sequence[str], Path], Issued] = private_ca,
        keep: bool = False,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._haproxy_program = find_haproxy()
        self._obtain = obtain
        self._keep = keep
        self._start_seconds = start_seconds
        self._stack = contextlib.ExitStack()
        self._haproxy: Program | None = None
        self._proxy: Program | None = None
        self._page: dict[str, str] = {}
        self.directory: Path
        self.issued: Issued
        self.port = self.admin_port = 0

    def __enter__(self) -> Self:
        directory = Path(tempfile.mkdtemp(prefix="sniproxy-demo-", dir=usable_for_sockets(tempfile.gettempdir())))
        self.directory = directory
        if not self._keep:
            self._stack.enter_context(removed(directory))
        try:
            self.port, self.admin_port = (self._stack.enter_context(reserved_port()) for _ in range(2))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with undisturbed():
            for program in (self._proxy, self._haproxy):
                if program is not None:
                    program.kill()
            self._stack.close()

    @property
    def config_file(self) -> Path:
        """The proxy's configuration."""
        return self.directory / "sniproxy.toml"

    @property
    def haproxy_cfg(self) -> Path:
        """HAProxy's configuration."""
        return self.directory / "haproxy.cfg"

    # ------------------------------------------------------------------ the steps

    @property
    def steps(self) -> tuple[Step, ...]:
        """Everything up to a set-up that runs and is proven to work."""
        internal = "compare what the two words above say with the [[routes]] of sniproxy.toml"
        report = "this should not happen anywhere; please report it, with these lines"
        return (
            Step("certificate", self._get_certificate, "see whether the directory for temporary files can be written"),
            Step(
                "HAProxy",
                self._start_haproxy,
                "HAProxy must be allowed to read files and to make a socket there; TMPDIR names another place",
            ),
            Step("sniproxy", self._start_proxy, "look at what sniproxy said, and for firewalls on the loopback"),
            Step("HTTP/1.1", self._request_page, report),
            Step("HAProxy saw", self._read_page, report),
            Step("log", self._find_log_line, report),
            Step("HTTP/2", self._greet_http2, "HAProxy must be built with HTTP/2: see `haproxy -vv`"),
            Step("explain", self._explain_refusal, internal),
            Step("healthcheck", self._check_health, "something else may answer on the admin listener's port"),
            Step("metrics", self._add_up_metrics, report),
        )

    def drain(self, *, guests: bool) -> Step:
        """The end of it. With `guests`, others may have connections, and those that do not end are cut."""
        advice = "connections that do not end are cut after shutdown_grace: the log names them, with KD"
        return Step("drain", partial(self._drain, guests=guests), advice)

    def run(self, step: Step) -> str:
        """Does one step. Raises StepFailed."""
        try:
            return step.work()
        except StepFailed as failure:
            if failure.words:
                raise
            raise StepFailed(str(failure), self._words()) from failure
        except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
            raise StepFailed(f"{type(error).__name__}: {error}", self._words()) from error

    def log_lines(self) -> Iterator[tuple[str, str]]:
        """What HAProxy and the proxy log from now on, as it comes: speaker and line. Raises StepFailed if one ends."""
        programs = [program for program in (self._proxy, self._haproxy) if program is not None]
        with contextlib.ExitStack() as files:
            tails = [(program, files.enter_context(program.output.open(errors="replace"))) for program in programs]
            for _, tail in tails:
                tail.seek(0, os.SEEK_END)
            while True:
                for program, tail in tails:
                    for line in tail:
                        yield program.name, line.rstrip("\n")
                    program.must_live()
                time.sleep(0.1)

    def _words(self) -> list[str]:
        return [line for program in (self._haproxy, self._proxy) if program is not None for line in program.words()]

    # ------------------------------------------------------------------ start

    def _get_certificate(self) -> str:
        certificates = self.directory / "certs"
        certificates.mkdir(mode=0o700)
        self.issued = self._obtain((NAME, INTERNAL_NAME), certificates)
        return f"for {NAME} and {INTERNAL_NAME}, {self.issued.origin}"

    def _start_haproxy(self) -> str:
        version = haproxy_version(self._haproxy_program)
        page = self.directory / "page.html"
        page.write_text(PAGE)
        socket_path = self.directory / "haproxy.sock"
        self.haproxy_cfg.write_text(HAPROXY_CFG.format(socket=socket_path, bundle=self.issued.bundle, page=page))
        command = (self._haproxy_program, "-db", "-f", str(self.haproxy_cfg))
        self._haproxy = program = Program("haproxy", command, self.directory / "haproxy.log")
        program.wait_until(
            lambda: _listens(socket_path), f"haproxy does not listen on {socket_path}", self._start_seconds
        )
        return f"{version} ends TLS on {socket_path}, as process {program.pid}"

    def _start_proxy(self) -> str:
        self.config_file.write_text(
            SNIPROXY_TOML.format(
                port=self.port, admin_port=self.admin_port, directory=self.directory, grace=DRAIN_SECONDS
            )
        )
        self._proxy = program = Program(
            "sniproxy", _sniproxy("run", "-c", str(self.config_file)), self.directory / "sniproxy.log"
        )
        program.wait_until(self._is_ready, "sniproxy is not ready", self._start_seconds)
        return f"in front of it on 127.0.0.1:{self.port}, as process {program.pid}"

    def _is_ready(self) -> bool:
        try:
            return self._ask_admin("/readyz")[0] == http.client.OK
        except ConnectionRefusedError:
            return False

    def _ask_admin(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")

    # ------------------------------------------------------------------ proof

    def _connect(self, name: str, client: str, *protocols: str) -> ssl.SSLSocket:
        """Connects as a browser would: the certificate has to be good for the name."""
        context = ssl.create_default_context(cafile=self.issued.ca_file)
        context.set_alpn_protocols(list(protocols))
        connection = socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS, source_address=(client, 0))
        try:
            return context.wrap_socket(connection, server_hostname=name)
        except BaseException:
            connection.close()
            raise

    def _request_page(self) -> str:
        began = time.monotonic()
        with self._connect(NAME, CLIENT, "http/1.1") as tls:
            version = tls.version()
            text = _get_page(tls, last=True)
        took = time.monotonic() - began
        self._page = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', text))
        if not self._page:
            raise StepFailed(f"the answer is not the page, but {text[:200]!r}")
        return f"https://{NAME}/ from {CLIENT}: certificate verified, {version}, status 200, {took * 1000:.0f} ms"

    def _read_page(self) -> str:
        page = self._page
        expected = {"src": CLIENT, "req.ver": "1.1", "ssl_fc_sni": NAME, "fc_pp_authority": NAME}
        for key, value in expected.items():
            if page.get(key) != value:
                raise StepFailed(f"HAProxy saw {key} {page.get(key)!r}, and it is {value!r}")
        if not page.get("fc_pp_unique_id"):
            raise StepFailed("HAProxy got no unique id with the connection")
        values = [f"{key} {value}" for key, value in page.items()]
        return f"{', '.join(values[:3])},\n{', '.join(values[3:])}"

    def _find_log_line(self) -> str:
        assert self._proxy is not None
        identity = self._page["fc_pp_unique_id"]
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self._proxy_output() if line.endswith(identity)]
            return bool(found)

        self._proxy.wait_until(look, f"no line of sniproxy's log ends in {identity}", ANSWER_SECONDS)
        return f"the same id ends the connection's line in sniproxy's log:\n{found[0]}"

    def _proxy_output(self) -> list[str]:
        assert self._proxy is not None
        return self._proxy.output.read_text(errors="replace").splitlines()

    def _greet_http2(self) -> str:
        with self._connect(NAME, CLIENT, "h2", "http/1.1") as tls:
            protocol = tls.selected_alpn_protocol()
            if protocol != "h2":
                raise StepFailed(f"HAProxy was offered h2 and http/1.1, and chose {protocol}")
            # The client's preface and its empty SETTINGS; the server begins with its own SETTINGS (RFC 9113, 3.4).
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            head = b""
            while len(head) < 9 and (more := tls.recv(9 - len(head))):
                head += more
        if len(head) < 9 or head[3] != 4:
            raise StepFailed(f"HAProxy does not begin with SETTINGS, but with {head.hex() or 'nothing'}")
        return "h2 chosen by ALPN, and HAProxy's SETTINGS frame came"

    def _explain_refusal(self) -> str:
        arguments = ("--sni", INTERNAL_NAME, "--from", STRANGER, "--json")
        explained = json.loads(self._command("explain", *arguments))
        if explained["backend"] is not None:
            raise StepFailed(f"{INTERNAL_NAME} should be refused to {STRANGER}, and explain says {explained}")
        try:
            self._connect(INTERNAL_NAME, STRANGER, "http/1.1").close()
        except ssl.SSLError as error:
            alert = str(error.reason or error)
        else:
            raise StepFailed(f"explain says refused ({explained['reason']}), and yet the handshake went through")
        if "ACCESS_DENIED" not in alert:
            raise StepFailed(f"explain says refused ({explained['reason']}), but the handshake ended with {alert}")
        return f"{INTERNAL_NAME} from {STRANGER} is refused: {explained['reason']}\nand so it is: alert {alert}"

    def _check_health(self) -> str:
        self._command("healthcheck")
        return "exit status 0: ready"

    def _command(self, name: str, *arguments: str) -> str:
        """Runs a command of this program. Raises StepFailed unless it exits with 0."""
        done = subprocess.run(  # noqa: S603  this very program
            _sniproxy(name, "-c", str(self.config_file), *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
            text=True,
        )
        if done.returncode:
            words = [f"sniproxy {name}: {line}" for line in (done.stdout + done.stderr).splitlines()]
            raise StepFailed(f"sniproxy {name} exits with {done.returncode}", words)
        return done.stdout

    def _add_up_metrics(self) -> str:
        with self._connect(NAME, CLIENT, "http/1.1") as tls:
            _get_page(tls)
            _, text = self._ask_admin("/metrics")
            _get_page(tls, last=True)
        accepted = sum(_samples(text, "sniproxy_connections_accepted_total").values())
        active = sum(_samples(text, "sniproxy_connections_active").values())
        outcomes: dict[str, int] = {}
        for labels, count in _samples(text, "sniproxy_connections_total").items():
            outcome = labels.partition('outcome="')[2].partition('"')[0]
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        terms = [f"{active} active", *(f"{count} {outcome}" for outcome, count in outcomes.items() if count)]
        if not accepted or accepted != active + sum(outcomes.values()):
            raise StepFailed(f"{accepted} accepted is not {' + '.join(terms)}")
        return f"{accepted} accepted = {' + '.join(terms)}"

    # ------------------------------------------------------------------ the end

    def _drain(self, *, guests: bool) -> str:
        """A connection that is open at TERM goes on, new ones are refused, and when it is over the proxy ends."""
        proxy = self._proxy
        assert proxy is not None
        with self._connect(NAME, CLIENT, "http/1.1") as tls:
            _get_page(tls)
            proxy.terminate()
            proxy.wait_until(self._refuses_new_ones, "sniproxy goes on accepting after TERM", ANSWER_SECONDS)
            _get_page(tls, last=True)
        code = proxy.wait(DRAIN_SECONDS + ANSWER_SECONDS)
        if code == CUT and guests:
            return f"connections that did not end within {DRAIN_SECONDS} s were cut; exit status {CUT}"
        if code:
            raise StepFailed(f"sniproxy drained, and exited with {code}")
        return "after TERM an open connection was still answered, a new one refused; exit status 0"

    def _refuses_new_ones(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), ANSWER_SECONDS).close()
        except ConnectionRefusedError:
            return True
        return False


def _sniproxy(*arguments: str) -> tuple[str, ...]:
    # -P: whatever lies in the working directory, this same program.
    return (sys.executable, "-P", "-m", "sniproxy", *arguments)


def _get_page(tls: ssl.SSLSocket, *, last: bool = False) -> str:
    """Asks for the page. The `last` time, it lets HAProxy be the one to close."""
    end = "Connection: close\r\n" if last else ""
    tls.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n{end}\r\n".encode("ascii"))
    response = http.client.HTTPResponse(tls)
    with contextlib.closing(response):
        response.begin()
        text = response.read().decode("utf-8", "replace")
    if response.status != http.client.OK:
        raise StepFailed(f"https://{NAME}/ answers with status {response.status}: {text[:200]!r}")
    if last and tls.recv(1):
        raise StepFailed(f"https://{NAME}/ sends more than its answer")
    return text


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def _samples(text: str, name: str) -> dict[str, int]:
    """The samples of a metric, by their labels."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return {labels: int(float(value)) for labels, value in found}


SNIPROXY_TOML = f"""\
[proxy]
listen = ["127.0.0.1:{{port}}"]
default_backend = "haproxy"
max_connections = 256
shutdown_grace = "{{grace}}s"

[backends.haproxy]
servers = ["unix:{{directory}}/haproxy.sock"]    # with a PROXY v2 header, which is the default

# A name that is there for one client only.
[[routes]]
sni = ["{INTERNAL_NAME}"]
backend = "haproxy"
allow = ["{CLIENT}/32"]

[admin]
listen = "127.0.0.1:{{admin_port}}"
control_socket = "{{directory}}/control.sock"
"""

HAPROXY_CFG = """\
global
    maxconn 200
    nbthread 1
    log stdout format raw local0

defaults
    mode http
    log global
    option dontlognull
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    # A browser's idle connections are not to hold up the end.
    timeout http-request 2s
    timeout http-keep-alive 2s

frontend https
    bind unix@{socket} accept-proxy ssl crt {bundle.parent} alpn h2,http/1.1
    unique-id-format %[fc_pp_unique_id]
    log-format "%ci:%cp %HM %HP %HV %ST %B %ID"
    http-request return status 200 content-type "text/html; charset=utf-8" lf-file {page}
"""

# HAProxy fills it in. A name may hold anything that a client sends: what is not of a host name is replaced.
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>What HAProxy sees</title>
<style>
html { color-scheme: light dark }
body { font: 1.1em/1.5 system-ui, sans-serif; margin: 3em auto; max-width: 40em; padding: 0 1em }
th { text-align: left; padding-right: 2em; font-weight: normal; opacity: .7 }
td { font-family: ui-monospace, monospace }
</style>
<h1>What HAProxy sees</h1>
<p>This page comes from HAProxy. TLS ended there; sniproxy passed it on untouched, and told it who is asking.
<table>
<tr><th scope="row">src</th><td>%[src]</td></tr>
<tr><th scope="row">req.ver</th><td>%[req.ver]</td></tr>
<tr><th scope="row">ssl_fc_sni</th><td>%[ssl_fc_sni,regsub([^A-Za-z0-9._-],_,g)]</td></tr>
<tr><th scope="row">fc_pp_authority</th><td>%[fc_pp_authority,regsub([^A-Za-z0-9._-],_,g)]</td></tr>
<tr><th scope="row">fc_pp_unique_id</th><td>%[fc_pp_unique_id]</td></tr>
</table>
"""
