"""The demo's clients, against a TLS server in this process that may be told to change its certificate, or to fail."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from functools import partial

import pytest

from sniproxy.app.demo import traffic as demo_traffic
from sniproxy.app.demo.files import HAPROXY_CFG
from sniproxy.app.demo.programs import StepFailed
from sniproxy.app.demo.traffic import GOOD_LOG_LINE, REGULAR, Client, Traffic, get_page, served
from tests.support.pki import Authority
from tests.support.processes import until

NAME = "www.demo.test"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"


class Server:
    """Answers requests over TLS. `answer` is what it sends, None to hang up; `renew` gives it another certificate."""

    def __init__(self, authority, directory):
        self.answer: bytes | None = GOOD
        self.more = b""
        self.connections = 0
        self._authority, self._directory = authority, directory
        self.renew()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def renew(self):
        bundle = self._directory / "bundle.pem"
        bundle.write_bytes(self._authority.issue(NAME))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(bundle)
        context.set_alpn_protocols(["http/1.1"])
        self._context = context

    def close(self):
        # Wakes the thread that accepts.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with suppress(OSError), connection, self._context.wrap_socket(connection, server_side=True) as tls:
            text = b""
            while piece := tls.recv(65536):
                text += piece
                if not text.endswith(b"\r\n\r\n"):
                    continue
                if self.answer is None:
                    return
                tls.sendall(self.answer)
                if self.more:
                    tls.sendall(self.more)
                if b"Connection: close" in text:
                    tls.unwrap()
                    return
                text = b""


@pytest.fixture
def server(tmp_path):
    server = Server(Authority(tmp_path), tmp_path)
    yield server
    server.close()


@pytest.fixture
def client(server, tmp_path):
    return Client(server.port, tmp_path / "root.pem")


@pytest.fixture
def traffic(client):
    traffic = Traffic(partial(client.connect, NAME, REGULAR, "http/1.1"))
    yield traffic
    traffic.stop()


# ---------------------------------------------------------------------- one client


def test_a_request_is_answered(client):
    with client.connect(NAME, "127.0.0.2", "http/1.1") as tls:
        assert tls.getsockname()[0] == "127.0.0.2"
        assert tls.selected_alpn_protocol() == "http/1.1"
        assert get_page(tls) == get_page(tls, last=True) == "page"


def test_a_certificate_for_another_name_is_refused(client):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        client.connect("other.demo.test", "127.0.0.2")


def test_a_certificate_of_another_ca_is_refused(server, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        Client(server.port, Authority(tmp_path / "other").root).connect(NAME, "127.0.0.2")


def test_another_status_is_a_failure(client, server):
    server.answer = BUSY
    with client.connect(NAME, "127.0.0.2") as tls, pytest.raises(StepFailed, match="status 503: 'busy'"):
        get_page(tls, last=True)


def test_more_than_the_answer_is_a_failure(client, server):
    server.more = b"and more"
    with client.connect(NAME, "127.0.0.2") as tls, pytest.raises(StepFailed, match="more than its answer"):
        get_page(tls, last=True)


def test_the_certificate_as_a_client_has_it(client):
    with client.connect(NAME, "127.0.0.2") as tls:
        seen = served(tls)
        assert int(seen.serial, 16) == int(tls.getpeercert()["serialNumber"], 16)
        get_page(tls, last=True)
    assert seen.serial == seen.serial.lower()
    assert seen.issuer == "test root"
    assert seen.not_before.utcoffset().total_seconds() == 0
    assert seen.not_before < seen.not_after


# ---------------------------------------------------------------------- many requests


def test_nothing_is_asked_before_the_start(traffic, server):
    assert traffic.totals().requests == 0
    traffic.stop()
    assert server.connections == 0


def test_requests_go_over_new_connections_and_over_one_that_stays(traffic, server):
    traffic.start()
    until(lambda: traffic.totals().kept >= 3 and traffic.totals().requests >= 10, "requests")
    traffic.stop()
    totals = traffic.totals()
    assert totals.failed == 0
    assert len(totals.sightings) == 1
    assert server.connections == totals.requests - totals.kept + 1
    traffic.check()


def test_a_new_certificate_is_seen_while_the_old_connection_goes_on(traffic, server):
    traffic.start()
    until(lambda: traffic.totals().kept, "the connection that stays open")
    until(lambda: traffic.totals().sightings, "a certificate")
    server.renew()
    until(lambda: len(traffic.totals().sightings) == 2, "another certificate")
    kept = traffic.totals().kept
    until(lambda: traffic.totals().kept > kept, "the connection that stays open")
    traffic.stop()
    first, second = traffic.totals().sightings
    assert first.served.serial != second.served.serial
    assert first.at < second.at
    assert traffic.totals().failed == 0


@pytest.mark.parametrize(("answer", "words"), [(BUSY, "status 503"), (None, "RemoteDisconnected")])
def test_a_request_that_fails_is_counted_and_told(traffic, server, answer, words):
    traffic.start()
    until(lambda: traffic.totals().requests > 3, "requests")
    server.answer = answer
    until(lambda: traffic.totals().failed > 1, "failures")
    with pytest.raises(StepFailed, match=rf"\d+ of \d+ requests failed; the first: .*{words}") as caught:
        traffic.check()
    assert "no request may fail" in caught.value.advice
    totals = traffic.totals()
    assert totals.requests >= totals.failed + 4


def test_a_certificate_that_is_not_trusted_is_a_failed_request(server, tmp_path):
    (tmp_path / "other").mkdir()
    client = Client(server.port, Authority(tmp_path / "other").root)
    traffic = Traffic(partial(client.connect, NAME, REGULAR))
    traffic.start()
    until(lambda: traffic.totals().failed, "failures")
    traffic.stop()
    assert traffic.totals().sightings == ()
    with pytest.raises(StepFailed, match="SSLCertVerificationError"):
        traffic.check()


def test_whatever_goes_wrong_in_a_thread_is_a_failed_request():
    """A thread that ends with its exception would look like nothing ever failing."""

    def connect():
        raise LookupError("a bug")

    traffic = Traffic(connect)
    traffic.start()
    until(lambda: traffic.totals().failed > 1, "failures")
    traffic.stop()
    with pytest.raises(StepFailed, match="LookupError: a bug"):
        traffic.check()


def test_in_the_end_no_request_is_cut(traffic, server):
    traffic.start()
    until(lambda: traffic.totals().kept, "requests")
    traffic.stop()
    before = traffic.totals()
    assert before.failed == 0
    traffic.stop()
    assert traffic.totals() == before, "it has ended"


def test_the_connection_that_stays_open_is_never_idle_for_as_long_as_haproxy_allows():
    assert "timeout http-keep-alive 4s" in HAPROXY_CFG
    assert demo_traffic.CALM_KEPT_PAUSE_SECONDS < 4 / 2


# ---------------------------------------------------------------------- what is logged of it


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.4:38155 [25/Nov/2026:03:52:59.293] 127.0.0.1:41645 haproxy/unix:/d/haproxy.sock 0/0/2 3469 -- 1/1/1/1/0",
        "127.0.0.4:38155 GET / HTTP/1.1 200 910 84f4b72592ee-00000008",
    ],
)
def test_good_requests_are_not_worth_a_line(line):
    assert GOOD_LOG_LINE.match(line)


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.2:38155 GET / HTTP/1.1 200 910 84f4b72592ee-00000008",
        "127.0.0.4:38155 GET / HTTP/1.1 503 910 84f4b72592ee-00000008",
        "127.0.0.4:38155 [25/Nov/2026:03:52:59.293] 127.0.0.1:41645 haproxy/<NOSRV> 0/-1/2 7 SC 1/1/1/1/0",
        "sniproxy: info: certificate www.demo.test: due (lifetime)",
    ],
)
def test_all_others_are(line):
    assert not GOOD_LOG_LINE.match(line)
