"""`sniproxy certs`: the managed certificates, and with --check any others (contract, section 1)."""

from __future__ import annotations

import json
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sniproxy.acme.store import CertificateState, Store
from sniproxy.app import expiry
from sniproxy.app.certificate_json import as_json
from sniproxy.app.expiry import Checked
from sniproxy.bundle import Bundle, generate_key
from sniproxy.model import CertificateStatus, ProxyProtocol
from tests.support.certificates import Signer, certificate, pem
from tests.support.origins import NamedServer
from tests.support.processes import LOCALHOST, free_port

DIRECTORY = "https://ca.example/directory"
DAY = timedelta(days=1)
KEYS = [
    "name",
    "names",
    "issuer",
    "serial",
    "not_before",
    "not_after",
    "renew_at",
    "days_left",
    "reason",
    "deployed",
    "last_error",
    "next_attempt",
]


@pytest.fixture(scope="module")
def signer():
    return Signer("test CA")


@pytest.fixture
def directory():
    """For sockets as well, whose paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        yield Path(name)


@pytest.fixture
def managed(directory):
    """A configuration with these certificates, each a tuple of names."""

    def write(*certificates, control=""):
        path = directory / "sniproxy.toml"
        sections = "".join(f"\n[[certificates]]\nnames = {list(names)}\n" for names in certificates)
        path.write_text(
            '[backends.haproxy]\nservers = ["127.0.0.1:4443"]\n'
            f'[haproxy]\ncertificate_dir = "{directory}/certs"\n'
            f'[admin]\ncontrol_socket = "{control}"\n'
            f'[acme]\ndirectory = "{DIRECTORY}"\nagree_to_terms = true\nstate_dir = "{directory}/state"\n{sections}'
        )
        return path

    return write


@pytest.fixture
def store(directory, signer):
    """Puts a certificate into the store, as if it had been issued."""

    def put(*names, ends=80.0, lifetime=90, serial=None, deployed=True, **state):
        key = generate_key("ecdsa-p256")
        now = datetime.now(UTC)
        issued = certificate(
            names, key=key, signer=signer, serial=serial, begins=now + (ends - lifetime) * DAY, ends=now + ends * DAY
        )
        files = Store(directory / "state", pytest.fail).certificate(names[0])
        bundle = Bundle(key, (issued,))
        files.save(bundle)
        known = {"names": names, "directory": DIRECTORY} | state
        files.save_state(CertificateState(deployed_serial=bundle.leaf.serial if deployed else None, **known))
        return bundle

    return put


# ---------------------------------------------------------------------- the managed ones


def test_json_has_these_keys(sniproxy, managed, store):
    """Contract: a list of objects, times in RFC 3339 and UTC."""
    bundle = store("www.example.com", "example.com", ends=80, serial=0xABC)
    result = sniproxy("certs", "-c", managed(["www.example.com", "example.com"]), "--json")

    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = json.loads(result.stdout)
    assert list(row) == KEYS
    days_left = row.pop("days_left")
    renew_at = datetime.fromisoformat(row.pop("renew_at"))
    assert 79.9 < days_left <= 80
    assert bundle.leaf.not_before < renew_at < bundle.leaf.not_after
    assert row.pop("next_attempt")
    assert row == {
        "name": "www.example.com",
        "names": ["www.example.com", "example.com"],
        "issuer": "test CA",
        "serial": "0abc",
        "not_before": f"{bundle.leaf.not_before:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{bundle.leaf.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "reason": "lifetime",
        "deployed": True,
        "last_error": None,
    }


def test_one_that_stays_in_the_store_is_where_it_belongs(sniproxy, managed, store):
    """Config, haproxy: without the section nothing is deployed, and nothing is missing."""
    store("www.example.com", deployed=False)
    path = managed(["www.example.com"])
    path.write_text(re.sub(r"\[haproxy\]\ncertificate_dir = .*\n", "", path.read_text()))

    assert json.loads(sniproxy("certs", "-c", path, "--json").stdout)[0]["deployed"] is True


def test_json_of_a_certificate_that_is_not_there_yet(sniproxy, managed):
    """Contract: null where there is none."""
    (row,) = json.loads(sniproxy("certs", "-c", managed(["www.example.com"]), "--json").stdout)

    assert list(row) == KEYS
    assert row["names"] == ["www.example.com"]
    assert (row["reason"], row["deployed"]) == ("missing", False)
    assert all(row[key] is None for key in ("issuer", "serial", "not_before", "not_after", "days_left", "last_error"))


def test_every_certificate_in_the_order_of_the_file(sniproxy, managed, store):
    """What the operator wrote is what the operator finds."""
    store("b.example")
    rows = json.loads(sniproxy("certs", "-c", managed(["b.example"], ["a.example"]), "--json").stdout)

    assert [row["name"] for row in rows] == ["b.example", "a.example"]


def test_the_table(sniproxy, managed, store):
    """Names, issuer, serial, not after, days left, next renewal and why, deployed or not."""
    bundle = store(
        "www.example.com", "example.com", ends=80.55, serial=0xABC, deployed=False, delivery_error="no answer"
    )
    result = sniproxy("certs", "-c", managed(["www.example.com", "example.com"], ["b.example"]))

    assert (result.exit_code, result.stderr) == (0, "")
    head, first, second = result.stdout.splitlines()
    for name in (
        "NAME",
        "NAMES",
        "ISSUER",
        "SERIAL",
        "NOT AFTER (UTC)",
        "DAYS LEFT",
        "RENEWAL (UTC)",
        "DEPLOYED",
        "NOTE",
    ):
        assert name in head
    for text in ("www.example.com, example.com", "test CA", "0abc", f"{bundle.leaf.not_after:%Y-%m-%d %H:%M}", "80.5"):
        assert text in first
    assert "(lifetime)  no" in first
    assert "no answer" in first
    assert "(missing)" in second
    # Aligned: what stands in a column begins where its head does.
    assert first.index("test CA") == head.index("ISSUER")
    assert second.startswith("b.example")


def test_many_names_are_cut_short_in_the_table_alone(sniproxy, managed, store):
    """Some certificates have a hundred."""
    names = [f"n{number}.example" for number in range(100)]
    store(*names)
    path = managed(names)

    assert "n0.example, n1.example, n2.example and 97 more" in sniproxy("certs", "-c", path).stdout
    assert json.loads(sniproxy("certs", "-c", path, "--json").stdout)[0]["names"] == names


@pytest.mark.parametrize(("warn", "code"), [("79", 0), ("80.9", 1), ("0", 0)])
def test_warn(sniproxy, managed, store, warn, code):
    """--warn DAYS: exit 1 if any has fewer left."""
    store("a.example", ends=80)
    store("b.example", ends=90)
    result = sniproxy("certs", "-c", managed(["a.example"], ["b.example"]), "--warn", warn)

    assert result.exit_code == code
    assert result.stderr == ("a.example: 80.0 days left, fewer than 80.9\n" if code else "")


def test_warn_of_a_certificate_that_is_not_there(sniproxy, managed, store):
    """It has no day left."""
    store("a.example")
    result = sniproxy("certs", "-c", managed(["a.example"], ["b.example"]), "--warn", "1", "--json")

    assert (result.exit_code, result.stderr) == (1, "b.example: there is no certificate yet\n")
    assert len(json.loads(result.stdout)) == 2


def test_without_warn_a_list_is_a_list(sniproxy, managed, store):
    """Exit status 0: done. That it has expired is in the list."""
    store("a.example", ends=-1)
    result = sniproxy("certs", "-c", managed(["a.example"]))

    assert result.exit_code == 0
    assert "expired" in result.stdout


def test_none_are_configured(sniproxy, config):
    """It says so."""
    for arguments, stdout in ((), ""), (("--json",), "[]\n"):
        result = sniproxy("certs", "-c", config, *arguments)
        assert (result.exit_code, result.stdout) == (0, stdout)
        assert result.stderr == f"{config}: no [[certificates]] are configured\n"


def test_a_bad_configuration(sniproxy, mistaken):
    """Exit status 2, every mistake on its line."""
    result = sniproxy("certs", "-c", mistaken)

    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 5


# ---------------------------------------------------------------------- a store that is not ours to read


@pytest.fixture
def unreadable(directory):
    """As for another user than the proxy's: the store says no. (Root may read everything, so it is made otherwise.)"""
    (directory / "state" / "certificates").mkdir(parents=True)
    (directory / "state" / "certificates" / "a.example").write_text("no directory")


def status(**more):
    return CertificateStatus(name="a.example", names=("a.example",), issuer="told CA", deployed=True, **more)


def test_the_running_proxy_is_asked(sniproxy, managed, unreadable, directory):
    """Over the control socket: whoever may write to it is an operator."""
    told = status(not_after=datetime(2027, 1, 1, tzinfo=UTC), reason="ari")
    answer = json.dumps({"result": [as_json(told)]})
    proxy = NamedServer(f"{answer}\n", directory / "control.sock")
    try:
        path = managed(["a.example"], control=directory / "control.sock")
        result = sniproxy("certs", "-c", path, "--json")
    finally:
        proxy.close()

    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = json.loads(result.stdout)
    assert (row["issuer"], row["reason"], row["not_after"]) == ("told CA", "ari", "2027-01-01T00:00:00Z")
    assert json.loads(proxy.received[0]) == {"command": "certificates"}


@pytest.mark.parametrize("answer", ['{"result": [{"name": "a.example"}]}', '{"error": "no"}', "SSH-2.0"])
def test_the_running_proxy_answers_something_else(sniproxy, managed, unreadable, directory, answer):
    """Of another version, say: neither way led anywhere, and both are told of."""
    proxy = NamedServer(f"{answer}\n", directory / "control.sock")
    try:
        result = sniproxy("certs", "-c", managed(["a.example"], control=directory / "control.sock"))
    finally:
        proxy.close()

    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be read" in result.stderr
    assert "nor can the running proxy be asked: " in result.stderr


@pytest.mark.parametrize("control", ["", "/nonexistent/control.sock"])
def test_nobody_can_be_asked(sniproxy, managed, unreadable, control):
    """Exit status 1: a failure is never taken for absence."""
    result = sniproxy("certs", "-c", managed(["a.example"], control=control))

    assert (result.exit_code, result.stdout) == (1, "")
    assert "a.example" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- as a plugin


@pytest.mark.parametrize(
    ("ends", "options", "code", "word"),
    [
        (80, (), 0, "OK"),
        (14, (), 1, "WARNING"),
        (4, (), 2, "CRITICAL"),
        (-1, (), 2, "CRITICAL"),
        (80, ("--warn", "85"), 1, "WARNING"),
        (80, ("--warn", "90", "--critical", "85"), 2, "CRITICAL"),
    ],
)
def test_nagios(sniproxy, managed, store, ends, options, code, word):
    """--nagios: one line, exit 0/1/2/3."""
    store("a.example", ends=ends)
    result = sniproxy("certs", "-c", managed(["a.example"]), "--nagios", *options)

    assert (result.exit_code, result.stderr) == (code, "")
    assert result.stdout.startswith(f"SNIPROXY {word} - ")
    assert result.stdout.count("\n") == 1
    assert " | 'a.example'=" in result.stdout


def test_nagios_with_a_bad_configuration(sniproxy, mistaken):
    """UNKNOWN, and on standard output: that is where it is read."""
    result = sniproxy("certs", "-c", mistaken, "--nagios")

    assert (result.exit_code, result.stderr) == (3, "")
    assert result.stdout.startswith(f"SNIPROXY UNKNOWN - {mistaken}:2: proxy.lisen: ")
    assert result.stdout.count("\n") == 1


def test_nagios_with_nothing_configured(sniproxy, config):
    """Somebody expected certificates."""
    result = sniproxy("certs", "-c", config, "--nagios")

    assert (result.exit_code, result.stdout) == (3, "SNIPROXY UNKNOWN - there are no certificates to look at\n")


def test_nagios_with_a_store_that_cannot_be_read(sniproxy, managed, unreadable):
    """UNKNOWN: nobody knows how long they last."""
    result = sniproxy("certs", "-c", managed(["a.example"]), "--nagios")

    assert (result.exit_code, result.stderr) == (3, "")
    assert result.stdout.startswith("SNIPROXY UNKNOWN - ")


# ---------------------------------------------------------------------- any others


@pytest.fixture
def files(tmp_path, signer):
    """A directory with a certificate that lasts for thirty days, and one that is over."""
    now = datetime.now(UTC)
    for name, ends in (("good", 30), ("over", -1)):
        leaf = certificate(
            [f"{name}.example"], signer=signer, serial=0xABC, begins=now - 60 * DAY, ends=now + ends * DAY
        )
        (tmp_path / f"{name}.pem").write_bytes(pem(leaf))
    return tmp_path


def test_check_takes_no_configuration(sniproxy, files, mistaken, monkeypatch):
    """It looks at what is named, and at nothing else: the configuration may be missing, or wrong."""
    monkeypatch.setenv("SNIPROXY_CONFIG", str(mistaken))

    assert sniproxy("certs", "--check", files / "good.pem").exit_code == 0
    assert sniproxy("certs", "--check", "-c", "/nonexistent.toml", files / "good.pem").exit_code == 0


def test_check_json(sniproxy, files):
    """The keys of the managed ones, with null for what nobody can know, and two of its own."""
    (row,) = json.loads(sniproxy("certs", "--check", files / "good.pem", "--json").stdout)

    assert list(row) == [*KEYS, "error", "notes"]
    assert 29.9 < row.pop("days_left") <= 30
    assert row.pop("not_before") < row.pop("not_after")
    assert row == {
        "name": str(files / "good.pem"),
        "names": ["good.example"],
        "issuer": "test CA",
        "serial": "0abc",
        "renew_at": None,
        "reason": None,
        "deployed": None,
        "last_error": None,
        "next_attempt": None,
        "error": None,
        "notes": [],
    }


def test_check_exits_with_1_for_what_it_finds(sniproxy, files):
    """For a check, 1 is that it found a problem: one that is over, one that cannot be read."""
    over = sniproxy("certs", "--check", files / "over.pem")
    gone = sniproxy("certs", "--check", files / "good.pem", files / "gone.pem", "--json")

    assert over.exit_code == 1
    assert "expired" in over.stdout
    assert gone.exit_code == 1
    assert [row["error"] for row in json.loads(gone.stdout)] == [None, "there is no such file"]


def test_check_warn(sniproxy, files):
    """--warn DAYS, as for the managed ones."""
    path = files / "good.pem"

    assert sniproxy("certs", "--check", path, "--warn", "29").exit_code == 0
    result = sniproxy("certs", "--check", path, "--warn", "31")
    assert (result.exit_code, result.stderr) == (1, f"{path}: 30.0 days left, fewer than 31\n")


def test_check_a_directory(sniproxy, files):
    """What is passed over is told of on standard error; the data stays data."""
    (files / "README").touch()
    result = sniproxy("certs", "--check", files, "--json")

    assert [row["names"] for row in json.loads(result.stdout)] == [["good.example"], ["over.example"]]
    assert result.stderr == f"{files}/README: passed over, no certificate in it\n"


def test_check_the_table(sniproxy, files):
    """The columns that make sense."""
    head, *rows = sniproxy("certs", "--check", files).stdout.splitlines()

    assert head.split() == ["TARGET", "NAMES", "ISSUER", "SERIAL", "NOT", "AFTER", "(UTC)", "DAYS", "LEFT", "NOTE"]
    assert rows[0].endswith("30.0") or rows[0].endswith("29.9")
    assert rows[1].endswith("-1.0  expired")


def test_check_an_endpoint_that_is_not_there(sniproxy):
    """A row with the error, and exit status 1."""
    target = f"{LOCALHOST}:{free_port()}"
    result = sniproxy("certs", "--check", target)

    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[1].endswith("  nobody listens there")


@pytest.mark.parametrize(
    ("targets", "code", "words"),
    [
        (["good.pem"], 1, r"WARNING - \S+/good.pem expires in 29 days; 1 certificate \| "),
        (["over.pem"], 2, r"CRITICAL - \S+/over.pem expired 24 hours ago; 1 certificate \| "),
        (["gone.pem", "good.pem"], 3, r"UNKNOWN - \S+/gone.pem: there is no such file, "),
        (["gone.pem", "over.pem"], 2, r"CRITICAL - \S+/over.pem expired 24 hours ago, \S+/gone.pem: "),
    ],
)
def test_check_nagios(sniproxy, files, targets, code, words):
    """What cannot be looked at is UNKNOWN; what is known to be bad is worse."""
    result = sniproxy("certs", "--check", "--nagios", "--warn", "40", *(files / name for name in targets))

    assert (result.exit_code, result.stderr) == (code, "")
    assert re.match(f"SNIPROXY {words}", result.stdout)


def test_check_nagios_says_nothing_of_what_is_passed_over(sniproxy, files):
    """One line."""
    (files / "README").touch()
    result = sniproxy("certs", "--check", "--nagios", files)

    assert result.stderr == ""
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "name", "header"),
    [
        ((), None, ProxyProtocol.OFF),
        (("--sni", "WWW.Example.com."), "www.example.com", ProxyProtocol.OFF),
        (("--send-proxy",), None, ProxyProtocol.V2),
    ],
)
def test_check_what_endpoints_are_sent(sniproxy, monkeypatch, options, name, header):
    """The name in the form of the wire; HAProxy's accept-proxy wants a header first."""
    asked = []

    def check(targets, *, server_name, proxy_protocol, now):
        asked.append((targets, server_name, proxy_protocol))
        return Checked(findings=(), skipped=())

    monkeypatch.setattr(expiry, "check", check)
    sniproxy("certs", "--check", "unix:/run/haproxy/sniproxy.sock", *options)

    assert asked == [(("unix:/run/haproxy/sniproxy.sock",), name, header)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--check",),
        ("a.pem",),
        ("--sni", "a.example"),
        ("--send-proxy",),
        ("--critical", "3"),
        ("--nagios", "--warn", "3", "--critical", "5"),
        ("--nagios", "--json"),
        ("--warn", "-1"),
        ("--warn", "soon"),
        ("--check", "--sni", "not a name", "127.0.0.1:443"),
        ("--check", "--sni", "192.0.2.1", "127.0.0.1:443"),
    ],
)
def test_bad_arguments(sniproxy, arguments):
    """Exit status 2, whatever the configuration."""
    result = sniproxy("certs", *arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
