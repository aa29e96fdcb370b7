"""The control socket (contract section 2: mode 0660, the only way in for what changes something)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sniproxy.app import control
from sniproxy.app.control import ControlError, ControlServer, NotRunning, ask, bind_control
from sniproxy.errors import StartError, StoreError
from sniproxy.model import UnixAddress


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a unix socket has at most 107 bytes
    return UnixAddress("run/control.sock")


@asynccontextmanager
async def serving(address, commands, bugs=None):
    server = ControlServer(commands, (bugs if bugs is not None else []).append)
    await server.listen(bind_control(address))
    try:
        yield server
    finally:
        await server.close()


async def echo(request, step):
    step({"certificate": "a", "text": "one"})
    return {"said": request["words"]}


async def asked(address, request, **more):
    return await asyncio.to_thread(ask, address, request, **more)


def test_the_socket_is_for_owner_and_group_whatever_the_umask(address, monkeypatch):
    before = os.umask(0)
    try:
        bind_control(address).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(address.path).stat().st_mode) == 0o660


def test_one_left_behind_is_replaced(address):
    bind_control(address).close()
    bind_control(address).close()


def test_one_that_is_in_use_is_not(address):
    listening = bind_control(address)
    try:
        with pytest.raises(StartError, match=r"control_socket: cannot listen on run/control\.sock"):
            bind_control(address)
    finally:
        listening.close()


def test_a_request_gets_its_steps_and_its_result(runner, address):
    async def scene():
        steps: list[object] = []
        async with serving(address, {"echo": echo}):
            result = await asked(address, {"command": "echo", "words": "hello"}, step=steps.append)
        return steps, result

    assert runner.run(scene()) == ([{"certificate": "a", "text": "one"}], {"said": "hello"})


def test_what_a_command_refuses_is_told_in_its_own_words(runner, address):
    async def refuse(request, step):
        raise StoreError("the disk is full")

    async def scene():
        async with serving(address, {"refuse": refuse}):
            await asked(address, {"command": "refuse"})

    with pytest.raises(ControlError, match=r"^the disk is full$"):
        runner.run(scene())


def test_a_bug_is_reported_and_ends_one_request(runner, address):
    async def broken(request, step):
        raise ValueError("secret")

    async def scene():
        bugs: list[BaseException] = []
        async with serving(address, {"broken": broken, "echo": echo}, bugs):
            with pytest.raises(ControlError, match="a bug in sniproxy"):
                await asked(address, {"command": "broken"})
            return bugs, await asked(address, {"command": "echo", "words": 1})

    bugs, result = runner.run(scene())
    assert [type(bug) for bug in bugs] == [ValueError]
    assert result == {"said": 1}


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{}\n", b'{"command": "no"}\n', b"\xff\n", b"[" * 5000 + b"\n", b""])
def test_what_is_no_request_is_told_what_one_is(runner, address, line):
    async def scene():
        async with serving(address, {"echo": echo}):
            reader, writer = await asyncio.open_unix_connection(address.path)
            writer.write(line)
            writer.write_eof()
            answer = json.loads(await reader.read())
            writer.close()
            return answer

    assert "commands are echo" in runner.run(scene())["error"]


def test_who_asks_for_nothing_is_let_go(runner, address, monkeypatch):
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.01)

    async def scene():
        async with serving(address, {"echo": echo}):
            reader, writer = await asyncio.open_unix_connection(address.path)
            answer = json.loads(await reader.read())
            writer.close()
            return answer

    assert "no request within" in runner.run(scene())["error"]


def test_too_many_at_once_are_refused(runner, address, monkeypatch):
    monkeypatch.setattr(control, "MAX_CONNECTIONS", 1)

    async def scene():
        begun = asyncio.Event()
        end = asyncio.Event()

        async def wait(request, step):
            begun.set()
            await end.wait()

        async with serving(address, {"wait": wait}), asyncio.TaskGroup() as tasks:
            first = tasks.create_task(asked(address, {"command": "wait"}))
            await begun.wait()
            with pytest.raises(ControlError, match="are being worked on already"):
                await asked(address, {"command": "wait"})
            end.set()
            await first

    runner.run(scene())


def test_work_goes_on_when_the_client_has_gone(runner, address):
    """A renewal that is under way must not end because somebody has closed a terminal."""

    async def scene():
        begun, gone, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work(request, step):
            begun.set()
            await gone.wait()
            step({"text": "still here"})
            done.set()

        async with serving(address, {"work": work}):
            _, writer = await asyncio.open_unix_connection(address.path)
            writer.write(b'{"command": "work"}\n')
            await begun.wait()
            writer.transport.abort()
            gone.set()
            await done.wait()

    runner.run(scene())


def test_nobody_there_is_not_running(address):
    with pytest.raises(NotRunning, match="no sniproxy listens on"):
        ask(address, {"command": "echo"})


def test_a_socket_left_behind_is_not_running(address):
    bind_control(address).close()
    with pytest.raises(NotRunning):
        ask(address, {"command": "echo"})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "ended before it had answered"),
        (b"hello\n", "is not sniproxy"),
        (b"[]\n", "is not sniproxy"),
        (b"{}\n", "is not sniproxy"),
        (b'{"step": {}}\n', "ended before it had answered"),
    ],
)
def test_another_program_behind_the_socket_is_an_error(address, answer, words):
    listening = bind_control(address)
    listening.setblocking(True)

    def serve():
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(ControlError, match=words):
                ask(address, {"command": "echo"})
        finally:
            thread.join()


def test_silence_has_an_end(address):
    with bind_control(address), pytest.raises(ControlError, match=r"has said nothing for 0\.01 s"):
        ask(address, {"command": "echo"}, seconds=0.01)


def test_an_abstract_name_will_do(tmp_path):
    address = UnixAddress(f"@{tmp_path.name}-control")
    with bind_control(address) as listening:
        assert listening.family == socket.AF_UNIX
