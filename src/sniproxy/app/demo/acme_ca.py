"""The demo's ACME CA: Pebble, and beside it pebble-challtestsrv, the DNS in which it looks names up.

Pebble is the test CA of Let's Encrypt's makers: it validates as that does, and issues from a root that is new each time
it starts, and trusted by nobody.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from typing import TYPE_CHECKING, NamedTuple

import dns.exception
import dns.message
import dns.query

from sniproxy.app.demo.certificate import private_ca
from sniproxy.app.demo.programs import Program, StepFailed, reserved_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HOST = "127.0.0.1"
ANSWER_SECONDS = 5.0
LOOKUP_SECONDS = 0.5
"""For one query, which may get lost when nobody listens yet; then it is asked again."""


class Ports(NamedTuple):
    """Where the two listen on 127.0.0.1: ACME, Pebble's management, DNS, and the DNS server's management."""

    acme: int
    management: int
    dns: int
    dns_management: int


def reserved_ports(stack: contextlib.ExitStack) -> Ports:
    """Ports that stay reserved until `stack` is closed."""
    return Ports(*(stack.enter_context(reserved_port()) for _ in Ports._fields))


class AcmeCa:
    """Pebble and its DNS, from `start` to `kill`, with their files in `directory`, which is made.

    found: the paths of both programs. validation_port: where tls-alpn-01 is validated, at 127.0.0.1 whatever the name.
    validity_seconds: lifetime of what it issues.
    """

    def __init__(
        self, directory: Path, ports: Ports, found: Mapping[str, str], *, validation_port: int, validity_seconds: int
    ) -> None:
        self._directory = directory
        self._ports = ports
        self._found = found
        self._validation_port = validation_port
        self._validity_seconds = validity_seconds
        self._trust: ssl.SSLContext
        self.programs: tuple[Program, ...] = ()

    def start(self, name: str, seconds: float) -> None:
        """Returns when the CA answers, and its DNS has an address for `name`. Raises StepFailed after `seconds`."""
        self._directory.mkdir(mode=0o700)
        issued = private_ca(HOST, self._directory)
        self._trust = ssl.create_default_context(cafile=issued.ca_file)
        dns_server = self._start_dns()
        dns_server.wait_until(lambda: self._resolves(name), f"the DNS beside pebble has no {HOST} for {name}", seconds)
        pebble = self._start_pebble(issued.certificate_file)
        pebble.wait_until(self._answers, f"pebble does not answer on {HOST}:{self._ports.acme}", seconds)

    def kill(self) -> None:
        """Ends both."""
        for program in self.programs:
            program.kill()

    def root(self) -> str:
        """The root of what it issues, as PEM. Raises OSError, http.client.HTTPException, StepFailed."""
        status, text = self._get(self._ports.management, "/roots/0")
        if status != http.client.OK:
            raise StepFailed(f"pebble's management has status {status} for its root")
        return text

    def _start_dns(self) -> Program:
        ports = self._ports
        listen = ("-dns01", f"{HOST}:{ports.dns}", "-management", f"{HOST}:{ports.dns_management}")
        no_more = ("-http01", "", "-https01", "", "-tlsalpn01", "")
        # No IPv6 address: not every machine has a ::1.
        names = ("-defaultIPv4", HOST, "-defaultIPv6", "")
        command = (self._found["pebble-challtestsrv"], *listen, *no_more, *names)
        program = Program("pebble-challtestsrv", command, self._directory / "pebble-challtestsrv.log")
        self.programs += (program,)
        return program

    def _start_pebble(self, certificate: Path) -> Program:
        settings = {
            "listenAddress": f"{HOST}:{self._ports.acme}",
            "managementListenAddress": f"{HOST}:{self._ports.management}",
            "certificate": str(certificate),
            "privateKey": str(certificate),
            "tlsPort": self._validation_port,
            "httpPort": self._validation_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": self._validity_seconds,
            # Newer ones have it in profiles, of which they take a random one where none is asked for.
            "profiles": {"default": {"description": "for a demo", "validityPeriod": self._validity_seconds}},
        }
        config = self._directory / "pebble.json"
        config.write_text(json.dumps({"pebble": settings}, indent=4))
        command = (self._found["pebble"], "-config", str(config), "-dnsserver", f"{HOST}:{self._ports.dns}", "-strict")
        # It would sleep for seconds before it validates, and half the time believe in what it has validated before.
        environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}
        program = Program("pebble", command, self._directory / "pebble.log", environment=environment)
        self.programs += (program,)
        return program

    def _resolves(self, name: str) -> bool:
        query = dns.message.make_query(name, "A")
        try:
            answer = dns.query.udp(query, HOST, timeout=LOOKUP_SECONDS, port=self._ports.dns)
        except (OSError, dns.exception.DNSException):
            return False
        addresses = [record.to_text() for records in answer.answer for record in records]
        return addresses == [HOST]

    def _answers(self) -> bool:
        try:
            ports = (self._ports.acme, "/dir"), (self._ports.management, "/roots/0")
            return all(self._get(port, path)[0] == http.client.OK for port, path in ports)
        except ConnectionRefusedError:
            return False

    def _get(self, port: int, path: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(HOST, port, timeout=ANSWER_SECONDS, context=self._trust)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode("ascii", "replace")
