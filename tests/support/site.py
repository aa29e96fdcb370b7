"""A whole site: an ACME CA, HAProxy with `crt DIR`, and sniproxy in front, which gets its certificates."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography import x509

from sniproxy.app.control import ask
from sniproxy.model import UnixAddress
from tests.support.clients import Door, connected
from tests.support.haproxy import Haproxy
from tests.support.pebble import ChallengeDns, Pebble
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, Programs, Sniproxy, free_port, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = ("www.example.test", "example.test")
PAGE = "a page from HAProxy"

FRONTEND = """\
    nbthread 2
    log stdout format raw local0
{globals}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend https
    bind unix@{socket} accept-proxy ssl {certificates} alpn h2,http/1.1
    http-request return status 200 content-type text/plain string "{page}"
"""


@dataclass(kw_only=True)
class Site:
    """The parts, each started when it is asked for. `settings` change what `configuration` writes.

    Settings: acme, proxy, haproxy, hooks, certificates, http: TOML lines of these sections, or all of the last two.
    """

    programs: Programs
    validity_seconds: int = 3600
    settings: dict[str, str] = field(default_factory=dict)
    http: bool = True

    def __post_init__(self) -> None:
        self.directory = self.programs.directory
        self.host = LOCALHOST
        self.port, self.http_port, self.admin_port = free_port(), free_port(), free_port()
        self.directory_url, self.ca_file = "", ""  # of another CA than Pebble
        self.certificates = self.directory / "certs"
        self.certificates.mkdir()
        self.state = self.directory / "state"
        self.socket = self.directory / "haproxy.sock"
        self.control = self.directory / "control.sock"
        self.pebble: Pebble
        self.haproxy: Haproxy
        self.sniproxy: Sniproxy

    # ------------------------------------------------------------------ the parts

    def start_ca(self, **options: Any) -> Pebble:
        dns = self.programs.start(ChallengeDns(self.directory))
        self.pebble = self.programs.start(
            Pebble(
                self.directory,
                dns=dns,
                tls_port=self.port,
                http_port=self.http_port,
                validity_seconds=self.validity_seconds,
                **options,
            )
        )
        return self.pebble

    def start_sniproxy(self, *, name: str = "sniproxy", configuration: str = "") -> Sniproxy:
        self.sniproxy = Sniproxy(configuration or self.configuration(), self.directory, name=name)
        self.sniproxy.admin_port = self.admin_port
        return self.programs.start(self.sniproxy)

    def start_haproxy(self, *, certificates: str = "", globals_: str = "", **options: Any) -> Haproxy:
        sections = FRONTEND.format(
            socket=self.socket, certificates=certificates or f"crt {self.certificates}", page=PAGE, globals=globals_
        )
        self.haproxy = self.programs.start(Haproxy(sections, self.directory, **options))
        return self.haproxy

    def start(self, **ca: Any) -> Site:
        """All of it, in the order of a fresh machine: HAProxy can begin once there is something in its directory."""
        self.start_ca(**ca)
        self.start_sniproxy()
        self.await_bundle()
        self.start_haproxy()
        return self

    def configuration(self) -> str:
        settings = self.settings
        quoted = ", ".join(f'"{name}"' for name in NAMES)
        certificates = settings.get("certificates", f"[[certificates]]\nnames = [{quoted}]\n")
        http = f'[http]\nlisten = ["{self.host}:{self.http_port}"]\n' if self.http else ""
        return f"""\
[proxy]
listen = ["{self.host}:{self.port}"]
{settings.get("proxy", "")}
[backends.haproxy]
servers = ["unix:{self.socket}"]
{settings.get("backends", "")}
{http}
[admin]
listen = "{LOCALHOST}:{self.admin_port}"
control_socket = "{self.control}"
[acme]
directory = "{self.directory_url or self.pebble.directory_url}"
ca_file = "{self.ca_file if self.directory_url else self.pebble.ca_file}"
email = "admin@example.test"
agree_to_terms = true
state_dir = "{self.state}"
{settings.get("acme", "")}
{certificates}
[haproxy]
certificate_dir = "{self.certificates}"
runtime_sockets = ["{self.directory}/haproxy.admin"]
{settings.get("haproxy", "")}
[hooks]
{settings.get("hooks", "")}
[log]
level = "debug"
"""

    # ------------------------------------------------------------------ what is to be seen

    def bundle(self, name: str = NAMES[0]) -> Path:
        return self.certificates / f"{name}.pem"

    def await_bundle(self, name: str = NAMES[0]) -> None:
        until(self.bundle(name).exists, f"{name}.pem is there", self.sniproxy)

    def await_deployed(self, name: str = NAMES[0]) -> dict[str, Any]:
        """Waits until a certificate is in HAProxy; returns what `certs --json` says of it."""
        until(
            lambda: self.sniproxy.metric("sniproxy_certificate_deployed", certificate=name) == 1,
            f"{name} is deployed",
            self.sniproxy,
        )
        return self.status(name)

    def known(self) -> list[dict[str, Any]]:
        """What `certs --json` says of all certificates; none in the first moment after the start."""
        found: list[dict[str, Any]] = ask(UnixAddress(str(self.control)), {"command": "certificates"})
        return found

    def status(self, name: str = NAMES[0]) -> dict[str, Any]:
        return next(status for status in self.known() if status["name"] == name)

    def renew(self, *names: str, force: bool = False) -> list[dict[str, Any]]:
        request = {"command": "renew", "names": names, "force": force}
        results: list[dict[str, Any]] = ask(UnixAddress(str(self.control)), request, seconds=PATIENCE_SECONDS * 3)
        return results

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of sniproxy with this site's configuration."""
        name, *rest = arguments
        command = [sys.executable, "-m", "sniproxy", name, "-c", str(self.sniproxy.config), *rest]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS * 3)

    def door(self) -> Door:
        """For clients that trust the CA."""
        root = self.directory / "root.pem"
        root.write_text(self.pebble.root())
        return Door(port=self.port, root=root)

    def served(self, name: str = NAMES[0]) -> x509.Certificate:
        """The certificate that a client gets, whoever signed it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connected(self.host, self.port) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
            der = tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)

    def served_serial(self, name: str = NAMES[0]) -> str:
        return hex_serial(self.served(name))


def hex_serial(certificate: x509.Certificate) -> str:
    """As `certs --json` has it."""
    digits = f"{certificate.serial_number:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The objects that a command with --json has printed."""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def lines_with(text: str, words: Sequence[str]) -> list[str]:
    """Those lines that have any of these words in them."""
    return [line for line in text.splitlines() if any(word in line for word in words)]
