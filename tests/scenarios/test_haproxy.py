"""HAProxy behind: real clients, real TLS, over a unix socket and over TCP.

One HAProxy and one sniproxy serve all tests; the server name chooses the way from one to the other, such as
`unix-v2.example.test`. HAProxy answers /seen with what it knows about the connection.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support import clients
from tests.support.clients import Door, everything
from tests.support.haproxy import HAPROXY, MISSING, Haproxy
from tests.support.origins import HttpOrigin, blob
from tests.support.processes import LOCALHOST, Programs, Sniproxy, free_port, has_ipv6, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.pki import Authority

pytestmark = [
    pytest.mark.skipif(HAPROXY is None, reason=MISSING),
    pytest.mark.skipif(clients.CURL is None, reason="curl is not installed"),
]

TRANSPORTS = ("unix", "tcp")
MEGABYTES = 24

HAPROXY_SECTIONS = """
    log stderr format raw local0
    tune.ssl.default-dh-param 2048
    ssl-default-bind-options ssl-min-ver TLSv1.2

defaults
    mode http
    log global
    timeout connect 10s
    timeout client 60s
    timeout server 60s

frontend https
    log-format "%ci:%cp %ID %HU"
    bind unix@{directory}/pp.sock accept-proxy ssl crt {certificates} alpn h2,http/1.1
    bind 127.0.0.1:{tcp_pp} accept-proxy ssl crt {certificates} alpn h2,http/1.1
    bind unix@{directory}/bare.sock ssl crt {certificates} alpn h2,http/1.1
    bind 127.0.0.1:{tcp_bare} ssl crt {certificates} alpn h2,http/1.1
    unique-id-format %[fc_pp_unique_id]
    http-request return status 200 content-type application/json lf-string '{seen}' if {{ path /seen }}
    default_backend origin

backend origin
    server origin 127.0.0.1:{origin}

# A load balancer in front of sniproxy, of which only the PROXY header tells who the client is.
listen front-v2
    mode tcp
    bind 127.0.0.1:{front_v2}
    bind [::1]:{front_v2} v6only
    server sniproxy 127.0.0.1:{behind} send-proxy-v2 proxy-v2-options crc32c,unique-id

listen front-v1
    mode tcp
    bind 127.0.0.1:{front_v1}
    server sniproxy 127.0.0.1:{behind} send-proxy
"""
SEEN = (
    '{"src":"%[src]","src_port":"%[src_port]","dst":"%[dst]","dst_port":"%[dst_port]","sni":"%[ssl_fc_sni]",'
    '"alpn":"%[ssl_fc_alpn]","authority":"%[fc_pp_authority]","unique_id":"%[fc_pp_unique_id]"}'
)

BACKENDS = """
[backends.unix-v2]
servers = ["unix:{directory}/pp.sock"]

[backends.unix-v1]
servers = ["unix:{directory}/pp.sock"]
proxy_protocol = "v1"

[backends.unix-off]
servers = ["unix:{directory}/bare.sock"]
proxy_protocol = "off"

[backends.tcp-v2]
servers = ["127.0.0.1:{tcp_pp}"]

[backends.tcp-v1]
servers = ["127.0.0.1:{tcp_pp}"]
proxy_protocol = "v1"

[backends.tcp-off]
servers = ["127.0.0.1:{tcp_bare}"]
proxy_protocol = "off"
""" + "".join(
    f'\n[[routes]]\nsni = ["{transport}-{header}.example.test"]\nbackend = "{transport}-{header}"\n'
    for transport in TRANSPORTS
    for header in ("v2", "v1", "off")
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Everything between the client and the origin. `behind` is a second sniproxy, which only load balancers reach."""

    programs: Programs
    haproxy: Haproxy
    sniproxy: Sniproxy
    behind: Sniproxy
    door: Door
    door_v6: Door
    fronts: dict[str, Door]


@pytest.fixture(scope="module")
def site(module_programs: Programs, authority: Authority) -> Iterator[Site]:
    programs = module_programs
    origin = HttpOrigin()
    try:
        yield _site(programs, authority, origin.port)
    finally:
        programs.end()
        origin.close()


def _site(programs: Programs, authority: Authority, origin: int) -> Site:
    certificates = authority.directory(
        ("*.example.test", "example.test"), ("shop.example.com", "www.example.com"), ("git.example.org",)
    )
    ports = {name: free_port() for name in ("tcp_pp", "tcp_bare", "front_v1", "front_v2", "listen", "behind")}
    values = {**ports, "directory": programs.directory, "certificates": certificates, "origin": origin, "seen": SEEN}
    sections = HAPROXY_SECTIONS
    if not has_ipv6():
        sections = re.sub(r"(?m)^ *bind \[::1\].*\n", "", sections)
    haproxy = programs.start(Haproxy(sections.format(**values), programs.directory))
    addresses = [f'"127.0.0.1:{ports["listen"]}"'] + [f'"[::1]:{ports["listen"]}"'] * has_ipv6()
    addresses.append(f'"unix:{programs.directory}/front.sock"')
    backends = BACKENDS.format(**values)
    proxy = f'[proxy]\nlisten = [{", ".join(addresses)}]\ndefault_backend = "unix-v2"\n'
    behind = (
        f'[proxy]\nlisten = ["127.0.0.1:{ports["behind"]}"]\ndefault_backend = "unix-v2"\n'
        'accept_proxy_from = ["127.0.0.0/8"]\n'
    )
    return Site(
        programs=programs,
        haproxy=haproxy,
        sniproxy=programs.sniproxy(proxy + backends),
        behind=programs.sniproxy(behind + backends, name="behind"),
        door=Door(port=ports["listen"], root=authority.root),
        door_v6=Door(port=ports["listen"], root=authority.root, host="::1"),
        fronts={header: Door(port=ports[f"front_{header}"], root=authority.root) for header in ("v1", "v2")},
    )


def line_with(program: Sniproxy, text: str) -> list[str]:
    """The fields of the one log line that has this text, as section 8.2.2 of HAProxy's manual counts them, from 0."""

    def found() -> list[str]:
        return [line for line in program.stdout.splitlines() if text in line]

    until(found, f"a log line with {text}")
    (line,) = found()
    return line.split()


# -- clients


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("option", "protocol"), [("--http1.1", "http/1.1"), ("--http2", "h2")])
def test_curl_speaks_both_versions_of_http(site: Site, transport: str, option: str, protocol: str) -> None:
    """RFC 7301 section 3.2: the server selects among the protocols the client offers; nobody between has a say."""
    seen = site.door.json(f"https://{transport}-v2.example.test/seen", (option,))

    assert seen["alpn"] == protocol


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_over_http_2_has_its_answer(site: Site, transport: str) -> None:
    """RFC 9113 section 3.2: "h2" in ALPN, then the connection preface, all of it inside of TLS."""
    name = f"{transport}-v2.example.test"
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    request = [(":method", "GET"), (":scheme", "https"), (":authority", name), (":path", "/blob/200000")]
    connection.send_headers(1, request, end_stream=True)
    body, ended = b"", False
    with site.door.tls(name, "h2") as tls:
        while not ended:
            tls.sendall(connection.data_to_send())
            for event in connection.receive_data(tls.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, 1)
                ended = ended or isinstance(event, h2.events.StreamEnded)
        selected = tls.selected_alpn_protocol()

    assert selected == "h2"
    assert body == blob(200_000)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.skipif(clients.OPENSSL is None, reason="openssl is not installed")
def test_openssl_s_client_verifies_what_haproxy_presents(site: Site, transport: str, version: str) -> None:
    """RFC 8446 section 4.1.1 and RFC 5246 section 7.4: handshakes of either version pass untouched."""
    name = f"{transport}-v2.example.test"
    printed = site.door.openssl(name, f"GET /hello HTTP/1.1\nHost: {name}\nConnection: close\n\n", version)

    assert "Verify return code: 0 (ok)" in printed
    assert printed.count("/hello") == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.skipif(clients.GNUTLS_CLI is None, reason="gnutls-cli is not installed")
def test_gnutls_cli_verifies_what_haproxy_presents(site: Site, transport: str) -> None:
    """RFC 8446: another library's handshake passes as well."""
    name = f"{transport}-v2.example.test"
    printed = site.door.gnutls(name, f"GET /hello HTTP/1.1\nHost: {name}\nConnection: close\n\n")

    assert "The certificate is trusted" in printed
    assert "/hello" in printed


@pytest.mark.parametrize("browser", ["chrome", "firefox", "safari"])
def test_a_browsers_hello_gets_through(site: Site, browser: str) -> None:
    """RFC 8701 and RFC 9849: GREASE, key shares of a kilobyte and dummy ECH do not keep a browser out."""
    curl_cffi = pytest.importorskip("curl_cffi")
    name = "unix-v2.example.test"
    options = {
        curl_cffi.CurlOpt.RESOLVE: [f"{name}:{site.door.port}:{LOCALHOST}"],
        curl_cffi.CurlOpt.NOPROXY: "*",
        curl_cffi.CurlOpt.CAINFO: str(site.door.root),
    }
    with curl_cffi.requests.Session(curl_options=options) as session:
        answer = session.get(f"https://{name}:{site.door.port}/seen", impersonate=browser)

    assert answer.status_code == 200
    assert answer.json()["authority"] == name


@pytest.mark.parametrize(
    ("name", "certificate"),
    [
        ("unix-v2.example.test", "*.example.test"),
        ("shop.example.com", "shop.example.com"),
        ("www.example.com", "shop.example.com"),
        ("git.example.org", "git.example.org"),
    ],
)
def test_haproxy_chooses_the_certificate_by_name(site: Site, name: str, certificate: str) -> None:
    """HAProxy's manual, section 5.1, crt: the names in a directory's certificates are matched with the client's."""
    with site.door.tls(name) as tls:
        presented = tls.getpeercert()

    assert presented is not None
    assert dict(presented["subject"][0])["commonName"] == certificate


# -- the client's address


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("header", ["v2", "v1"])
def test_haproxy_sees_the_clients_address_and_port(site: Site, transport: str, header: str) -> None:
    """PROXY protocol, section 2: the header carries the original connection's source and destination."""
    with site.door.tls(f"{transport}-{header}.example.test", source="127.0.0.2") as tls:
        tls.sendall(b"GET /seen HTTP/1.0\r\n\r\n")
        port = tls.getsockname()[1]
        answer = everything(tls).decode()

    assert '"src":"127.0.0.2"' in answer
    assert f'"src_port":"{port}"' in answer
    assert f'"dst":"127.0.0.1","dst_port":"{site.door.port}"' in answer


@pytest.mark.skipif(not has_ipv6(), reason="this machine's loopback has no ::1")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("header", ["v2", "v1"])
def test_haproxy_sees_an_ipv6_clients_address(site: Site, transport: str, header: str) -> None:
    """PROXY protocol, sections 2.1 and 2.2: TCP6 has both addresses in IPv6."""
    seen = site.door_v6.json(f"https://{transport}-{header}.example.test/seen")

    assert seen["src"] == "::1"
    assert (seen["dst"], seen["dst_port"]) == ("::1", str(site.door.port))


@pytest.mark.parametrize("header", ["v2", "v1", "off"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_without_an_address_is_served(site: Site, transport: str, header: str) -> None:
    """The PROXY protocol, section 2: a receiver that is told of no address goes by the connection's own."""
    socket = str(site.programs.directory / "front.sock")
    seen = site.door.json(f"https://{transport}-{header}.example.test/seen", ("--unix-socket", socket))

    assert seen["sni"] == f"{transport}-{header}.example.test"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_without_a_proxy_header_the_bare_stream_is_handed_on(site: Site, transport: str) -> None:
    """`proxy_protocol = "off"`: a bind without accept-proxy takes the hello as it came, and sees no client."""
    seen = site.door.json(f"https://{transport}-off.example.test/seen", ("--interface", "127.0.0.2"))

    assert seen["sni"] == f"{transport}-off.example.test"
    assert seen["src"] != "127.0.0.2"
    assert (seen["authority"], seen["unique_id"]) == ("", "")


# -- what v2 says besides


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_authority_is_the_name_in_our_log_line(site: Site, transport: str) -> None:
    """HAProxy's manual, fc_pp_authority: the authority TLV of the PROXY header, which is our server name."""
    name = f"{transport}-v2.example.test"
    seen = site.door.json(f"https://{name}/seen", ("--http1.1",))
    fields = line_with(site.sniproxy, seen["unique_id"])

    assert seen["authority"] == name
    assert fields[9] == f"{{{name}|http/1.1}}"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_unique_id_joins_our_log_line_and_haproxys(site: Site, transport: str) -> None:
    """HAProxy's manual, unique-id-format: `%[fc_pp_unique_id]` as its %ID is the last field of our line."""
    url = f"https://{transport}-v2.example.test/seen?{transport}"
    seen = site.door.json(url, ("--http1.1",))
    line = until(lambda: re.search(rf".* (\S+) /seen\?{transport}\n", site.haproxy.stderr), "HAProxy's own line")

    assert line[1] == seen["unique_id"] == line_with(site.sniproxy, seen["unique_id"])[-1]


def test_a_name_in_upper_case_is_passed_on_in_lower_case(site: Site) -> None:
    """RFC 6066 section 3: names are compared without regard to case; what HAProxy's ACLs get is one spelling."""
    seen = site.door.json("https://UNIX-v2.Example.TEST/seen", ("--http1.1",))

    assert seen["authority"] == "unix-v2.example.test"


def test_version_1_has_no_authority(site: Site) -> None:
    """PROXY protocol, section 2.1: the text line has addresses and ports, and nothing else."""
    seen = site.door.json("https://unix-v1.example.test/seen")

    assert (seen["authority"], seen["unique_id"]) == ("", "")


# -- bytes


@pytest.mark.parametrize("way", ["unix-v2", "tcp-v2", "unix-off"])
def test_a_large_download_arrives_to_the_byte(site: Site, way: str) -> None:
    """Everything after the hello is the server's and the client's business (contract: hands everything on untouched)."""
    size = MEGABYTES << 20
    got = site.door.curl(f"https://{way}.example.test/blob/{size}")

    assert len(got) == size
    assert hashlib.sha256(got).digest() == hashlib.sha256(blob(size)).digest()


@pytest.mark.parametrize("way", ["unix-v2", "tcp-v2", "tcp-v1"])
def test_a_large_upload_arrives_to_the_byte(site: Site, way: str, tmp_path: Path) -> None:
    """The same in the other direction."""
    body = tmp_path / "body"
    body.write_bytes(blob(MEGABYTES << 20))
    post = ("--data-binary", f"@{body}", "--header", "Expect:")
    got = site.door.curl(f"https://{way}.example.test/digest", arguments=post)

    assert got.decode() == hashlib.sha256(body.read_bytes()).hexdigest()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_kept_alive_connection_is_one_connection(site: Site, transport: str) -> None:
    """RFC 9112 section 9.3: connections persist. Three requests are one connection, and one line of our log."""
    urls = [f"https://{transport}-v2.example.test/seen"] * 3
    printed = site.door.curl(*urls, arguments=("--http1.1", "--write-out", " %{num_connects}\n"))
    answers, connects = zip(*(line.split() for line in printed.decode().splitlines()), strict=True)
    (unique_id,) = {json.loads(answer)["unique_id"] for answer in answers}

    assert connects == ("1", "0", "0")
    assert line_with(site.sniproxy, unique_id)[3].startswith(f"{transport}-v2/")


def test_haproxy_ends_a_keep_alive_connection_and_the_client_sees_a_clean_end(site: Site) -> None:
    """RFC 8446 section 6.1: close_notify and then the end of the stream reach the client."""
    with site.door.tls("unix-v2.example.test") as tls:
        tls.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = everything(tls)

    assert answer.endswith(b"/hello")


# -- a load balancer in front


@pytest.mark.parametrize("header", ["v2", "v1"])
def test_a_load_balancers_header_restores_the_first_client(site: Site, header: str) -> None:
    """`accept_proxy_from`: HAProxy's own send-proxy and send-proxy-v2 are read, and the address goes through both."""
    seen = site.fronts[header].json("https://unix-v2.example.test/seen", ("--interface", "127.0.0.3"))
    client = line_with(site.behind, seen["unique_id"])[0]

    assert seen["src"] == "127.0.0.3"
    assert (seen["dst"], seen["dst_port"]) == ("127.0.0.1", str(site.fronts[header].port))
    assert client == f"127.0.0.3:{seen['src_port']}"


@pytest.mark.skipif(not has_ipv6(), reason="this machine's loopback has no ::1")
def test_a_load_balancers_header_may_be_of_the_other_family(site: Site) -> None:
    """PROXY protocol, section 2.2: the addresses in the header need not be of the family that it came over."""
    seen = Door(port=site.fronts["v2"].port, root=site.door.root, host="::1").json("https://unix-v2.example.test/seen")

    assert seen["src"] == "::1"


def test_a_trusted_sender_without_a_header_is_refused(site: Site) -> None:
    """PROXY protocol, section 2: a receiver must not guess whether a header is there; it insists on it."""
    port = int(re.search(r"listen = \[\"127\.0\.0\.1:(\d+)", site.behind.config.read_text())[1])  # type: ignore[index]
    before = site.behind.metric("sniproxy_connections_total", outcome="bad_proxy_header", backend="")
    with pytest.raises((ConnectionError, ssl.SSLError)), Door(port=port, root=site.door.root).tls("shop.example.com"):
        pass

    until(
        lambda: site.behind.metric("sniproxy_connections_total", outcome="bad_proxy_header", backend="") > before,
        "it is counted as bad_proxy_header",
    )


def test_a_client_that_sends_a_header_of_its_own_is_not_believed(site: Site) -> None:
    """PROXY protocol, section 2: only from those who are known to send one; for others it is not TLS."""
    with socket.create_connection((LOCALHOST, site.door.port), 30) as plain:
        plain.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        answer = everything(plain)

    assert answer == b""
    assert "192.0.2.1" not in site.sniproxy.stdout
