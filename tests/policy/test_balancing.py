"""Which server of a backend takes the next connection."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.model import Balance
from sniproxy.policy.balancing import Balancer

CLIENT = "192.0.2.1"
every_way = pytest.mark.parametrize("balance", Balance)


@dataclass(eq=False)
class Server:
    name: str
    active: int = 0
    up: bool = True


def servers(*active: int) -> list[Server]:
    return [Server(f"s{number}", count) for number, count in enumerate(active)]


@every_way
def test_a_single_server_takes_everything(balance: Balance) -> None:
    """HAProxy's manual, "balance": with one server there is nothing to choose, and a check may be wrong."""
    (only,) = servers(5)
    balancer = Balancer([only], balance)

    assert balancer.choose(CLIENT) is only
    only.up = False
    assert balancer.choose(CLIENT) is only


@every_way
def test_a_server_that_is_down_is_passed_over(balance: Balance) -> None:
    """HAProxy's manual, "check": a server that is down is taken out of the farm."""
    one, down, other = servers(9, 0, 9)
    down.up = False
    balancer = Balancer([one, down, other], balance)

    assert {balancer.choose(f"192.0.2.{n}") for n in range(50)} == {one, other}


@every_way
def test_with_all_servers_down_they_are_tried_nonetheless(balance: Balance) -> None:
    """A client loses nothing by a connect that fails; HAProxy's manual has `option persist` for the same."""
    down = servers(1, 1)
    for server in down:
        server.up = False

    assert Balancer(down, balance).choose(CLIENT) in down


@every_way
def test_servers_that_were_tried_are_not_tried_again(balance: Balance) -> None:
    """HAProxy's manual, "option redispatch": a retry goes to another server, until there is none."""
    all_of_them = servers(0, 0, 0)
    balancer = Balancer(all_of_them, balance)
    tried: list[Server] = []
    while (server := balancer.choose(CLIENT, tried)) is not None:
        assert server not in tried
        tried.append(server)

    assert set(tried) == set(all_of_them)


@every_way
def test_a_retry_takes_a_server_that_is_up_before_one_that_is_down(balance: Balance) -> None:
    """HAProxy's manual, "option redispatch": the farm for a retry is what is up, less what was tried."""
    tried, down, up = servers(0, 0, 9)
    down.up = False

    assert Balancer([tried, down, up], balance).choose(CLIENT, [tried]) is up


@every_way
def test_a_retry_with_one_server_has_none(balance: Balance) -> None:
    """The only server has been tried."""
    (only,) = servers(0)

    assert Balancer([only], balance).choose(CLIENT, [only]) is None


@every_way
def test_without_servers_there_is_none(balance: Balance) -> None:
    """A backend whose names resolve to nothing has an empty farm."""
    assert Balancer[Server]([], balance).choose(CLIENT) is None


@pytest.mark.parametrize("number", [2, 3, 7])
def test_roundrobin_gives_each_server_its_turn(number: int) -> None:
    """HAProxy's manual, "roundrobin": "Each server is used in turns"."""
    farm = servers(*range(number))
    balancer = Balancer(farm, Balance.ROUNDROBIN)
    turns = [balancer.choose(CLIENT) for _ in range(3 * number)]

    assert set(turns[:number]) == set(farm)
    assert turns == turns[:number] * 3


def test_roundrobin_goes_on_when_a_server_goes_down() -> None:
    """HAProxy's manual, "roundrobin": the servers that are left share what comes."""
    farm = servers(0, 0, 0)
    balancer = Balancer(farm, Balance.ROUNDROBIN)
    farm[1].up = False
    turns = Counter(server.name for _ in range(20) if (server := balancer.choose(CLIENT)))

    assert turns == {"s0": 10, "s2": 10}


def test_leastconn_takes_the_server_with_the_fewest_connections() -> None:
    """HAProxy's manual, "leastconn": "The server with the lowest number of connections receives the connection"."""
    farm = servers(3, 1, 2)
    balancer = Balancer(farm, Balance.LEASTCONN)

    assert [balancer.choose(CLIENT) for _ in range(5)] == [farm[1]] * 5
    farm[1].active = 4
    assert balancer.choose(CLIENT) is farm[2]


def test_leastconn_takes_turns_among_equals() -> None:
    """HAProxy's manual, "leastconn": "Round-robin is performed within groups of servers of the same load"."""
    farm = servers(1, 1, 1, 9)
    balancer = Balancer(farm, Balance.LEASTCONN)
    turns = Counter(server.name for _ in range(400) if (server := balancer.choose(CLIENT)))

    assert set(turns) == {"s0", "s1", "s2"}
    assert min(turns.values()) >= 100


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6), st.integers(1, 10))
def test_leastconn_never_takes_a_busier_server_than_it_could(farm: list[tuple[int, bool]], times: int) -> None:
    """HAProxy's manual, "leastconn", for any farm: the lowest number among those that are up."""
    candidates = [Server(str(number), active, up) for number, (active, up) in enumerate(farm)]
    balancer = Balancer(candidates, Balance.LEASTCONN)
    for _ in range(times):
        server = balancer.choose(CLIENT)
        eligible = [candidate for candidate in candidates if candidate.up] or candidates

        assert server in eligible
        assert server is not None
        assert server.active == min(candidate.active for candidate in eligible)
        server.active += 1


def test_source_keeps_a_client_with_its_server_also_after_a_restart() -> None:
    """HAProxy's manual, "source": "the same client IP address will always reach the same server"."""
    first, second = (Balancer(servers(0, 0, 0, 0), Balance.SOURCE) for _ in range(2))
    clients = [f"192.0.2.{n}" for n in range(100)] + [f"2001:db8::{n:x}" for n in range(100)]
    taken = [
        (server.name, again.name)
        for client in clients
        if (server := first.choose(client)) and (again := second.choose(client))
    ]

    assert len(taken) == 200
    assert all(name == again for name, again in taken)


@pytest.mark.parametrize(
    ("client", "checksum"),
    [
        ("127.0.0.1", 0xD7B7E7A8),
        ("192.0.2.1", 0xDB610037),
        ("192.0.2.2", 0x4268518D),
        ("198.51.100.7", 0x934DE5FD),
        ("203.0.113.200", 0xE787D13E),
        ("2001:db8::1", 0x00B4AF0E),
    ],
)
def test_source_is_the_crc_32_of_the_address(client: str, checksum: int) -> None:
    """ISO 3309: the same in every process, where hash() is salted, and after every release."""
    balancer = Balancer(servers(0, 0, 0, 0, 0), Balance.SOURCE)

    assert balancer.choose(client) is balancer.servers[checksum % 5]


def test_source_spreads_clients_over_all_servers() -> None:
    """HAProxy's manual, "source": the hash is divided by the number of running servers."""
    balancer = Balancer(servers(0, 0, 0), Balance.SOURCE)
    turns = Counter(server.name for n in range(254) if (server := balancer.choose(f"192.0.2.{n}")))

    assert set(turns) == {"s0", "s1", "s2"}
    assert min(turns.values()) > 40


@pytest.mark.parametrize("client", ["", "unix", "münchen"])
def test_source_takes_clients_without_an_address(client: str) -> None:
    """A connection from a unix socket has no IP address (unix(7)); it goes somewhere all the same."""
    assert Balancer(servers(0, 0), Balance.SOURCE).choose(client) is not None
