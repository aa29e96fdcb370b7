"""Deadlines of many connections at the price of few timers: a wheel of coarse ticks.

A connection is in one slot at a time. Moving its deadline later costs nothing: the slot is looked at when its time
has come, and what is not due is put further on. Only a deadline that moves earlier is moved in the wheel.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

TICK_SECONDS = 0.1
"""How late a deadline may be noticed. Ten wake-ups a second while there are connections are not measurable."""


class Timed(Protocol):
    """What the wheel has to know of its members. `slot` is the wheel's own."""

    deadline: float
    slot: int


TimedT = TypeVar("TimedT", bound=Timed)


class Wheel(Generic[TimedT]):
    """Members by the tick of their deadline; times are seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._slots: dict[int, set[TimedT]] = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    def schedule(self, member: TimedT, deadline: float) -> None:
        """Sets a member's deadline; `slot` is 0 for one that is not in the wheel."""
        member.deadline = deadline
        slot = int(deadline / TICK_SECONDS) + 1
        if member.slot:
            if member.slot <= slot:
                return
            self.discard(member)
        self._insert(member, slot)

    def discard(self, member: TimedT) -> None:
        """Takes a member out; does nothing when it is not in."""
        if member.slot:
            slot = self._slots[member.slot]
            slot.discard(member)
            if not slot:
                del self._slots[member.slot]
            member.slot = 0

    def due(self, now: float) -> list[TimedT]:
        """Takes out and returns the members whose deadline is past."""
        tick = int(now / TICK_SECONDS)
        due = []
        for slot in [slot for slot in self._slots if slot <= tick]:
            for member in self._slots.pop(slot):
                member.slot = 0
                if member.deadline <= now:
                    due.append(member)
                else:
                    self._insert(member, int(member.deadline / TICK_SECONDS) + 1)
        return due

    def _insert(self, member: TimedT, slot: int) -> None:
        member.slot = slot
        members = self._slots.get(slot)
        if members is None:
            self._slots[slot] = {member}
        else:
            members.add(member)
