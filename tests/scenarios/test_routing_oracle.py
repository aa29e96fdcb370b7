"""HAProxy as the judge of where a connection goes: the old loop's rules in a TCP frontend, ours beside it.

Every hello is sent to both, and both have the same servers behind, each of which answers with its name. Where the two
part, a test says so and which of them is right.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import hellos, vectors
from tests.support.clients import connected, everything
from tests.support.haproxy import HAPROXY, MISSING, Haproxy
from tests.support.origins import NamedServer
from tests.support.processes import LOCALHOST, Programs, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(HAPROXY is None, reason=MISSING)

BACKENDS = ("acme", "exact", "app-h2", "app", "label", "suffix", "plain", "rest")

# In the order of precedence that ours has by itself: exact, then by h2, then one label, then any depth.
OLD_LOOP = """
    log stderr format raw local0
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s

frontend public
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    acl acme req.ssl_sni -m end .acme.invalid
    use_backend acme if acme
    use_backend exact if {{ req.ssl_sni -i git.example.com www.example.org }}
    use_backend app-h2 if {{ req.ssl_sni -i app.example.com }} {{ req.ssl_alpn h2 }}
    use_backend app if {{ req.ssl_sni -i app.example.com }}
    use_backend label if {{ req.ssl_sni -i -m reg ^[^.]+\\.dev\\.example\\.com$ }}
    use_backend suffix if {{ req.ssl_sni -i -m end .example.net }}
    use_backend suffix if {{ req.ssl_sni -i example.net }}
    use_backend plain if !{{ req.ssl_sni -m found }} {{ req.ssl_hello_type 1 }}
    default_backend rest
"""

ROUTES = """
[proxy]
listen = ["127.0.0.1:{port}"]
default_backend = "rest"
no_sni = "plain"
not_tls = "rest"
inspect_delay = "5s"
max_hello = "16KiB"

[[routes]]
sni = ["git.example.com", "www.example.org"]
backend = "exact"

[[routes]]
sni = ["app.example.com"]
alpn = ["h2"]
backend = "app-h2"

[[routes]]
sni = ["app.example.com"]
backend = "app"

[[routes]]
sni = ["*.dev.example.com"]
backend = "label"

[[routes]]
sni = [".example.net"]
backend = "suffix"
"""

REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Where the two listen, and the servers behind both."""

    programs: Programs
    theirs: int
    ours: int
    servers: dict[str, NamedServer]

    def of_haproxy(self, *portions: bytes) -> str:
        return _chosen(self.theirs, portions)

    def of_ours(self, *portions: bytes) -> str:
        return _chosen(self.ours, portions)

    def agree_on(self, *portions: bytes) -> str:
        """The backend that both choose."""
        ours, theirs = self.of_ours(*portions), self.of_haproxy(*portions)
        assert ours == theirs
        return ours


def _chosen(port: int, portions: tuple[bytes, ...]) -> str:
    with connected(LOCALHOST, port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for portion in portions:
            client.sendall(portion)
        answer = everything(client).decode("latin-1")
    return answer if answer in BACKENDS else REFUSED


@pytest.fixture(scope="module")
def judges(module_programs: Programs) -> Iterator[Judges]:
    directory = module_programs.directory
    ports = {"theirs": free_port(), "ours": free_port()}
    with ExitStack() as stack:
        servers = {}
        for name in BACKENDS:
            servers[name] = NamedServer(name, directory / name)
            stack.callback(servers[name].close)
        stack.callback(module_programs.end)
        old = OLD_LOOP.format(port=ports["theirs"])
        new = ROUTES.format(port=ports["ours"])
        for name in BACKENDS:
            old += f"\nbackend {name}\n    server {name} unix@{directory / name}\n"
            new += f'\n[backends.{name}]\nservers = ["unix:{directory / name}"]\nproxy_protocol = "off"\n'
        module_programs.start(Haproxy(old, directory))
        module_programs.sniproxy(new)
        yield Judges(programs=module_programs, servers=servers, **ports)


def large_hello(length: int, name: str = "git.example.com") -> bytes:
    return hellos.record(hellos.padded_hello(length, name))


# -- where both agree


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("git.example.com", "exact"),
        ("GIT.Example.COM", "exact"),
        ("xgit.example.com", "rest"),
        ("git.example.com.evil.test", "rest"),
        ("app.example.com", "app"),
        ("APP.example.com", "app"),
        ("a.dev.example.com", "label"),
        ("A.DEV.EXAMPLE.com", "label"),
        ("b.a.dev.example.com", "rest"),
        ("dev.example.com", "rest"),
        ("example.net", "suffix"),
        ("Example.NET", "suffix"),
        ("a.example.net", "suffix"),
        ("c.b.a.example.net", "suffix"),
        ("notexample.net", "rest"),
        ("example.network", "rest"),
        ("xn--bcher-kva.example.net", "suffix"),
        ("under_score.example.net", "suffix"),
        ("example.org", "rest"),
        ("localhost", "rest"),
        ("acme.invalid", "rest"),
        ("acme.invalid.example.org", "rest"),
        ("xacme.invalid", "rest"),
        ("a" * 63 + ".example.net", "suffix"),
    ],
)
def test_names(judges: Judges, name: str, backend: str) -> None:
    """HAProxy's manual, req.ssl_sni and section 7.1.3: -i, -m end and -m reg; ours are exact, ".suffix", "*.label"."""
    assert judges.agree_on(hellos.hello(name)) == backend


def test_without_a_name(judges: Judges) -> None:
    """HAProxy's manual, req.ssl_sni -m found: a hello without server_name has none; ours is `no_sni`."""
    assert judges.agree_on(hellos.hello(None)) == "plain"


@pytest.mark.parametrize(
    ("protocols", "backend"),
    [
        ((b"h2",), "app-h2"),
        ((b"h2", b"http/1.1"), "app-h2"),
        ((b"http/1.1", b"h2"), "app-h2"),
        ((b"acme-tls/1", b"h2"), "app-h2"),
        ((b"http/1.1",), "app"),
        ((b"acme-tls/1",), "app"),
        ((b"H2",), "app"),
        ((b"h2c",), "app"),
        ((b"h",), "app"),
        ((), "app"),
    ],
)
def test_protocols(judges: Judges, protocols: tuple[bytes, ...], backend: str) -> None:
    """HAProxy's manual, req.ssl_alpn; RFC 7301 section 3.1: names are octets, exact and with case."""
    assert judges.agree_on(hellos.hello("app.example.com", *protocols)) == backend


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302, 0x0303, 0x0304])
def test_record_versions(judges: Judges, version: int) -> None:
    """RFC 8446 section 5.1: the version of a record is to be ignored; that of SSL 3.0 is as good."""
    message = hellos.client_hello(hellos.server_name("git.example.com"), hellos.supported_versions(0x0304, 0x0303))

    assert judges.agree_on(hellos.record(message, version=version)) == "exact"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_segments(judges: Judges, size: int) -> None:
    """RFC 9293 section 3.8: segments mean nothing. HAProxy's manual, inspect-delay: "for every new chunk"."""
    stream = hellos.hello("a.example.net", b"h2")

    assert judges.agree_on(*(stream[start : start + size] for start in range(0, len(stream), size))) == "suffix"


@pytest.mark.parametrize("length", [1000, 1436, 4096, 8192, 12_000, 15_000])
def test_large_hellos(judges: Judges, length: int) -> None:
    """tune.bufsize is 16 KiB less tune.maxrewrite's 1 KiB at HAProxy, max_hello 16 KiB here: up to 15 KiB both read."""
    assert judges.agree_on(large_hello(length)) == "exact"


def grease_hello() -> bytes:
    return hellos.client_hello(
        hellos.extension(0x0A0A),
        hellos.server_name("git.example.com"),
        hellos.alpn(b"\x1a\x1a", b"h2"),
        hellos.supported_versions(0x2A2A, 0x0304),
        hellos.extension(0xFAFA, b"\0"),
        ciphers=(0x3A3A, 0x1301),
    )


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(grease_hello(), id="GREASE"),
        pytest.param(
            hellos.client_hello(hellos.server_name("git.example.com"), hellos.extension(0xFE0D, bytes(200))), id="ECH"
        ),
        pytest.param(
            hellos.client_hello(hellos.extension(0xFE0D, bytes(200)), hellos.server_name("git.example.com")),
            id="ECH before the name",
        ),
        pytest.param(hellos.client_hello(hellos.server_name("git.example.com"), session_id=bytes(32)), id="session id"),
        pytest.param(hellos.client_hello(hellos.server_name("git.example.com"), legacy_version=0x0301), id="TLS 1.0"),
        pytest.param(hellos.client_hello(hellos.server_name("git.example.com"), legacy_version=0x0302), id="TLS 1.1"),
        pytest.param(
            hellos.client_hello(hellos.server_name("git.example.com"), ciphers=range(0x1301, 0x1301 + 200)),
            id="many ciphers",
        ),
        pytest.param(
            hellos.client_hello(
                *(hellos.extension(kind) for kind in range(100, 160)), hellos.server_name("git.example.com")
            ),
            id="the name last of many",
        ),
    ],
)
def test_shapes(judges: Judges, message: bytes) -> None:
    """RFC 8446 section 4.1.2, RFC 8701 section 3.1, RFC 9849 section 5: none of it hides the (outer) name."""
    assert judges.agree_on(hellos.record(message)) == "exact"


def test_a_hello_without_extensions(judges: Judges) -> None:
    """RFC 5246 section 7.4.1.2: a hello may end with its compression methods; then it has no name."""
    assert judges.agree_on(hellos.record(hellos.client_hello(extensions_block=False))) == "plain"


def test_bytes_behind_the_hello(judges: Judges) -> None:
    """RFC 8446 section 2.3: early data may follow at once; it is handed on behind the hello."""
    stream = hellos.hello("git.example.com") + hellos.record(bytes(3000), content_type=hellos.APPLICATION_DATA)
    received = judges.servers["exact"].received
    before = len(received)

    assert judges.agree_on(stream) == "exact"
    assert until(lambda: received[before + 1 :], "both are read to their ends")
    assert received[before:] == [stream, stream]


def _alike(vector: vectors.HelloVector) -> bool:
    """Not one of those that the tests below are about."""
    name = vector.server_name or ""
    in_one_record = 5 + int.from_bytes(vector.stream[3:5]) == len(vector.stream)
    as_compared = name == name.lower().removesuffix(".") and name != "192.0.2.1"
    return in_one_record and as_compared and not name.endswith(".acme.invalid")


RECORDED = [pytest.param(vector, id=vector.name) for vector in vectors.client_hellos() if _alike(vector)]


@pytest.mark.parametrize("vector", RECORDED)
def test_recorded_hellos(judges: Judges, vector: vectors.HelloVector) -> None:
    """First flights of real clients: browsers, libraries, tools."""
    assert judges.agree_on(vector.stream) == _expected(vector)


def _expected(vector: vectors.HelloVector) -> str:
    return {"www.example.org": "exact", None: "plain"}.get(vector.normal_name, "rest")


# -- where they do not, by intention


@pytest.mark.parametrize("name", ["a.acme.invalid", "1234.5678.acme.invalid"])
def test_acme_invalid_is_answered_only_while_pending(judges: Judges, name: str) -> None:
    """The loop hands these to a certificate client, whoever asks. Ours come in only for a validation that is pending."""
    assert judges.of_haproxy(hellos.hello(name)) == "acme"
    assert judges.of_ours(hellos.hello(name)) == REFUSED


def test_acme_invalid_in_upper_case(judges: Judges) -> None:
    """RFC 6066 section 3: case does not matter. The loop's rule has no -i, so that it lets these pass as any site's."""
    assert judges.of_haproxy(hellos.hello("A.ACME.invalid")) == "rest"
    assert judges.of_ours(hellos.hello("A.ACME.invalid")) == REFUSED


def test_a_trailing_dot(judges: Judges) -> None:
    """RFC 6066 section 3: names come without it. HAProxy compares it as a character; we compare names."""
    assert judges.of_haproxy(hellos.hello("git.example.com.")) == "rest"
    assert judges.of_ours(hellos.hello("git.example.com.")) == "exact"


def test_an_address_as_a_name(judges: Judges) -> None:
    """RFC 6066 section 3: "Literal IPv4 and IPv6 addresses are not permitted": for us that is no usable name."""
    assert judges.of_haproxy(hellos.hello("192.0.2.1")) == "rest"
    assert judges.of_ours(hellos.hello("192.0.2.1")) == "plain"


def test_a_hello_of_16_kib(judges: Judges) -> None:
    """max_hello counts the message; HAProxy's buffer also holds the record's header and keeps tune.maxrewrite free."""
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = (pool.submit(judge, large_hello(16_384)) for judge in (judges.of_haproxy, judges.of_ours))

        assert theirs.result() != "exact"
        assert ours.result() == "exact"


def test_a_larger_hello_is_refused(judges: Judges) -> None:
    """max_hello, and an alert that says so; HAProxy gives up on the name and takes its default."""
    stream = hellos.records(hellos.padded_hello(16_385), 16_000)

    assert judges.of_ours(stream) == REFUSED


@pytest.mark.parametrize("sizes", [(1,), (4,), (40, 4000), (45, 5, 4000), (2, 100, 4000)])
def test_a_hello_over_several_records(judges: Judges, sizes: tuple[int, ...]) -> None:
    """RFC 8446 section 5.1: a message may be fragmented. HAProxy 2.6 reads the first record only, and finds no name."""
    message = hellos.client_hello(hellos.server_name("git.example.com"), hellos.supported_versions(0x0304))
    stream = hellos.records(message, *sizes)
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.submit(judges.of_haproxy, stream), pool.submit(judges.of_ours, stream)

        assert theirs.result() != "exact"
        assert ours.result() == "exact"
