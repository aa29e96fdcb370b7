"""Where log lines go: standard output, standard error, syslog or a file, from a thread of its own.

A pipe that nobody reads, or a disk that hangs, must not hold up a connection. So lines are collected on the event
loop, handed over in batches, and written by a thread; what it cannot keep up with is dropped, counted and said.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import asyncio

BATCH_SECONDS = 0.1
"""How long a line may wait for others: short beside what people and log readers notice."""

MAX_BACKLOG_BYTES = 8 << 20
"""Lines that may wait for a writer that hangs: about 50,000."""

SYSLOG_SOCKET = "/dev/log"
_FACILITY_LOCAL0 = 16 << 3
_SYSLOG_LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3}

Level = Literal["debug", "info", "warning", "error"]


class Sink(Protocol):
    """Where a batch of lines goes. May block; raises OSError."""

    def write(self, lines: list[str]) -> None:
        """Writes all of the lines, which have no newlines."""

    def close(self) -> None:
        """Gives back what it holds."""


class StreamSink:
    """A file descriptor that is not ours to close."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, lines: list[str]) -> None:
        data = memoryview(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Nothing to give back."""


class FileSink(StreamSink):
    """A file that is appended to; mode 0640, since it names clients and what they asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))

    def close(self) -> None:
        os.close(self._fd)


class SyslogSink:
    """The system's log daemon, one datagram a line (RFC 3164 as the local socket has it: no host name)."""

    def __init__(self, level: Level, path: str = SYSLOG_SOCKET) -> None:
        self._path = path
        self._prefix = f"<{_FACILITY_LOCAL0 | _SYSLOG_LEVELS[level]}>"
        self._socket: socket.socket | None = None

    def write(self, lines: list[str]) -> None:
        for line in lines:
            stamp = datetime.now().astimezone().strftime("%b %e %H:%M:%S")
            datagram = f"{self._prefix}{stamp} sniproxy[{os.getpid()}]: {line}".encode("utf-8", "backslashreplace")
            try:
                self._connected().send(datagram)
            except OSError:
                self.close()  # restarted, perhaps: the next line finds out
                raise

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(1.0)
            self._socket.connect(self._path)
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Lines that are written together, their length, and how many before them nobody will see."""

    lines: list[str]
    size: int
    dropped_before: int


class LogWriter:
    """Collects lines on the event loop and has a thread write them to a sink, which it owns and closes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sink: Sink) -> None:
        self._loop = loop
        self._sink = sink
        self._lines: list[str] = []
        self._scheduled = False
        self._backlog = 0
        self._dropped = 0
        self._lock = threading.Lock()
        self._owner = threading.get_ident()
        self._queue: SimpleQueue[_Batch | Sink | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Takes one line, without a newline. Only from the event loop's thread; never blocks."""
        self._lines.append(line)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_later(BATCH_SECONDS, self._hand_over)

    def write_from_any_thread(self, line: str) -> None:
        """The same for others than the event loop's thread, too."""
        if threading.get_ident() == self._owner:
            self.write(line)
        else:
            self._loop.call_soon_threadsafe(self.write, line)

    def replace(self, sink: Sink) -> None:
        """Writes to another sink from here on: what came before still goes to the old one, which is closed."""
        self._hand_over()
        self._queue.put(sink)

    def close(self, seconds: float = 2.0) -> None:
        """Writes what is left, within so many seconds, and closes the sink."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join(seconds)

    def _hand_over(self) -> None:
        self._scheduled = False
        lines, self._lines = self._lines, []
        if not lines and not self._dropped:
            return
        size = sum(map(len, lines))
        with self._lock:
            if self._backlog and self._backlog + size > MAX_BACKLOG_BYTES:
                self._dropped += len(lines)
                return
            self._backlog += size
            dropped, self._dropped = self._dropped, 0
        self._queue.put(_Batch(lines, size, dropped))

    def _work(self) -> None:
        sink = self._sink
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Batch):
                self._write_batch(sink, item)
            else:
                sink.close()
                sink = item
        sink.close()

    def _write_batch(self, sink: Sink, batch: _Batch) -> None:
        lines = batch.lines
        if batch.dropped_before:
            notice = f"sniproxy: {batch.dropped_before} log lines dropped: the log could not be written in time"
            lines = [notice, *lines]
        try:
            sink.write(lines)
        except OSError as error:
            _say_on_stderr(f"sniproxy: cannot write the log: {error.strerror or error}")
            with self._lock:
                self._dropped += len(batch.lines) + batch.dropped_before
        with self._lock:
            self._backlog -= batch.size


def _say_on_stderr(text: str) -> None:
    """The one place left to say it, unless that is the one that is gone."""
    try:
        print(text, file=sys.stderr)  # noqa: T201
    except OSError:
        pass


def open_sink(target: str | Path, level: Level) -> Sink:
    """The sink for `[log].target`. Raises OSError where a file cannot be opened."""
    if target == "stdout":
        return StreamSink(1)
    if target == "stderr":
        return StreamSink(2)
    if target == "syslog":
        return SyslogSink(level)
    return FileSink(Path(target))


class EventHandler(logging.Handler):
    """Hands the program's own messages, of the standard logging package, to a LogWriter or to standard error."""

    def __init__(self, writer: LogWriter | None, *, as_json: bool) -> None:
        super().__init__()
        self._writer = writer
        self._json = as_json

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if self._json:
            when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            lines = [json.dumps({"time": when, "event": "message", "level": level, "message": text})]
        else:
            lines = [f"sniproxy: {level}: {line}" for line in text.splitlines()]
        if self._writer is None:
            StreamSink(2).write(lines)
        else:
            for line in lines:
                self._writer.write_from_any_thread(line)
