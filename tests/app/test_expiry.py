"""How long certificates last: in files, in directories, and at live endpoints, a real HAProxy's among them."""

from __future__ import annotations

import os
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sniproxy.app import expiry
from sniproxy.app.expiry import MAX_FILE_BYTES, check, covers, endpoint, thresholds
from sniproxy.bundle import Leaf, key_pem
from sniproxy.model import CertificateStatus, ProxyProtocol, TcpAddress, UnixAddress
from tests.support.certificates import NOW, Signer, certificate, common_name, pem
from tests.support.haproxy import HAPROXY, MISSING, Haproxy
from tests.support.origins import NamedServer
from tests.support.processes import LOCALHOST, Programs, free_port

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def root():
    return Signer()


@pytest.fixture(scope="module")
def intermediate(root):
    return Signer("test intermediate", root)


def look(*targets, server_name=None, proxy_protocol=ProxyProtocol.OFF, now=NOW):
    return check(list(map(str, targets)), server_name=server_name, proxy_protocol=proxy_protocol, now=now)


def only(*targets, **options):
    (finding,) = look(*targets, **options).findings
    return finding


# ---------------------------------------------------------------------- files


def test_a_bundle_is_its_leaf(tmp_path, root, intermediate):
    """HAProxy's crt: key, leaf, chain."""
    leaf = certificate(["a.example", "b.example"], signer=intermediate, serial=0xABC)
    path = tmp_path / "a.example.pem"
    path.write_bytes(key_pem(root.key) + pem(leaf, *intermediate.chain, root.certificate))
    finding = only(path)

    assert (finding.error, finding.notes, finding.is_wrong) == (None, (), False)
    assert finding.status == CertificateStatus(
        name=str(path),
        names=("a.example", "b.example"),
        issuer="test intermediate",
        serial="0abc",
        not_before=NOW - DAY,
        not_after=NOW + 89 * DAY,
    )


def test_a_der_file(tmp_path):
    """What Windows and browsers save as .cer."""
    path = tmp_path / "a.cer"
    path.write_bytes(certificate(["a.example"]).public_bytes(Encoding.DER))

    assert only(path).status.names == ("a.example",)


def test_every_certificate_of_a_trust_store(tmp_path):
    """Those that have not signed one another are each for themselves."""
    path = tmp_path / "roots.pem"
    path.write_bytes(pem(*(Signer(f"root {number}").certificate for number in range(3))))

    assert [finding.status.names for finding in look(path).findings] == [("root 0",), ("root 1",), ("root 2",)]


def test_two_bundles_in_one_file(tmp_path, root, intermediate):
    """Likewise: the second leaf begins anew."""
    path = tmp_path / "both.pem"
    first, second = (certificate([name], signer=intermediate) for name in ("a.example", "b.example"))
    path.write_bytes(pem(first, *intermediate.chain, root.certificate, second, *intermediate.chain))

    assert [finding.status.names for finding in look(path).findings] == [("a.example",), ("b.example",)]


@pytest.mark.parametrize(
    ("begins", "ends", "notes"),
    [
        (-90, 0, ("expired",)),
        (-90, -1, ("expired",)),
        (1, 90, ("not yet valid",)),
        (-1, 89, ()),
    ],
)
def test_its_time_is_looked_at(begins, ends, notes, tmp_path, root):
    """RFC 5280 section 4.1.2.5: valid through notAfter, and from notBefore on."""
    path = tmp_path / "a.pem"
    path.write_bytes(pem(certificate(["a.example"], signer=root, begins=NOW + begins * DAY, ends=NOW + ends * DAY)))
    finding = only(path)

    assert (finding.notes, finding.is_wrong) == (notes, bool(notes))


def test_self_signed_is_worth_a_note_and_no_mistake(tmp_path):
    """Whoever looks at their own test set-up knows."""
    path = tmp_path / "a.pem"
    path.write_bytes(pem(certificate(["a.example"])))
    finding = only(path)

    assert (finding.notes, finding.is_wrong) == (("self-signed",), False)


def test_a_chain_that_ends_before_its_leaf(tmp_path, root):
    """Clients stop at the first that is over; some find another way (as with DST Root CA X3), so it is a note."""
    upper = certificate((), signer=root, subject=common_name("old CA"), ends=NOW + 10 * DAY)
    gone = certificate((), signer=root, subject=common_name("old CA"), begins=NOW - 10 * DAY, ends=NOW - DAY)
    made_by = Signer("old CA")
    leaf = certificate(["a.example"], signer=made_by)
    for name, above in (("soon", upper), ("gone", gone)):
        (tmp_path / name).write_bytes(pem(leaf, above))

    assert only(tmp_path / "soon").notes == ("its issuer old CA ends before it, at 2026-12-05 12:00 UTC",)
    assert only(tmp_path / "gone").notes == ("its issuer old CA is over since 2026-11-24 12:00 UTC",)
    assert not only(tmp_path / "gone").is_wrong


def test_what_certificates_say_cannot_move_a_cursor(tmp_path):
    """Terminals obey what certificates may hold."""
    path = tmp_path / "a.pem"
    path.write_bytes(pem(certificate((), subject=common_name("a\x1b[2J\nb"))))

    assert (only(path).status.names, only(path).status.issuer) == (("a?[2J?b",), "a?[2J?b")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "there is no certificate in it"),
        (b"README\n", "there is no certificate in it"),
        (b"0\x82\x01\x01", "a certificate in it cannot be read: it is cut off, or altered, or not X.509"),
        (b" " * (MAX_FILE_BYTES + 1), f"the file has more than {MAX_FILE_BYTES} bytes"),
    ],
    ids=["empty", "text", "DER cut off", "too large"],
)
def test_a_file_that_was_named_is_never_passed_over(content, error, tmp_path):
    """A failure is never taken for absence."""
    path = tmp_path / "a.pem"
    path.write_bytes(content)

    assert only(path).error == error
    assert only(path).status == CertificateStatus(name=str(path), names=())


def test_a_pipe_of_the_shell_is_as_good_as_a_file(tmp_path):
    """`<(openssl …)` is /dev/fd/63."""
    reading, writing = os.pipe()
    try:
        os.write(writing, pem(certificate(["a.example"])))
        os.close(writing)
        assert only(f"/dev/fd/{reading}").status.names == ("a.example",)
    finally:
        os.close(reading)


def test_a_pipe_that_nobody_writes_to_is_empty(tmp_path):
    """To open one waits for somebody to come (fifo(7)), which a check has no time for."""
    os.mkfifo(tmp_path / "fifo")
    assert only(tmp_path / "fifo").error == "there is no certificate in it"


def test_a_socket_that_was_named_without_unix(tmp_path):
    """It tells how an endpoint is written."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listening:
        path = Path(short) / "web.sock"
        listening.bind(str(path))

        assert only(path).error == f"is a socket; write unix:{path}"


# ---------------------------------------------------------------------- directories


def test_every_certificate_of_a_directory(tmp_path, root):
    """`crt DIR`: whatever the files are called, in the order of their names."""
    for name in ("b.pem", "a.crt", "c"):
        (tmp_path / name).write_bytes(pem(certificate([f"{name[0]}.example"], signer=root)))
    checked = look(tmp_path)

    assert [finding.status.name for finding in checked.findings] == [
        f"{tmp_path}/{name}" for name in ["a.crt", "b.pem", "c"]
    ]
    assert checked.skipped == ()


def test_what_is_no_certificate_is_passed_over_and_said(tmp_path, root):
    """Keys, notes, archives and directories stand beside certificates; HAProxy ignores names with a dot first."""
    (tmp_path / "a.pem").write_bytes(pem(certificate(["a.example"], signer=root)))
    (tmp_path / "README").write_text("This directory contains your keys and certificates.\n")
    (tmp_path / "a.key").write_bytes(key_pem(root.key))
    (tmp_path / "a.p12").write_bytes(b"\x30\x82\x01\x00")
    (tmp_path / "archive").mkdir()
    (tmp_path / ".a.pem.sniproxy-0123456789ab").write_bytes(b"half of")
    os.mkfifo(tmp_path / "fifo")
    checked = look(tmp_path)

    assert [finding.status.names for finding in checked.findings] == [("a.example",)]
    assert checked.skipped == (
        f"{tmp_path}/README: passed over, no certificate in it",
        f"{tmp_path}/a.key: passed over, no certificate in it",
        f"{tmp_path}/a.p12: passed over, no certificate in it",
        f"{tmp_path}/archive: passed over, is a directory",
        f"{tmp_path}/fifo: passed over, is no regular file",
    )


def test_a_certificate_that_cannot_be_read_is_not_passed_over(tmp_path, root):
    """Neither one that is broken, nor one whose file has gone."""
    whole = pem(certificate(["a.example"], signer=root))
    lines = whole.splitlines(keepends=True)
    (tmp_path / "a.pem").write_bytes(whole)
    (tmp_path / "b.pem").write_bytes(b"".join([*lines[:3], *lines[4:]]))
    (tmp_path / "c.pem").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.pem").symlink_to(tmp_path / "gone.pem")

    assert [finding.error for finding in look(tmp_path).findings] == [
        None,
        "a certificate in it cannot be read: it is cut off, or altered, or not X.509",
        "there is no certificate in it",
        "No such file or directory",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_is_not_for_us_is_not_passed_over(tmp_path):
    (tmp_path / "a.pem").touch(mode=0)

    assert only(tmp_path).error == "Permission denied"


@pytest.mark.parametrize("name", [None, "README"])
def test_a_directory_without_a_certificate(name, tmp_path):
    """Somebody expected one there."""
    if name:
        (tmp_path / name).touch()

    assert only(tmp_path).error == "there is no certificate in this directory"


# ---------------------------------------------------------------------- endpoints, as they are written


@pytest.mark.parametrize(
    ("target", "given", "address", "name"),
    [
        ("www.example.com:443", None, TcpAddress("www.example.com", 443), "www.example.com"),
        ("WWW.Example.com.:443", None, TcpAddress("www.example.com", 443), "www.example.com"),
        ("bücher.example:443", None, TcpAddress("xn--bcher-kva.example", 443), "xn--bcher-kva.example"),
        ("192.0.2.1:443", None, TcpAddress("192.0.2.1", 443), None),
        ("[::1]:443", None, TcpAddress("::1", 443), None),
        ("unix:/run/web.sock", None, UnixAddress("/run/web.sock"), None),
        ("unix:/run/a@b.sock", None, UnixAddress("/run/a@b.sock"), None),
        ("unix:@web", None, UnixAddress("@web"), None),
        ("www.example.com@192.0.2.1:443", None, TcpAddress("192.0.2.1", 443), "www.example.com"),
        ("www.example.com@[::1]:443", None, TcpAddress("::1", 443), "www.example.com"),
        ("www.example.com@lb.example.com:443", None, TcpAddress("lb.example.com", 443), "www.example.com"),
        ("www.example.com@unix:/run/web.sock", None, UnixAddress("/run/web.sock"), "www.example.com"),
        ("www.example.com@unix:@web", None, UnixAddress("@web"), "www.example.com"),
        ("192.0.2.1:443", "www.example.com", TcpAddress("192.0.2.1", 443), "www.example.com"),
        ("lb.example.com:443", "www.example.com", TcpAddress("lb.example.com", 443), "www.example.com"),
        ("b.example@192.0.2.1:443", "www.example.com", TcpAddress("192.0.2.1", 443), "b.example"),
    ],
)
def test_an_endpoint_and_the_name_to_ask_for(target, given, address, name):
    """The name is the HOST (never an address: RFC 6066 section 3), --sni, or what stands before the @."""
    found = endpoint(target, given)

    assert (found.target, found.address, found.server_name) == (target, address, name)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("www.example.com", "there is no such file; for a live endpoint write www.example.com:443"),
        ("certs/a.pem", "there is no such file"),
        ("/srv/certs/a:b.pem", "there is no such file"),
        ("./a:b.pem", "there is no such file"),
        ("www.example.com:https", "is not an address"),
        ("www.example.com:0", "port 0 does not exist"),
        ("::1:443", "is an IPv6 address without brackets"),
        (":443", "can only be listened on"),
        ("unix:web.sock", "is not a unix socket"),
        ("192.0.2.1@192.0.2.1:443", "ends in the number"),
        ("@192.0.2.1:443", "is empty"),
        ("https://www.example.com/", "is not an address"),
    ],
)
def test_what_is_no_target_says_what_it_could_have_been(target, words):
    """An error row of its own; the others are looked at all the same."""
    finding, other = look(target, "nosuch.pem").findings

    assert words in finding.error
    assert finding.status == CertificateStatus(name=target, names=())
    assert other.error.startswith("there is no such file")


@pytest.mark.parametrize(
    ("names", "wanted", "covered"),
    [
        (["a.example"], "a.example", True),
        (["b.example", "a.example"], "a.example", True),
        (["a.example"], "b.a.example", False),
        (["*.example.com"], "www.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "a.b.example.com", False),
        (["*.com"], "example.com", True),
        (["*"], "localhost", False),
        (["*."], "localhost", False),
        (["w*.example.com"], "www.example.com", False),
        (["192.0.2.1"], "192.0.2.1", True),
        (["192.0.2.1"], "192.0.2.2", False),
        (["2001:db8::1"], "2001:0db8:0::1", True),
        (["*.0.2.1"], "192.0.2.1", False),
        ([], "a.example", False),
    ],
)
def test_which_names_a_certificate_is_for(names, wanted, covered):
    """RFC 9525 section 6.3: a star is one whole label, the first; section 6.5: an address is compared as one."""
    assert covers(names, wanted) is covered


@pytest.mark.parametrize(
    ("days", "warning", "critical"), [(6, 1, 0.3), (47, 47 / 6, 2.35), (90, 15, 4.5), (365, 30, 14), (3650, 30, 14)]
)
def test_thresholds_fit_the_lifetime(days, warning, critical):
    """A sixth and a twentieth of it, at most thirty days and fourteen."""
    status = CertificateStatus(name="a", names=(), not_before=NOW, not_after=NOW + days * DAY)

    assert thresholds(status) == pytest.approx((warning, critical))


# ---------------------------------------------------------------------- live endpoints


@pytest.fixture(scope="module")
def haproxy(root, intermediate):
    """On a port, and behind `accept-proxy` on a socket: two names, and one more that is over."""
    if HAPROXY is None:
        pytest.skip(MISSING)
    now = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        directory = Path(name)
        certificates = directory / "certs"
        certificates.mkdir()
        for file_name, names, ends in (
            ("0.pem", ["www.test", "*.dev.test"], 30),
            ("1.pem", ["other.test"], 60),
            ("2.pem", ["old.test"], -1),
        ):
            signer = intermediate
            key = Signer().key
            leaf = certificate(names, key=key, signer=signer, begins=now - 2 * DAY, ends=now + ends * DAY)
            (certificates / file_name).write_bytes(pem(key, leaf, *intermediate.chain))
        programs = Programs(directory)
        port, default_port = free_port(), free_port()
        sections = f"""
defaults
    mode http
    timeout client 10s
    timeout connect 10s
    timeout server 10s

frontend tls
    bind {LOCALHOST}:{port} ssl crt {certificates} strict-sni
    bind {LOCALHOST}:{default_port} ssl crt {certificates}
    bind unix@{directory}/web.sock accept-proxy ssl crt {certificates}
"""
        try:
            programs.start(Haproxy(sections, directory))
            yield port, default_port, directory
        finally:
            programs.end()


def live(*targets, **options):
    return look(*targets, now=datetime.now(UTC), **options)


def test_what_haproxy_serves_for_a_name(haproxy):
    """The certificate that a client with this server name gets."""
    port, _, _ = haproxy
    findings = live(*(f"{name}@{LOCALHOST}:{port}" for name in ("www.test", "other.test", "a.dev.test"))).findings

    assert [finding.status.names for finding in findings] == [
        ("www.test", "*.dev.test"),
        ("other.test",),
        ("www.test", "*.dev.test"),
    ]
    assert all((finding.error, finding.notes) == (None, ()) for finding in findings)
    assert [round(finding.status.days_left(datetime.now(UTC))) for finding in findings] == [30, 60, 30]
    assert {finding.status.issuer for finding in findings} == {"test intermediate"}


def test_what_haproxy_serves_is_over(haproxy):
    """The whole point of looking."""
    port, _, _ = haproxy
    finding = live(f"old.test@{LOCALHOST}:{port}").findings[0]

    assert (finding.notes, finding.is_wrong) == (("expired",), True)


def test_what_haproxy_serves_is_not_for_the_name(haproxy):
    """Without strict-sni, HAProxy serves its first certificate for names it has none for."""
    _, port, _ = haproxy
    finding = live(f"{LOCALHOST}:{port}", server_name="nosuch.test").findings[0]

    assert (finding.notes, finding.is_wrong) == (("not for nosuch.test",), True)
    assert finding.status.names == ("www.test", "*.dev.test")


def test_without_a_name_none_is_compared(haproxy):
    """An address is asked for what it serves to whoever sends no name."""
    _, port, _ = haproxy
    finding = live(f"{LOCALHOST}:{port}").findings[0]

    assert (finding.error, finding.notes) == (None, ())


def test_a_refusal_is_an_error_in_words(haproxy):
    """HAProxy's manual, strict-sni: the handshake fails where no certificate has the name."""
    port, _, _ = haproxy
    finding = live(f"nosuch.test@{LOCALHOST}:{port}").findings[0]

    assert "unrecognized name" in finding.error
    assert finding.status == CertificateStatus(name=f"nosuch.test@{LOCALHOST}:{port}", names=())


def test_a_socket_that_wants_a_proxy_header(haproxy):
    """HAProxy's manual, accept-proxy: the header first, or nothing."""
    _, _, directory = haproxy
    target = f"other.test@unix:{directory}/web.sock"

    assert live(target, proxy_protocol=ProxyProtocol.V2).findings[0].status.names == ("other.test",)
    assert "accept-proxy" in live(target).findings[0].error


def test_nobody_is_there():
    """Neither on the port nor at the path, nor of that name (RFC 6761 section 6.4: .invalid never exists)."""
    port = free_port()
    refused, missing, unknown = live(f"{LOCALHOST}:{port}", "unix:/nonexistent/web.sock", "nosuch.invalid:443").findings

    assert refused.error == "nobody listens there"
    assert "there is no such socket" in missing.error
    assert unknown.error


def test_somebody_else_is_there():
    """Not TLS."""
    port = free_port()
    other = NamedServer("SSH-2.0-OpenSSH_9.2\r\n", port)
    try:
        finding = live(f"{LOCALHOST}:{port}").findings[0]
    finally:
        other.close()

    assert "does not speak TLS" in finding.error


def test_somebody_who_says_nothing(monkeypatch):
    """Every handshake has a deadline."""
    monkeypatch.setattr(expiry, "HANDSHAKE_SECONDS", 0.2)
    with socket.create_server((LOCALHOST, 0)) as silent:
        target = f"{LOCALHOST}:{silent.getsockname()[1]}"
        assert live(target).findings[0].error.endswith("within 0.2 s")


def test_more_than_are_asked_at_once(haproxy, tmp_path):
    """All of them are, in their order, files in between."""
    port, _, _ = haproxy
    (tmp_path / "a.pem").write_bytes(pem(certificate(["a.example"])))
    names = ["www.test", "other.test"] * 20
    targets = [f"{name}@{LOCALHOST}:{port}" for name in names]
    findings = live(*targets[:20], tmp_path / "a.pem", *targets[20:]).findings

    assert [finding.status.names[0] for finding in findings] == [*names[:20], "a.example", *names[20:]]


def test_the_serial_number_is_the_one_that_is_served(haproxy):
    """In hex, as `openssl x509 -serial` prints it, but for its case."""
    port, _, directory = haproxy
    stored = x509.load_pem_x509_certificates((directory / "certs" / "1.pem").read_bytes())[0]

    assert live(f"other.test@{LOCALHOST}:{port}").findings[0].status.serial == Leaf(stored).serial
