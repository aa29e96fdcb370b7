"""HAProxy's runtime API, as far as certificates go (management guide, section 9.3).

One command a connection: HAProxy answers and closes. The answers are those of the sources of 2.2 to 3.4, and 2.6 was
asked. Whatever is not the very answer that tells of success is a failure, silence most of all.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NoReturn
from weakref import WeakValueDictionary

from sniproxy.errors import DeliveryError
from sniproxy.model import Address, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sniproxy.bundle import Bundle

CONNECT_SECONDS = 2.0
"""HAProxy is on this machine or next to it, and accepts for as long as it lives."""

ANSWER_SECONDS = 5.0
"""For a command, from its first byte to the answer's last. A commit takes some 4 ms, and more only where thousands of
bind lines use the certificate."""

MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
"""The longest answer is the list of all certificates: there is room for 40,000 of them."""

DEFAULT_BUFSIZE: Final = 16384
"""tune.bufsize where HAProxy does not tell. A command with its payload has to fit into it, before 3.4."""

BUFSIZE_MARGIN: Final = 384
"""Not used of it. 2.6.12 takes one byte less than tune.bufsize, closes without an answer when there is one more, and
hangs or dies at exactly that many."""

DYNAMIC_PAYLOADS: Final = (3, 4)
"""Since then there is a limit for payloads alone, tune.cli.max-payload-size, 128 KiB, and HAProxy says where it is
reached."""

LOCKED: Final = "are currently locked!"
LOCKED_TRIES: Final = 20
LOCKED_SECONDS = 0.05
"""HAProxy's certificates are locked while one is committed, by us for another name as well: some milliseconds, and more
where many bind lines use it. Nothing was done then, and the same is asked again."""

_QUOTED_CHARS = 300
"""Of an answer, in an error."""

_transaction = re.compile(r"^Transaction (created|updated) for certificate (.+)!$", re.MULTILINE).search
_about_another = re.compile(r"The ongoing transaction is about '([^']*)'").search
_buffer_pool = re.compile(r"^ *- Pool buffer \((\d+) bytes", re.MULTILINE).search
_release = re.compile(r"(\d+)\.(\d+)").match
_special = re.compile(r"""([\\ ;"'#])""")

# What it is, what to do, and whether HAProxy may be running all the same, so that a reload does it.
_CONNECT_HINTS = {
    errno.ENOENT: ("there is no such socket; HAProxy is not running, or has no `stats socket {} level admin`", True),
    errno.ECONNREFUSED: ("nobody listens there; HAProxy is not running, and reads its files when it starts", False),
    errno.EACCES: (
        "this user may not connect; join HAProxy's group, and in haproxy.cfg: stats socket {} mode 660 level admin",
        True,
    ),
    errno.EAGAIN: ("too many wait for it to accept; does HAProxy hang?", False),
}


class RuntimeUnreachable(DeliveryError):
    """No HAProxy answers there: nobody listens, or there was no whole answer in time."""


class NotPermitted(DeliveryError):
    """The socket's level is too low for what was asked, so nothing was begun."""


class TransactionOpen(DeliveryError):
    """Somebody else is about to change certificates: to be tried again later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningProcess:
    """Who answers: its version as HAProxy writes it, the pid, and whether it is the old one of a reload."""

    version: str
    pid: int
    is_stopping: bool

    @property
    def release(self) -> tuple[int, int]:
        """The branch, (2, 6); (0, 0) where that cannot be read off."""
        match = _release(self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateNames:
    """What `show ssl cert` lists: HAProxy's name of each certificate, and of the one with an open transaction."""

    names: tuple[str, ...]
    transaction: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldCertificate:
    """A certificate in HAProxy's memory, as `show ssl cert NAME` tells of it.

    status: Used, Unused or Empty, and what later versions have added. serial, sha1: hex, "" of an empty one.
    """

    name: str
    status: str
    serial: str
    sha1: str
    not_after: datetime | None
    issuer: str

    @property
    def is_used(self) -> bool:
        """Whether a bind line serves it."""
        return self.status.startswith("Used")

    def __str__(self) -> str:
        if not self.sha1:
            return "none yet"
        until = f", until {self.not_after:%Y-%m-%d %H:%M} UTC" if self.not_after is not None else ""
        return f"the one of {self.issuer or 'nobody'} with serial {self.serial.lower()}{until}"


# HAProxy has one transaction at a time, whoever asks: after a reload of our configuration there may be two RuntimeApi
# of one address for a while.
_turns: WeakValueDictionary[Address, asyncio.Lock] = WeakValueDictionary()


class RuntimeApi:
    """The runtime API at one address: a `stats socket` of `level admin`.

    Every method raises DeliveryError; RuntimeUnreachable where there is no whole answer, TransactionOpen where another
    is at work. `reload_helps` is set where HAProxy does not do it at run time, not where it refuses the certificate.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._turn = _turns.setdefault(address, asyncio.Lock())

    def __str__(self) -> str:
        return f"HAProxy at {self.address}"

    # ------------------------------------------------------------------ questions

    async def process(self) -> RunningProcess:
        """Who answers, from `show info`."""
        reply = await self._ask("show info")
        facts = _facts(reply)
        version, pid = facts.get("Version", ""), facts.get("Pid", "")
        if not version or not pid.isdecimal():
            self._refuse("show info", reply)
        return RunningProcess(version=version, pid=int(pid), is_stopping=facts.get("Stopping", "0") != "0")

    async def version(self) -> str:
        """HAProxy's version: `2.6.12-1+deb12u3`."""
        return (await self.process()).version

    async def level(self) -> str:
        """What the socket lets us do: `admin`, `operator` or `user`. Every HAProxy since 1.9 tells everybody."""
        return await self._ask("show cli level")

    async def certificate_names(self) -> CertificateNames:
        """All certificates that HAProxy has, by its own names for them."""
        # With none at all, as with `crt DIR strict-sni` and nothing in it yet, it does not even write a headline.
        reply = await self._ask("show ssl cert", may_be_empty=True)
        names: list[str] = []
        transaction: str | None = None
        listed = False
        for line in reply.splitlines():
            if line.startswith("# "):
                listed = listed or line == "# filename"
            elif line.startswith("*"):
                transaction = line[1:]
            elif line:
                names.append(line)
        if reply and not listed:
            self._refuse("show ssl cert", reply)
        return CertificateNames(names=tuple(names), transaction=transaction)

    async def certificate(self, name: str) -> HeldCertificate | None:
        """What it has under a name, None if it does not know that; `*NAME` is what the open transaction has."""
        command = f"show ssl cert {_word(name)}"
        reply = await self._ask(command)
        if "Not found" in reply:
            return None
        facts = _facts(reply)
        if "Filename" not in facts or "Status" not in facts:
            self._refuse(command, reply)
        return HeldCertificate(
            name=facts["Filename"].removeprefix("*"),
            status=facts["Status"],
            serial=facts.get("Serial", ""),
            sha1=facts.get("SHA1 FingerPrint", "").replace(":", "").upper(),
            not_after=_instant(facts.get("notAfter", "")),
            issuer=_common_name(facts.get("Issuer", "")),
        )

    async def crt_lists(self) -> tuple[str, ...]:
        """The names of all crt-list files, and of the directories of `crt DIR`."""
        return tuple(filter(None, (await self._ask("show ssl crt-list", may_be_empty=True)).splitlines()))

    async def crt_list(self, name: str, known: Iterable[str]) -> tuple[str, ...]:
        """The certificates in one of them, out of `known`, which are all that there are.

        In a line a space ends the certificate's name, and begins its options; but a name may have spaces, too.
        """
        command = f"show ssl crt-list {_word(name)}"
        reply = await self._ask(command)
        if not reply.startswith("# "):
            self._refuse(command, reply)
        return tuple(_entries(reply, frozenset(known)))

    async def bufsize(self) -> int:
        """tune.bufsize, from the pool that buffers are taken from; the default where that does not tell."""
        match = _buffer_pool(await self._ask("show pools"))
        return int(match[1]) if match else DEFAULT_BUFSIZE

    # ------------------------------------------------------------------ changes

    async def set_certificate(self, name: str, bundle: Bundle) -> None:
        """Puts `bundle` in place of what HAProxy has under a name that it knows, and sees to it that it took it.

        On failure and on cancellation the transaction is aborted.
        """
        async with self._turn:
            process, _ = await self._clear_the_way(name)
            await self._replace(process, name, bundle)

    async def add_certificate(self, crt_list: str, name: str, bundle: Bundle) -> None:
        """Makes HAProxy serve `bundle` under a name that no bind line has, by the crt-list or directory it is to be in.

        If HAProxy has the name and does not use it, somebody has stopped halfway, and it is taken over. On failure and
        on cancellation all is undone.
        """
        async with self._turn:
            process, known = await self._clear_the_way(name)
            is_new = name not in known.names
            if is_new:
                await self._demand(f"new ssl cert {_word(name)}", "New empty certificate store")
            try:
                await self._replace(process, name, bundle)
                command = f"add ssl crt-list {_word(crt_list)} {_word(name)}"
                reply = await self._ask(command)
                if not _succeeded(reply) and "already exists in this directory" not in reply:
                    self._refuse(command, reply, reload_helps=True)
                await self._must_be_used(crt_list, name)
            except BaseException:
                if is_new:
                    # In this order: HAProxy deletes none that is in use.
                    await self._whatever_happens(
                        f"del ssl crt-list {_word(crt_list)} {_word(name)}", f"del ssl cert {_word(name)}"
                    )
                raise

    async def _clear_the_way(self, name: str) -> tuple[RunningProcess, CertificateNames]:
        """Nobody else has a transaction open; one about this name was ours, before we were killed, and is aborted."""
        process = await self.process()
        if process.is_stopping:
            raise DeliveryError(f"{self}: the old process of a reload answers, which is about to end")
        known = await self.certificate_names()
        if known.transaction == name:
            await self._demand(f"abort ssl cert {_word(name)}", "Transaction aborted for certificate")
        elif known.transaction is not None:
            raise TransactionOpen(
                f"{self}: another program has a transaction open, about {known.transaction}; HAProxy takes one at a"
                f" time. If nobody is at it any more: abort ssl cert {known.transaction}"
            )
        return process, known

    async def _replace(self, process: RunningProcess, name: str, bundle: Bundle) -> None:
        """set, look, commit, look again."""
        command = f"set ssl cert {_word(name)} <<"
        payload = self._payload(bundle)
        await self._must_fit(process, command, payload)
        opened: str | None = name
        try:
            reply = await self._ask(command, payload)
            match = _transaction(reply)
            if match:
                opened = match[2]
            elif _about_another(reply):
                opened = None
            if match is None or match.groups() != ("created", name):
                self._refuse_set(name, reply)
            # 2.6.12 does not look at the name: by now, the transaction may be another's.
            await self._must_have(f"*{name}", bundle)
            command = f"commit ssl cert {_word(name)}"
            reply = await self._ask(command)
            if not _succeeded(reply):
                self._refuse(command, reply, reload_helps=True)
        except NotPermitted:
            raise  # to abort would not be permitted either, and there is nothing to
        except BaseException as error:
            if opened is not None:
                failure = await self._whatever_happens(f"abort ssl cert {_word(opened)}")
                if failure and isinstance(error, DeliveryError) and not isinstance(error, RuntimeUnreachable):
                    text = f"{error}; its transaction may still be open: {failure}"
                    raise DeliveryError(text, reload_helps=error.reload_helps) from error
            raise
        await self._must_have(name, bundle)

    def _payload(self, bundle: Bundle) -> bytes:
        # An empty line ends the payload, and HAProxy runs what follows as commands: lines of the private key.
        pem = bundle.pem
        if not pem.endswith(b"\n") or any(not line.strip() for line in pem.splitlines()):
            raise DeliveryError(f"{self}: the PEM has an empty line, and is not sent")
        return pem + b"\n"

    async def _must_fit(self, process: RunningProcess, command: str, payload: bytes) -> None:
        if process.release >= DYNAMIC_PAYLOADS:
            return
        needed = len(command.encode()) + 1 + len(payload)
        room = await self.bufsize() - BUFSIZE_MARGIN
        if needed > room:
            bufsize = 1 << (needed + BUFSIZE_MARGIN - 1).bit_length()
            raise DeliveryError(
                f"{self}: key, certificate and chain have {needed} bytes, and it takes {room} at run time; set"
                f" tune.bufsize {bufsize} in its global section, or haproxy.reload_command here",
                reload_helps=True,
            )

    async def _must_be_used(self, crt_list: str, name: str) -> None:
        held = await self.certificate(name)
        if held is None or not held.is_used:
            raise DeliveryError(f"{self}: {name} is in {crt_list} now, which no bind line uses", reload_helps=True)

    async def _must_have(self, name: str, bundle: Bundle) -> None:
        held = await self.certificate(name)
        if held is None or held.sha1 != bundle.leaf.sha1:
            where = "in the transaction about" if name.startswith("*") else "under"
            raise DeliveryError(
                f"{self}: {where} {name.removeprefix('*')} there is {held or 'nothing'}, instead of serial"
                f" {bundle.leaf.serial}; does another program change certificates there?"
            )

    async def _demand(self, command: str, answer: str) -> None:
        reply = await self._ask(command)
        if answer not in reply:
            self._refuse(command, reply, reload_helps=True)

    async def _whatever_happens(self, *commands: str) -> str:
        """Sends these, cancelled or not: they put things back while an error is on its way. Returns what went wrong."""

        async def send() -> str:
            failure = ""
            for command in commands:
                try:
                    await self._ask(command)
                except DeliveryError as error:
                    failure = str(error)
            return failure

        task = asyncio.get_running_loop().create_task(send())
        while not task.done():
            # Being cancelled once more does not make it any faster, and each command has its deadline.
            with suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        return task.result()

    # ------------------------------------------------------------------ one command, one answer

    async def _ask(self, command: str, payload: bytes = b"", *, may_be_empty: bool = False) -> str:
        """The answer, without the empty line that ends it."""
        reply = await self._exchange(command.encode() + b"\n" + payload)
        for _ in range(LOCKED_TRIES):
            if LOCKED not in reply:
                break
            await asyncio.sleep(LOCKED_SECONDS)
            reply = await self._exchange(command.encode() + b"\n" + payload)
        if not reply and not may_be_empty:
            raise DeliveryError(f"{self}: `{command}`: an empty answer, which is none")
        if reply.startswith(("Permission denied", "Can't allocate memory!")):
            # The second is what some commands for operators answer to a mere user.
            raise NotPermitted(
                f'{self}: "{_quoted(reply)}" to `{command}`; it needs {_socket_line(self.address)}', reload_helps=True
            )
        if reply.startswith("Unknown command"):
            raise DeliveryError(
                f"{self}: does not know `{command}`; it is older than 2.2, or this is the socket of the master process,"
                f" where there has to be {_socket_line(self.address)}",
                reload_helps=True,
            )
        if LOCKED in reply:
            raise TransactionOpen(f"{self}: another program is changing certificates there at this moment")
        return reply

    async def _exchange(self, request: bytes) -> str:
        reader, writer = await self._connect()
        received = bytearray()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(request)
                await writer.drain()
                while part := await reader.read(65536):
                    received += part
                    if len(received) > MAX_REPLY_BYTES:
                        raise RuntimeUnreachable(f"{self}: an answer without end; this cannot be HAProxy's socket")
        except TimeoutError:
            raise RuntimeUnreachable(
                f"{self}: no whole answer within {ANSWER_SECONDS:g} s; does HAProxy hang?"
            ) from None
        except OSError as error:
            raise RuntimeUnreachable(f"{self}: the connection broke: {_words(error)}") from None
        finally:
            writer.transport.abort()
        # An empty line ends each answer (management guide, section 9.3); HAProxy closes without a word when a command
        # is too long for it, or it cannot make out its end.
        if not received:
            raise RuntimeUnreachable(f"{self}: closed without an answer; has HAProxy just ended?")
        if not received.endswith(b"\n\n") and received != b"\n":
            raise RuntimeUnreachable(f"{self}: half an answer; has HAProxy just ended?")
        return received.decode(errors="replace").strip("\n")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.address
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if isinstance(address, UnixAddress):
                    return await asyncio.open_unix_connection(address.socket_address)
                return await asyncio.open_connection(address.host, address.port)
        except TimeoutError:
            raise RuntimeUnreachable(f"{self}: not there within {CONNECT_SECONDS:g} s; does HAProxy hang?") from None
        except OSError as error:
            hint, reload_helps = _CONNECT_HINTS.get(error.errno or 0, (_words(error), False))
            if isinstance(error, socket.gaierror):
                hint = f"the name cannot be looked up ({error.strerror})"
            path = address.path if isinstance(address, UnixAddress) else str(address)
            raise RuntimeUnreachable(f"{self}: {hint.format(path)}", reload_helps=reload_helps) from None

    # ------------------------------------------------------------------ refusals

    def _refuse_set(self, name: str, reply: str) -> NoReturn:
        match = _transaction(reply)
        if match and match[2] != name:
            raise TransactionOpen(
                f"{self}: it was put into a transaction about {match[2]}, which another program has begun at the same"
                " moment (this version does not look at names); that one was aborted, as it had our certificate in it"
            )
        if match or _about_another(reply):
            raise TransactionOpen(f"{self}: another program has begun a transaction at the same moment")
        if "not referenced by the configuration" in reply or "too big" in reply:
            self._refuse(f"set ssl cert {name}", reply, reload_helps=True)
        raise DeliveryError(
            f'{self}: refuses the certificate: "{_quoted(reply)}"; it cannot reload or start either, while that lies in'
            " its directory"
        )

    def _refuse(self, command: str, reply: str, *, reload_helps: bool = False) -> NoReturn:
        raise DeliveryError(f'{self}: "{_quoted(reply)}" to `{command}`', reload_helps=reload_helps)


def _succeeded(reply: str) -> bool:
    """Nothing else says so: "Committing …" comes first whatever happens."""
    return "Success!" in reply.splitlines()


def _facts(reply: str) -> dict[str, str]:
    """Lines `key: value`; the first of a key counts, as that is the leaf's where there is a chain."""
    facts: dict[str, str] = {}
    for line in reply.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key, value.strip())
    return facts


def _entries(reply: str, known: frozenset[str]) -> Iterator[str]:
    for line in reply.splitlines():
        if line in known:
            yield line
            continue
        end = line.rfind(" ")
        while end > 0 and line[:end] not in known:
            end = line.rfind(" ", 0, end)
        if end > 0:
            yield line[:end]


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)
    except ValueError:
        return None


def _common_name(oneline: str) -> str:
    """Out of `/C=US/O=Let's Encrypt/CN=E7`; the whole where there is none."""
    return oneline.rpartition("/CN=")[2].partition("/")[0] or oneline


def _word(name: str) -> str:
    """A name as one word of a command (management guide, section 9.3: backslashes before what is special)."""
    if not name or not name.isprintable():
        raise DeliveryError(f"{name!r} cannot be said to HAProxy")
    return _special.sub(r"\\\1", name)


def _quoted(reply: str) -> str:
    """An answer, for one line of text."""
    text = " ".join(filter(None, map(str.strip, reply.splitlines())))
    return "".join(char if char.isprintable() else "?" for char in text)[:_QUOTED_CHARS]


def _socket_line(address: Address) -> str:
    return f"`stats socket {address.path if isinstance(address, UnixAddress) else address} level admin`"


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
