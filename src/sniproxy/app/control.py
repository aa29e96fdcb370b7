"""The control socket: the only way in for what changes something.

A unix socket, mode 0660: whoever may write to it is an operator. One request a connection, a line of JSON with a
`command`; the answer is lines of JSON: any number of `{"step": …}` while it is at work, then one `{"result": …}` or
`{"error": …}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sniproxy.errors import SniproxyError, StartError

if TYPE_CHECKING:
    from sniproxy.model import UnixAddress

MAX_REQUEST_BYTES = 1 << 20
"""A renewal of ten thousand certificates by name has a quarter of it."""

MAX_ANSWER_BYTES = 64 << 20
"""Of one line: the status of a hundred thousand certificates."""

REQUEST_SECONDS = 5.0
WRITE_SECONDS = 5.0

MAX_CONNECTIONS = 16
"""At once. Operators are few, and each renewal has one for as long as it takes."""

BACKLOG = 16

Step = Callable[[Mapping[str, Any]], None]
Command = Callable[[Mapping[str, Any], Step], Awaitable[Any]]
"""Does what a request asks for: is given the request, and whom to tell of its steps; returns what JSON can hold."""

log = logging.getLogger(__name__)


class ControlError(SniproxyError):
    """The request could not be made, or was refused; the text is the running proxy's own."""


class NotRunning(ControlError):
    """Nobody listens on the control socket."""


def bind_control(address: UnixAddress) -> socket.socket:
    """Binds the socket, 0660; its directory is made where it is missing. Raises StartError."""
    path = Path(address.path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not address.is_abstract:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if path.is_socket() and not _answers(address):
                path.unlink(missing_ok=True)  # left behind by a process that is gone
        before = os.umask(0o117)  # from the first moment on: 0660
        try:
            listening.bind(address.socket_address)
        finally:
            os.umask(before)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise StartError(f"admin.control_socket: cannot listen on {address.path}: {error.strerror or error}") from error
    return listening


def _answers(address: UnixAddress) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.socket_address)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


class ControlServer:
    """Answers requests on a listening socket, which it owns; `bug` is told of exceptions in a command."""

    def __init__(self, commands: Mapping[str, Command], bug: Callable[[BaseException], None]) -> None:
        self._commands = commands
        self._bug = bug
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, listening: socket.socket) -> None:
        """Answers on this socket, and owns it from now on."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_REQUEST_BYTES)

    async def close(self) -> None:
        """Stops listening; requests that are being worked on are given up."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            answer = await self._answer(reader, writer)
            _write(writer, answer)
            async with asyncio.timeout(WRITE_SECONDS):
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass  # gone, or we are
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, Any]:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = json.loads(await reader.readline())
            command = self._commands[request["command"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"error": f'a request is one line {{"command": …}}; commands are {", ".join(self._commands)}'}
        except TimeoutError:
            return {"error": f"no request within {REQUEST_SECONDS:g} s"}
        # Not before it is read: a client that is still sending would be cut off without a word.
        if len(self._connections) > MAX_CONNECTIONS:
            return {"error": f"{MAX_CONNECTIONS} requests are being worked on already; try again later"}
        try:
            return {"result": await command(request, lambda step: _write(writer, {"step": dict(step)}))}
        except SniproxyError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001
            self._bug(error)
            return {"error": "a bug in sniproxy: its log has more"}


def _write(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    if not writer.is_closing():  # whoever asked may be gone, and the work goes on
        writer.write(json.dumps(document).encode() + b"\n")


def ask(
    address: UnixAddress, request: Mapping[str, Any], *, step: Step = lambda _: None, seconds: float = 30.0
) -> Any:  # whatever the command returns
    """Makes one request of the running proxy, and waits for its result.

    seconds: between two lines of the answer. Raises NotRunning where nobody listens, ControlError for all else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(address.socket_address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(f"no sniproxy listens on {address.path}") from error
        except OSError as error:
            raise ControlError(f"{address.path}: {error.strerror or error}; join its group, or be root") from error
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as lines:
                return _result(lines, step)
        except TimeoutError:
            raise ControlError(f"the running sniproxy has said nothing for {seconds:g} s") from None
        except OSError as error:
            raise ControlError(f"the running sniproxy hung up: {error.strerror or error}") from error


def _result(lines: Any, step: Step) -> Any:  # a binary file; what the command returned
    while line := lines.readline(MAX_ANSWER_BYTES):
        try:
            answer = json.loads(line)
            if "step" in answer:
                step(answer["step"])
                continue
            if "error" in answer:
                raise ControlError(answer["error"])
            return answer["result"]
        except (ValueError, KeyError, TypeError):
            raise ControlError("what listens on the control socket is not sniproxy") from None
    raise ControlError("the running sniproxy ended before it had answered")
