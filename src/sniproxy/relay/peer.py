"""One of the two sockets of a pair, and the bytes that go through it.

Sockets are watched edge-triggered: what has been announced is not announced again. So whoever reads goes on until the
kernel has nothing more, or remembers that it stopped early:

- A short read means that the queue was empty, and new bytes will be announced. It does not mean that for the end
  of stream, which may have been announced together with the bytes: then reading goes on until it shows.
- A peer that must not be read now, because the other one takes no more, is read again by whoever empties the other.
- A peer that has had its share of one turn goes to the back of the queue, or a bulk flow would starve small ones.
"""

from __future__ import annotations

import errno
import select
import sys
from fcntl import ioctl
from socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, SocketType
from termios import TIOCOUTQ
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sniproxy.relay.connection import Connection
    from sniproxy.relay.engine import Engine

READS_PER_TURN = 4
"""Reads of one direction before others get their turn: half a megabyte, a fraction of a millisecond."""

_SEND = MSG_DONTWAIT | MSG_NOSIGNAL
_FINISHING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_READABLE = select.EPOLLIN | _FINISHING


class Peer:
    """One socket of a connection. `other` is where its bytes go.

    waiting: bytes for this peer that it has not taken yet; while there are any, `other` is not read.
    announced: the engine tells when it can be written to.
    received: bytes read from it.
    ended: it will send nothing more.
    closing: it has been told, or is to be told when `waiting` is gone, that the other one will send nothing more.
    over: closed with its connection.
    refuses: it takes nothing more, and what the other one sends is read and thrown away.
    """

    __slots__ = (
        "announced",
        "closing",
        "connection",
        "ended",
        "fd",
        "finishing",
        "other",
        "over",
        "received",
        "refuses",
        "reset",
        "sock",
        "waiting",
    )

    def __init__(self, connection: Connection, sock: SocketType) -> None:
        self.connection = connection
        self.sock = sock
        self.fd = sock.fileno()
        self.other: Peer
        self.waiting: bytes | memoryview | None = None
        self.received = 0
        self.ended = False
        self.closing = False
        self.finishing = False
        self.refuses = False
        self.reset = False
        self.over = False
        self.announced = False

    def on_event(self, events: int) -> None:
        """The kernel has announced something; `events` are its epoll flags."""
        if events & _FINISHING:
            self.finishing = True
            if events & select.EPOLLERR:
                if self is self.connection.client:
                    self.connection.on_reset(self)
                    return
                if self.ended:
                    self.connection.on_gone()
                    return
                # A server's last words may still be in the queue: they are read before the error is.
        if self.waiting is not None and events & _WRITABLE:
            self.flush()
            if self.over:
                return
        if events & _READABLE and not self.ended:
            self.pump()

    def pump(self) -> None:  # noqa: C901  the hot loop: taking it apart would cost a call for each read
        """Moves what this peer has sent to the other one, as far as both allow within one turn."""
        other = self.other
        connection = self.connection
        if other.waiting is not None:
            return
        engine = connection.engine
        buffer, view, size = engine.buffer, engine.view, engine.read_bytes
        receive, send = self.sock.recv_into, other.sock.send
        if not other.refuses:
            connection.touched = engine.now
        for _ in range(READS_PER_TURN):
            try:
                count = receive(buffer, size, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                connection.on_reset(self)
                return
            if not count:
                self._end()
                return
            self.received += count
            if other.refuses:
                continue
            try:
                sent = send(view[:count], _SEND)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                other.refuse(error)
                if self.over:
                    return
                continue  # to its end, which may have been announced already
            if sent != count:
                other.hold(bytes(view[sent:count]), engine)
                return
            if count < size and not self.finishing:
                return
        engine.again(self)

    def flush(self) -> None:
        """Hands over what waits for this peer; once it is all gone, the other one is read again."""
        waiting = self.waiting
        engine = self.connection.engine
        if waiting is None:
            return
        try:
            sent = self.sock.send(waiting, _SEND)
        except BlockingIOError:
            return
        except OSError as error:
            self.refuse(error)
            return
        self.connection.touched = engine.now
        if sent < len(waiting):
            # A view, not a copy: a slow reader takes a block in many small steps.
            self.waiting = memoryview(waiting)[sent:]
            return
        self.release(engine)
        if self.closing:
            self._shut()
        elif not self.other.ended:
            self.other.pump()

    def hold(self, data: bytes, engine: Engine) -> None:
        """Keeps bytes that this peer does not take now."""
        self.waiting = data
        if not self.announced:
            self.announced = True
            engine.await_writable(self)
        engine.hold(len(data))

    def release(self, engine: Engine) -> None:
        """Forgets what waits for this peer."""
        waiting = self.waiting
        if waiting is not None:
            # All of the block counts until the last of it is gone: that is how long its memory is held.
            engine.hold(-(memoryview(waiting.obj).nbytes if isinstance(waiting, memoryview) else len(waiting)))
            self.waiting = None

    def refuse(self, error: OSError) -> None:
        """A write to this peer failed. It may have said its last words before: they are still passed on."""
        self.release(self.connection.engine)
        self.refuses = True
        self.reset = error.errno == errno.ECONNRESET
        if not self.ended:
            self.pump()
        elif self is self.connection.client:
            self.connection.on_half_closed()
        else:
            self.connection.on_gone()

    def has_everything(self) -> bool:
        """Whether all that was sent to this peer has arrived there: a reset would take the rest away."""
        if self.waiting is not None:
            return False
        if self.sock.family == AF_UNIX:
            return True  # what has been written is the reader's
        return not int.from_bytes(ioctl(self.fd, TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)

    def part(self) -> None:
        """The connection is over: let go of everything that points back."""
        self.over = True
        del self.connection
        if hasattr(self, "other"):
            del self.other

    def _end(self) -> None:
        """This peer has sent its last byte: pass that on, behind everything that still waits."""
        if self.reset:
            # The failed write took the error away from this read.
            self.connection.on_reset(self)
            return
        self.ended = True
        self.connection.on_half_closed()
        other = self.other
        other.closing = True
        if other.waiting is None:
            other._shut()  # noqa: SLF001

    def _shut(self) -> None:
        if not self.ended:  # else both have ended, and closing says it as well
            try:
                self.sock.shutdown(SHUT_WR)
            except OSError:
                pass  # gone already, which its own event tells
        self.connection.on_shut()
