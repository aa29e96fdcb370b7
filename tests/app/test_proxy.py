"""The running program, in this process; as a program of its own it is in tests/scenarios/test_lifecycle.py."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.acme.store import CertificateFiles
from sniproxy.app.control import ControlError, ask
from sniproxy.app.proxy import Proxy, bind_all
from sniproxy.config import parse
from sniproxy.errors import StartError, StoreError
from sniproxy.model import TcpAddress, UnixAddress
from tests.support import hellos
from tests.support.acme_stub import AcmeStub, check_http_01
from tests.support.clients import connected, everything
from tests.support.processes import LOCALHOST, free_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from sniproxy.app.certificates import Certificates


@pytest.fixture(autouse=True)
def logger() -> Iterator[None]:
    """The proxy sets the program's logger up for itself."""
    root = logging.getLogger("sniproxy")
    before = (root.handlers, root.propagate, root.level)
    yield
    root.handlers, root.propagate = before[:2]
    root.setLevel(before[2])


def test_all_addresses_are_bound_or_none() -> None:
    """A start or a reload that fails leaves nothing behind."""
    free = free_port()
    with socket.create_server((LOCALHOST, 0)) as taken, pytest.raises(StartError, match="Address already in use"):
        bind_all([TcpAddress(LOCALHOST, free), TcpAddress(LOCALHOST, taken.getsockname()[1])])

    with socket.create_server((LOCALHOST, free)):
        pass


def test_addresses_are_bound_in_their_order(tmp_path: Path) -> None:
    """Whoever asks for several has them back one for one."""
    addresses = [UnixAddress(str(tmp_path / name)) for name in ("a", "b")]
    bound = bind_all(addresses)
    for listener in bound:
        listener.close()

    assert [listener.name for listener in bound] == [str(address) for address in addresses]


def test_sockets_that_were_bound_are_removed_again(tmp_path: Path) -> None:
    """Of unix sockets nothing stays either, where a later address cannot be bound."""
    path = tmp_path / "public.sock"
    with pytest.raises(StartError, match="No such file or directory"):
        bind_all([UnixAddress(str(path)), UnixAddress(str(tmp_path / "nosuch" / "a.sock"))])

    assert not path.exists()


def test_a_log_that_cannot_be_opened_is_a_reason_not_to_start(tmp_path: Path) -> None:
    """Better no start than one without a log."""
    text = f'[proxy]\nlisten = ["{LOCALHOST}:{free_port()}"]\ndefault_backend = "reject"\n' + QUIET
    text += f'[log]\ntarget = "{tmp_path}"\n'

    async def run() -> None:
        await Proxy(parse(text, file="sniproxy.toml"), tmp_path / "sniproxy.toml").run()

    with pytest.raises(StartError, match=rf"log\.target: cannot open {tmp_path}: Is a directory"):
        asyncio.run(run())


QUIET = '[admin]\nlisten = ""\ncontrol_socket = ""\n'


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Does something in a thread beside the event loop."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_one_run(tmp_path: Path) -> None:
    """start → serve → TERM → stopped, with exit status 0, and everything given back."""
    port = free_port()
    log = tmp_path / "sniproxy.log"
    text = f'[proxy]\nlisten = ["{LOCALHOST}:{port}"]\ndefault_backend = "reject"\n[log]\ntarget = "{log}"\n' + QUIET
    answers = []

    def client() -> None:
        until(lambda: log.exists() and f"on {LOCALHOST}:{port}" in log.read_text(), "it has started")
        with connected(LOCALHOST, port) as connection:
            connection.sendall(hellos.hello())
            answers.append(everything(connection))
        os.kill(os.getpid(), SIGTERM)

    async def run() -> int:
        return await Proxy(parse(text, file="sniproxy.toml"), tmp_path / "sniproxy.toml").run()

    with meanwhile(client):
        status = asyncio.run(run())

    assert status == 0
    # RFC 8446 section 6.2: unrecognized_name, fatal.
    assert answers == [bytes((21, 3, 3, 0, 2, 2, 112))]
    assert "{git.example.com|}" in log.read_text()
    with socket.create_server((LOCALHOST, port)):
        pass


# ------------------------------------------------------------------------------------------------------- certificates


@pytest.fixture
def stub() -> Iterator[AcmeStub]:
    with AcmeStub() as stub:
        yield stub


class Machine:
    """A configuration with a certificate that the CA can validate, and files where it goes to."""

    def __init__(self, place: Path, stub: AcmeStub) -> None:
        self.place = place
        self.port, self.http_port = free_port(), free_port()
        stub.tls, stub.http = [(LOCALHOST, self.port)], [(LOCALHOST, self.http_port)]
        self.log = place / "sniproxy.log"
        self.path = place / "sniproxy.toml"
        (place / "certs").mkdir()
        self.text = f"""
[proxy]
listen = ["{LOCALHOST}:{self.port}"]
[backends.haproxy]
servers = ["unix:/nowhere.sock"]
[http]
listen = ["{LOCALHOST}:{self.http_port}"]
[admin]
listen = ""
control_socket = "{place}/control.sock"
[acme]
directory = "{stub.directory_url}"
agree_to_terms = true
state_dir = "{place}/state"
[[certificates]]
names = ["a.example", "b.example"]
[haproxy]
certificate_dir = "{place}/certs"
runtime_sockets = []
verify = "off"
[log]
target = "{self.log}"
level = "debug"
"""

    def run(self, errand: Callable[[Certificates], Coroutine[Any, Any, None]] | None = None) -> int:
        self.path.write_text(self.text)

        async def run() -> int:
            return await Proxy(parse(self.text, file="sniproxy.toml"), self.path).run(errand)

        return asyncio.run(run())

    def ask(self, command: str, **options: Any) -> Any:
        return ask(UnixAddress(f"{self.place}/control.sock"), {"command": command, **options})

    def await_deployed(self) -> dict[str, Any]:
        def deployed() -> dict[str, Any] | None:
            try:
                (status,) = self.ask("certificates")
            except (ControlError, ValueError):
                return None
            found: dict[str, Any] = status
            return found if found["deployed"] else None

        return until(deployed, "the certificate is deployed")


@pytest.fixture
def machine(stub: AcmeStub) -> Iterator[Machine]:
    """In a directory with a short name, as the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-") as name:
        yield Machine(Path(name), stub)


@contextmanager
def stopped_after(work: Callable[[], None]) -> Iterator[None]:
    """Does something in a thread beside the event loop, and stops the program then, whatever came of it."""
    errors: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        os.kill(os.getpid(), SIGTERM)

    with meanwhile(do):
        yield
    if errors:
        raise errors[0]


@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
def test_a_certificate_comes_through_the_front_door(machine: Machine, stub: AcmeStub, challenge: str) -> None:
    """Validations are answered on :443, or on :80, by this process, while clients are (RFC 8737; RFC 8555, 8.3)."""
    stub.challenge_types = (challenge,)
    seen: list[dict[str, Any]] = []
    with stopped_after(lambda: seen.append(machine.await_deployed())):
        assert machine.run() == 0

    assert len(stub.issued) == 1
    assert seen[0]["name"] == "a.example"
    assert (machine.place / "certs" / "a.example.pem").exists()
    assert not (machine.place / "control.sock").exists()


def test_what_can_be_asked_of_a_running_program(machine: Machine, stub: AcmeStub) -> None:
    """The commands of the control socket: what they do is tested with what does it."""

    def work() -> None:
        before = machine.await_deployed()
        (renewed,) = machine.ask("renew", names=["a.example"], force=True)
        assert renewed["result"] == "renewed"
        assert renewed["status"]["serial"] != before["serial"]
        assert machine.ask("account") == {"directory": stub.directory_url, "url": stub.accounts[0].url}
        answer = machine.ask("probe", type="http-01", identifier="a.example")
        check_http_01(LOCALHOST, machine.http_port, "a.example", answer.partition(".")[0], answer)
        for request in ({"type": "dns-01", "identifier": "a"}, {"type": "http-01"}):
            with pytest.raises(ControlError, match="a probe needs"):
                machine.ask("probe", **request)
        assert machine.ask("revoke", name="a.example")["revoked"] == renewed["status"]["serial"]
        with pytest.raises(ControlError, match="revoking needs"):
            machine.ask("revoke", reason="no")
        with pytest.raises(ControlError, match=r"there is no certificate called c\.example; there is a\.example"):
            machine.ask("renew", names=["c.example"])

    with stopped_after(work):
        assert machine.run() == 0


def test_a_reload_takes_certificates_too(machine: Machine, stub: AcmeStub) -> None:
    """Another one, then none, and the first again from the store."""

    def of(*names: str) -> str:
        head, _, tail = machine.text.partition("[[certificates]]")
        sections = "".join(f'[[certificates]]\nnames = ["{name}"]\n' for name in names)
        return head + sections + tail[tail.index("[haproxy]") :]

    def reload(text: str) -> None:
        machine.path.write_text(text)
        machine.ask("reload")

    def work() -> None:
        machine.await_deployed()
        reload(of("a.example", "c.example"))
        until(lambda: len(machine.ask("certificates")) == 2, "both are seen")
        until(lambda: all(each["deployed"] for each in machine.ask("certificates")), "both are deployed")
        assert stub.issued[0].names == ("a.example", "b.example")
        assert {issued.names for issued in stub.issued[1:]} == {("a.example",), ("c.example",)}
        reload(of("c.example"))
        until(lambda: len(machine.ask("certificates")) == 1, "one is seen")
        machine.await_deployed()
        machine.path.write_text("[proxy]\nnosuch = 1\n")
        with pytest.raises(ControlError, match="nosuch"):
            machine.ask("reload")
        assert len(machine.ask("certificates")) == 1

    with stopped_after(work):
        assert machine.run() == 0
    assert len(stub.issued) == 3


def test_certificates_that_cannot_be_kept_do_not_keep_the_proxy_from_starting(machine: Machine, stub: AcmeStub) -> None:
    """They are beside the relay, not below it: :443 goes on, and it is told."""
    (machine.place / "state").write_text("not a directory")
    stub.close()

    def work() -> None:
        until(lambda: machine.log.exists() and "looked at again in" in machine.log.read_text(), "it is told")
        with connected(LOCALHOST, machine.port) as connection:
            connection.sendall(hellos.hello())
            everything(connection)

    with stopped_after(work):
        assert machine.run() == 0
    assert "{git.example.com|}" in machine.log.read_text()


def test_an_errand_is_all_that_is_done(machine: Machine, stub: AcmeStub) -> None:
    """`renew` by itself: it serves until that is done, and nobody else may ask for anything."""
    results: list[Any] = []

    async def errand(certificates: Certificates) -> None:
        assert not (machine.place / "control.sock").exists()
        results.extend(await certificates.renew([], force=False, dry_run=False, tell=lambda _: None))

    assert machine.run(errand) == 0
    assert [result["result"] for result in results] == ["renewed"]
    assert len(stub.issued) == 1
    with socket.create_server((LOCALHOST, machine.port)):
        pass


def test_an_errand_that_fails_is_its_own_error(machine: Machine, stub: AcmeStub) -> None:
    """And everything is given back."""

    async def errand(_certificates: Certificates) -> None:
        raise StoreError("no space left")

    with pytest.raises(StoreError, match="no space left"):
        machine.run(errand)
    with socket.create_server((LOCALHOST, machine.port)):
        pass


def test_an_errand_can_be_stopped(machine: Machine, stub: AcmeStub) -> None:
    """TERM and INT: whatever it waits for is given up."""
    stub.hang("newOrder")
    ended: list[bool] = []

    async def errand(certificates: Certificates) -> None:
        try:
            await certificates.renew([], force=False, dry_run=False, tell=lambda _: None)
        finally:
            ended.append(True)

    with stopped_after(lambda: until(lambda: stub.count("newOrder"), "an order is under way") and None):
        assert machine.run(errand) == 0
    assert ended == [True]


def test_a_start_that_hangs_on_the_store_can_be_stopped(
    machine: Machine, stub: AcmeStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk in the network that does not answer: :443 is served meanwhile, and TERM still ends it."""
    began, let = threading.Event(), threading.Event()

    def hang(_: CertificateFiles) -> None:
        began.set()
        assert let.wait(60)

    monkeypatch.setattr(CertificateFiles, "order", hang)

    def work() -> None:
        assert began.wait(60)
        with connected(LOCALHOST, machine.port) as connection:
            connection.sendall(hellos.hello())
            everything(connection)
        threading.Timer(0.5, let.set).start()  # the thread is waited for in the end, as all of the loop's are

    with stopped_after(work):
        assert machine.run() == 0
    assert stub.requests == []
