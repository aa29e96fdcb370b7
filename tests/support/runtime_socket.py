"""A runtime API that answers as the test says: HAProxy as it is in no version, or only in the worst moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sniproxy.model import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HANG, ENDLESS = object(), object()
"""Answers that never come, and that never end."""

DETAIL = (
    "Filename: {name}\nStatus: {status}\nSerial: 0A\nnotBefore: Nov 25 03:03:42 2026 GMT\n"
    "notAfter: Dec 25 03:03:42 2026 GMT\nSHA1 FingerPrint: {sha1}\nSubject: /CN=a.test\nIssuer: /CN=test issuer\n"
)


class ScriptedRuntime:
    """A unix socket that behaves as HAProxy 2.6 with one transaction, but for the answers in `script`.

    script: by the beginning of a command, the first that fits: the whole answer, HANG, ENDLESS, or a function of the
    command that returns one of them; bytes that do not end with an empty line are half an answer.
    commands: all that were received, without payloads. held: the SHA-1 by name, "" for an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.address = UnixAddress(str(path))
        self.script: dict[str, object] = {}
        self.commands: list[str] = []
        self.held: dict[str, str] = {}
        self.used: set[str] = set()
        self.transaction: tuple[str, str] | None = None
        self.next_sha1 = ""  # what the next payload is taken for
        self.open = 0
        self.most_open = 0
        self.received = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.address.path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def sent(self, beginning: str) -> list[str]:
        return [command for command in self.commands if command.startswith(beginning)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            command = (await reader.readline()).decode().rstrip("\n")
            if command.endswith("<<"):
                while await reader.readline() not in (b"\n", b""):
                    pass
            self.commands.append(command)
            self.received.set()
            await self._answer(command, writer)
        except OSError:
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, command: str, writer: asyncio.StreamWriter) -> None:
        answer: object = next((value for key, value in self.script.items() if command.startswith(key)), None)
        if callable(answer):
            function: Callable[[str], object] = answer
            answer = function(command)
        if answer is None:
            answer = self.honest(command).encode() + b"\n"
        if answer is HANG:
            await asyncio.Event().wait()
        while answer is ENDLESS:
            writer.write(b"certs/a.pem\n" * 4096)
            await writer.drain()
        if isinstance(answer, bytes):
            writer.write(answer)
        writer.write_eof()
        await writer.drain()

    def honest(self, command: str) -> str:
        """What HAProxy 2.6 answers, without the empty line at the end."""
        name = command.removesuffix(" <<").rpartition(" ")[2].lstrip("*")
        if command == "show info":
            return "Name: HAProxy\nVersion: 2.6.12\nPid: 1\nStopping: 0\n"
        if command == "show pools":
            return "Dumping pools usage.\n  - Pool buffer (16384 bytes) : 4 allocated\n"
        if command == "show ssl cert":
            head = f"# transaction\n*{self.transaction[0]}\n" if self.transaction else ""
            return head + "# filename\n" + "".join(f"{each}\n" for each in self.held)
        if command.startswith("show ssl cert *"):
            if self.transaction is None or self.transaction[0] != name:
                return "Can't display the certificate: Not found or the certificate is a bundle!\n"
            return DETAIL.format(name=f"*{name}", status="Unused", sha1=self.transaction[1])
        if command.startswith("show ssl cert "):
            if name not in self.held:
                return "Can't display the certificate: Not found or the certificate is a bundle!\n"
            status = "Used" if name in self.used else "Unused"
            return DETAIL.format(name=name, status=status, sha1=self.held[name])
        return self._change(command, name)

    def _change(self, command: str, name: str) -> str:
        if command.startswith("set ssl cert "):
            self.transaction = (name, self.next_sha1)
            return f"Transaction created for certificate {name}!\n"
        if command.startswith("commit ssl cert "):
            if self.transaction is None or self.transaction[0] != name:
                return f"No ongoing transaction! !\nCan't commit {name}!\n"
            self.held[name], self.transaction = self.transaction[1], None
            return f"Committing {name}.\nSuccess!\n"
        if command.startswith("abort ssl cert "):
            if self.transaction is None:
                return "No ongoing transaction!\n"
            self.transaction = None
            return f"Transaction aborted for certificate '{name}'!\n"
        if command.startswith("new ssl cert "):
            self.held[name] = ""
            return f"New empty certificate store '{name}'!\n"
        if command.startswith("add ssl crt-list "):
            self.used.add(name)
            return f"Inserting certificate '{name}' in crt-list 'certs'.\nSuccess!\n"
        if command.startswith("del ssl crt-list "):
            self.used.discard(name)
            return f"Entry '{name}' deleted in crtlist 'certs'!\n"
        if command.startswith("del ssl cert "):
            self.held.pop(name, None)
            return f"Certificate '{name}' deleted!\n"
        return "Unknown command.\n"
