"""What keys say together (contract section 2: a key that another key makes meaningless is an error too)."""

from __future__ import annotations

import pytest

from sniproxy.config import parse
from sniproxy.errors import ConfigError

BACKEND = '[backends.haproxy]\nservers = ["unix:/run/haproxy/sniproxy.sock"]\n'


def mistakes(text):
    try:
        parse(text, file="f")
    except ConfigError as error:
        return [f"{mistake.line} {mistake.key}: {mistake.message}" for mistake in error.mistakes]
    return []


def route(**keys):
    return "[[routes]]\n" + "".join(f"{key} = {value!r}\n" for key, value in {"backend": "haproxy", **keys}.items())


@pytest.mark.parametrize(
    "text",
    [
        BACKEND,
        BACKEND + route(sni=["a.example"]) + route(sni=["*.a.example"]) + route(sni=[".a.example"]),
        BACKEND + route(sni=["a.example"]) + route(sni=["a.example"], alpn=["h2"]),
        BACKEND + route(sni=["a.example"], alpn=["http/1.1"]) + route(sni=["a.example"], alpn=["h2"]),
        BACKEND + route(sni=["a.example"], allow=["10.0.0.0/8"], deny=["10.1.0.0/16"]),
        BACKEND + "check = 'tcp'\ncheck_interval = '5s'\nrise = 1\nfall = 1\n",
        BACKEND + "balance = 'source'\n",
        "[proxy]\ndefault_backend = 'reject'\n",
        "[proxy]\ngroup = 'haproxy'\n" + BACKEND,
        "[proxy]\nno_sni = 'reject'\nnot_tls = 'haproxy'\nmax_connections_per_client = 10\n" + BACKEND,
        "[admin]\nlisten = ''\ncontrol_socket = ''\n" + BACKEND,
    ],
)
def test_what_makes_sense_is_taken(text):
    """Section 2: the config."""
    assert mistakes(text) == []


def test_a_backend_has_servers():
    """Section 2: `servers`."""
    assert mistakes(BACKEND + "[backends.git]\n") == [
        '3 backends.git.servers: is missing; write, say, servers = ["unix:/run/haproxy/sniproxy.sock"]'
    ]


def test_a_route_has_names_and_a_backend():
    """Section 2: [[routes]]."""
    assert mistakes(BACKEND + "[[routes]]\n") == ["3 routes[0].backend: is missing", "3 routes[0].sni: is missing"]


@pytest.mark.parametrize("name", ["reject", "default"])
def test_a_backend_is_not_called_as_a_word_of_routing(name):
    """Section 2: default_backend = "reject", no_sni = "default"."""
    (mistake,) = mistakes(BACKEND + f"[backends.{name}]\nservers = ['unix:/x']\n")
    assert mistake.startswith(f'3 backends.{name}: no backend can be called "{name}"')


def test_a_backends_name_fits_into_a_log_field():
    """Section 2: [backends.NAME]; the tcplog format separates by blanks and slashes."""
    assert mistakes(BACKEND + "[backends.'a/b']\nservers = ['unix:/x']\n") == [
        '3 backends."a/b": "a/b" cannot name a backend; use letters, digits, dots, hyphens, underscores'
    ]


def test_the_default_backend_has_to_be_written():
    """Section 2: default_backend = "haproxy"; without it nothing would be relayed."""
    (mistake,) = mistakes("")
    assert mistake.startswith(
        '1 proxy.default_backend: is "haproxy" when not written, and there is no such backend; '
        'write [backends.haproxy] with servers = ["unix:/run/haproxy/sniproxy.sock"]'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[proxy]\ndefault_backend = 'hapro'\n", '2 proxy.default_backend: there is no backend "hapro"; did you mean'),
        ("[proxy]\nno_sni = 'ssh'\n", '2 proxy.no_sni: there is no backend "ssh"; name "haproxy", or write "reject"'),
        ("[proxy]\nnot_tls = 'ssh'\n", '2 proxy.not_tls: there is no backend "ssh"; name "haproxy"'),
        ("[proxy]\nnot_tls = 'default'\n", '2 proxy.not_tls: "default" means nothing here; name a backend, or write'),
        ("[[routes]]\nsni = ['a']\nbackend = 'x'\n", '3 routes[0].backend: there is no backend "x"; name "haproxy"'),
        ("[[routes]]\nsni = ['a']\nbackend = 'reject'\n", '3 routes[0].backend: "reject" is no backend; to refuse'),
    ],
)
def test_a_backend_that_is_named_is_there(text, expected):
    """Section 2: default_backend, no_sni, not_tls, `backend`."""
    (mistake,) = mistakes(text + BACKEND)
    assert mistake.startswith(expected)


def test_a_pattern_leads_to_one_route():
    """Section 2: `sni`; the order of routes decides nothing. Both lines are told."""
    assert mistakes(BACKEND + route(sni=["b.example", "a.example"]) + route(sni=["A.example."])) == [
        '8 routes[1].sni[0]: "a.example" is in routes[0] already; only one route can have it (line 5)'
    ]


def test_a_pattern_leads_to_one_route_for_each_protocol():
    """Section 2: `alpn`: one of these must be offered; a client may offer both."""
    first, second = route(sni=["a.example"], alpn=["h2"]), route(sni=["a.example"], alpn=["http/1.1", "h2"])
    (mistake,) = mistakes(BACKEND + first + second)
    assert mistake.startswith('9 routes[1].sni[0]: "a.example" for clients that offer "h2" is in routes[0] already')


def test_a_pattern_is_in_a_route_once():
    """Section 2: `sni`."""
    assert mistakes(BACKEND + route(sni=["a.example", "A.example"])) == [
        '5 routes[0].sni[1]: "a.example" is there twice (line 5)'
    ]


@pytest.mark.parametrize("pattern", ["x.acme.invalid", "*.acme.invalid", ".acme.invalid"])
def test_challenge_names_have_no_route(pattern):
    """Design: *.acme.invalid always goes to the responder, so the route would never be used."""
    (mistake,) = mistakes(BACKEND + route(sni=[pattern]))
    assert mistake.startswith("5 routes[0].sni[0]: names below acme.invalid are ACME challenges")


def test_what_is_denied_is_not_allowed_as_well():
    """Section 2: `allow`, `deny`; deny goes first."""
    denied = route(sni=["a.example"], allow=["192.0.2.0/24", "10.1.0.0/16"], deny=["::/0", "10.0.0.0/8"])
    assert mistakes(BACKEND + denied) == [
        '6 routes[0].allow[1]: "10.1.0.0/16" has no effect: routes[0].deny[1] denies it, and deny goes before allow (line 7)'
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[proxy]\nlisten = [':443', ':443']\n", '2 proxy.listen[1]: ":443" is listened on already: proxy.listen[0]'),
        ("[proxy]\nlisten = [':80']\n[http]\nlisten = ['[::]:80']\n", '4 http.listen[0]: "[::]:80" cannot be bound'),
        ("[http]\nlisten = ['0.0.0.0:443']\n", '2 http.listen[0]: "0.0.0.0:443" is listened on already: proxy.listen'),
        ("[admin]\nlisten = '127.0.0.1:443'\n", '2 admin.listen: "127.0.0.1:443" cannot be bound beside "0.0.0.0:443"'),
        (
            "[admin]\nlisten = 'unix:/run/sniproxy/control.sock'\n",
            '1 admin.control_socket: "unix:/run/sniproxy/control.sock" is listened on already: admin.listen (line 2)',
        ),
    ],
)
def test_an_address_is_listened_on_once(text, expected):
    """Section 2: `listen` of [proxy], [http] and [admin]."""
    (mistake,) = mistakes(text + BACKEND)
    assert mistake.startswith(expected)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("127.0.0.1:443", '"127.0.0.1:443" is our own proxy.listen[0]: connections would come back'),
        ("[::1]:443", '"[::1]:443" is our own proxy.listen[1]'),
        ("127.0.0.1:8404", '"127.0.0.1:8404" is our own admin.listen'),
        ("unix:/run/sniproxy/control.sock", '"unix:/run/sniproxy/control.sock" is our own admin.control_socket'),
    ],
)
def test_a_server_is_not_ourselves(server, expected):
    """Section 2: `servers`; a loop would take every connection there is."""
    (mistake,) = mistakes(f"[backends.haproxy]\nservers = ['{server}']\n")
    assert mistake.startswith(f"2 backends.haproxy.servers[0]: {expected}")


@pytest.mark.parametrize("key", ["check_interval = '5s'", "rise = 2", "fall = 1"])
def test_a_check_that_is_off_has_no_settings(key):
    """Section 2: a key that another key makes meaningless is an error, even with its default."""
    (mistake,) = mistakes(BACKEND + key)
    assert mistake.startswith(f'3 backends.haproxy.{key.split()[0]}: has no effect while check is "off"')


def test_one_client_has_not_more_than_all():
    """Section 2: a key that another key makes meaningless is an error."""
    (mistake,) = mistakes("[proxy]\nmax_connections = 10\nmax_connections_per_client = 11\n" + BACKEND)
    assert mistake == "3 proxy.max_connections_per_client: 11 is never reached: max_connections is 10"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[backend.haproxy]\nservers = ['unix:/x']\n", "backend"),
        ("[backends.haproxy]\nserver = ['unix:/x']\n", "backends.haproxy.server"),
        ("[backends.haproxy]\nservers = [5]\n", "backends.haproxy.servers[0]"),
        ("[backends]\nhaproxy = 5\n", "backends.haproxy"),
        ("[proxy]\ndefault_backend = 5\n", "proxy.default_backend"),
        ("[proxy]\nlisten = [5]\n[http]\nlisten = [':443']\n" + BACKEND, "proxy.listen[0]"),
        ("backends = 5\n", "backends"),
        (BACKEND + "check = 'tpc'\nrise = 5\n", "backends.haproxy.check"),
        (BACKEND + "[[routes]]\nsn = ['a']\nbackend = 'haproxy'\n", "routes[0].sn"),
    ],
)
def test_one_slip_is_one_mistake(text, path):
    """Section 1: all mistakes at once, and none that is merely the echo of another."""
    (mistake,) = mistakes(text)
    assert mistake.split(" ")[1] == f"{path}:"
