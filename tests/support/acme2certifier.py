"""A second ACME CA that is not Pebble's kin: acme2certifier, with renewal information and profiles.

It is under the GPL, so it runs as a program of its own and nothing of it is imported here. It looks at challenges on the
real ports, 443 and 80, and asks DNS servers on 53; all of it is on addresses of 127.0.0.0/8 that nobody else uses, but
low ports have to be permitted. It is not strict (0.46.3 lets another name in a tls-alpn-01 certificate pass), and
answers a second order with the same `replaces` with 201.
"""

from __future__ import annotations

import importlib.util
import json
import random
import socket
import sys
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

from tests.support import pebble
from tests.support.acme_issuer import Issuer
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, Program, free_port, until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.pebble import ChallengeDns

DNS_PORT, HTTP_PORT, TLS_PORT = 53, 80, 443
PROFILES = {"classic": "as ever", "short": "not for long"}

# In the child alone, as its own server does: threads, because a client may keep one connection and use another.
_SERVE = """
import socketserver, sys, wsgiref.simple_server
from acme2certifier.share.acme2certifier_wsgi import application, get_handler_cls
class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
wsgiref.simple_server.make_server(sys.argv[1], int(sys.argv[2]), application, Server, get_handler_cls()).serve_forever()
"""


def loopback_address(*ports: int) -> str:
    """An address of 127.0.0.0/8 where these ports are free for TCP and UDP; OSError where they are not permitted."""
    for _ in range(100):
        address = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(2, 254)}"
        try:
            for port in ports:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET, kind) as probe:
                        probe.bind((address, port))
        except PermissionError:
            raise
        except OSError:
            continue
        return address
    raise OSError("no free address on loopback")


def _missing() -> str:
    if importlib.util.find_spec("acme2certifier") is None:
        return "acme2certifier is not installed"
    if not pebble.AVAILABLE:
        return "pebble-challtestsrv, its DNS, is not installed"
    try:
        loopback_address(DNS_PORT, HTTP_PORT, TLS_PORT)
    except OSError as error:
        return f"ports below 1024 cannot be listened on: {error.strerror or error}"
    return ""


MISSING = _missing()
"""Why it cannot run here; empty where it can."""

AVAILABLE = not MISSING


class Acme2Certifier(Program):
    """`acme2certifier` on a free port of 127.0.0.1, by plain http, signing with an intermediate of its own.

    Args:
        directory: for its files, in a directory of its own named `name`.
        dns: what it resolves names with; has to listen on port 53.
        validity_days: lifetime of what it issues. notBefore is now.
        profiles: their names with their descriptions, in the directory's meta.
        renew_percent: of the lifetime, after which renewal information suggests to renew.
        retry_after: of renewal information, in seconds.
    """

    def __init__(
        self,
        directory: Path,
        dns: ChallengeDns,
        *,
        validity_days: int = 90,
        profiles: Mapping[str, str] = PROFILES,
        renew_percent: float = 66,
        retry_after: int = 21600,
        name: str = "acme2certifier",
    ) -> None:
        assert AVAILABLE, MISSING
        assert dns.port == DNS_PORT, "it asks no other port"
        own = directory / f"{name}-files"
        (own / "issued").mkdir(parents=True)
        self._issuer = Issuer(name=name)
        key, certificate = own / "key.pem", own / "certificate.pem"
        key.touch(mode=0o600)
        for path, content in zip((key, certificate), self._issuer.signer_pem, strict=True):
            path.write_bytes(content)
        config = own / "acme_srv.cfg"
        config.write_text(f"""\
[DEFAULT]
debug: False
dns_server_list: {json.dumps([dns.host])}

[DBhandler]
handler: wsgi
dbfile: {own / "acme.db"}

[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {key}
issuing_ca_cert: {certificate}
issuing_ca_crl: {own / "crl.pem"}
cert_save_path: {own / "issued"}
cert_validity_days: {validity_days}

[Challenge]
dns_01_support: False

[Order]
profiles: {json.dumps(dict(profiles))}

[Renewalinfo]
renewalthreshold_pctg: {renew_percent}
retry_after_timeout: {retry_after}
""")
        self.port = free_port()
        self.directory_url = f"http://{LOCALHOST}:{self.port}/directory"
        super().__init__(
            name,
            (sys.executable, "-c", _SERVE, LOCALHOST, str(self.port)),
            directory,
            environment={"ACME_SRV_CONFIGFILE": str(config), "ACME2CERTIFIER_BASE_DIR": str(own)},
        )

    def await_ready(self) -> None:
        """Waits until its directory answers; an error with its own words if it has ended."""
        until(self._answers_or_ended, f"{self.name} answers", self)

    def root(self) -> str:
        """The root above what it issues, as PEM."""
        return self._issuer.root_pem

    def _answers_or_ended(self) -> bool:
        if not self.running:
            raise AssertionError(f"{self.name} has ended with {self.wait()}; it said:\n{self.stderr}")
        connection = HTTPConnection(LOCALHOST, self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", "/directory")
            response = connection.getresponse()
            return response.status == 200 and "newOrder" in json.load(response)
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
