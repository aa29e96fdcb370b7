"""A real ACME test CA, Pebble, and the DNS it asks, pebble-challtestsrv, as child processes.

Both are Debian's (package `pebble`, 2.4.0). Pebble validates on ports of the test's choice, sends no Retry-After, and
knows neither renewal information nor profiles; for those, and for a CA that misbehaves, there are others beside this.
"""

from __future__ import annotations

import json
import shutil
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.message
import dns.query

from tests.support.pki import Authority
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, Program, free_port, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PEBBLE = shutil.which("pebble")
CHALLTESTSRV = shutil.which("pebble-challtestsrv")
AVAILABLE = PEBBLE is not None and CHALLTESTSRV is not None
MISSING = "pebble is not installed"

DAY_SECONDS = 24 * 60 * 60
_ANSWER_SECONDS = 2.0


class ChallengeDns(Program):
    """pebble-challtestsrv as nothing but a DNS server: `default` for every name, and no IPv6 address.

    On a free port of 127.0.0.1 unless told otherwise.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = LOCALHOST,
        port: int | None = None,
        default: str = LOCALHOST,
        name: str = "challenge-dns",
    ) -> None:
        assert CHALLTESTSRV is not None, MISSING
        self.host, self.port, self._default = host, port or free_port(), default
        self.address = f"{self.host}:{self.port}"
        self._management_port = free_port()
        arguments = (CHALLTESTSRV, "-dns01", self.address, "-management", f"{LOCALHOST}:{self._management_port}")
        nothing_else = ("-http01", "", "-https01", "", "-tlsalpn01", "")
        super().__init__(name, (*arguments, *nothing_else, "-defaultIPv4", default, "-defaultIPv6", ""), directory)

    def await_ready(self) -> None:
        """Waits until it answers, over UDP and for its management; an error with its own words if it has ended."""
        until(self._answers_or_ended, f"{self.name} answers", self)

    def set_default(self, ipv4: str | None = None, ipv6: str = "") -> None:
        """The addresses of names that have none of their own; empty is none. As it was at first, without any."""
        self._manage("set-default-ipv4", ip=self._default if ipv4 is None else ipv4)
        self._manage("set-default-ipv6", ip=ipv6)

    def add_a(self, host: str, *addresses: str) -> None:
        """Gives a name IPv4 addresses of its own."""
        self._manage("add-a", host=host, addresses=addresses)

    def add_aaaa(self, host: str, *addresses: str) -> None:
        """Gives a name IPv6 addresses of its own."""
        self._manage("add-aaaa", host=host, addresses=addresses)

    def add_caa(self, host: str, *issuers: str) -> None:
        """Gives a name CAA records, `issue` and not critical, with these values."""
        self._manage("add-caa", host=host, policies=[{"tag": "issue", "value": issuer} for issuer in issuers])

    def servfail(self, host: str) -> None:
        """From now on, SERVFAIL for this name."""
        self._manage("set-servfail", host=host)

    def clear(self, host: str) -> None:
        """Forgets all about a name: it is as any other again."""
        for what in ("clear-a", "clear-aaaa", "clear-caa", "clear-servfail"):
            self._manage(what, host=host)

    def lookup(self, host: str, kind: str = "A") -> list[str]:
        """What it answers, as text; raises LookupError with the response code where that is an error."""
        query = dns.message.make_query(host, kind)
        answer = dns.query.udp(query, self.host, timeout=_ANSWER_SECONDS, port=self.port)
        if answer.rcode() != dns.rcode.NOERROR:
            raise LookupError(dns.rcode.to_text(answer.rcode()))
        return [record.to_text() for records in answer.answer for record in records]

    def _manage(self, what: str, **values: Any) -> None:
        connection = HTTPConnection(LOCALHOST, self._management_port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("POST", f"/{what}", json.dumps(values))
            response = connection.getresponse()
            assert response.status == 200, f"{what} {values}: {response.status} {response.read()!r}"
        finally:
            connection.close()

    def _answers_or_ended(self) -> bool:
        _must_run(self)
        try:
            self._manage("clear-servfail", host="ready.test")
            return self.lookup("ready.test") == [self._default]
        except (OSError, HTTPException, dns.exception.DNSException):
            return False


class Pebble(Program):
    """`pebble` on free ports of 127.0.0.1, without its habit of sleeping before it validates.

    It keeps everything in memory: accounts, orders, and its own root are new after `restart`.

    Args:
        directory: for its files, in a directory of its own named `name`.
        dns: what it resolves names with; without one, what the machine is set to.
        tls_port, http_port: where it validates tls-alpn-01 and http-01; a free port where not given.
        validity_seconds: lifetime of what it issues. notBefore is now.
        nonce_reject: percentage of good nonces that it refuses with badNonce.
        authz_reuse: percentage of valid authorizations that are used again in new orders.
        eab: key ids with their MAC keys (base64url) of external accounts; given, no account is made without one.
        alternate_roots: how many chains a certificate has besides the first.
        chain_length: intermediates between leaf and root.
        always_valid: it believes every challenge without a look.
        strict: tries out what the next version of the API will refuse.
        blocklist: names that it refuses with rejectedIdentifier. Pebble 2.4.0 panics on a name that is shorter than
            one of them and ends like it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        dns: ChallengeDns | None = None,
        tls_port: int | None = None,
        http_port: int | None = None,
        validity_seconds: int = 90 * DAY_SECONDS,
        nonce_reject: int = 0,
        authz_reuse: int = 0,
        eab: Mapping[str, str] | None = None,
        alternate_roots: int = 0,
        chain_length: int = 1,
        always_valid: bool = False,
        strict: bool = True,
        blocklist: Sequence[str] = (),
        name: str = "pebble",
    ) -> None:
        assert PEBBLE is not None, MISSING
        self._directory = directory
        own = directory / f"{name}-files"
        own.mkdir()
        authority = Authority(own)
        self.ca_file = authority.root
        certificate = own / "certificate.pem"
        certificate.touch(mode=0o600)
        certificate.write_bytes(authority.issue("localhost", LOCALHOST))
        self._trust = ssl.create_default_context(cafile=self.ca_file)

        self.port = free_port()
        self.directory_url = f"https://{LOCALHOST}:{self.port}/dir"
        self.tls_port, self.http_port = tls_port or free_port(), http_port or free_port()
        self._management_port = free_port()
        settings = {
            "listenAddress": f"{LOCALHOST}:{self.port}",
            "managementListenAddress": f"{LOCALHOST}:{self._management_port}",
            "certificate": str(certificate),
            "privateKey": str(certificate),
            "tlsPort": self.tls_port,
            "httpPort": self.http_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": eab is not None,
            "externalAccountMACKeys": dict(eab or {}),
            "domainBlocklist": list(blocklist),
            "certificateValidityPeriod": validity_seconds,
        }
        config = own / "config.json"
        config.write_text(json.dumps({"pebble": settings}))
        self._arguments: list[str | Path] = [PEBBLE, "-config", config, f"-strict={str(strict).lower()}"]
        if dns is not None:
            self._arguments += ["-dnsserver", dns.address]
        self._environment = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_VA_ALWAYS_VALID": str(int(always_valid)),
            "PEBBLE_WFE_NONCEREJECT": str(nonce_reject),
            "PEBBLE_AUTHZREUSE": str(authz_reuse),
            "PEBBLE_ALTERNATE_ROOTS": str(alternate_roots),
            "PEBBLE_CHAIN_LENGTH": str(chain_length),
        }
        super().__init__(name, self._arguments, directory, environment=self._environment)

    def await_ready(self) -> None:
        """Waits until its directory and its management answer; an error with its own words if it has ended."""
        until(self._answers_or_ended, f"{self.name} answers", self)

    def restart(self) -> None:
        """Ends it and starts it anew, on the same ports, with nothing of what it knew; returns when it is ready."""
        self.kill()
        super().__init__(self.name, self._arguments, self._directory, environment=self._environment)
        self.await_ready()

    def root(self, number: int = 0) -> str:
        """The root above what it issues, as PEM; those from 1 on are of the alternate chains."""
        return self._managed(f"/roots/{number}").decode()

    def intermediate(self, number: int = 0) -> str:
        """The certificate that signs the leaves, as PEM; those from 1 on are of the alternate chains."""
        return self._managed(f"/intermediates/{number}").decode()

    def status(self, serial: int) -> str:
        """What it thinks of a certificate that it has issued: `Valid` or `Revoked`."""
        return str(json.loads(self._managed(f"/cert-status-by-serial/{serial:x}"))["Status"])

    def _managed(self, path: str) -> bytes:
        status, body = self._get(self._management_port, path)
        assert status == 200, f"{path}: {status} {body!r}"
        return body

    def _get(self, port: int, path: str) -> tuple[int, bytes]:
        connection = HTTPSConnection(LOCALHOST, port, timeout=PATIENCE_SECONDS, context=self._trust)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _answers_or_ended(self) -> bool:
        _must_run(self)
        try:
            return self._get(self.port, "/dir")[0] == self._get(self._management_port, "/roots/0")[0] == 200
        except ssl.SSLCertVerificationError:
            raise  # which does not mend itself
        except (OSError, HTTPException):
            return False


def _must_run(program: Program) -> None:
    if not program.running:
        raise AssertionError(f"{program.name} has ended with {program.wait()}; it said:\n{program.stderr}")
