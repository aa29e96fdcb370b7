"""The demo's clients: one request that is looked at closely, and many that must not fail while certificates change."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, cast

from sniproxy.app.demo.programs import StepFailed, undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOST = "127.0.0.1"
REGULAR = "127.0.0.4"
"""The address of the client that never stops."""

GOOD_LOG_LINE = re.compile(rf"{re.escape(REGULAR)}:\d+ (\[.* -- |GET \S+ HTTP/1\.1 200 )")
"""What sniproxy and HAProxy log of its requests, if all went well."""

ANSWER_SECONDS = 10.0
"""For any one answer, which takes milliseconds: more than this is a failure, on a busy machine too."""

PAUSE_SECONDS = 0.02
"""Between two requests: about 40 a second, and half of both processors left for those who answer them."""
CALM_PAUSE_SECONDS = 0.25
"""Likewise once everything has been shown: what is logged in a night must find room on the disk."""
KEPT_PAUSE_SECONDS = 0.25
CALM_KEPT_PAUSE_SECONDS = 1.0
"""On the connection that stays open: HAProxy closes one that is idle for timeout http-keep-alive, which is 4 s."""

REQUESTS_FAILED = (
    "no request may fail while a certificate changes: look for its client's address in the lines above;"
    " if the machine was not asleep, please report it with them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A certificate as a client has got it: `serial` in hex as sniproxy writes it, aware times, and its issuer."""

    serial: str
    issuer: str
    not_before: datetime
    not_after: datetime


class Client:
    """Connects as a browser would: the certificate has to be good for the name, and from the CA in `ca_file`."""

    def __init__(self, port: int, ca_file: Path) -> None:
        self._port = port
        self._ca_file = ca_file

    def connect(self, name: str, address: str, *protocols: str) -> ssl.SSLSocket:
        """A connection to `name` from a client's `address`, for protocols of ALPN. Raises OSError."""
        context = ssl.create_default_context(cafile=self._ca_file)
        context.set_alpn_protocols(list(protocols))
        connection = socket.create_connection((HOST, self._port), ANSWER_SECONDS, source_address=(address, 0))
        try:
            return context.wrap_socket(connection, server_hostname=name)
        except BaseException:
            connection.close()
            raise


def get_page(tls: ssl.SSLSocket, *, last: bool = False) -> str:
    """Asks for the page; the `last` time, it lets the server be the one to close.

    Raises OSError, http.client.HTTPException; StepFailed where the answer is another one.
    """
    name = tls.server_hostname
    end = "Connection: close\r\n" if last else ""
    tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n{end}\r\n".encode("ascii"))
    response = http.client.HTTPResponse(tls)
    with contextlib.closing(response):
        response.begin()
        text = response.read().decode("utf-8", "replace")
    if response.status != http.client.OK:
        raise StepFailed(f"https://{name}/ answers with status {response.status}: {text[:200]!r}")
    if last and tls.recv(1):
        raise StepFailed(f"https://{name}/ sends more than its answer")
    return text


def served(tls: ssl.SSLSocket) -> Served:
    """The certificate of a connection."""
    certificate = tls.getpeercert()
    assert certificate is not None

    def text(key: str) -> str:
        value = certificate[key]
        assert isinstance(value, str)
        return value

    issuer = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate["issuer"])
    names = dict(pair for relative in issuer for pair in relative)
    return Served(
        serial=text("serialNumber").lower(),
        issuer=names.get("commonName", "?"),
        not_before=datetime.fromtimestamp(ssl.cert_time_to_seconds(text("notBefore")), UTC),
        not_after=datetime.fromtimestamp(ssl.cert_time_to_seconds(text("notAfter")), UTC),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The first handshake with a certificate: when it was over, in seconds since the epoch."""

    served: Served
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Requests so far, answered or not. `kept` are those over the connection that stays open. `sightings` in order."""

    requests: int
    kept: int
    failed: int
    sightings: tuple[Sighting, ...]


class Traffic:
    """Requests without a pause to speak of: each over a new connection, and beside them all over one that stays.

    connect: makes a connection. From `start` to `stop`, or to the end of what answers.
    """

    def __init__(self, connect: Callable[[], ssl.SSLSocket]) -> None:
        self._connect = connect
        self._pause, self._kept_pause = PAUSE_SECONDS, KEPT_PAUSE_SECONDS
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._new = self._kept = 0
        self._failed = 0
        self._first_failure = ""
        self._sightings: list[Sighting] = []
        self._threads = [
            threading.Thread(target=partial(self._ask, work, who), daemon=True)
            for work, who in ((self._ask_anew, "a new connection"), (self._ask_on, "the connection that stays open"))
        ]

    def start(self) -> None:
        """Begins."""
        with undisturbed():  # which they inherit: signals are for the main thread
            for thread in self._threads:
                thread.start()

    def calm_down(self) -> None:
        """Fewer from now on."""
        self._pause, self._kept_pause = CALM_PAUSE_SECONDS, CALM_KEPT_PAUSE_SECONDS

    def end(self) -> None:
        """Lets it end, without waiting for that."""
        self._over.set()

    def stop(self) -> None:
        """Ends it, when what is being asked is answered. Does nothing where it has ended, or not begun."""
        self.end()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * ANSWER_SECONDS)

    def totals(self) -> Totals:
        """What there is so far."""
        with self._lock:
            return Totals(
                requests=self._new + self._kept + self._failed,
                kept=self._kept,
                failed=self._failed,
                sightings=tuple(self._sightings),
            )

    def check(self) -> None:
        """Raises StepFailed if a request has failed."""
        with self._lock:
            failed, total, first = self._failed, self._new + self._kept + self._failed, self._first_failure
        if failed:
            raise StepFailed(f"{failed} of {total} requests failed; the first: {first}", advice=REQUESTS_FAILED)

    # ------------------------------------------------------------------ each in a thread of its own

    def _ask(self, work: Callable[[], None], who: str) -> None:
        """Does the work again and again."""
        while not self._over.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001  whatever it is, the request has failed
                self._fail(f"{datetime.now().astimezone():%H:%M:%S.%f}, {who}: {type(error).__name__}: {error}")
                self._over.wait(self._pause)

    def _ask_anew(self) -> None:
        with self._connect() as tls:
            self._see(served(tls))
            get_page(tls, last=True)
        with self._lock:
            self._new += 1
        self._over.wait(self._pause)

    def _ask_on(self) -> None:
        with self._connect() as tls:
            self._see(served(tls))
            last = False
            while not last:
                last = self._over.wait(self._kept_pause)
                get_page(tls, last=last)
                with self._lock:
                    self._kept += 1

    def _see(self, certificate: Served) -> None:
        at = time.time()
        with self._lock:
            if all(certificate.serial != sighting.served.serial for sighting in self._sightings):
                self._sightings.append(Sighting(served=certificate, at=at))

    def _fail(self, words: str) -> None:
        with self._lock:
            self._failed += 1
            self._first_failure = self._first_failure or words
