"""From a file to a Config, or to all its mistakes (contract sections 1 and 2)."""

from __future__ import annotations

import ipaddress
import json
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config import Config, json_schema, load, parse, read
from sniproxy.config.certificates import BackendRef
from sniproxy.errors import ConfigError, Mistake
from sniproxy.model import Balance, ProxyProtocol, TcpAddress, UnixAddress

SMALLEST = '[backends.haproxy]\nservers = ["unix:/run/haproxy/sniproxy.sock"]\n'

# Every key there is, each at its default where it has one.
EVERYTHING = """
[proxy]
listen = ["0.0.0.0:443", "[::]:443"]
default_backend = "haproxy"
no_sni = "default"
not_tls = "reject"
inspect_delay = "5s"
connect_timeout = "10s"
idle_timeout = "10m"
half_close_timeout = "30s"
shutdown_grace = "30s"
max_hello = "16KiB"
max_connections = 16384
max_connections_per_client = 0
max_connection_rate_per_client = 0
accept_proxy_from = []
workers = 1
user = ""
group = ""

[backends.haproxy]
servers = ["unix:/run/haproxy/sniproxy.sock"]
proxy_protocol = "v2"
balance = "leastconn"
check = "tcp"
check_interval = "2s"
rise = 2
fall = 3

[backends.git]
servers = ["127.0.0.1:2443"]

[[routes]]
sni = ["git.example.com", "*.dev.example.com", ".example.net"]
alpn = []
backend = "git"
allow = []
deny = []

[http]
listen = ["0.0.0.0:80", "[::]:80"]
redirect_to_https = true

[admin]
listen = "127.0.0.1:8404"
control_socket = "/run/sniproxy/control.sock"

[acme]
directory = "letsencrypt"
dry_run_directory = ""
ca_file = ""
email = "admin@example.com"
agree_to_terms = true
state_dir = "/var/lib/sniproxy"
challenges = ["tls-alpn-01", "http-01"]
key_type = "ecdsa-p256"
profile = ""
preferred_chain = ""
eab_kid = ""
eab_hmac_file = ""

[[certificates]]
names = ["example.com", "www.example.com"]

[haproxy]
certificate_dir = "/srv/certs"
runtime_sockets = ["/run/haproxy/admin.sock"]
verify = "backend:haproxy"
reload_command = []

[hooks]
on_renewed = []
on_failed = []

[log]
format = "tcplog"
target = "stdout"
level = "info"
"""


def mistakes(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, file="f.toml")
    return caught.value.mistakes


def test_everything_is_loaded():
    """Section 2: the whole config."""
    config = parse(EVERYTHING, file="f.toml")
    assert dict(config.proxy) == {
        "listen": (TcpAddress("0.0.0.0", 443), TcpAddress("::", 443)),
        "default_backend": "haproxy",
        "no_sni": "default",
        "not_tls": "reject",
        "inspect_delay": 5.0,
        "connect_timeout": 10.0,
        "idle_timeout": 600.0,
        "half_close_timeout": 30.0,
        "shutdown_grace": 30.0,
        "max_hello": 16384,
        "max_connections": 16384,
        "max_connections_per_client": 0,
        "max_connection_rate_per_client": 0,
        "accept_proxy_from": (),
        "workers": 1,
        "user": "",
        "group": "",
    }
    assert list(config.backends) == ["haproxy", "git"]
    assert dict(config.backends["haproxy"]) == {
        "servers": (UnixAddress("/run/haproxy/sniproxy.sock"),),
        "proxy_protocol": ProxyProtocol.V2,
        "balance": Balance.LEASTCONN,
        "check": "tcp",
        "check_interval": 2.0,
        "rise": 2,
        "fall": 3,
    }
    (route,) = config.routes
    assert dict(route) == {
        "sni": ("git.example.com", "*.dev.example.com", ".example.net"),
        "alpn": (),
        "backend": "git",
        "allow": (),
        "deny": (),
    }
    assert dict(config.http) == {
        "listen": (TcpAddress("0.0.0.0", 80), TcpAddress("::", 80)),
        "redirect_to_https": True,
    }
    assert dict(config.admin) == {
        "listen": TcpAddress("127.0.0.1", 8404),
        "control_socket": UnixAddress("/run/sniproxy/control.sock"),
    }
    assert dict(config.acme) == {
        "directory": "https://acme-v02.api.letsencrypt.org/directory",
        "dry_run_directory": "",
        "ca_file": None,
        "email": "admin@example.com",
        "agree_to_terms": True,
        "state_dir": Path("/var/lib/sniproxy"),
        "challenges": ("tls-alpn-01", "http-01"),
        "key_type": "ecdsa-p256",
        "profile": "",
        "preferred_chain": "",
        "eab_kid": "",
        "eab_hmac_file": None,
    }
    (certificate,) = config.certificates
    assert dict(certificate) == {
        "names": ("example.com", "www.example.com"),
        "name": "example.com",
        "key_type": "ecdsa-p256",
        "challenges": ("tls-alpn-01", "http-01"),
        "profile": "",
    }
    assert dict(config.haproxy) == {
        "certificate_dir": Path("/srv/certs"),
        "runtime_sockets": (UnixAddress("/run/haproxy/admin.sock"),),
        "verify": BackendRef("haproxy"),
        "reload_command": (),
    }
    assert dict(config.hooks) == {"on_renewed": (), "on_failed": (), "timeout": 30.0}
    assert dict(config.log) == {"format": "tcplog", "target": "stdout", "level": "info"}


def test_defaults_need_not_be_written():
    """Section 2: what is written above is what is meant anyway."""
    written = parse(EVERYTHING, file="f.toml")
    short = """
    [backends.haproxy]
    servers = ["unix:/run/haproxy/sniproxy.sock"]
    check = "tcp"
    [backends.git]
    servers = ["127.0.0.1:2443"]
    [[routes]]
    sni = ["git.example.com", "*.dev.example.com", ".example.net"]
    backend = "git"
    [http]
    [acme]
    email = "admin@example.com"
    agree_to_terms = true
    [[certificates]]
    names = ["example.com", "www.example.com"]
    [haproxy]
    """
    assert parse(short, file="f.toml") == written


def test_the_smallest_file_is_a_backend():
    """Section 2: everything else has a default."""
    assert isinstance(parse(SMALLEST, file="f.toml"), Config)


def test_a_certificate_is_as_acme_says_unless_it_says_otherwise():
    """Section 2: optional per certificate: name, key_type, challenges, profile."""
    text = (
        SMALLEST
        + """
    [http]
    [acme]
    agree_to_terms = true
    key_type = "rsa-2048"
    profile = "shortlived"
    [[certificates]]
    names = ["a.example"]
    [[certificates]]
    names = ["192.0.2.1"]
    name = "by-address"
    key_type = "ecdsa-p384"
    challenges = ["http-01"]
    profile = ""
    """
    )
    first, second = parse(text, file="f.toml").certificates
    assert (first.name, first.key_type, first.profile) == ("a.example", "rsa-2048", "shortlived")
    assert first.challenges == ("tls-alpn-01", "http-01")
    assert (second.name, second.key_type, second.profile) == ("by-address", "ecdsa-p384", "")
    assert second.challenges == ("http-01",)


def test_verify_is_the_default_backend_unless_written():
    """Section 2: verify = "backend:haproxy", which is the default_backend."""
    text = "[proxy]\ndefault_backend = 'web'\n[backends.web]\nservers = ['unix:/run/web.sock']\n[haproxy]\n"
    assert parse(text, file="f.toml").haproxy.verify == BackendRef("web")


def test_all_mistakes_are_told_at_once():
    """Section 1: all mistakes of a config are reported at once, `FILE:LINE: key.path: …`; sorted as in the file."""
    text = """\
[proxy]
listen = [
  "0.0.0.0:443",
  "::1:443",          # no brackets
]
conect_timeout = "5s"
idle_timeout = 10
workers = 0

[backends.haproxy]
servers = ["unix:/run/haproxy/sniproxy.sock"]
rise = 3

[[routes]]
sni = ["a.example", "b.*.example"]
backend = "hapoxy"

[[routes]]
sni = ["c.example"]
backend = "haproxy"
allow = ["10.0.0.1/8"]

[log]
level = "loud"
"""
    assert [str(mistake) for mistake in mistakes(text)] == [
        'f.toml:4: proxy.listen[1]: "::1:443" is an IPv6 address without brackets; write "[::1]:443"',
        'f.toml:6: proxy.conect_timeout: unknown key; did you mean "connect_timeout"?',
        'f.toml:7: proxy.idle_timeout: 10 has no unit; write a whole number and ms, s, m, h or d, such as "5s" or "10m"',
        'f.toml:8: proxy.workers: must be "auto" or a number from 1 to 512, not 0',
        'f.toml:12: backends.haproxy.rise: has no effect while check is "off"; write check = "tcp" or "tls", or take it out',
        'f.toml:15: routes[0].sni[1]: "b.*.example": a star stands for one whole label, the first; write "git.example.com" (that name), "*.example.com" (one label more) or ".example.com" (it and all below it)',
        'f.toml:16: routes[0].backend: there is no backend "hapoxy"; did you mean "haproxy"?',
        'f.toml:21: routes[1].allow[0]: "10.0.0.1/8" has bits set after the prefix; the network is "10.0.0.0/8"',
        'f.toml:24: log.level: must be "debug", "info", "warning" or "error", not "loud"',
    ]


def test_mistakes_on_one_line_keep_the_order_of_lists():
    """Section 1: in the order of the file, also past the tenth."""
    found = mistakes(SMALLEST + f"[proxy]\nlisten = {['x'] * 12}\n")
    assert [mistake.key for mistake in found] == [f"proxy.listen[{number}]" for number in range(12)]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[proxy]\nlisten = \n", 2, "not TOML: invalid value (column 10)"),
        ("[proxy]\nuser = 'a'\nuser = 'b'\n", 3, "not TOML: cannot overwrite a value (column 11)"),
        ("[proxy]\nlisten = [\n\n", 2, "not TOML: "),
        ("user = " + "9" * 5000, 0, "not TOML that can be read: a number has too many digits"),
        ("user = " + "[" * 50_000, 0, "not TOML that can be read: lists or tables are nested too deeply"),
    ],
    ids=["value", "twice", "end", "digits", "depth"],
)
def test_what_is_not_toml_is_one_mistake_with_its_line(text, line, message):
    """Section 1: FILE:LINE."""
    (mistake,) = mistakes(text)
    assert (mistake.file, mistake.key) == ("f.toml", "")
    assert mistake.line == line
    assert mistake.message.startswith(message)


def test_a_file_is_loaded(tmp_path):
    """Section 1: config file: -c/--config."""
    path = tmp_path / "sniproxy.toml"
    path.write_text(EVERYTHING)
    assert load(path) == parse(EVERYTHING, file="f.toml")


def test_a_byte_order_mark_is_skipped(tmp_path):
    """A file saved by an editor that begins every file with one is read as meant."""
    path = tmp_path / "sniproxy.toml"
    path.write_text(SMALLEST, encoding="utf-8-sig")
    assert load(path) == parse(SMALLEST, file="f.toml")


def test_a_file_that_is_absent_is_a_mistake(tmp_path):
    """Section 1: errors name the file."""
    path = tmp_path / "absent.toml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.mistakes == (
        Mistake(file=str(path), line=0, key="", message="cannot be read: No such file or directory"),
    )


def test_a_directory_is_a_mistake(tmp_path):
    """Section 1: errors name the file and the system's reason."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_is_not_utf_8_is_a_mistake(tmp_path):
    """Section 2: TOML is UTF-8."""
    path = tmp_path / "latin.toml"
    path.write_bytes(b"[proxy]\nuser = '\xe4'\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: is not UTF-8: byte 0xe4 in line 2"


def test_a_huge_file_is_refused(tmp_path):
    """A path that names something else altogether does not fill the memory."""
    path = tmp_path / "huge.toml"
    with path.open("wb") as stream:
        stream.truncate(65 << 20)
    with pytest.raises(ConfigError, match="is larger than 64MiB"):
        load(path)


def test_a_source_finds_the_lines_of_later_mistakes(tmp_path):
    """Section 1: `check` says what is wrong with what the config points at, in the same form."""
    path = tmp_path / "sniproxy.toml"
    path.write_text(SMALLEST)
    mistake = read(path).mistake(("backends", "haproxy", "servers", 0), "no such socket")
    assert str(mistake) == f"{path}:2: backends.haproxy.servers[0]: no such socket"


@pytest.mark.parametrize("mistake", ["", "[proxy]\nuser = 5\n"])
def test_a_hundred_thousand_names_take_a_few_seconds(mistake):
    """Design: however many names there are; with a mistake the lines are looked up on top."""
    names = ",\n".join(f'"host{number}.example.com"' for number in range(100_000))
    text = f'{mistake}{SMALLEST}[[routes]]\nbackend = "haproxy"\nsni = [{names}]\n'
    started = time.process_time()
    if mistake:
        assert [found.line for found in mistakes(text)] == [2]
    else:
        assert len(parse(text, file="f.toml").routes[0].sni) == 100_000
    assert time.process_time() - started < 10


def test_networks_are_values():
    """Design: config is TOML to frozen values."""
    text = "[proxy]\naccept_proxy_from = ['10.0.0.0/8']\n" + SMALLEST
    assert parse(text, file="f.toml").proxy.accept_proxy_from == (ipaddress.ip_network("10.0.0.0/8"),)


def test_the_json_schema_has_every_default_as_it_is_written():
    """The reference and editors show what the file would hold."""
    schema = json_schema()
    json.dumps(schema)
    document = tomllib.loads(EVERYTHING)
    examples = {("acme", "email"), ("acme", "agree_to_terms")}
    for name in ("proxy", "http", "admin", "acme", "haproxy", "log"):
        keys = schema["$defs"][name.capitalize()]["properties"]
        assert keys.keys() == document[name].keys()
        for key, field in keys.items():
            assert field["description"]
            if (name, key) not in examples:
                assert field["default"] == document[name][key], key


@pytest.mark.parametrize(
    ("section", "needed"), [("Backend", ["servers"]), ("Route", ["sni", "backend"]), ("Certificate", ["names"])]
)
def test_the_json_schema_knows_what_is_needed(section, needed):
    """Section 2: keys without a default."""
    assert json_schema()["$defs"][section]["required"] == needed


values = st.recursive(
    st.sampled_from(["true", "5", "-1", "''", "'x'", "'5s'", "'reject'", "':443'", "'.a.example'", "nan", "07:32:00"]),
    lambda below: (
        st.lists(below, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.tuples(st.sampled_from(["sni", "servers", "a", "check"]), below).map(
            lambda pair: f"{{{pair[0]} = {pair[1]}}}"
        )
    ),
    max_leaves=4,
)
paths = st.sampled_from(
    [
        *(
            f"{section}.{key}"
            for section in Config.model_fields
            for key in ("listen", "check", "challenges", "nonsense")
        ),
        *Config.model_fields,
        "backends.a.servers",
        "backends.a.check",
        "backends.a.rise",
        "haproxy.verify",
    ]
)


@given(st.dictionaries(paths, values, max_size=6))
def test_any_toml_is_a_config_or_mistakes_with_lines(document):
    """Section 1: exit status 2 and the mistakes; never a traceback."""
    text = "".join(f"{path} = {value}\n" for path, value in document.items())
    found: tuple[Mistake, ...] = ()
    try:
        parse(text, file="f.toml")
    except ConfigError as error:
        found = error.mistakes
    lines = [mistake.line for mistake in found]
    assert lines == sorted(lines)
    assert 0 not in lines
    assert all(str(mistake).isprintable() for mistake in found)
