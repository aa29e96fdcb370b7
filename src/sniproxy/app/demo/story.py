"""A complete set-up on this machine's loopback, and the proof that it works.

    ACME CA → the proxy → HAProxy → certificate → requests → renewals under traffic → drain → all of it removed

`Demo` is the story: its steps, in this order. Each does one thing, waits until that shows, and returns what it found;
nothing waits without a deadline. `setup` has what runs, `traffic` the clients, `files` the configurations.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from sniproxy.app.demo.files import CLIENT, DRAIN_SECONDS, INTERNAL_NAME, NAME
from sniproxy.app.demo.programs import StepFailed, undisturbed
from sniproxy.app.demo.setup import ANSWER_SECONDS, START_SECONDS, Setup
from sniproxy.app.demo.traffic import REGULAR, Client, Traffic, get_page, served
from sniproxy.app.proxy import CUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sniproxy.app.demo.setup import Metrics
    from sniproxy.app.demo.traffic import Served, Sighting

T = TypeVar("T")

STRANGER = "127.0.0.3"
"""The address of a client that one of the names is not for."""

VALIDITY_SECONDS = 90
"""A certificate's life, where Let's Encrypt's have 90 days. When half of it is over the next one is ordered."""

ISSUE_SECONDS = 60.0
"""From an order to a client that sees the certificate: it takes half a second, and longer on a machine that is busy."""
SIGHT_SECONDS = 15.0
"""Likewise, from a certificate that HAProxy has to a client that sees it."""
LOOK_SECONDS = 0.05
COUNTDOWN_SECONDS = 0.25

LOG_SECONDS = 0.5
"""Until what is logged about a request that failed can be read."""

ABOUT_SECONDS = 10
"""What everything takes that is not waiting for a renewal."""


@dataclass(frozen=True, slots=True)
class Step:
    """`work` returns what it found, for people. `advice` is what to do when it fails."""

    title: str
    work: Callable[[], str]
    advice: str


class Demo:
    """One run. As a context manager it gives back everything at the end: programs, ports, files.

    keep: leave the files where they are. validity_seconds: a certificate's life. start_seconds: how long a program may
    take to be ready. waiting: told what it is that a step waits for, and how long still, where that is long.

    Raises StepFailed where a program is missing.
    """

    def __init__(
        self,
        *,
        keep: bool = False,
        validity_seconds: int = VALIDITY_SECONDS,
        start_seconds: float = START_SECONDS,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.setup = Setup(keep=keep, validity_seconds=validity_seconds, start_seconds=start_seconds)
        self._validity_seconds = validity_seconds
        self._waiting = waiting
        self._page: dict[str, str] = {}
        self._traffic = Traffic(partial(self._connect, NAME, REGULAR, "http/1.1"))

    def __enter__(self) -> Self:
        self.setup.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with undisturbed():
            self._traffic.end()
            self.setup.__exit__(kind, error, traceback)
            self._traffic.stop()

    @property
    def about_seconds(self) -> int:
        """How long all steps take, more or less."""
        return self._validity_seconds // 2 + ABOUT_SECONDS

    # ------------------------------------------------------------------ the steps

    @property
    def steps(self) -> tuple[Step, ...]:
        """Everything up to a set-up that runs and is proven to work."""
        internal = "compare what the two words above say with the [[routes]] of sniproxy.toml"
        late = "look at what sniproxy said of the certificate, and pebble of its order; on a busy machine, try again"
        report = "this should not happen anywhere; please report it, with these lines"
        return (
            Step("ACME CA", self._start_ca, "look at what pebble said, and for firewalls on the loopback"),
            Step("sniproxy", self._start_proxy, "look at what sniproxy said, and for firewalls on the loopback"),
            Step(
                "HAProxy",
                self._start_haproxy,
                "HAProxy must be allowed to read files and to make a socket there; TMPDIR names another place",
            ),
            Step("certificate", self._await_first, late),
            Step("HTTP/1.1", self._request_page, report),
            Step("HAProxy saw", self._read_page, report),
            Step("log", self._find_log_line, report),
            Step("HTTP/2", self._greet_http2, "HAProxy must be built with HTTP/2: see `haproxy -vv`"),
            Step("traffic", self._start_traffic, report),
            Step("renew", self._renew, late),
            Step("on schedule", self._await_next, late),
            Step("requests", self._count_requests, report),
            Step("certs", self._list_certificates, report),
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
            raise StepFailed(str(failure), self.setup.words(), failure.advice) from failure
        except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
            raise StepFailed(f"{type(error).__name__}: {error}", self.setup.words()) from error

    def go_on(self) -> Iterator[tuple[str, str]]:
        """What happens from now on, as it comes, with who says so: what HAProxy and the proxy log, and each renewal.

        Raises StepFailed if a program ends, or a request of the traffic fails.
        """
        self._traffic.calm_down()
        seen = len(self._traffic.totals().sightings)
        for lines in self.setup.log_lines():
            yield from lines
            totals = self._traffic.totals()
            for sighting in totals.sightings[seen:]:
                counts = f"{totals.requests} requests so far, {totals.failed} failed"
                yield "traffic", f"renewed: {_in_words(sighting.served)}; {counts}"
            seen = len(totals.sightings)
            self._must_be_well()
            time.sleep(LOOK_SECONDS)

    def _must_be_well(self) -> None:
        """Raises StepFailed if a program has ended, or a request has failed."""
        self.setup.must_live()
        try:
            self._traffic.check()
        except StepFailed as failure:
            time.sleep(LOG_SECONDS)
            raise StepFailed(str(failure), self.setup.words(), failure.advice) from failure

    def _wait(self, shows: Callable[[], T | None], otherwise: str, seconds: float) -> T:
        """Waits until something shows, and returns it. Raises StepFailed if it does not, or if all is not well."""
        deadline = time.monotonic() + seconds
        while not (found := shows()):
            self._must_be_well()
            if time.monotonic() > deadline:
                raise StepFailed(f"{otherwise} after {seconds:g} s{self._last_error()}")
            time.sleep(LOOK_SECONDS)
        return found

    # ------------------------------------------------------------------ start

    def _start_ca(self) -> str:
        url = self.setup.start_ca(NAME)
        return f"Pebble on {url}, with a DNS beside it; what it issues lasts {self._validity_seconds} s"

    def _start_proxy(self) -> str:
        program = self.setup.start_proxy()
        return f"on 127.0.0.1:{self.setup.port}, as process {program.pid}; HAProxy has a placeholder to start with"

    def _start_haproxy(self) -> str:
        program, version = self.setup.start_haproxy()
        return f"{version} ends TLS behind it, on {self.setup.directory}/haproxy.sock, as process {program.pid}"

    def _await_first(self) -> str:
        def is_deployed() -> bool:
            metrics = self.setup.metrics()
            self._must_not_have_failed(metrics)
            return metrics.sum("sniproxy_certificate_deployed") == 1

        self._wait(is_deployed, "no certificate is served", ISSUE_SECONDS)
        with self._connect(NAME, CLIENT, "http/1.1") as tls:
            first = served(tls)
            get_page(tls, last=True)
        lifetime = (first.not_after - first.not_before).total_seconds() + 1  # both ends belong to it
        if lifetime > self._validity_seconds + 1:
            raise StepFailed(f"pebble was told {self._validity_seconds} s, and its certificate lasts {lifetime:.0f} s")
        return (
            f"for {NAME} and {INTERNAL_NAME}, validated by tls-alpn-01; HAProxy serves it:\n"
            f"{_in_words(first)}, by {first.issuer}"
        )

    def _must_not_have_failed(self, metrics: Metrics) -> None:
        """Raises StepFailed if a certificate could not be obtained: the next attempt would be too late."""
        if metrics.sum("sniproxy_certificate_renewals_total", 'result="failure"'):
            raise StepFailed(f"no certificate was issued{self._last_error()}")

    def _last_error(self) -> str:
        try:
            error = self.setup.certificate()["last_error"]
        except StepFailed as failure:
            return f", nor does `certs` say why: {failure}"
        return f": {error}" if error else ""

    # ------------------------------------------------------------------ proof

    def _connect(self, name: str, client: str, *protocols: str) -> ssl.SSLSocket:
        return Client(self.setup.port, self.setup.ca_file).connect(name, client, *protocols)

    def _request_page(self) -> str:
        began = time.monotonic()
        with self._connect(NAME, CLIENT, "http/1.1") as tls:
            version = tls.version()
            text = get_page(tls, last=True)
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
        proxy, identity = self.setup.proxy, self._page["fc_pp_unique_id"]
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in proxy.lines() if line.endswith(identity)]
            return bool(found)

        proxy.wait_until(look, f"no line of sniproxy's log ends in {identity}", ANSWER_SECONDS)
        return f"the same id ends the connection's line in sniproxy's log:\n{found[0]}"

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

    # ------------------------------------------------------------------ renewals under traffic

    def _start_traffic(self) -> str:
        self._traffic.start()

        def has_begun() -> bool:
            totals = self._traffic.totals()
            return totals.requests > totals.kept > 0

        self._wait(has_begun, "no request is answered", SIGHT_SECONDS)
        return f"requests without a break from {REGULAR}: a new connection for each, and one that stays open"

    def _renew(self) -> str:
        known = self._known_serials()
        (result,) = json.loads(self.setup.command("renew", "--force", "--json", seconds=ISSUE_SECONDS))
        new = self._wait(lambda: self._first_unknown(known), "no client gets the new certificate", SIGHT_SECONDS)
        if result["status"]["serial"] != new.served.serial:
            serial = result["status"]["serial"]
            raise StepFailed(f"`sniproxy renew` tells of serial {serial}, and clients get {new.served.serial}")
        self._await_kept()
        return (
            f"by `sniproxy renew --force`: {_in_words(new.served)}\n"
            f"{self._how_soon(new)}; the connection that was open before goes on"
        )

    def _await_next(self) -> str:
        known = self._known_serials()
        metrics = self.setup.metrics()
        ends = metrics.sum("sniproxy_certificate_not_after_timestamp_seconds")
        due = metrics.sum("sniproxy_certificate_renew_at_timestamp_seconds")
        while not (new := self._first_unknown(known)):
            self._must_be_well()
            metrics = self.setup.metrics()
            self._must_not_have_failed(metrics)
            if metrics.sum("sniproxy_certificate_not_after_timestamp_seconds") == ends:
                # The CA may have been asked meanwhile, and have said another time.
                due = metrics.sum("sniproxy_certificate_renew_at_timestamp_seconds")
            left = due - time.time()
            if left < -ISSUE_SECONDS:
                raise StepFailed(f"no new certificate {ISSUE_SECONDS:g} s after it was due{self._last_error()}")
            at, totals = _time(datetime.fromtimestamp(due, UTC)), self._traffic.totals()
            so_far = f"{totals.requests} requests so far, {totals.failed} failed"
            self._waiting(f"the next renewal comes by itself, at {at}: in {max(left, 0):.0f} s; {so_far}")
            time.sleep(COUNTDOWN_SECONDS)
        self._await_kept()
        return (
            f"by itself: {_in_words(new.served)}\n"
            f"{self._how_soon(new)}; HAProxy is still process {self.setup.haproxy.pid}, nothing was reloaded"
        )

    def _known_serials(self) -> set[str]:
        return {sighting.served.serial for sighting in self._traffic.totals().sightings}

    def _first_unknown(self, known: set[str]) -> Sighting | None:
        sightings = self._traffic.totals().sightings
        return next((sighting for sighting in sightings if sighting.served.serial not in known), None)

    def _await_kept(self) -> None:
        """Until there was one more answer on the connection that stays open, and over new ones."""
        before = self._traffic.totals()

        def goes_on() -> bool:
            now = self._traffic.totals()
            return now.kept > before.kept and now.requests - now.kept > before.requests - before.kept

        self._wait(goes_on, "requests hang", SIGHT_SECONDS)

    def _how_soon(self, sighting: Sighting) -> str:
        delay = (sighting.at - self.setup.bundle.stat().st_ctime) * 1000
        return f"a client got it {max(delay, 0):.0f} ms after it was on disk"

    def _count_requests(self) -> str:
        self._must_be_well()
        totals = self._traffic.totals()
        return (
            f"{totals.requests} requests, {totals.failed} failed, serials seen: {len(totals.sightings)}\n"
            f"{totals.kept} of them over the one connection that stays open"
        )

    # ------------------------------------------------------------------ commands

    def _list_certificates(self) -> str:
        certificate = self.setup.certificate()
        newest = self._traffic.totals().sightings[-1].served.serial
        if not certificate["deployed"] or certificate["serial"] != newest:
            raise StepFailed(f"clients get serial {newest}, and `sniproxy certs` says {certificate}")
        renewal = _time(datetime.fromisoformat(certificate["renew_at"]))
        return f"{certificate['name']}: serial {newest}, deployed, next renewal {renewal} ({certificate['reason']})"

    def _explain_refusal(self) -> str:
        arguments = ("--sni", INTERNAL_NAME, "--from", STRANGER, "--json")
        explained = json.loads(self.setup.command("explain", *arguments))
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
        self.setup.command("healthcheck")
        return "exit status 0: ready"

    def _add_up_metrics(self) -> str:
        metrics = self.setup.metrics()
        accepted = metrics.sum("sniproxy_connections_accepted_total")
        active = metrics.sum("sniproxy_connections_active")
        outcomes: dict[str, float] = {}
        for labels, count in metrics.samples("sniproxy_connections_total").items():
            outcome = labels.partition('outcome="')[2].partition('"')[0]
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        terms = [f"{active:.0f} active", *(f"{count:.0f} {outcome}" for outcome, count in outcomes.items() if count)]
        if not accepted or accepted != active + sum(outcomes.values()):
            raise StepFailed(f"{accepted:.0f} accepted is not {' + '.join(terms)}")
        return f"{accepted:.0f} accepted = {' + '.join(terms)}"

    # ------------------------------------------------------------------ the end

    def _drain(self, *, guests: bool) -> str:
        """A connection that is open at TERM goes on, new ones are refused, and when it is over the proxy ends."""
        self._must_be_well()
        self._traffic.stop()
        self._must_be_well()
        total = f"{self._traffic.totals().requests} requests in all, 0 failed"
        proxy = self.setup.proxy
        with self._connect(NAME, CLIENT, "http/1.1") as tls:
            get_page(tls)
            proxy.terminate()
            proxy.wait_until(self._refuses_new_ones, "sniproxy goes on accepting after TERM", ANSWER_SECONDS)
            get_page(tls, last=True)
        code = proxy.wait(DRAIN_SECONDS + ANSWER_SECONDS)
        if code == CUT and guests:
            return f"{total}; connections that did not end within {DRAIN_SECONDS} s were cut; exit status {CUT}"
        if code:
            raise StepFailed(f"sniproxy drained, and exited with {code}")
        return f"{total}\nafter TERM an open connection was still answered, a new one refused; exit status 0"

    def _refuses_new_ones(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.setup.port), ANSWER_SECONDS).close()
        except ConnectionRefusedError:
            return True
        return False


def _in_words(certificate: Served) -> str:
    return f"serial {certificate.serial}, until {_time(certificate.not_after)}"


def _time(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%H:%M:%S} UTC"
