from __future__ import annotations

import pytest

from bench.first_flight import PROTOCOLS, SERVER_NAME, Task, client_hello, first_flight, read_order
from sniproxy.wire.client_hello import read_whole


@pytest.mark.parametrize("task", Task)
def test_the_order_comes_back(task: Task) -> None:
    assert read_order(first_flight(task, 123_456_789_012)) == (task, 123_456_789_012)


def test_the_order_leaves_the_hello_what_it_was() -> None:
    hello = read_whole(first_flight(Task.ECHO), 16384)
    assert hello is not None
    assert hello.server_name == SERVER_NAME
    assert hello.alpn == tuple(name.encode() for name in PROTOCOLS)
    assert 0x0304 in hello.versions


def test_a_hello_of_somebody_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not from this benchmark"):
        read_order(client_hello())
