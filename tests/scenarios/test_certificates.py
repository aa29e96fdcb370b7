"""Certificates on a whole site: obtained from Pebble, delivered into a real HAProxy, seen by real clients."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import ssl
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sniproxy.bundle import Bundle, read_certificates
from tests.support import haproxy, pebble
from tests.support.clients import CURL, Door, connected
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, until
from tests.support.site import NAMES, PAGE, Site, lines_with, rows

if TYPE_CHECKING:
    from tests.support.processes import Programs

pytestmark = [
    pytest.mark.skipif(haproxy.HAPROXY is None, reason=haproxy.MISSING),
    pytest.mark.skipif(not pebble.AVAILABLE, reason=pebble.MISSING),
    pytest.mark.skipif(CURL is None, reason="curl is not installed"),
]


@pytest.fixture
def site(programs: Programs) -> Site:
    return Site(programs=programs)


class Visitors(threading.Thread):
    """Requests without end, each over a new connection whose certificate is checked, until told to stop.

    `serials` are those seen, in their order; `failures` should be empty.
    """

    def __init__(self, door: Door, names: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self._door, self._names = door, names
        self._context = ssl.create_default_context(cafile=str(door.root))
        self._end = threading.Event()
        self.requests = 0
        self.serials: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._end.is_set():
            name = self._names[self.requests % len(self._names)]
            self.requests += 1
            try:
                self._visit(name)
            except Exception as error:
                self.failures.append(f"{name}: {error!r}")

    def _visit(self, name: str) -> None:
        with (
            connected(LOCALHOST, self._door.port) as plain,
            self._context.wrap_socket(plain, server_hostname=name) as tls,
        ):
            serial = str((tls.getpeercert() or {})["serialNumber"]).lower()
            if serial not in self.serials:
                self.serials.append(serial)
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            response = http.client.HTTPResponse(tls)
            response.begin()
            text = response.read().decode()
            assert (response.status, text) == (200, PAGE), f"{response.status} {text}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join(PATIENCE_SECONDS)


# ---------------------------------------------------------------------- from nothing


def test_from_nothing_to_a_trusted_page(site: Site) -> None:
    """Nothing is there but the programs and an empty directory; in the end a browser would not ask a question."""
    site.start(nonce_reject=15)
    status = site.await_deployed()
    door = site.door()
    for name in NAMES:
        assert door.curl(f"https://{name}/").decode() == PAGE
    assert status["names"] == list(NAMES)
    assert status["serial"] == site.served_serial()
    assert status["last_error"] is None


def test_haproxy_may_start_first_on_an_empty_directory(site: Site) -> None:
    """With `strict-sni` it starts without any certificate, and gets the first one at run time."""
    site.start_ca()
    site.start_haproxy(certificates=f"crt {site.certificates} strict-sni")
    site.start_sniproxy()
    assert site.await_deployed()["serial"] == site.served_serial()
    assert site.door().curl(f"https://{NAMES[0]}/").decode() == PAGE


def test_twenty_renewals_and_no_request_fails(site: Site) -> None:
    """20 renewals under continuous requests with zero failed requests; a delivery that took longer than two
    seconds from commit to the first handshake is an error of its own (haproxy.delivery.COMMIT_SECONDS)."""
    site.start(nonce_reject=15)
    serials = [site.await_deployed()["serial"]]
    door = site.door()
    with connected(LOCALHOST, site.port) as plain:
        context = ssl.create_default_context(cafile=str(door.root))
        with context.wrap_socket(plain, server_hostname=NAMES[0]) as lasting, Visitors(door, NAMES) as visitors:
            for _ in range(20):
                (result,) = site.renew(force=True)
                assert result["result"] == "renewed"
                serials.append(result["status"]["serial"])
                assert site.served_serial() == serials[-1], "the next client sees it"
            until(lambda: serials[-1] in visitors.serials, "visitors see the last one", site.sniproxy)
            # A connection from before the first of them goes on.
            lasting.sendall(f"GET / HTTP/1.1\r\nHost: {NAMES[0]}\r\nConnection: close\r\n\r\n".encode())
            assert PAGE.encode() in b"".join(iter(lambda: lasting.recv(65536), b""))
    assert visitors.failures == []
    assert visitors.requests >= 20
    assert len(set(serials)) == 21
    assert [serial for serial in visitors.serials if serial not in serials] == []


def test_files_are_as_tight_as_promised(site: Site) -> None:
    """Contract section 4: state_dir 0700, its files 0600; certificate_dir/NAME.pem 0640 or tighter, no temporaries."""
    site.start()
    site.await_deployed()
    for path in (site.state, *site.state.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert [path.name for path in site.certificates.iterdir()] == [f"{NAMES[0]}.pem"]
    assert stat.S_IMODE(site.bundle().stat().st_mode) & ~0o640 == 0


def test_no_secret_is_in_any_log(site: Site) -> None:
    """No private key, token or key authorization in any log, at its most talkative level."""
    site.settings["acme"] = 'challenges = ["http-01"]'
    site.start()
    site.await_deployed()
    site.renew(force=True)
    secrets = ["PRIVATE KEY"]
    for path in [*site.state.rglob("*.pem"), site.bundle()]:
        text = path.read_text()
        key = text.partition("-----END PRIVATE KEY-----")[0].splitlines()[1:]
        secrets += [line for line in key if len(line) > 20]
    # Pebble says where it looks, and the token is the end of that; the key authorization begins with it.
    tokens = set(re.findall(r"acme-challenge/([A-Za-z0-9_-]{20,})", site.pebble.stdout))
    assert len(tokens) >= len(NAMES)
    secrets += tokens
    said = site.sniproxy.stdout + site.sniproxy.stderr
    assert "served: serial" in said
    assert lines_with(said, secrets) == []


# ---------------------------------------------------------------------- challenges


def test_http_01(site: Site) -> None:
    """RFC 8555 section 8.3: over [http], before any redirect."""
    site.settings["acme"] = 'challenges = ["http-01"]'
    site.start()
    site.await_deployed()
    assert site.sniproxy.metric("sniproxy_challenges_total", type="http-01", result="valid") == len(NAMES)
    connection = http.client.HTTPConnection(LOCALHOST, site.http_port, timeout=PATIENCE_SECONDS)
    for path, expected in (("/.well-known/acme-challenge/unknown", 404), ("/page?a=b", 308)):
        connection.request("GET", path, headers={"Host": "example.test"})
        response = connection.getresponse()
        response.read()
        assert response.status == expected
    connection.close()


def test_an_address_gets_a_certificate(site: Site) -> None:
    """RFC 8738: the server name of its validation is 1.0.0.127.in-addr.arpa. HAProxy is asked without a name."""
    site.settings["certificates"] = f'[[certificates]]\nnames = ["{LOCALHOST}"]\nname = "address"\n'
    site.start_ca()
    site.start_sniproxy()
    site.await_bundle("address")
    site.start_haproxy()
    assert site.await_deployed("address")["names"] == [LOCALHOST]


def test_validators_are_let_in_whatever_is_forbidden(site: Site) -> None:
    """Exempt from per-client limits and route CIDRs. Pebble asks three times at once, from one address."""
    site.settings["proxy"] = f"""\
max_connections_per_client = 1
[[routes]]
sni = ["{NAMES[0]}", "{NAMES[1]}"]
backend = "haproxy"
deny = ["{LOCALHOST}/32"]
"""
    site.settings["haproxy"] = 'verify = "backend:haproxy"'
    site.start()
    site.await_deployed()
    with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
        site.served()


def test_validations_of_other_names_go_to_their_route(site: Site) -> None:
    """Contract section 1: `acme-tls/1` for any other name follows its SNI route; `*.acme.invalid` never does."""
    site.start()
    site.await_deployed()
    before = site.sniproxy.metric("sniproxy_connections_total", outcome="relayed", backend="haproxy")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["acme-tls/1"])
    with connected(LOCALHOST, site.port) as plain, context.wrap_socket(plain, server_hostname=NAMES[0]) as tls:
        assert tls.getpeercert(binary_form=True) == site.served().public_bytes(Encoding.DER)
    until(
        lambda: site.sniproxy.metric("sniproxy_connections_total", outcome="relayed", backend="haproxy") >= before + 2,
        "both are over",
    )
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"), connected(LOCALHOST, site.port) as plain:
        context.wrap_socket(plain, server_hostname="ab.cd.acme.invalid")


# ---------------------------------------------------------------------- delivered, and kept so


def test_a_bundle_that_went_missing_is_restored_without_an_order(site: Site) -> None:
    """Contract section 1: restored from the store, without an order."""
    site.start()
    serial = site.await_deployed()["serial"]
    for damage in (lambda: site.bundle().unlink(), lambda: site.bundle().write_bytes(b"overwritten")):
        damage()
        (result,) = site.renew()
        assert result["result"] == "not_due"
        assert Bundle.parse(site.bundle().read_bytes()).leaf.serial == serial
    assert site.sniproxy.metric("sniproxy_certificate_renewals_total", certificate=NAMES[0], result="success") == 1


def test_an_existing_good_one_is_not_ordered_again_at_start(site: Site) -> None:
    """An existing good one is never re-ordered at start."""
    site.start()
    serial = site.await_deployed()["serial"]
    assert site.sniproxy.stop() == 0
    site.start_sniproxy(name="again")
    assert site.await_deployed()["serial"] == serial
    assert "ordered" not in site.sniproxy.stderr


def test_haproxy_comes_later_and_gets_it_by_itself(site: Site) -> None:
    """HAProxy away: reported, bounded, tried again from the store, and never issued again."""
    site.start_ca()
    site.start_sniproxy()
    site.sniproxy.says("not deployed")
    status = site.status()
    assert status["serial"] is not None
    assert status["deployed"] is False
    assert "haproxy" in status["last_error"]
    site.start_haproxy()
    assert site.await_deployed()["serial"] == status["serial"]
    assert site.status()["last_error"] is None


def test_haproxy_that_starts_anew_has_it_from_disk(site: Site) -> None:
    """Bundle first, then the runtime API: a restart gives what is on disk."""
    site.start()
    site.await_deployed()
    site.renew(force=True)
    serial = site.served_serial()
    site.haproxy.kill()
    site.start_haproxy()
    assert site.served_serial() == serial


def test_a_socket_without_the_right_level_is_told(site: Site) -> None:
    """Wrong level: reported, the old certificate keeps serving; exit 1 if issued and not deployed."""
    site.settings["haproxy"] = ""
    site.start_ca()
    site.start_sniproxy()
    site.await_bundle()
    low = site.directory / "low.admin"
    site.start_haproxy(globals_=f"    stats socket {low} mode 600 level operator")
    site.await_deployed()
    serial = site.served_serial()
    site.settings["haproxy"] = f'runtime_sockets = ["{low}"]'
    configuration = site.configuration().replace(f'runtime_sockets = ["{site.directory}/haproxy.admin"]\n', "")
    site.sniproxy.reload(configuration)
    until(lambda: site.status()["deployed"], "the reload is taken", site.sniproxy)
    done = site.command("renew", "--force", "--json")
    assert done.returncode == 1
    (row,) = rows(done)
    assert row["result"] == "not_deployed"
    assert "level admin" in row["error"]
    assert site.served_serial() == serial


def test_the_reload_command_does_what_the_runtime_api_cannot(site: Site) -> None:
    """Contract section 2: reload_command: argv, run only where the runtime API cannot do it."""
    site.start_ca()
    site.start_sniproxy()
    site.await_bundle()
    site.start_haproxy(master_worker=True)
    site.await_deployed()
    configuration = site.configuration().replace(
        f'runtime_sockets = ["{site.directory}/haproxy.admin"]', "runtime_sockets = []"
    )
    site.settings["haproxy"] = f'reload_command = ["/bin/kill", "-USR2", "{site.haproxy.pid}"]'
    configuration = site.configuration().replace(
        f'runtime_sockets = ["{site.directory}/haproxy.admin"]', "runtime_sockets = []"
    )
    site.sniproxy.reload(configuration)
    until(lambda: site.status()["deployed"], "the reload is taken", site.sniproxy)
    (result,) = site.renew(force=True)
    assert result["result"] == "renewed", result["error"]
    assert site.served_serial() == result["status"]["serial"]


def test_a_crt_list_gets_renewals_too(site: Site) -> None:
    """HAProxy with `crt-list` instead of a directory."""
    site.start_ca()
    site.start_sniproxy()
    site.await_bundle()
    crt_list = site.directory / "list.txt"
    crt_list.write_text(f"{site.bundle()}\n")
    site.start_haproxy(certificates=f"crt-list {crt_list}")
    first = site.await_deployed()["serial"]
    (result,) = site.renew(force=True)
    assert result["result"] == "renewed"
    assert first != site.served_serial() == result["status"]["serial"]


# ---------------------------------------------------------------------- change


def test_a_reload_adds_a_certificate_while_all_runs(site: Site) -> None:
    """A new name: `new ssl cert`, `add ssl crt-list`; no reload of HAProxy, and the others are left alone."""
    site.start()
    first = site.await_deployed()["serial"]
    worker = site.haproxy.worker()
    more = '\n[[certificates]]\nnames = ["new.example.test"]\n'
    site.sniproxy.reload(site.configuration() + more)
    site.await_deployed("new.example.test")
    assert site.door().curl("https://new.example.test/").decode() == PAGE
    assert site.haproxy.worker() == worker
    assert site.served_serial() == first


def test_names_that_changed_are_ordered_again(site: Site) -> None:
    """A certificate whose `names` changed is obtained again."""
    site.start()
    site.await_deployed()
    site.settings["certificates"] = (
        '[[certificates]]\nname = "www.example.test"\nnames = ["www.example.test", "api.example.test"]\n'
    )
    site.sniproxy.reload(site.configuration())
    until(
        lambda: "api.example.test" in site.status()["names"] and site.status()["deployed"],
        "the new names are there",
        site.sniproxy,
    )
    assert site.door().curl("https://api.example.test/").decode() == PAGE


def test_certificates_may_come_with_a_reload(site: Site) -> None:
    """A proxy that was started without any gets them all the same."""
    site.start_ca()
    whole = site.configuration()
    head, _, tail = whole.partition("[[certificates]]")
    without = head + "[haproxy]" + tail.partition("[haproxy]")[2]
    site.start_sniproxy(configuration=without)
    site.sniproxy.reload(whole)
    site.await_bundle()
    site.start_haproxy()
    site.await_deployed()


# ---------------------------------------------------------------------- trouble


def test_a_ca_that_is_away_is_told_and_the_old_one_serves(site: Site) -> None:
    """CA down: reported, bounded, old certificate keeps serving; the back-off is on disk."""
    site.start()
    serial = site.await_deployed()["serial"]
    site.pebble.kill()
    done = site.command("renew", "--force")
    assert done.returncode == 1
    assert "failed" in done.stdout
    status = site.status()
    assert status["last_error"]
    assert status["next_attempt"] is not None
    assert site.served_serial() == serial
    assert site.sniproxy.stop() == 0
    site.start_sniproxy(name="again")
    until(lambda: site.known() and site.status()["last_error"] == status["last_error"], "it remembers", site.sniproxy)
    site.pebble.restart()
    (result,) = site.renew(force=True)
    assert result["result"] == "renewed", "an account that the CA has forgotten is made again"
    assert site.status()["last_error"] is None


def test_what_the_ca_says_is_what_is_told(site: Site) -> None:
    """Failures carry the CA's own words."""
    site.start_ca(blocklist=("example.test",))
    site.start_sniproxy()
    site.sniproxy.says("rejectedIdentifier")
    assert "rejectedIdentifier" in site.status()["last_error"]
    assert site.sniproxy.metric("sniproxy_certificate_renewals_total", certificate=NAMES[0], result="failure") == 1


def test_killed_at_any_moment_it_goes_on(site: Site) -> None:
    """kill -9 in the middle of an order, a dozen times: the next start works, and one certificate comes of it."""
    site.start_ca()
    moments = ("account ", "ordered from", "answering", ": valid", "issued by", "served: serial")
    site.start_sniproxy(name="first")
    site.await_bundle()
    site.start_haproxy()
    site.await_deployed()
    for number, moment in enumerate(moments):
        site.sniproxy.kill()
        for path in (site.state / "certificates" / NAMES[0]).glob("0*.pem"):
            path.unlink()  # so that there is something to do
        site.start_sniproxy(name=f"killed-{number}")
        if number:
            site.sniproxy.says(moment)
        site.sniproxy.send(signal.SIGKILL)
        site.sniproxy.wait()
        site.start_sniproxy(name=f"after-{number}")
        status = site.await_deployed()
        assert status["serial"] == site.served_serial()
        (newest,) = sorted((site.state / "certificates" / NAMES[0]).glob("0*.pem"))[-1:]
        Bundle.parse(newest.read_bytes())
        assert not (site.state / "certificates" / NAMES[0] / "order.json").exists()


def test_hooks_are_run(site: Site) -> None:
    """`on_renewed`, `on_failed` as argv lists, no shell, data in environment and stdin."""
    said = site.directory / "said"
    copy = site.directory / "copy.sh"
    copy.write_text(
        f'#!/bin/sh\ncat >> {said}.tmp && echo "$SNIPROXY_BUNDLE" >> {said}.bundle && mv {said}.tmp {said}."$1"\n'
    )
    copy.chmod(0o755)
    site.settings["hooks"] = f'on_renewed = ["{copy}", "renewed"]\non_failed = ["{copy}", "failed"]\n'
    site.start_ca()
    site.start_sniproxy()
    site.await_bundle()
    failed = Path(f"{said}.failed")
    until(failed.exists, "the hook for a delivery that failed", site.sniproxy)
    assert json.loads(failed.read_text())["event"] == "failed"
    site.start_haproxy()
    renewed = Path(f"{said}.renewed")
    until(renewed.exists, "the hook for the one that went well", site.sniproxy)
    document = json.loads(renewed.read_text())
    assert (document["event"], document["names"], document["deployed"]) == ("renewed", list(NAMES), True)
    assert str(site.bundle()) in Path(f"{said}.bundle").read_text()


# ---------------------------------------------------------------------- commands


def test_renew_without_a_proxy_does_it_itself(site: Site) -> None:
    """Contract section 1: with no proxy running, does it itself."""
    site.start()
    first = site.await_deployed()["serial"]
    assert site.sniproxy.stop() == 0
    done = site.command("renew", "--force", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = rows(done)
    assert row["result"] == "renewed"
    assert row["status"]["serial"] != first
    bundle = read_certificates(site.bundle().read_bytes())
    assert f"{bundle[0].serial_number:x}" in row["status"]["serial"]


def test_a_revoked_certificate_is_replaced_first(site: Site) -> None:
    """RFC 8555 section 7.6; nobody is served a revoked certificate."""
    site.start()
    old = site.await_deployed()["serial"]
    done = site.command("revoke", NAMES[0], "--reason", "keyCompromise", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["result"], result["revoked"]) == ("renewed", old)
    assert site.served_serial() == result["status"]["serial"] != old
    assert site.pebble.status(int(old, 16)) == "Revoked"
    assert site.pebble.status(int(result["status"]["serial"], 16)) == "Valid"


def test_nothing_is_revoked_while_there_is_no_other(site: Site) -> None:
    site.start()
    old = site.await_deployed()["serial"]
    site.haproxy.kill()
    done = site.command("revoke", NAMES[0], "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["revoked"] is None
    assert site.pebble.status(int(old, 16)) == "Valid"


@pytest.mark.parametrize("running", [True, False], ids=["proxy runs", "no proxy"])
def test_an_account_gets_a_new_key(site: Site, *, running: bool) -> None:
    """RFC 8555 section 7.3.5: the URL stays, and orders go on."""
    site.start()
    site.await_deployed()
    if not running:
        assert site.sniproxy.stop() == 0
    (key,) = (site.state / "accounts").glob("*/key.pem")
    before = key.read_bytes()
    shown = json.loads(site.command("account", "--json").stdout)
    assert shown["directory"] == site.pebble.directory_url
    assert key.read_bytes() == before
    done = site.command("account", "--roll-over", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == shown
    assert key.read_bytes() != before
    if not running:
        site.start_sniproxy(name="again")
    (result,) = site.renew(force=True)
    assert result["result"] == "renewed", result["error"]


def test_a_dry_run_keeps_nothing(site: Site) -> None:
    """Contract section 1: `--dry-run` keeps nothing."""
    site.start()
    serial = site.await_deployed()["serial"]
    state = site.state / "certificates" / NAMES[0] / "state.json"
    until(lambda: json.loads(state.read_text())["ari_next_check"], "the CA was asked when to renew", site.sniproxy)
    before = _contents(site.state) | _contents(site.certificates)
    done = site.command("renew", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = rows(done)
    assert row["result"] == "rehearsed"
    assert _contents(site.state) | _contents(site.certificates) == before
    assert site.served_serial() == serial


def test_certs_with_and_without_the_proxy(site: Site) -> None:
    """Contract section 1: what `certs --json` says; disk is the truth, so no proxy is needed for it."""
    site.start()
    status = site.await_deployed()
    (running,) = rows(site.command("certs", "--json"))
    assert running["serial"] == status["serial"] == site.served_serial()
    assert running["deployed"] is True
    assert running["reason"] == "lifetime"
    assert site.sniproxy.stop() == 0
    (stopped,) = rows(site.command("certs", "--json"))
    assert stopped["serial"] == running["serial"]


def test_the_control_socket_is_for_its_group_alone(site: Site) -> None:
    """Contract section 2: 0660; and it is gone when the proxy is."""
    site.start_ca()
    site.start_sniproxy()
    assert stat.S_IMODE(site.control.stat().st_mode) == 0o660
    assert site.sniproxy.stop() == 0
    assert not site.control.exists()


def test_port_80_and_443_have_nothing_of_the_admin_side(site: Site) -> None:
    """Reliability S1."""
    site.start_ca()
    site.start_sniproxy()
    with socket.create_connection((LOCALHOST, site.http_port), PATIENCE_SECONDS) as plain:
        plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert plain.recv(65536).startswith(b"HTTP/1.1 308 ")


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
