from __future__ import annotations

from dataclasses import replace

import pytest

from bench.fronts import DIRECT, HAPROXY_TCP, SNIPROXY_UNIX
from bench.micro import Timing
from bench.processes import Memory
from bench.report import Spread, number, ratios, report, table
from bench.scenarios import CONNECTIONS, IDLE, ONE_BY_ONE, Sample

MACHINE = {
    "date": "2026-11-23",
    "cpu": "A Processor",
    "cores": 2,
    "virtual": True,
    "kernel": "6.1.0",
    "python": "3.11.2",
    "uvloop": "0.21",
    "sniproxy": "0.1.0",
    "haproxy": "2.6.12",
    "front_core": 0,
    "load_core": 1,
}

SAMPLE = Sample(
    scenario="connections",
    front=HAPROXY_TCP.name,
    round=0,
    units=1000,
    seconds=0.2,
    cpu=0.1,
    user=0.01,
    system=0.09,
    load_cpu=0.05,
    backend_cpu=0.04,
    disturbance=0.01,
    log_lines=1000,
)


def lines(*samples: Sample) -> list[str]:
    fronts = [HAPROXY_TCP, SNIPROXY_UNIX, DIRECT]
    return report(MACHINE, [CONNECTIONS, ONE_BY_ONE, IDLE], fronts, samples, []).splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(found: list[str], label: str) -> list[str]:
    (line,) = (line for line in found if line.startswith(f"| {label} "))
    return cells(line)[1:]


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0)
    assert Spread.of([1.0, 2.0]).median == 1.5


def test_ratios_are_taken_within_rounds_that_both_have() -> None:
    assert ratios({0: 30.0, 1: 10.0, 2: 5.0}, {0: 10.0, 1: 20.0}) == [3.0, 0.5]


def test_a_table_is_aligned() -> None:
    assert list(table(("what", "n"), [("a", "1"), ("longer", "1,000")])) == [
        "| what   |     n |",
        "| ------ | ----: |",
        "| a      |     1 |",
        "| longer | 1,000 |",
    ]


@pytest.mark.parametrize(("value", "text"), [(0.456, "0.46"), (9.994, "9.99"), (12.34, "12.3"), (123.4, "123")])
def test_three_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


def test_cost_per_unit_and_its_ratio() -> None:
    ours = replace(SAMPLE, front=SNIPROXY_UNIX.name)
    found = lines(SAMPLE, replace(ours, cpu=0.05), replace(SAMPLE, round=1, cpu=0.2), replace(ours, round=1, cpu=0.2))
    assert row(found, HAPROXY_TCP.label) == [
        *("100", "150", "200"),
        *("1.00", "1.00 to 1.00"),
        *("90%", "75%"),
        *("50.0", "40.0"),
    ]
    assert row(found, SNIPROXY_UNIX.label)[:5] == ["50.0", "125", "200", "0.75", "0.50 to 1.00"]


def test_nothing_in_between_costs_nothing_itself() -> None:
    nothing = replace(SAMPLE, front=DIRECT.name, cpu=0.0, log_lines=0)
    assert row(lines(SAMPLE, replace(SAMPLE, front=SNIPROXY_UNIX.name), nothing), DIRECT.label) == [
        *"-------",
        "50.0",
        "40.0",
    ]


def test_log_lines_that_are_missing_are_told() -> None:
    ours = replace(SAMPLE, front=SNIPROXY_UNIX.name, log_lines=990)
    nothing = replace(SAMPLE, front=DIRECT.name, cpu=0.0, log_lines=0)
    missing = [line for line in lines(SAMPLE, ours, nothing) if "missing" in line]
    assert missing == [f"{SNIPROXY_UNIX.label}: 10 log lines missing."]


def test_latencies() -> None:
    trips = replace(SAMPLE, scenario=ONE_BY_ONE.name, p50=20.5, p99=100.4)
    fronts = [HAPROXY_TCP]
    found = report(MACHINE, [ONE_BY_ONE], fronts, [trips], []).splitlines()
    assert row(found, HAPROXY_TCP.label)[-2:] == ["20.5", "100"]


def test_memory_of_idle_connections() -> None:
    idle = replace(
        SAMPLE,
        scenario=IDLE.name,
        connections=1000,
        cpu=0.001,
        memory_before=Memory(20_000_000, 10_000_000, 10_000_000),
        memory=Memory(22_048_000, 12_048_000, 12_048_000),
    )
    found = lines(idle)
    assert row(found, HAPROXY_TCP.label) == ["1,000", "2.00", "2.00", "2.00", "20.0", "22.0", "0.50%"]


def test_the_machine_and_its_cores() -> None:
    text = "\n".join(lines())
    assert "2-core virtual machine, A Processor, Linux 6.1.0; HAProxy 2.6.12" in text
    assert "Fronts on core 0" in text
    one = report({**MACHINE, "load_core": 0}, [], [], [], [])
    assert "One core for everything" in one


def test_single_functions() -> None:
    text = report(MACHINE, [], [], [], [Timing("`f`", 1234.5)])
    assert "| `f`      |   1,234 |" in text
