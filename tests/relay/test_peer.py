"""The bytes of a pair of sockets: all of them, in order, to their end, whoever stops first and however."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import select
import socket
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sniproxy.model import Outcome
from sniproxy.relay.engine import BUFFER_BYTES
from sniproxy.relay.peer import READS_PER_TURN, Peer
from tests.support.engine import HELLO, EagerEpoll, End, Relay, replace_epoll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20

EVERY_KIND = pytest.mark.parametrize("kind", ["tcp", "unix"])
EITHER_WAY = pytest.mark.parametrize("sender", ["client", "server"])


async def pair(relay: Relay, kind: str = "tcp", **settings: Any) -> tuple[End, End]:
    server = relay.server(kind)
    relay.start(server, **settings)
    return await relay.pair(server)


def towards(sender: str, client: End, server: End) -> tuple[End, End]:
    return (client, server) if sender == "client" else (server, client)


async def stall(relay: Relay, sender: End, peer: Peer) -> int:
    """Sends until everything on the way is full and bytes wait for `peer`; returns how many were sent."""
    sent = 0
    while True:
        turns = relay.engine.turns
        more = sender.send_what_fits(bytes(MIB))
        sent += more
        await asyncio.sleep(0)
        if not more and peer.waiting is not None and turns == relay.engine.turns:
            return sent


# ---------------------------------------------------------------------------------------------- both ways


@EVERY_KIND
async def test_both_directions_at_once(relay: Relay, kind: str) -> None:
    """Ten megabytes each way in portions of any size: every byte, in order."""
    client, server = await pair(relay, kind)
    dice = random.Random(7)

    async def send(end: End, stream: bytes) -> None:
        position = 0
        while position < len(stream):
            size = dice.choice((1, 100, 1448, 16_384, 200_000, MIB))
            await end.send(stream[position : position + size])
            position += size

    upload, download = os.urandom(10 * MIB), os.urandom(10 * MIB)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send(client, upload))
        tasks.create_task(send(server, download))
        at_server = tasks.create_task(server.receive_exactly(len(upload)))
        at_client = tasks.create_task(client.receive_exactly(len(download)))

    assert at_server.result() == upload
    assert at_client.result() == download
    assert relay.snapshot().received == {"haproxy": len(HELLO) + len(upload)}
    assert relay.snapshot().sent == {"haproxy": len(download)}


async def test_many_small_messages_to_and_fro(relay: Relay) -> None:
    """A message waits for nothing: none is held back for the next one."""
    client, server = await pair(relay)
    for number in range(200):
        await client.send(b"%d?" % number)
        assert await server.receive() == b"%d?" % number
        await server.send(b"%d!" % number)
        assert await client.receive() == b"%d!" % number


# ---------------------------------------------------------------------------------------------- half-close


@EVERY_KIND
@EITHER_WAY
async def test_ten_megabytes_after_the_other_side_has_ended(relay: Relay, kind: str, sender: str) -> None:
    """RFC 9293 section 3.6: closing is simplex. The end comes behind all bytes, and the other direction goes on."""
    client, server = await pair(relay, kind)
    first, second = towards(sender, client, server)
    await first.send(b"request")
    first.half_close()
    assert await second.receive_to_end() == b"request"
    answer = os.urandom(10 * MIB)

    async def send() -> None:
        await second.send(answer)
        second.half_close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        received = tasks.create_task(first.receive_to_end())

    assert received.result() == answer
    assert (await relay.over()).termination == "--"


@EITHER_WAY
async def test_the_end_comes_behind_everything_that_waits(relay: Relay, sender: str) -> None:
    """HAProxy's manual, `abortonclose`: an end of stream that overtakes a request aborts it."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    peer = relay.connection.server if sender == "client" else relay.connection.client
    sent = await stall(relay, first, peer)
    first.half_close()

    assert len(await second.receive_to_end()) == sent


@EITHER_WAY
async def test_the_end_that_comes_together_with_the_last_bytes(relay: Relay, sender: str) -> None:
    """Edge-triggered: the end may be announced once only, with the bytes before it (epoll(7))."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    for size in (1, BUFFER_BYTES - 1, BUFFER_BYTES):
        assert first.send_what_fits(bytes(size)) == size
        if size == BUFFER_BYTES:
            first.half_close()
        assert len(await second.receive_exactly(size)) == size

    assert await second.receive() == b""


async def test_a_server_that_closes_first_while_the_client_still_sends(relay: Relay) -> None:
    """HAProxy's manual, `timeout client-fin`: the last words arrive, then the end, and the client has not for ever."""
    client, server = await pair(relay, half_close_timeout=30.0)
    relay.freeze()
    await server.send(b"last words")
    server.close()
    assert await client.receive_to_end() == b"last words"
    seconds = 0
    while relay.engine.live:
        await relay.send_and_take(client, b"x" * 1000)
        relay.pass_time(1.0)
        seconds += 1

    assert seconds <= 33
    assert relay.closed[0].outcome == Outcome.RELAYED


async def test_a_reset_behind_the_servers_end_is_a_reset_too(relay: Relay) -> None:
    """RFC 9293 section 3.10.7.4: a connection that is half closed can still be reset, and the client has to know."""
    client, server = await pair(relay, half_close_timeout=30.0)
    await server.send(b"last words")
    server.half_close()
    assert await client.receive_to_end() == b"last words"
    server.reset()

    assert (await relay.over()).reason == "reset"
    assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE  # as tcp(7) has it after an end


async def test_a_client_that_ends_after_the_server_is_gone(relay: Relay) -> None:
    """What the client sends to a server that is gone is thrown away, but its end is seen: both are done."""
    client, server = await pair(relay)
    server.close()
    assert await client.receive() == b""
    peer = relay.connection.server
    await client.send(b"into the void")
    await relay.until(lambda: peer.finishing and select.select([], [], [peer.sock], 0) is not None)
    turns = relay.engine.turns
    await relay.until(lambda: relay.engine.turns > turns or peer.over)
    client.send_what_fits(b"and more")
    client.half_close()

    assert (await relay.over()).reason != "idle"


@EITHER_WAY
async def test_both_ends_at_the_same_moment(relay: Relay, sender: str) -> None:
    """RFC 9293 section 3.6, case 3: simultaneous close."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    first.half_close()
    second.half_close()

    assert (await first.receive(), await second.receive()) == (b"", b"")
    assert (await relay.over()).termination == "--"


# ---------------------------------------------------------------------------------------------- resets


@EITHER_WAY
async def test_a_reset_in_mid_transfer_is_a_reset_at_the_other_end(relay: Relay, sender: str) -> None:
    """RFC 9293 section 3.10.7.4. An orderly end instead would make a part look like the whole."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    await first.send(b"part of")
    assert await second.receive() == b"part of"
    first.reset()

    assert await second.sees_reset() == b""
    assert (await relay.over()).termination == ("CD" if sender == "client" else "SD")


@EITHER_WAY
async def test_a_reset_by_the_side_that_reads(relay: Relay, sender: str) -> None:
    """A download that is broken off: the server sees that too, and soon."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    await first.send(bytes(MIB))
    await second.receive_exactly(100)
    second.reset()

    await first.sees_reset()
    await relay.over()


@EITHER_WAY
async def test_a_reset_by_a_side_that_had_stalled(relay: Relay, sender: str) -> None:
    """A reset while reading is paused goes unnoticed in an event loop's streams; here it must not."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    peer = relay.connection.server if sender == "client" else relay.connection.client
    await stall(relay, first, peer)
    second.reset()

    await first.sees_reset()
    assert (await relay.over()).termination == ("SD" if sender == "client" else "CD")
    assert relay.engine.held == 0


async def test_a_client_that_resets_while_the_server_takes_nothing(relay: Relay) -> None:
    """The stalled direction is the client's own: its reset counts at once, nothing of it is worth keeping."""
    client, server = await pair(relay)
    await stall(relay, client, relay.connection.server)
    client.reset()

    assert (await relay.over()).termination == "CD"
    await server.sees_reset()


async def test_a_server_that_resets_while_the_client_reads_nothing(relay: Relay) -> None:
    """What the server had sent before is for the client, whenever it reads; then it sees the reset."""
    client, server = await pair(relay)
    await stall(relay, server, relay.connection.client)
    server.reset()
    received = await client.sees_reset()

    assert len(received) > BUFFER_BYTES
    assert (await relay.over()).termination == "SD"


async def test_an_error_page_that_is_followed_by_a_reset_reaches_the_client(relay: Relay) -> None:
    """A server that refuses an upload answers, and closes with bytes unread: a reset right behind the answer."""
    client, server = await pair(relay)
    await client.send(b"upload" * 1000)
    await relay.until(lambda: relay.connection.client.received > len(HELLO))
    page = b"HTTP/1.1 413 Content Too Large\r\n\r\n"
    server.send_what_fits(page)
    server.close()

    assert await client.sees_reset() == page


async def test_an_error_page_in_the_midst_of_an_upload_reaches_the_client(relay: Relay) -> None:
    """The write to the server fails first; its last words are still read and passed on."""
    client, server = await pair(relay)
    sent = await stall(relay, client, relay.connection.server)
    page = b"HTTP/1.1 413 Content Too Large\r\n\r\n"
    server.send_what_fits(page)
    server.close()
    assert sent

    assert await client.sees_reset() == page


@EITHER_WAY
async def test_a_unix_server_that_is_gone(relay: Relay, sender: str) -> None:
    """unix(7): closed with bytes unread it is a reset, else an end of stream. The relay is over either way."""
    client, server = await pair(relay, "unix")
    if sender == "client":
        await client.send(b"unread")
        await relay.until(lambda: relay.connection.client.received > len(HELLO))
        server.close()
        assert await client.sees_reset() == b""
    else:
        server.close()
        assert await client.receive() == b""
        client.close()

    await relay.over()


async def test_ten_clients_killed_in_mid_download(relay: Relay) -> None:
    """A reset in mid-transfer once took the whole proxy with it (sniproxy's connection_reset_test)."""
    server = relay.server()
    relay.start(server)
    for _ in range(10):
        client, accepted = await relay.pair(server)
        accepted.send_what_fits(bytes(4 * MIB))
        await client.receive_exactly(1000)
        client.reset()
    await relay.over(10)
    client, accepted = await relay.pair(server)
    await accepted.send(b"alive")

    assert await client.receive() == b"alive"


@EITHER_WAY
@pytest.mark.parametrize("also", [select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT])
async def test_events_that_come_together(relay: Relay, sender: str, also: int) -> None:
    """One event may end the connection in its first half; the second half has nothing to work on any more."""
    client, server = await pair(relay)
    first, second = towards(sender, client, server)
    peer = relay.connection.server if sender == "client" else relay.connection.client
    await stall(relay, first, peer)
    replace_epoll(relay.engine, EagerEpoll(relay.engine._epoll, also))
    if sender == "server":
        first.reset()
        await second.sees_reset()
    else:
        second.reset()
        await first.sees_reset()

    await relay.over()
    assert not relay.bugs


# ---------------------------------------------------------------------------------------------- stalled readers


@EVERY_KIND
@EITHER_WAY
async def test_a_stalled_reader_costs_at_most_256_kib_and_loses_nothing(relay: Relay, kind: str, sender: str) -> None:
    """Envoy's threat model counts memory for each connection; HAProxy keeps two buffers of 16 kB."""
    client, server = await pair(relay, kind)
    first, second = towards(sender, client, server)
    peer = relay.connection.server if sender == "client" else relay.connection.client
    sent = await stall(relay, first, peer)

    assert 0 < relay.engine.held <= 256 * 1024
    rest = os.urandom(8 * MIB)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(first.send(rest))
        received = tasks.create_task(second.receive_exactly(sent + len(rest)))
    assert hashlib.sha256(received.result()[sent:]).digest() == hashlib.sha256(rest).digest()
    assert relay.engine.held == 0


async def test_stalled_both_ways(relay: Relay) -> None:
    """Two buffers at most, and both directions go on by themselves."""
    client, server = await pair(relay)
    up = await stall(relay, client, relay.connection.server)
    down = await stall(relay, server, relay.connection.client)

    assert relay.engine.held <= 256 * 1024
    async with asyncio.TaskGroup() as tasks:
        at_server = tasks.create_task(server.receive_exactly(up))
        at_client = tasks.create_task(client.receive_exactly(down))
    assert (len(at_server.result()), len(at_client.result())) == (up, down)


async def test_a_thousand_stalled_readers_stay_below_100_mib(relay: Relay) -> None:
    """Slow readers of large answers are the cheap way to fill a proxy's memory (HAProxy's threat model)."""
    server = relay.server("unix")
    relay.start(server)
    relay.listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # what is accepted inherits it
    answer = bytes(160 * 1024)
    before = resident_bytes()
    for count in range(1, 1001):
        await relay.greet(receive_buffer=4096)
        accepted = await server.accept()
        # All of it waits when the relay looks for the first time.
        assert accepted.send_what_fits(answer) > 100_000
        await relay.until(partial(waits_for, relay, count))

    assert 40 * MIB < relay.engine.held <= 100 * MIB
    assert resident_bytes() - before <= 110 * MIB


def waits_for(relay: Relay, clients: int) -> bool:
    return sum(connection.client.waiting is not None for connection in relay.engine.live) == clients


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------------------------- fairness


class Flood:
    """A client that sends without pause and a server that reads without pause, each in a thread of its own."""

    def __init__(self, sender: End, reader: End) -> None:
        for end in (sender, reader):
            end.sock.setblocking(True)
        self.sender, self.reader = sender.sock, reader.sock
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.read)]
        for thread in self.threads:
            thread.start()

    def send(self) -> None:
        data = bytes(4 * MIB)
        try:
            while True:
                self.sender.sendall(data)
        except OSError:
            pass

    def read(self) -> None:
        try:
            while self.reader.recv(MIB):
                pass
        except OSError:
            pass

    def stop(self) -> None:
        for sock in (self.sender, self.reader):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self.threads:
            thread.join()


@pytest.fixture
def flood() -> Iterator[Callable[[End, End], None]]:
    floods: list[Flood] = []
    yield lambda sender, reader: floods.append(Flood(sender, reader))
    for one in floods:
        one.stop()


async def test_a_small_message_waits_for_two_turns_of_a_bulk_transfer_at_most(
    relay: Relay, flood: Callable[[End, End], None]
) -> None:
    """Each direction has its share of a turn and then goes to the back of the queue: turns count here, not time."""
    server = relay.server("unix")
    relay.start(server)
    bulk_client, bulk_server = await relay.pair(server)
    bulk = relay.connection
    client, small_server = await relay.pair(server)
    small = next(connection for connection in relay.engine.live if connection is not bulk)
    flood(bulk_client, bulk_server)
    await relay.until(lambda: bulk.client.received > 64 * MIB)
    waits = []
    for _ in range(20):
        wanted, turns = small.client.received + 5, relay.engine.turns
        client.send_what_fits(b"small")
        await relay.until(partial(has_received, small.client, wanted))
        waits.append(relay.engine.turns - turns)
        assert await small_server.receive() == b"small"

    assert max(waits) <= 2


def has_received(peer: Peer, count: int) -> bool:
    return peer.received == count


async def test_a_bulk_transfer_has_its_share_of_each_turn_and_no_more(
    relay: Relay, flood: Callable[[End, End], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New bytes and those left over may each give it one; that must not add up from turn to turn."""
    bulk_client, bulk_server = await pair(relay, "unix")
    bulk = relay.connection
    shares: dict[int, int] = {}
    pump = Peer.pump

    def counted(self: Peer) -> None:
        if self is bulk.client:
            shares[relay.engine.turns] = shares.get(relay.engine.turns, 0) + 1
        pump(self)

    monkeypatch.setattr(Peer, "pump", counted)
    flood(bulk_client, bulk_server)
    await relay.until(lambda: bulk.client.received > 512 * MIB)

    # One left over from before, one for new bytes, one because the server has room again.
    assert max(shares.values()) <= 3


async def test_one_turn_reads_so_much_and_no_more(relay: Relay) -> None:
    """READS_PER_TURN buffers of one direction; the rest goes on in the next turn without being asked."""
    await pair(relay, "unix")
    peer = relay.connection.client
    reads = []

    class Bottomless:
        """A socket that always has as much as is asked for."""

        def recv_into(self, buffer: bytearray, size: int, *_: int) -> int:
            reads.append(size)
            return size

        def send(self, data: Any, *_: int) -> int:
            return len(data)

    real = peer.sock, peer.other.sock
    peer.sock = peer.other.sock = Bottomless()
    peer.pump()
    assert len(reads) == READS_PER_TURN
    assert list(relay.engine._again) == [peer]
    peer.pump()
    assert list(relay.engine._again) == [peer]
    peer.sock, peer.other.sock = real
    relay.engine.wake()

    assert not relay.engine._again
