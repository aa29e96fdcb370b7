"""Lines reach their sink in order and in batches; a sink that hangs or fails holds nothing up and is told of."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sniproxy.observe import log as log_module
from sniproxy.observe.log import EventHandler, FileSink, LogWriter, StreamSink, SyslogSink, open_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 20.0


class Memory:
    """A sink that remembers, and that hangs or fails when it is told to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.batches = 0
        self.closed = False
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.failures: list[OSError] = []
        self.written = threading.Condition()

    def write(self, lines: list[str]) -> None:
        self.entered.set()
        assert self.open.wait(SECONDS)
        with self.written:
            if self.failures:
                raise self.failures.pop()
            self.batches += 1
            self.lines += lines
            self.written.notify_all()

    def close(self) -> None:
        self.closed = True

    def wait_for(self, count: int) -> list[str]:
        with self.written:
            assert self.written.wait_for(lambda: len(self.lines) >= count, SECONDS)
            return list(self.lines)


def write_now(writer: LogWriter, *lines: str) -> None:
    """One batch, without waiting for the timer, which does not even start."""
    writer._lines += lines
    writer._hand_over()


async def settled(writer: LogWriter) -> None:
    """Waits until all that was handed over has been written, or could not be."""
    while writer._backlog:  # noqa: ASYNC110  a thread counts it down, and no event belongs to that
        await asyncio.sleep(0)


# ---------------------------------------------------------------------------------------------- the writer


async def test_lines_arrive_in_order_and_in_one_batch(runner: asyncio.Runner) -> None:
    """One write(2) for many lines is what makes a log line cheap."""
    sink = Memory()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    for number in range(1000):
        writer.write(f"line {number}")
    lines = await asyncio.to_thread(sink.wait_for, 1000)
    writer.close()

    assert lines == [f"line {number}" for number in range(1000)]
    assert sink.batches == 1


async def test_closing_writes_what_is_left(runner: asyncio.Runner) -> None:
    """The last line of a program is often the one that is looked for."""
    sink = Memory()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    writer.write("last words")
    writer.close()

    assert sink.lines == ["last words"]
    assert sink.closed


async def test_a_sink_that_hangs_holds_nothing_up_and_what_is_dropped_is_counted(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads must not stop a proxy; a gap in the log must not look like silence."""
    monkeypatch.setattr(log_module, "MAX_BACKLOG_BYTES", 1000)
    sink = Memory()
    sink.open.clear()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    write_now(writer, "a" * 800)
    assert await asyncio.to_thread(sink.entered.wait, SECONDS)
    for _ in range(3):
        write_now(writer, "b" * 100, "b" * 100)
    sink.open.set()
    await asyncio.to_thread(sink.wait_for, 3)
    writer.write("after")
    writer.close()

    assert sink.lines == [
        "a" * 800,
        "b" * 100,
        "b" * 100,
        "sniproxy: 4 log lines dropped: the log could not be written in time",
        "after",
    ]


async def test_what_was_dropped_last_is_said_at_the_end(runner: asyncio.Runner) -> None:
    """Nobody writes another line after the last one."""
    sink = Memory()
    sink.failures = [OSError(28, "No space left on device")]
    writer = LogWriter(asyncio.get_running_loop(), sink)
    write_now(writer, "lost")
    await settled(writer)
    writer.close()

    assert sink.lines == ["sniproxy: 1 log lines dropped: the log could not be written in time"]


async def test_a_sink_that_fails_is_told_of_on_stderr_and_tried_again(
    runner: asyncio.Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk is emptied some day, and then the log goes on. No line that was lost is forgotten."""
    sink = Memory()
    sink.failures = [OSError(28, "No space left on device"), OSError("no number at all")]
    writer = LogWriter(asyncio.get_running_loop(), sink)
    for _ in range(2):
        write_now(writer, "lost")
        await settled(writer)
    writer.write("found")
    writer.close()

    assert sink.lines == ["sniproxy: 2 log lines dropped: the log could not be written in time", "found"]
    said = capfd.readouterr().err
    assert "sniproxy: cannot write the log: No space left on device\n" in said
    assert "sniproxy: cannot write the log: no number at all\n" in said


async def test_the_backlog_is_empty_when_everything_is_written(runner: asyncio.Runner) -> None:
    """A count that drifts would one day drop everything, or nothing."""
    sink = Memory()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    for number in range(20):
        if number % 3 == 0:
            sink.failures = [OSError(5, "Input/output error")]
        write_now(writer, "x" * number)
        await settled(writer)
    writer.close()

    assert writer._backlog == 0


async def test_after_a_rotation_lines_go_to_the_new_file(runner: asyncio.Runner, tmp_path: Path) -> None:
    """logrotate: rename, USR1, and not a line is lost or in both."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    writer = LogWriter(asyncio.get_running_loop(), FileSink(path))
    writer.write("before")
    path.rename(old)
    writer.replace(FileSink(path))
    writer.write("after")
    writer.close()

    assert old.read_text() == "before\n"
    assert path.read_text() == "after\n"


async def test_a_writer_whose_sink_never_comes_back_can_be_closed(runner: asyncio.Runner) -> None:
    """A program must be able to stop."""
    sink = Memory()
    sink.open.clear()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    writer.write("stuck")
    before = asyncio.get_running_loop().time()
    writer.close(seconds=0.05)

    assert asyncio.get_running_loop().time() - before < SECONDS / 2
    sink.open.set()
    writer._thread.join(SECONDS)


async def test_lines_of_other_threads(runner: asyncio.Runner) -> None:
    """An event loop's timers are not to be touched by other threads (asyncio, "Concurrency and Multithreading")."""
    sink = Memory()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    await asyncio.to_thread(writer.write_from_any_thread, "from a thread")
    writer.write_from_any_thread("from here")
    lines = await asyncio.to_thread(sink.wait_for, 2)
    writer.close()

    assert sorted(lines) == ["from a thread", "from here"]


# ---------------------------------------------------------------------------------------------- sinks


def test_a_file_is_appended_to_and_private(tmp_path: Path) -> None:
    """It names clients and what they asked for: nothing for everybody to read."""
    path = tmp_path / "log"
    path.write_text("old\n")
    path.chmod(0o600)
    sink = FileSink(path)
    sink.write(["one", "two"])
    sink.close()
    fresh = FileSink(tmp_path / "fresh")
    fresh.close()

    assert path.read_text() == "old\none\ntwo\n"
    assert (tmp_path / "fresh").stat().st_mode & 0o027 == 0


def test_a_stream_is_not_ours_to_close(tmp_path: Path) -> None:
    """Standard output belongs to whoever started us."""
    read, write = os.pipe()
    sink = StreamSink(write)
    sink.write(["bücher", "\ud800"])
    sink.close()
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        assert stream.read() == "bücher\n\\ud800\n".encode()


def test_a_pipe_takes_a_batch_in_portions() -> None:
    """write(2) may write less than it was given."""
    read, write = os.pipe()
    lines = ["x" * 1000] * 500
    received = bytearray()

    def drain() -> None:
        while part := os.read(read, 1 << 16):
            received.extend(part)

    thread = threading.Thread(target=drain)
    thread.start()
    StreamSink(write).write(lines)
    os.close(write)
    thread.join(SECONDS)
    os.close(read)

    assert received.decode() == "\n".join(lines) + "\n"


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.settimeout(SECONDS)
        daemon.bind(str(tmp_path / "devlog"))
        yield daemon


def test_syslog_gets_one_datagram_a_line(syslog: socket.socket) -> None:
    """RFC 3164 section 4.1 as syslog(3) has it on the local socket: priority, time, tag; facility local0, as HAProxy's."""
    sink = SyslogSink("info", syslog.getsockname())
    sink.write(["one", "two"])
    first, second = syslog.recv(4096).decode(), syslog.recv(4096).decode()
    sink.close()
    sink.close()

    assert re.fullmatch(rf"<134>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d sniproxy\[{os.getpid()}\]: one", first)
    assert second.endswith(": two")


@pytest.mark.parametrize(("level", "priority"), [("debug", 135), ("info", 134), ("warning", 132), ("error", 131)])
def test_syslog_severities(syslog: socket.socket, level: log_module.Level, priority: int) -> None:
    """RFC 3164 section 4.1.1: facility times eight plus severity."""
    sink = SyslogSink(level, syslog.getsockname())
    sink.write(["x"])
    sink.close()

    assert syslog.recv(4096).startswith(b"<%d>" % priority)


def test_a_log_daemon_that_is_restarted_is_found_again(tmp_path: Path) -> None:
    """The lines of that moment are lost; those after it are not."""
    path = str(tmp_path / "devlog")
    sink = SyslogSink("info", path)
    with pytest.raises(FileNotFoundError):
        sink.write(["too early"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        sink.write(["one"])
        assert daemon.recv(4096).endswith(b": one")
    with pytest.raises(ConnectionRefusedError):
        sink.write(["nobody there"])
    Path(path).unlink()
    with pytest.raises(FileNotFoundError):
        sink.write(["nor there"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        sink.write(["two"])
        assert daemon.recv(4096).endswith(b": two")
    sink.close()


def test_a_line_that_is_no_text_at_all(syslog: socket.socket) -> None:
    """A surrogate cannot be encoded, and must not stop the thread that writes."""
    sink = SyslogSink("info", syslog.getsockname())
    sink.write(["\ud800"])
    sink.close()

    assert syslog.recv(4096).endswith(b": \\ud800")


def test_the_targets_of_the_configuration(tmp_path: Path) -> None:
    """`[log].target`: stdout, stderr, syslog or a file."""
    assert isinstance(open_sink("stdout", "info"), StreamSink)
    assert isinstance(open_sink("stderr", "info"), StreamSink)
    assert isinstance(open_sink("syslog", "info"), SyslogSink)
    sink = open_sink(tmp_path / "log", "info")
    assert isinstance(sink, FileSink)
    sink.close()
    with pytest.raises(FileNotFoundError):
        open_sink(tmp_path / "nowhere" / "log", "info")


# ---------------------------------------------------------------------------------------------- the program's own words


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.Logger("sniproxy.test")  # noqa: LOG001  one of its own, not in the tree of all
    yield made
    made.handlers.clear()


async def test_messages_go_to_the_writer(runner: asyncio.Runner, logger: logging.Logger) -> None:
    """A traceback is many lines, each of which says whose it is."""
    sink = Memory()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    logger.addHandler(EventHandler(writer, as_json=False))
    logger.warning("%s of %d", "one", 2)
    logger.error("a bug", exc_info=ValueError("broken"))
    writer.close()

    assert sink.lines == [
        "sniproxy: warning: one of 2",
        "sniproxy: error: a bug",
        "sniproxy: error: ValueError: broken",
    ]


async def test_messages_as_json_are_one_line_each(runner: asyncio.Runner, logger: logging.Logger) -> None:
    """A log that is read by a machine holds nothing else than JSON."""
    sink = Memory()
    writer = LogWriter(asyncio.get_running_loop(), sink)
    logger.addHandler(EventHandler(writer, as_json=True))
    logger.error("first\nsecond")
    writer.close()

    (line,) = sink.lines
    told = json.loads(line)
    assert (told["event"], told["level"], told["message"]) == ("message", "error", "first\nsecond")


def test_without_a_writer_messages_go_to_stderr(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """Before the log is open, and after it is closed."""
    logger.addHandler(EventHandler(None, as_json=False))
    logger.info("hello")

    assert capfd.readouterr().err == "sniproxy: info: hello\n"
