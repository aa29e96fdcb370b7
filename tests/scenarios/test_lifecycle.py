"""From start to stop: signals, reloads, logs, rights and limits of the running program.

The server behind is a socket of the test itself, so that each byte and each end of stream can be told apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import resource
import select
import socket
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, Signals
from typing import TYPE_CHECKING

import pytest

from tests.support import clients, hellos
from tests.support.clients import Door, connected, everything, exactly
from tests.support.haproxy import HAPROXY, MISSING, Haproxy
from tests.support.origins import NamedServer, blob
from tests.support.processes import LOCALHOST, PATIENCE_SECONDS, Programs, Sniproxy, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.pki import Authority

HELLO = hellos.hello("www.example.com", b"h2")
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root, to give it up")


class Server:
    """A listening unix socket; `accept` hands out what comes in, behind the hello that it began with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(path))
        self.listening.listen(1024)
        self.listening.settimeout(PATIENCE_SECONDS)
        path.chmod(0o777)

    def accept(self, first: bytes = HELLO) -> socket.socket:
        connection, _ = self.listening.accept()
        connection.settimeout(PATIENCE_SECONDS)
        assert exactly(connection, len(first)) == first
        return connection

    def close(self) -> None:
        self.listening.close()


@dataclass(frozen=True, kw_only=True)
class Front:
    """One sniproxy on a port with one server behind."""

    programs: Programs
    server: Server
    port: int

    @property
    def directory(self) -> Path:
        return self.programs.directory

    def text(self, proxy: str = "", more: str = "", *, listen: str = "") -> str:
        """Its configuration, with more lines in [proxy] and behind everything else."""
        listen = listen or f'"{LOCALHOST}:{self.port}"'
        return (
            f'[proxy]\nlisten = [{listen}]\ndefault_backend = "web"\n{proxy}\n\n'
            f'[backends.web]\nservers = ["unix:{self.server.path}"]\nproxy_protocol = "off"\n{more}\n'
        )

    def start(self, proxy: str = "", more: str = "", **options: object) -> Sniproxy:
        return self.programs.sniproxy(self.text(proxy, more), **options)

    def pair(self, port: int = 0) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection through the proxy, the hello behind them."""
        client = connected(LOCALHOST, port or self.port)
        client.sendall(HELLO)
        return client, self.server.accept()


@pytest.fixture
def front(programs: Programs) -> Iterator[Front]:
    server = Server(programs.directory / "web.sock")
    try:
        yield Front(programs=programs, server=server, port=free_port())
    finally:
        programs.end()
        server.close()


def refuses(port: int) -> bool:
    try:
        connected(LOCALHOST, port).close()
    except ConnectionRefusedError:
        return True
    return False


def converse(client: socket.socket, server: socket.socket) -> None:
    """A few bytes each way."""
    client.sendall(b"question")
    assert exactly(server, 8) == b"question"
    server.sendall(b"answer")
    assert exactly(client, 6) == b"answer"


# -- stopping


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_live_transfer_ends_before_the_program_does(front: Front, number: Signals) -> None:
    """Contract, signals: TERM and INT drain, then stop; exit status 0 when nothing was cut."""
    proxy = front.start()
    client, server = front.pair()
    with client, server:
        proxy.send(number)
        proxy.says("stopping: 1 connections")
        assert refuses(front.port)
        sender = threading.Thread(target=server.sendall, args=(blob(8 << 20),))
        sender.start()
        got = exactly(client, 8 << 20)
        sender.join()
        converse(client, server)
        assert proxy.running

    assert got == blob(8 << 20)
    assert proxy.wait() == 0


def test_with_nothing_to_drain_it_stops_at_once(front: Front) -> None:
    """Exit status 0: done."""
    assert front.start().stop() == 0


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_second_signal_stops_now(front: Front, number: Signals) -> None:
    """Contract, signals: a second one stops now; exit status 3 when connections were cut, which their clients see."""
    proxy = front.start()
    client, server = front.pair()
    with client, server:
        proxy.send(number)
        proxy.says("stopping: 1 connections")
        proxy.send(number)

        assert proxy.wait() == 3
        with pytest.raises(ConnectionResetError):
            everything(client)
        # Linux resets a unix socket only where bytes are left unread: HAProxy behind one sees a plain end.
        assert everything(server) == b""


@pytest.mark.parametrize("grace", ["200ms", "0"])
def test_the_grace_ends(front: Front, grace: str) -> None:
    """Contract, `shutdown_grace`: then connections are cut, and the exit status says so with a 3."""
    proxy = front.start(f'shutdown_grace = "{grace}"')
    client, server = front.pair()
    with client, server:
        assert proxy.stop() == 3
        with pytest.raises(ConnectionResetError):
            everything(client)

    assert "1 connections were cut" in proxy.stderr


def test_a_cut_connection_has_its_log_line(front: Front) -> None:
    """HAProxy's manual, section 8.5: K is a session killed by the administrator, D in the data phase."""
    proxy = front.start('shutdown_grace = "0"')
    client, server = front.pair()
    with client, server:
        assert proxy.stop() == 3

    (line,) = proxy.connection_lines(1)
    assert line.split()[6] == "KD"


def test_while_it_drains_it_is_alive_and_not_ready(front: Front) -> None:
    """Contract, admin listener: /readyz tells a load balancer to look elsewhere, /healthz that it need not be killed."""
    proxy = front.start()
    client, server = front.pair()
    with client, server:
        proxy.send(SIGTERM)
        proxy.says("stopping")

        assert proxy.get("/readyz") == (503, "draining\n")
        assert proxy.get("/healthz")[0] == 200
    assert proxy.wait() == 0


def test_a_half_open_hello_does_not_survive_the_grace(front: Front) -> None:
    """A client that has said nothing yet is a live connection too, and holds the stop up no longer than the grace."""
    proxy = front.start('shutdown_grace = "200ms"')
    with connected(LOCALHOST, front.port):
        until(lambda: proxy.metric("sniproxy_connections_active") == 1, "it is accepted")

        assert proxy.stop() == 3


def test_the_port_can_be_taken_again_at_once(front: Front) -> None:
    """SO_REUSEADDR: connections in TIME_WAIT do not keep a restart from binding."""
    first = front.start()
    client, server = front.pair()
    with client, server:
        server.close()
        assert everything(client) == b""
    assert first.stop() == 0
    front.start(name="second")
    client, server = front.pair()
    with client, server:
        converse(client, server)


# -- reloading


ROUTE = '\n[backends.git]\nservers = ["unix:{path}"]\nproxy_protocol = "off"\n\n[[routes]]\nsni = ["{name}"]\nbackend = "git"\n'


def test_new_connections_go_by_the_new_routes(front: Front) -> None:
    """Contract, signals: HUP reloads the configuration and keeps every connection."""
    proxy = front.start()
    client, server = front.pair()
    git = NamedServer("git", front.directory / "git.sock")
    try:
        proxy.reload(front.text(more=ROUTE.format(path=front.directory / "git.sock", name="www.example.com")))
        with connected(LOCALHOST, front.port) as second:
            second.sendall(HELLO)
            answer = everything(second)
    finally:
        git.close()
    with client, server:
        converse(client, server)

    assert answer == b"git"
    assert proxy.metric("sniproxy_config_reloads_total", result="success") == 1
    assert proxy.metric("sniproxy_config_last_reload_success") == 1
    assert proxy.says("reloaded .*") == f"reloaded {proxy.config}"


def test_a_bad_file_changes_nothing_and_says_why(front: Front) -> None:
    """Contract, signals: the old config stays if the new one is bad; errors are `FILE:LINE: key.path: what is wrong`."""
    proxy = front.start()
    client, server = front.pair()
    proxy.reload(front.text("inspect_dely = 5\nmax_hello = 7", more="[[routes]]\nsni = []\n"))
    second, second_server = front.pair()
    with client, server, second, second_server:
        converse(client, server)
        converse(second, second_server)
    proxy.says("reload refused", times=4)
    refusals = re.findall(rf"reload refused: {re.escape(str(proxy.config))}:(\d+): (\S+): ", proxy.stderr)

    assert [key for _, key in refusals] == [
        "proxy.inspect_dely",
        "proxy.max_hello",
        "routes[0].backend",
        "routes[0].sni",
    ]
    assert [int(line) for line, _ in refusals[:2]] == [4, 5]
    assert proxy.metric("sniproxy_config_reloads_total", result="failure") == 1
    assert proxy.metric("sniproxy_config_last_reload_success") == 0


def test_a_file_that_is_good_again_is_taken(front: Front) -> None:
    """After a refused reload the next HUP reads the file anew."""
    proxy = front.start()
    proxy.reload("[proxy")
    proxy.reload(front.text())

    assert proxy.metric("sniproxy_config_reloads_total", result="failure") == 1
    assert proxy.metric("sniproxy_config_reloads_total", result="success") == 1
    assert proxy.metric("sniproxy_config_last_reload_success") == 1


def test_a_file_that_is_gone_changes_nothing(front: Front) -> None:
    """The same for a file that cannot be read at all."""
    proxy = front.start()
    proxy.config.unlink()
    proxy.send(SIGHUP)
    proxy.says(r"reload refused: \S+: cannot be read: No such file or directory")
    client, server = front.pair()
    with client, server:
        converse(client, server)


def test_listeners_come_and_go(front: Front) -> None:
    """A reload binds what is new and closes what is gone; connections that came in there stay."""
    proxy = front.start()
    client, server = front.pair()
    other = free_port()
    proxy.reload(front.text(listen=f'"{LOCALHOST}:{other}"'))
    second, second_server = front.pair(other)
    with client, server, second, second_server:
        assert refuses(front.port)
        converse(client, server)
        converse(second, second_server)
    assert f"127.0.0.1:{other}" in proxy.connection_lines(2)[1] + proxy.connection_lines(2)[0]


def test_a_listener_that_cannot_be_bound_refuses_all_of_the_reload(front: Front) -> None:
    """All of the new configuration or none of it."""
    proxy = front.start()
    free, taken = free_port(), free_port()
    with socket.create_server((LOCALHOST, taken)):
        proxy.reload(front.text(listen=f'"{LOCALHOST}:{free}", "{LOCALHOST}:{taken}"'))

    assert refuses(free)
    assert not refuses(front.port)
    assert proxy.says(rf"reload refused: cannot listen on 127\.0\.0\.1:{taken}: Address already in use")


def test_unix_listeners_leave_no_file_behind(front: Front) -> None:
    """A socket that a reload or the stop has closed is removed: nobody waits at a door that never opens."""
    first, second = front.directory / "first.sock", front.directory / "second.sock"
    proxy = front.programs.sniproxy(front.text(listen=f'"unix:{first}"'))
    assert first.is_socket()
    proxy.reload(front.text(listen=f'"unix:{second}"'))
    assert (first.exists(), second.is_socket()) == (False, True)
    assert proxy.stop() == 0
    assert not second.exists()


def test_a_socket_left_behind_is_replaced(front: Front) -> None:
    """After a kill the file is still there; the next start takes its place, as HAProxy does."""
    path = front.directory / "public.sock"
    text = front.text(listen=f'"unix:{path}"')
    front.programs.sniproxy(text).kill()
    assert path.is_socket()
    front.programs.sniproxy(text, name="second")

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(HELLO)
        server = front.server.accept()
        with server:
            converse(client, server)


def test_a_program_that_drains_leaves_its_successors_socket_alone(front: Front) -> None:
    """A restart begins the new one while the old one drains; whose socket is there in the end is the new one's."""
    path = front.directory / "public.sock"
    text = front.text(listen=f'"unix:{path}"')
    old = front.programs.sniproxy(text)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(HELLO)
        with front.server.accept():
            old.send(SIGTERM)
            old.says("stopping: 1 connections")
            front.programs.sniproxy(text, name="new")
    assert old.wait() == 0

    assert path.is_socket()


def test_several_reloads_at_once_are_taken_one_by_one(front: Front) -> None:
    """HUP again before the last one is through: none is lost in between, none trips over another."""
    proxy = front.start()
    ports = [free_port() for _ in range(3)]
    text = front.text(listen=", ".join(f'"{LOCALHOST}:{port}"' for port in (front.port, *ports)))
    # A server by name makes a reload wait for the resolver, and the next one come in between.
    proxy.write(text + f'\n[backends.named]\nservers = ["localhost:{free_port()}"]\n')
    for _ in range(5):
        proxy.send(SIGHUP)
    until(lambda: not any(map(refuses, ports)), "the new listeners are there")
    proxy.reload(text)

    assert proxy.metric("sniproxy_config_reloads_total", result="failure") == 0
    assert not any(map(refuses, (front.port, *ports)))


def test_a_reload_while_draining_opens_nothing_again(front: Front) -> None:
    """HAProxy's soft stop: a process that is on its way out takes no new work."""
    proxy = front.start()
    client, server = front.pair()
    with client, server:
        proxy.send(SIGTERM)
        proxy.says("stopping")
        other = free_port()
        proxy.write(front.text(listen=f'"{LOCALHOST}:{other}"'))
        proxy.send(SIGHUP)
        proxy.says("reload refused: the program is stopping")
        converse(client, server)

        assert refuses(other)
    assert proxy.wait() == 0
    assert "bug" not in proxy.stderr


def test_reloads_under_load_lose_no_connection(front: Front) -> None:
    """Connections come in all the time, configurations too, and every one of the connections is served."""
    proxy = front.start()
    server = NamedServer("www", front.directory / "www.sock")
    text = front.text(more=ROUTE.format(path=server_path(front), name="www.example.com"))
    failures: list[str] = []
    done = threading.Event()
    served = [0]

    def load() -> None:
        while not done.is_set():
            try:
                with connected(LOCALHOST, front.port) as client:
                    client.sendall(HELLO)
                    answer = everything(client)
                served[0] += 1
                if answer != b"www":
                    failures.append(repr(answer))
            except OSError as error:
                failures.append(repr(error))

    try:
        proxy.reload(text)
        workers = [threading.Thread(target=load) for _ in range(4)]
        for worker in workers:
            worker.start()
        for number in range(5):
            proxy.reload(text + f"# {number}\n")
        until(lambda: served[0] > 200, "some connections")
        done.set()
        for worker in workers:
            worker.join()
    finally:
        done.set()
        server.close()

    assert failures == []
    assert proxy.metric("sniproxy_config_reloads_total", result="success") == 6


def server_path(front: Front) -> Path:
    return front.directory / "www.sock"


# -- the log


def one_connection(front: Front) -> None:
    client, server = front.pair()
    server.close()
    with client:
        assert everything(client) == b""


def test_usr1_goes_on_in_a_new_file(front: Front) -> None:
    """Contract, signals: USR1 reopens log files, after logrotate has renamed them; no line is lost or doubled."""
    path, rotated = front.directory / "sniproxy.log", front.directory / "sniproxy.log.1"
    proxy = front.start(more=f'[log]\ntarget = "{path}"')
    one_connection(front)
    until(lambda: "{www.example.com|h2}" in path.read_text(), "the first line")
    path.rename(rotated)
    proxy.send(SIGUSR1)
    until(path.exists, "the new file")
    one_connection(front)
    until(lambda: "{www.example.com|h2}" in path.read_text(), "the second line")

    assert rotated.read_text().count("{www.example.com|h2}") == 1
    assert path.read_text().count("{www.example.com|h2}") == 1


def test_usr1_after_a_reload_stays_with_the_file_of_the_start(front: Front) -> None:
    """A change of [log] takes a restart, as the reload says: logrotate's USR1 must not bring half of it about."""
    path, other = front.directory / "sniproxy.log", front.directory / "other.log"
    proxy = front.start(more=f'[log]\ntarget = "{path}"')
    proxy.reload(front.text(more=f'[log]\ntarget = "{other}"\nformat = "json"'))
    path.unlink()
    proxy.send(SIGUSR1)
    until(path.exists, "the file of the start again")
    one_connection(front)
    until(lambda: "{www.example.com|h2}" in path.read_text(), "the line, in the format of the start")

    assert not other.exists()


def test_a_server_that_comes_back_is_not_idle(front: Front) -> None:
    """leastconn counts connections that a server still has from before a reload took it out."""
    away = Server(front.directory / "away.sock")
    both = f'"unix:{front.server.path}", "unix:{away.path}"'
    text = front.text().replace(f'"unix:{front.server.path}"', f'"unix:{away.path}"')
    proxy = front.programs.sniproxy(text)
    busy = []
    for _ in range(2):
        client = connected(LOCALHOST, front.port)
        client.sendall(HELLO)
        busy += [client, away.accept()]
    proxy.reload(front.text())
    proxy.reload(text.replace(f'"unix:{away.path}"', both))
    pairs = [front.pair() for _ in range(2)]

    assert len(pairs) == 2  # both went to the one that has none
    for one in (*busy, *(end for pair in pairs for end in pair)):
        one.close()
    away.close()


def test_usr1_without_a_place_for_the_file_keeps_the_old_one(front: Front) -> None:
    """A log that cannot be reopened is no reason to have none."""
    directory = front.directory / "log"
    directory.mkdir()
    proxy = front.start(more=f'[log]\ntarget = "{directory}/sniproxy.log"')
    moved = directory.rename(front.directory / "moved") / "sniproxy.log"
    proxy.send(SIGUSR1)
    until(lambda: "USR1: cannot open" in moved.read_text(), "it says so in the old file")
    one_connection(front)
    until(lambda: "{www.example.com|h2}" in moved.read_text(), "and goes on there")


def test_the_log_file_is_for_its_owner_and_group(front: Front) -> None:
    """It names clients and what they asked for: 0640, whatever the umask allows."""
    path = front.directory / "sniproxy.log"
    old = os.umask(0)
    try:
        front.start(more=f'[log]\ntarget = "{path}"')
    finally:
        os.umask(old)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_lines(front: Front) -> None:
    """Contract, [log]: format = "json"; one object a line, for connections and for what the program says alike."""
    path = front.directory / "sniproxy.log"
    proxy = front.start(more=f'[log]\ntarget = "{path}"\nformat = "json"')
    one_connection(front)
    assert proxy.stop() == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    (connection,) = [event for event in events if event["event"] == "connection"]

    assert (connection["sni"], connection["alpn"], connection["outcome"]) == ("www.example.com", ["h2"], "relayed")
    assert connection["bytes_in"] == len(HELLO)
    assert {event["event"] for event in events} == {"connection", "message"}


def test_json_on_standard_output_is_json_alone(front: Front) -> None:
    """Data to stdout, the rest to stderr: a reader of the stream finds connections only."""
    proxy = front.start(more='[log]\nformat = "json"')
    one_connection(front)
    (line,) = proxy.connection_lines(1)

    assert json.loads(line)["event"] == "connection"
    assert json.loads(proxy.stderr.splitlines()[0])["event"] == "message"


def test_a_hostile_name_is_one_line_without_control_characters(front: Front) -> None:
    """HAProxy's manual, section 8.6: what is not printable is logged as #XX; a name forges no second line."""
    proxy = front.start()
    hello = hellos.hello("a\r\n192.0.2.1:1 [x] \x1b[2J|}{.example.com")
    with connected(LOCALHOST, front.port) as client:
        client.sendall(hello)
        front.server.accept(hello).close()
        everything(client)
    (line,) = proxy.connection_lines(1)

    assert len(line.split()) == 11
    assert line.isprintable()


def _full_pipe() -> tuple[int, int]:
    """A pipe that takes nothing more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_stops_nothing(front: Front, stream: str) -> None:
    """A log collector that hangs must not take the site with it: connections, reloads, and the stop go on."""
    reading, writing = _full_pipe()
    try:
        proxy = front.start(**{stream: writing})
        for _ in range(3):
            one_connection(front)
        proxy.reload(front.text())
        one_connection(front)
        status = proxy.stop()
    finally:
        os.close(reading)
        os.close(writing)

    assert status == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_whose_reader_is_gone_stops_nothing(front: Front, stream: str) -> None:
    """EPIPE is the log's trouble, not the connections'."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        proxy = front.start(**{stream: writing})
        one_connection(front)
        proxy.reload(front.text())
        one_connection(front)
        status = proxy.stop()
    finally:
        os.close(writing)

    assert status == 0


# -- starting


def test_usr2_does_not_end_it(front: Front) -> None:
    """Contract, signals: USR2 is for an upgrade in place; by itself the signal would kill."""
    proxy = front.start()
    proxy.send(SIGUSR2)
    proxy.says("USR2")
    client, server = front.pair()
    with client, server:
        converse(client, server)


def started(front: Front, text: str, name: str = "sniproxy") -> Sniproxy:
    """One that is not expected to become ready."""
    program = Sniproxy(text, front.directory, name=name)
    front.programs.started.append(program)
    return program


def test_a_port_in_use_is_said_in_one_line(front: Front) -> None:
    """Exit status 1: it failed; one line to stderr that says which address and what to look at."""
    with socket.create_server((LOCALHOST, front.port)):
        proxy = started(front, front.text())
        status = proxy.wait()

    assert status == 1
    assert proxy.stdout == ""
    (line,) = proxy.stderr.splitlines()
    assert line.startswith(f"cannot listen on 127.0.0.1:{front.port}: Address already in use")


def test_a_bad_configuration_is_said_completely(front: Front) -> None:
    """Exit status 2, and all mistakes at once, one line each: FILE:LINE: key.path: what is wrong."""
    proxy = started(front, front.text("max_hello = 1\nworkers = 0\ndeflaut = 1", more="[lgo]\n"))

    assert proxy.wait() == 2
    assert proxy.stdout == ""
    lines = proxy.stderr.splitlines()
    assert len(lines) == 4
    assert all(re.match(rf"{re.escape(str(proxy.config))}:\d+: [a-z_.]+: .", line) for line in lines)


@needs_root
@pytest.mark.parametrize(("key", "what"), [("user", "user"), ("group", "group")])
def test_an_unknown_user_or_group_is_named(front: Front, key: str, what: str) -> None:
    """It must not serve with the rights of root because of a typing mistake."""
    proxy = started(front, front.text(f'{key} = "nosuch-{key}"'))

    assert proxy.wait() == 1
    (line,) = proxy.stderr.splitlines()
    assert f"nosuch-{key}" in line
    assert f"proxy.{key}" in line


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@needs_root
def test_root_is_given_up_for_good(front: Front) -> None:
    """HAProxy's manual, section 3.1, user: after binding, all of real, effective, saved and filesystem id, and no capability."""
    nobody = pwd.getpwnam("nobody")
    proxy = front.start('user = "nobody"')
    status = _status(proxy.pid)

    assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert str(0) not in status["Groups"].split()
    for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(status[kind], 16) == 0
    client, server = front.pair()
    with client, server:
        converse(client, server)


@needs_root
def test_a_log_file_can_be_reopened_without_root(front: Front) -> None:
    """What was possible at the start is possible at USR1: the file belongs to the user that the program becomes."""
    nobody = pwd.getpwnam("nobody")
    directory = front.directory / "log"
    directory.mkdir()
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    path = directory / "sniproxy.log"
    proxy = front.start('user = "nobody"', f'[log]\ntarget = "{path}"')
    owner = path.stat().st_uid
    proxy.send(SIGUSR1)
    path.rename(directory / "sniproxy.log.1")
    proxy.send(SIGUSR1)
    until(path.exists, "a new file")
    one_connection(front)
    until(lambda: "{www.example.com|h2}" in path.read_text(), "a line")

    assert owner == nobody.pw_uid
    assert "cannot open" not in (directory / "sniproxy.log.1").read_text()


def test_it_listens_where_it_is_told_and_nowhere_else(front: Front) -> None:
    """Admin never on a port that others reach (HAProxy's threat model): two listening sockets, both as configured."""
    proxy = front.start()
    inodes = set()
    for link in Path(f"/proc/{proxy.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(link.readlink()))
    listening = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path(f"/proc/{proxy.pid}/net/{table}")
        for row in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = row.split()
            if f"socket:[{fields[9]}]" in inodes and (fields[3] == "0A" or table.startswith("udp")):
                listening.add((table, fields[1]))

    local = "0100007F" if os.uname().machine != "s390x" else "7F000001"
    assert listening == {("tcp", f"{local}:{port:04X}") for port in (front.port, proxy.admin_port)}


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_either_event_loop_serves(front: Front, event_loop: str) -> None:
    """uvloop for speed, asyncio where there is none: the same program, reloaded and stopped the same way."""
    proxy = front.start(event_loop=event_loop)
    client, server = front.pair()
    with client, server:
        converse(client, server)
        sender = threading.Thread(target=server.sendall, args=(blob(4 << 20),))
        sender.start()
        assert exactly(client, 4 << 20) == blob(4 << 20)
        sender.join()
        proxy.reload(front.text())
        converse(client, server)

    assert proxy.metric("sniproxy_config_reloads_total", result="success") == 1
    assert proxy.stop() == 0


# -- the backend


def test_a_backend_that_comes_up_later_is_used(front: Front) -> None:
    """A front that starts before HAProxy refuses clients at once, and serves them as soon as there is one."""
    path = front.directory / "late.sock"
    more = f'[[routes]]\nsni = ["late.example.com"]\nbackend = "late"\n[backends.late]\nservers = ["unix:{path}"]'
    proxy = front.start(more=more + '\nproxy_protocol = "off"')

    def ask() -> bytes:
        with connected(LOCALHOST, front.port) as client:
            client.sendall(hellos.hello("late.example.com"))
            return everything(client)

    refusal = ask()
    late = NamedServer("late", path)
    try:
        answer = ask()
    finally:
        late.close()

    # RFC 8446 section 6.2: fatal, internal_error.
    assert refusal == bytes((21, 3, 3, 0, 2, 2, 80))
    assert answer == b"late"
    errors = {"backend": "late", "server": f"unix:{path}", "error": "missing"}
    assert proxy.metric("sniproxy_backend_connect_errors_total", **errors) == 1
    assert proxy.metric("sniproxy_connections_total", outcome="backend_unreachable", backend="late") == 1


@pytest.mark.skipif(HAPROXY is None, reason=MISSING)
@pytest.mark.skipif(clients.CURL is None, reason="curl is not installed")
def test_haproxy_may_be_restarted_in_between(programs: Programs, authority: Authority) -> None:
    """Every HAProxy after the first is found again at its socket, without anybody telling."""
    certificates = authority.directory(("www.example.com",))
    port = free_port()
    sections = (
        "defaults\n mode http\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n"
        f"frontend https\n bind unix@{programs.directory}/h.sock accept-proxy ssl crt {certificates} alpn h2,http/1.1\n"
        " http-request return status 200 content-type text/plain lf-string %[src]\n"
    )
    text = (
        f'[proxy]\nlisten = ["{LOCALHOST}:{port}"]\n\n[backends.haproxy]\nservers = '
        f'["unix:{programs.directory}/h.sock"]\n'
    )
    programs.sniproxy(text)
    door = Door(port=port, root=authority.root)
    for number in range(2):
        haproxy = programs.start(Haproxy(sections, programs.directory, name=f"haproxy{number}"))
        assert door.curl("https://www.example.com/") == b"127.0.0.1"
        haproxy.stop()
        with pytest.raises(AssertionError, match="curl exits with 35"):
            door.curl("https://www.example.com/")


# -- limits, counted


def test_out_of_descriptors_it_recovers(front: Front) -> None:
    """accept(2), EMFILE: with 64 descriptors and 200 clients none is lost: they wait, and are served one after another."""
    proxy = front.start(descriptors=64)
    waiting = [connected(LOCALHOST, front.port) for _ in range(200)]
    for client in waiting:
        client.sendall(HELLO)
    served = serve_all(front, waiting)
    assert served == 200
    until(
        lambda: proxy.metric("sniproxy_connections_total", outcome="relayed", backend="web") == 200, "all are counted"
    )

    assert proxy.stderr.count("cannot open another connection") <= 3
    assert proxy.stop() == 0


def test_running_into_the_limit_of_descriptors_is_survived(front: Front) -> None:
    """The same without the program knowing beforehand: the limit falls while it runs, and is raised again."""
    proxy = front.start()
    own = len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))
    limit(proxy, own + 10)
    waiting = [connected(LOCALHOST, front.port) for _ in range(40)]
    for client in waiting:
        client.sendall(HELLO)
    proxy.says("cannot open another connection: Too many open files")
    limit(proxy, 1024)
    served = serve_all(front, waiting)
    refused = proxy.metric("sniproxy_connections_total", outcome="backend_unreachable", backend="web")

    # Those that were accepted with the last descriptor could not be handed on.
    assert served + refused == 40
    assert served >= 20
    assert "bug" not in proxy.stderr
    assert proxy.stop() == 0


def serve_all(front: Front, waiting: list[socket.socket]) -> int:
    """Serves whatever comes in until each of the clients has its answer or has been refused; how many were served."""
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            if select.select([front.server.listening], [], [], 0.05)[0]:
                with front.server.accept() as server:
                    server.sendall(b"served")

    thread = threading.Thread(target=serve)
    thread.start()
    served = 0
    try:
        for client in waiting:
            with client:
                served += everything(client) == b"served"
    finally:
        done.set()
        thread.join()
    return served


def limit(proxy: Sniproxy, descriptors: int) -> None:
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (descriptors, 4096))


def test_the_counters_agree_at_every_scrape(front: Front) -> None:
    """Contract, metrics: accepted = active + the sum of all outcomes, at every scrape, under load of all kinds."""
    more = '[[routes]]\nsni = ["no.example.com"]\nbackend = "web"\ndeny = ["127.0.0.0/8"]\n'
    proxy = front.start(more=more)
    done = threading.Event()
    flights = [
        HELLO,
        hellos.hello("no.example.com"),
        b"SSH-2.0-x\r\n",
        b"\x16\x03",
        b"",
        hellos.hello("a.acme.invalid"),
    ]

    def serve() -> None:
        while not done.is_set():
            ready, _, _ = select.select([front.server.listening], [], [], 0.1)
            if ready:
                with front.server.accept() as server:
                    server.sendall(b"x" * 1000)

    def load(offset: int) -> None:
        for number in range(60):
            with connected(LOCALHOST, front.port) as client:
                client.sendall(flights[(number + offset) % len(flights)])
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    everything(client)

    server = threading.Thread(target=serve)
    workers = [threading.Thread(target=load, args=(offset,)) for offset in range(5)]
    for thread in (server, *workers):
        thread.start()
    scrapes = 0
    while any(worker.is_alive() for worker in workers) or not scrapes:
        samples = proxy.metrics()
        over = sum(value for (name, _), value in samples.items() if name == "sniproxy_connections_total")
        active = samples["sniproxy_connections_active", ()]
        assert samples["sniproxy_connections_accepted_total", ()] == active + over
        scrapes += 1
    done.set()
    for thread in (server, *workers):
        thread.join()
    until(lambda: proxy.metric("sniproxy_connections_active") == 0, "all are over")

    assert proxy.metric("sniproxy_connections_accepted_total") == 300
    assert len(proxy.connection_lines(300)) == 300


def test_a_refused_backend_is_errno_by_name(front: Front) -> None:
    """Contract, metrics: `error` is out of a closed set; nobody listening on a port is `refused`."""
    port = free_port()
    more = f'[[routes]]\nsni = ["tcp.example.com"]\nbackend = "tcp"\n[backends.tcp]\nservers = ["{LOCALHOST}:{port}"]\n'
    proxy = front.start(more=more)
    with connected(LOCALHOST, front.port) as client:
        client.sendall(hellos.hello("tcp.example.com"))
        everything(client)

    labels = {"backend": "tcp", "server": f"{LOCALHOST}:{port}", "error": "refused"}
    assert proxy.metric("sniproxy_backend_connect_errors_total", **labels) == 1
