"""The load generator: a process of its own on the other core, driven over its standard input.

    python -m bench.load

Each job is a line of JSON and has three steps, so that nothing but the work itself lies between two readings of the
front's CPU time: prepared, done, released. Every work is bounded in count and time. It fails loudly: a connection that
is refused, reset or short ends the whole run.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from array import array
from struct import pack
from typing import TYPE_CHECKING, Any

from bench.first_flight import Task, first_flight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.processes import Program

_BLOCK = 256 * 1024
_STUCK_SECONDS = 10
_PING_BYTES = 100

_buffer = bytearray(_BLOCK)
_view = memoryview(_buffer)
_block = memoryview(bytes(range(256)) * (_BLOCK // 256))

Result = dict[str, Any]
Address = tuple[str, int]


# ---------------------------------------------------------------------- the side that gives orders


class Load:
    """The generator as the benchmark sees it."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def prepare(self, work: str, address: Address, **settings: Any) -> None:
        """Opens the connections that the work begins with."""
        self._ask({"work": work, "address": address, **settings})

    def go(self) -> Result:
        """Does the work; says how many `units`, in how many `seconds`, at what `cpu` of its own."""
        return self._ask("go")

    def release(self) -> None:
        """Closes what is still open."""
        self._ask("release")

    def _ask(self, what: object) -> Result:
        self._program.say(json.dumps(what))
        answer: Result = json.loads(self._program.hear())
        if "error" in answer:
            raise RuntimeError(f"load: {answer['error']}")
        return answer


def percentile(ordered: list[int], share: float) -> int:
    """The value that this share of a sorted list does not exceed."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


# ---------------------------------------------------------------------- the works


def _open(address: Address, flight: bytes) -> socket.socket:
    # Blocking: over loopback the handshake is over when connect returns, whoever sleeps at the other end.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pack("ll", _STUCK_SECONDS, 0))
    sock.connect(address)
    sock.send(flight)
    return sock


def _expect(sock: socket.socket, byte: bytes) -> None:
    answer = sock.recv(1)
    if answer != byte:
        raise RuntimeError(f"{answer!r} instead of {byte!r}")


def _answered(job: Any, keep: list[socket.socket] | None) -> int:
    """Opens connections, `in_flight` at a time, and reads each one's answer to the end; the number done in time."""
    address, count, in_flight, size = tuple(job["address"]), job["count"], job["in_flight"], job["size"]
    flight = first_flight(Task.ANSWER, size)
    poll = select.epoll()
    socks: dict[int, socket.socket] = {}
    left: dict[int, int] = {}
    deadline = time.monotonic() + job["seconds"]
    started = done = 0
    while done < started or started < count:
        if time.monotonic() > deadline:
            if not socks:
                break
            count = started
            if time.monotonic() > deadline + _STUCK_SECONDS:
                raise RuntimeError(f"{len(socks)} connections without an answer")
        while started < count and len(socks) < in_flight:
            sock = _open(address, flight)
            fd = sock.fileno()
            poll.register(fd, select.EPOLLIN)
            socks[fd], left[fd] = sock, size
            started += 1
        for fd, _ in poll.poll(1.0):
            read = socks[fd].recv_into(_buffer)
            left[fd] -= read
            if not read:
                raise RuntimeError("a connection ended before its answer did")
            if not left[fd]:
                done += 1
                sock = socks.pop(fd)
                if keep is None:
                    sock.close()
                else:
                    poll.unregister(fd)
                    keep.append(sock)
    poll.close()
    return done


def connections(job: Any) -> Iterator[Result | None]:
    """Hello, answer, close: the client closes first."""
    yield None
    yield {"units": _answered(job, None)}


def idle(job: Any) -> Iterator[Result | None]:
    """Hello, answer, and then nothing."""
    yield None
    keep: list[socket.socket] = []
    yield {"units": _answered(job, keep)}
    for sock in keep:
        sock.close()


def roundtrips(job: Any) -> Iterator[Result | None]:
    """Each connection sends 100 bytes, waits for them to come back, and sends the next."""
    flight = first_flight(Task.ECHO)
    socks = [_open(tuple(job["address"]), flight) for _ in range(job["connections"])]
    for sock in socks:
        _expect(sock, b"+")
    yield None
    trips = _one_by_one if len(socks) == 1 else _interleaved
    latencies = sorted(trips(socks, job["count"], job["seconds"]))
    yield {
        "units": len(latencies),
        "p50": percentile(latencies, 0.5) / 1e3,
        "p99": percentile(latencies, 0.99) / 1e3,
    }
    for sock in socks:
        sock.close()


def _one_by_one(socks: list[socket.socket], count: int, seconds: float) -> array[int]:
    latencies = array("q")
    (sock,) = socks
    ping, clock = bytes(_PING_BYTES), time.monotonic_ns
    deadline = clock() + int(seconds * 1e9)
    for _ in range(count):
        begin = clock()
        sock.send(ping)
        missing = _PING_BYTES
        while missing:
            read = sock.recv_into(_buffer, missing)
            if not read:
                raise RuntimeError("the connection ended")
            missing -= read
        end = clock()
        latencies.append(end - begin)
        if end > deadline:
            break
    return latencies


def _interleaved(socks: list[socket.socket], count: int, seconds: float) -> array[int]:
    latencies = array("q")
    ping, clock = bytes(_PING_BYTES), time.monotonic_ns
    deadline = clock() + int(seconds * 1e9)
    by_fd = {sock.fileno(): sock for sock in socks}
    begun, missing = dict.fromkeys(by_fd, 0), dict.fromkeys(by_fd, _PING_BYTES)
    poll = select.epoll()
    started = 0
    for fd, sock in by_fd.items():
        poll.register(fd, select.EPOLLIN)
        begun[fd] = clock()
        sock.send(ping)
        started += 1
    while len(latencies) < started:
        events = poll.poll(_STUCK_SECONDS)
        if not events:
            raise RuntimeError("no answer")
        for fd, _ in events:
            sock = by_fd[fd]
            read = sock.recv_into(_buffer, missing[fd])
            if not read:
                raise RuntimeError("a connection ended")
            missing[fd] -= read
            if missing[fd]:
                continue
            end = clock()
            latencies.append(end - begun[fd])
            if started < count and end < deadline:
                started += 1
                missing[fd] = _PING_BYTES
                begun[fd] = clock()
                sock.send(ping)
    poll.close()
    return latencies


def download(job: Any) -> Iterator[Result | None]:
    """Each flow gets its share of the bytes."""
    share = job["bytes"] // job["flows"]
    flight = first_flight(Task.SEND, share)
    socks = [_open(tuple(job["address"]), flight) for _ in range(job["flows"])]
    for sock in socks:
        _expect(sock, b"+")
    yield None
    poll = select.epoll()
    left = {sock.fileno(): share for sock in socks}
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd, sock in by_fd.items():
        poll.register(fd, select.EPOLLIN)
        sock.send(b"g")
    deadline = time.monotonic() + job["seconds"]
    while left and time.monotonic() < deadline:
        for fd, _ in poll.poll(1.0):
            read = by_fd[fd].recv_into(_buffer)
            left[fd] -= read
            if not read:
                raise RuntimeError("a flow ended early")
            if not left[fd]:
                del left[fd]
                poll.unregister(fd)
    yield {"units": share * len(socks) - sum(left.values())}
    for sock in socks:
        sock.close()


def upload(job: Any) -> Iterator[Result | None]:
    """Each flow sends its share of the bytes, until the backend says that it has them."""
    share = job["bytes"] // job["flows"]
    flight = first_flight(Task.SINK, share)
    socks = [_open(tuple(job["address"]), flight) for _ in range(job["flows"])]
    poll = select.epoll()
    for sock in socks:
        _expect(sock, b"+")
        sock.setblocking(False)
    yield None
    left = {sock.fileno(): share for sock in socks}
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd in by_fd:
        poll.register(fd, select.EPOLLOUT)
    deadline = time.monotonic() + job["seconds"]
    while by_fd and time.monotonic() < deadline:
        for fd, _ in poll.poll(1.0):
            sock = by_fd[fd]
            if not left[fd]:
                _expect(sock, b".")
                del by_fd[fd]
                poll.unregister(fd)
                continue
            try:
                left[fd] -= sock.send(_block[: min(left[fd], _BLOCK)])
            except BlockingIOError:
                continue
            if not left[fd]:
                poll.modify(fd, select.EPOLLIN)
    if by_fd:
        raise RuntimeError("the bytes did not arrive in time")
    yield {"units": share * len(socks)}
    for sock in socks:
        sock.close()


WORKS = {work.__name__: work for work in (connections, idle, roundtrips, download, upload)}


def serve() -> None:
    """Does the jobs that come in on standard input until it ends."""
    gc.disable()  # nothing here makes cycles, and its pauses would show in the latencies
    for line in sys.stdin:
        job = json.loads(line)
        try:
            work = WORKS[job["work"]](job)
            next(work)
            _say({})
            sys.stdin.readline()
            cpu, begin = time.process_time(), time.perf_counter()
            result = next(work)
            assert result is not None
            result["seconds"], result["cpu"] = time.perf_counter() - begin, time.process_time() - cpu
            _say(result)
            sys.stdin.readline()
            for _ in work:
                pass
            _say({})
        except Exception as error:
            _say({"error": f"{type(error).__name__}: {error}"})
            raise


def _say(answer: Result) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
