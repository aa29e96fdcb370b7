"""The samples of a run as Markdown tables.

Ratios are taken pair by pair: each front's figure over that of the baseline in the same round, because the machine is
not the same from minute to minute. Their median is not the ratio of the medians.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fronts import BASELINE
from bench.scenarios import Scenario, figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.fronts import Front
    from bench.micro import Timing
    from bench.scenarios import Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some values."""

    smallest: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        return cls(ordered[0], statistics.median(ordered), ordered[-1])


def ratios(values: dict[int, float], baseline: dict[int, float]) -> list[float]:
    """Values over those of the baseline in the same round, for the rounds that both have."""
    return [value / baseline[number] for number, value in values.items() if baseline.get(number)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table, its columns aligned: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for line in (lines[0], rule, *lines[1:]):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        yield f"| {' | '.join(cells)} |"


def report(
    machine: dict[str, Any],
    scenarios: Sequence[Scenario],
    fronts: Sequence[Front],
    samples: Sequence[Sample],
    timings: Sequence[Timing],
) -> str:
    """The whole report."""
    lines = list(_machine(machine))
    for scenario in scenarios:
        mine = [sample for sample in samples if sample.scenario == scenario.name]
        if mine:
            lines += ["", f"### {scenario.title}", ""]
            lines += _idle(fronts, mine) if scenario.work == "idle" else _work(scenario, fronts, mine)
    if timings:
        lines += ["", "### Single functions", ""]
        lines += table(("function", "ns/call"), [(timing.name, f"{timing.nanoseconds:,.0f}") for timing in timings])
    return "\n".join(lines)


def _work(scenario: Scenario, fronts: Sequence[Front], samples: Sequence[Sample]) -> Iterator[str]:
    figures = {
        front.name: {sample.round: figure(scenario, sample) for sample in samples if sample.front == front.name}
        for front in fronts
    }
    header = [f"CPU, {scenario.figure}", "min", "median", "max", "ratio", "(min to max)", "in kernel", "core busy"]
    header += ["generator", "backend"]
    if scenario.latency:
        header += ["p50 µs", "p99 µs"]
    rows = []
    for front in fronts:
        mine = [sample for sample in samples if sample.front == front.name]
        if not mine:
            continue
        own = _cost(mine, figures[front.name], figures.get(BASELINE, {}))
        rows.append([front.label, *own, *_surroundings(scenario, mine)])
    yield from table(header, rows)
    other = Spread.of(sample.disturbance for sample in samples)
    yield ""
    yield f"{len({sample.round for sample in samples})} rounds."
    yield f"The fronts' core did other work for {other.median:.0%} of the time ({other.largest:.0%} at most)."
    if scenario.work == "connections":
        yield from _losses(fronts, samples)


def _cost(samples: Sequence[Sample], figures: dict[int, float], baseline: dict[int, float]) -> list[str]:
    """What the front itself used: the columns from "min" to "core busy"."""
    if not any(figures.values()):
        return ["-"] * 7
    used = Spread.of(figures.values())
    ratio = Spread.of(ratios(figures, baseline) or [math.nan])
    user, system = sum(sample.user for sample in samples), sum(sample.system for sample in samples)
    return [
        number(used.smallest),
        number(used.median),
        number(used.largest),
        f"{ratio.median:.2f}",
        f"{ratio.smallest:.2f} to {ratio.largest:.2f}",
        f"{system / (user + system or 1):.0%}",
        f"{statistics.median(sample.cpu / sample.seconds for sample in samples):.0%}",
    ]


def _surroundings(scenario: Scenario, samples: Sequence[Sample]) -> Iterator[str]:
    """What generator and backend used, and how long clients waited: the other columns."""
    for key in ("load_cpu", "backend_cpu"):
        yield number(statistics.median(getattr(sample, key) / sample.units for sample in samples) * scenario.scale)
    if scenario.latency:
        for key in ("p50", "p99"):
            yield number(statistics.median(getattr(sample, key) for sample in samples))


def _losses(fronts: Sequence[Front], samples: Sequence[Sample]) -> Iterator[str]:
    """A front that logs less than it serves has saved itself some work."""
    for front in fronts:
        lost = sum(
            int(sample.units) - sample.log_lines for sample in samples if sample.front == front.name and sample.cpu
        )
        if lost:
            yield f"{front.label}: {lost} log lines missing."


def _idle(fronts: Sequence[Front], samples: Sequence[Sample]) -> Iterator[str]:
    header = ["front", "connections", "KiB each: min", "median", "max", "RSS before, MB", "RSS with, MB", "CPU, idle"]
    rows = []
    for front in fronts:
        mine = [sample for sample in samples if sample.front == front.name]
        if not mine:
            continue
        each = Spread.of(
            (sample.memory.private - sample.memory_before.private) / sample.connections / 1024
            for sample in mine
            if sample.memory is not None and sample.memory_before is not None
        )
        before = statistics.median(sample.memory_before.rss for sample in mine if sample.memory_before is not None)
        after = statistics.median(sample.memory.rss for sample in mine if sample.memory is not None)
        row = [
            front.label,
            f"{mine[0].connections:,}",
            *(f"{size:.2f}" for size in (each.smallest, each.median, each.largest)),
        ]
        row += [f"{before / 1e6:.1f}", f"{after / 1e6:.1f}"]
        rows.append([*row, f"{statistics.median(sample.cpu / sample.seconds for sample in mine):.2%}"])
    yield from table(header, rows)


def number(value: float) -> str:
    """Three digits that matter."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# ---------------------------------------------------------------------- the machine


def machine(front_core: int, load_core: int) -> dict[str, Any]:
    """Where and with what this ran."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE) is not None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model.group(1).strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "virtual": virtual,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
        "sniproxy": version("sniproxy"),
        "haproxy": _haproxy_version(),
        "front_core": front_core,
        "load_core": load_core,
    }


def _haproxy_version() -> str:
    binary = shutil.which("haproxy")
    if binary is None:
        return "none"
    text = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\S+)", text)
    return match.group(1) if match else "unknown"


def _machine(facts: dict[str, Any]) -> Iterator[str]:
    kind = "virtual machine" if facts["virtual"] else "machine"
    yield f"{facts['date']}, {facts['cores']}-core {kind}, {facts['cpu']}, Linux {facts['kernel']}; HAProxy {facts['haproxy']},"
    yield f"sniproxy {facts['sniproxy']} on Python {facts['python']} with uvloop {facts['uvloop']}."
    if facts["front_core"] == facts["load_core"]:
        yield "One core for everything: the fronts were measured under the load generator's own weight."
    else:
        yield f"Fronts on core {facts['front_core']}, load generator and backend on core {facts['load_core']}."
    yield "Ratios are to the first row of the same round."
