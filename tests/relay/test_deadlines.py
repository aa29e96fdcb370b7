"""The wheel: nobody is due too early, nobody more than a tick late, whatever is done to the deadlines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.relay.deadlines import TICK_SECONDS, Wheel


class Member:
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.deadline = 0.0
        self.slot = 0

    def __repr__(self) -> str:
        return f"{self.name}@{self.deadline}"


def test_a_member_is_due_once() -> None:
    """It is taken out when it is returned."""
    wheel: Wheel[Member] = Wheel()
    member = Member()
    wheel.schedule(member, 10.0)

    assert wheel
    assert wheel.due(9.99) == []
    assert wheel.due(10.0 + 2 * TICK_SECONDS) == [member]
    assert wheel.due(100.0) == []
    assert not wheel


def test_a_deadline_that_moves_later() -> None:
    """The usual case, and it costs nothing until the old slot is looked at."""
    wheel: Wheel[Member] = Wheel()
    member = Member()
    wheel.schedule(member, 5.0)
    slot = member.slot
    wheel.schedule(member, 600.0)

    assert member.slot == slot
    assert wheel.due(6.0) == []
    assert wheel.due(599.9) == []
    assert wheel.due(600.2) == [member]


def test_a_deadline_that_moves_earlier() -> None:
    """A half-closed connection has thirty seconds instead of ten minutes."""
    wheel: Wheel[Member] = Wheel()
    member = Member()
    wheel.schedule(member, 600.0)
    wheel.schedule(member, 30.0)

    assert wheel.due(30.2) == [member]
    assert wheel.due(700.0) == []


def test_a_deadline_in_the_past() -> None:
    """As when no time is left for a connect."""
    wheel: Wheel[Member] = Wheel()
    member = Member()
    wheel.schedule(member, 5.0)

    assert wheel.due(99.0) == [member]


def test_a_discarded_member_is_not_due() -> None:
    """Twice is as good as once, and a member that was never in may be discarded."""
    wheel: Wheel[Member] = Wheel()
    member, other = Member(), Member()
    wheel.schedule(member, 5.0)
    wheel.schedule(other, 5.0)
    wheel.discard(member)
    wheel.discard(member)
    wheel.discard(Member())

    assert wheel.due(6.0) == [other]
    assert not wheel


def test_a_member_that_was_due_may_come_back() -> None:
    """One that turned out to have been busy gets another deadline."""
    wheel: Wheel[Member] = Wheel()
    member = Member()
    wheel.schedule(member, 5.0)
    wheel.due(6.0)
    wheel.schedule(member, 7.0)

    assert wheel.due(6.9) == []
    assert wheel.due(7.2) == [member]


def test_ten_thousand_members_take_few_slots() -> None:
    """One slot for all whose deadlines fall into the same tick."""
    wheel: Wheel[Member] = Wheel()
    for number in range(10_000):
        wheel.schedule(Member(), 600.0 + number / 100_000)

    assert len(wheel._slots) <= 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("schedule"), st.integers(0, 4), st.floats(0.0, 20.0)),
        st.tuples(st.just("discard"), st.integers(0, 4), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0.0, 5.0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_against_a_plain_list(steps: list[tuple[str, int, float]]) -> None:
    """Whatever is scheduled, moved and discarded: never early, and at most one tick late."""
    wheel: Wheel[Member] = Wheel()
    members = [Member(str(number)) for number in range(5)]
    expected: dict[Member, float] = {}
    now = 1000.0
    for what, number, value in steps:
        member = members[number]
        if what == "schedule":
            wheel.schedule(member, now + value)
            expected[member] = now + value
        elif what == "discard":
            wheel.discard(member)
            expected.pop(member, None)
        else:
            now += value
            due = wheel.due(now)
            assert len(set(due)) == len(due)
            for one in due:
                assert expected.pop(one) <= now
            assert all(deadline > now - TICK_SECONDS - 1e-6 for deadline in expected.values())
    assert bool(wheel) == bool(expected)


def test_the_tick_is_short_beside_every_deadline() -> None:
    """Lateness of a tenth of a second: nobody waits for less than a second on purpose."""
    assert pytest.approx(0.1) == TICK_SECONDS
