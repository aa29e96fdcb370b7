from __future__ import annotations

import os

import pytest

from bench.processes import Memory, parse_core_busy, parse_smaps_rollup, parse_stat, tree

STAT = (
    "4711 (a (b) c) S 17 4711 4711 0 -1 4194304 1021 0 0 0 150 25 3 4 20 0 2 0 987654 52428800 4321 "
    "18446744073709551615 1 1 0 0 0 0 0 16781312 16386 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)

SMAPS_ROLLUP = """\
55d0c0e00000-7ffd3a5fe000 ---p 00000000 00:00 0                          [rollup]
Rss:               16100 kB
Pss:                9050 kB
Pss_Dirty:          5000 kB
Shared_Clean:       8000 kB
Shared_Dirty:          0 kB
Private_Clean:      1100 kB
Private_Dirty:      7000 kB
Anonymous:          7000 kB
"""

PROC_STAT = """\
cpu  300 2 200 9000 10 4 6 8 0 0
cpu0 100 1 100 4500 5 2 3 4 0 0
cpu1 200 1 100 4500 5 2 3 4 0 0
cpu10 1 0 0 1 0 0 0 0 0 0
intr 1234
"""


def test_stat_is_read_behind_the_last_parenthesis() -> None:
    stat = parse_stat(STAT, ticks=100)
    assert (stat.name, stat.parent) == ("a (b) c", 17)
    assert (stat.user, stat.system, stat.children_user, stat.children_system) == (1.5, 0.25, 0.03, 0.04)


def test_smaps_rollup_in_bytes() -> None:
    assert parse_smaps_rollup(SMAPS_ROLLUP) == Memory(rss=16100 * 1024, pss=9050 * 1024, private=8100 * 1024)


def test_memory_of_several_processes_adds_up() -> None:
    assert Memory(1, 2, 3) + Memory(10, 20, 30) == Memory(11, 22, 33)


def test_a_core_is_busy_unless_idle_or_waiting_for_a_disk() -> None:
    assert parse_core_busy(PROC_STAT, 0, ticks=100) == pytest.approx(2.1)
    assert parse_core_busy(PROC_STAT, 1, ticks=100) == pytest.approx(3.1)


def test_a_core_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no core 7"):
        parse_core_busy(PROC_STAT, 7)


def test_the_tree_begins_with_the_process_itself() -> None:
    assert next(iter(tree(os.getpid()))) == os.getpid()
