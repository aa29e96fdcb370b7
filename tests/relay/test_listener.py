"""Binding: what is listened on, what is said when that cannot be, and what is left behind."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.errors import StartError
from sniproxy.model import TcpAddress, UnixAddress
from sniproxy.relay.listener import Listener, bind, has_ipv6, plain_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sniproxy.model import Address

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def listen() -> Iterator[Callable[[Address], Listener]]:
    made: list[Listener] = []

    def listen(address: Address) -> Listener:
        made.append(bind(address))
        return made[-1]

    yield listen
    for listener in made:
        listener.close()


def dial(family: int, address: Any) -> socket.socket:
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(address)
    return client


def test_an_address_is_listened_on_without_blocking(listen: Callable[[Address], Listener]) -> None:
    """The engine never waits in accept(2)."""
    listener = listen(TcpAddress("127.0.0.1", 0))

    with pytest.raises(BlockingIOError):
        listener.accept()
    assert listener.name == "127.0.0.1:0"
    assert listener.local == listener.socket.getsockname()


def test_accepted_connections_inherit_no_delay_and_keepalive(listen: Callable[[Address], Listener]) -> None:
    """tcp(7): what is set on the listening socket need not be set on each accepted one."""
    listener = listen(TcpAddress("127.0.0.1", 0))
    with dial(socket.AF_INET, listener.socket.getsockname()):
        listener.socket.setblocking(True)
        fd, _ = listener.accept()
        with socket.socket(fileno=fd) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@needs_ipv6
def test_no_host_means_both_families(listen: Callable[[Address], Listener]) -> None:
    """HAProxy's manual, `bind :443` and `v4v6`: one socket for IPv4 and IPv6."""
    listener = listen(TcpAddress("", 0))
    port = listener.socket.getsockname()[1]

    dial(socket.AF_INET, ("127.0.0.1", port)).close()
    dial(socket.AF_INET6, ("::1", port)).close()
    assert listener.local is None  # another one for each client


@needs_ipv6
def test_the_ipv6_wildcard_leaves_ipv4_to_another(listen: Callable[[Address], Listener]) -> None:
    """HAProxy's manual, `v6only`: `0.0.0.0:443` and `[::]:443` can stand beside each other."""
    six = listen(TcpAddress("::", 0))
    port = six.socket.getsockname()[1]
    four = listen(TcpAddress("0.0.0.0", port))

    dial(socket.AF_INET, ("127.0.0.1", port)).close()
    dial(socket.AF_INET6, ("::1", port)).close()
    assert (six.name, four.name) == ("[::]:0", f"0.0.0.0:{port}")


def test_an_address_in_use(listen: Callable[[Address], Listener]) -> None:
    """The message says what is wrong and how to find out who it is."""
    port = listen(TcpAddress("127.0.0.1", 0)).socket.getsockname()[1]

    with pytest.raises(StartError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use .*ss -ltnp"):
        bind(TcpAddress("127.0.0.1", port))


def test_an_address_of_another_machine() -> None:
    """192.0.2.0/24 is nobody's (RFC 5737)."""
    with pytest.raises(StartError, match="this machine has no such address"):
        bind(TcpAddress("192.0.2.1", 0))


@pytest.mark.parametrize("name", ["nowhere/front.sock", "x" * 120], ids=["no directory", "too long"])
def test_a_unix_path_that_cannot_be(tmp_path: Path, name: str) -> None:
    """unix(7): a path of at most 107 bytes in a directory that is there. What was opened for it is closed again."""
    with pytest.raises(StartError, match=r"cannot listen on unix:.*(No such file|too long)"):
        bind(UnixAddress(str(tmp_path / name)))


def test_a_unix_socket(listen: Callable[[Address], Listener], tmp_path: Path) -> None:
    """Its clients have no address."""
    path = str(tmp_path / "front.sock")
    listener = listen(UnixAddress(path))

    dial(socket.AF_UNIX, path).close()
    assert listener.name == f"unix:{path}"
    assert listener.local is None


def test_an_abstract_unix_socket(listen: Callable[[Address], Listener]) -> None:
    """unix(7): a name that begins with a NUL is in no directory; written with an @, as HAProxy does."""
    listener = listen(UnixAddress("@sniproxy-test-abstract"))

    dial(socket.AF_UNIX, b"\0sniproxy-test-abstract").close()
    assert listener.name == "unix:@sniproxy-test-abstract"


def test_a_socket_file_that_nobody_answers_on_is_replaced(
    listen: Callable[[Address], Listener], tmp_path: Path
) -> None:
    """What a process that was killed has left behind must not keep the next one from starting."""
    path = str(tmp_path / "front.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(path)
    listen(UnixAddress(path))

    dial(socket.AF_UNIX, path).close()


def test_a_socket_file_that_is_answered_on_is_left_alone(listen: Callable[[Address], Listener], tmp_path: Path) -> None:
    """Taking it away from a running process would cut that off without a word."""
    address = UnixAddress(str(tmp_path / "front.sock"))
    listen(address)

    with pytest.raises(StartError, match="Address already in use"):
        bind(address)
    dial(socket.AF_UNIX, address.path).close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A typing error in the configuration must not cost anybody a file."""
    path = tmp_path / "precious"
    path.write_text("keep me")

    with pytest.raises(StartError, match="Address already in use"):
        bind(UnixAddress(str(path)))
    assert path.read_text() == "keep me"


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        (("192.0.2.1", 443), ("192.0.2.1", 443)),
        (("::ffff:192.0.2.1", 443, 0, 0), ("192.0.2.1", 443)),
        (("fe80::1%eth0", 443, 0, 2), ("fe80::1", 443)),
        (("2001:db8::1", 443, 0, 0), ("2001:db8::1", 443)),
        (("::ffff:0:1", 443, 0, 0), ("::ffff:0:1", 443)),
        ("", None),
        (b"\0abstract", None),
    ],
)
def test_what_the_kernel_calls_a_peer(told: tuple[str, int], plain: tuple[str, int] | None) -> None:
    """RFC 4291 section 2.5.5.2 addresses are IPv4 to whoever reads a log or writes a rule."""
    assert plain_endpoint(told) == plain
