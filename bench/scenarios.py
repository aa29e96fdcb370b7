"""What each front has to do, how much of it, and how a round of it is measured."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.fronts import MAX_CONNECTIONS, Site
from bench.load import Load
from bench.processes import Program, core_busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.fronts import Front, Running
    from bench.processes import Memory

SETTLE_SECONDS = 0.25
"""After the work: connections that are still being closed, log lines that are still being written."""

IDLE_SECONDS = 1.0
"""How long the CPU time of idle connections is looked at."""

WARM_CONNECTIONS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of work. `scale` turns CPU seconds per unit into the figure printed, which is in `figure`'s unit."""

    name: str
    group: str
    title: str
    figure: str
    scale: float
    work: str
    settings: dict[str, Any]
    full: dict[str, Any]
    quick: dict[str, Any]
    rounds: tuple[int, int] = (5, 3)
    latency: bool = False

    def job(self, *, quick: bool) -> dict[str, Any]:
        """The settings of its work."""
        return {"seconds": 20, **self.settings, **(self.quick if quick else self.full)}


_CONNECTIONS = {"in_flight": 32, "size": 1024}
_FLOWS = {"flows": 4}

CONNECTIONS = Scenario(
    name="connections",
    group="connections",
    title="Connections: a hello, 1 KB back, close; 32 at a time",
    figure="µs/connection",
    scale=1e6,
    work="connections",
    settings=_CONNECTIONS,
    full={"count": 5_000},
    quick={"count": 2000},
)
DOWNLOAD = Scenario(
    name="download",
    group="bulk",
    title="Bulk to the client, 4 flows",
    figure="s/GB",
    scale=1e9,
    work="download",
    settings=_FLOWS,
    full={"bytes": 2_000_000_000},
    quick={"bytes": 400_000_000},
)
UPLOAD = replace(DOWNLOAD, name="upload", title="Bulk from the client, 4 flows", work="upload")
ONE_BY_ONE = Scenario(
    name="roundtrips-1",
    group="roundtrips",
    title="Round trips of 100 bytes, 1 connection",
    figure="µs/round trip",
    scale=1e6,
    work="roundtrips",
    settings={"connections": 1},
    full={"count": 20000},
    quick={"count": 4000},
    latency=True,
)
INTERLEAVED = replace(
    ONE_BY_ONE,
    name="roundtrips-20",
    title="Round trips of 100 bytes, 20 connections",
    settings={"connections": 20},
    full={"count": 40000},
    quick={"count": 10000},
)
IDLE = Scenario(
    name="idle",
    group="idle",
    title="Idle connections",
    figure="µs/connection and second",
    scale=1e6,
    work="idle",
    settings=_CONNECTIONS,
    full={"count": min(10_000, MAX_CONNECTIONS - 100)},
    quick={"count": 2000},
    rounds=(2, 1),
)

SCENARIOS = (CONNECTIONS, DOWNLOAD, UPLOAD, ONE_BY_ONE, INTERLEAVED, IDLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One front in one round of one scenario: CPU seconds of the front, the generator and the backend.

    units: connections, bytes or round trips done; for `idle`, connections times seconds.
    disturbance: the share of the time in which the front's core did something else.
    """

    scenario: str
    front: str
    round: int
    units: float
    seconds: float
    cpu: float
    user: float
    system: float
    load_cpu: float
    backend_cpu: float
    disturbance: float
    log_lines: int
    p50: float | None = None
    p99: float | None = None
    memory: Memory | None = None
    memory_before: Memory | None = None
    connections: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class Bench:
    """One run: the load generator and the backend, and the fronts of the scenario at hand."""

    fronts: Sequence[Front]
    quick: bool
    rounds: int | None
    say: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)
    front_core: int = 0
    load_core: int = 0

    def __post_init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.front_core, self.load_core = cores[0], cores[-1]

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Everything, from the start of the first process to the end of the last."""
        os.sched_setaffinity(0, {self.load_core})
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as directory,
            _Stage(Path(directory), self.front_core, self.load_core, len(self.fronts)) as stage,
        ):
            for scenario in scenarios:
                rounds = self.rounds or scenario.rounds[self.quick]
                job = scenario.job(quick=self.quick)
                one = self._idle if scenario.work == "idle" else self._interleaved
                for sample in one(stage, scenario, job, rounds):
                    self.samples.append(sample)
                    self.say(_progress(scenario, sample))

    def _interleaved(self, stage: _Stage, scenario: Scenario, job: dict[str, Any], rounds: int) -> Iterator[Sample]:
        """All fronts up side by side, one after the other at work, in another order each round."""
        with _Up(stage, self.fronts) as up:
            for front in self.fronts:
                stage.warm(up[front.name])
            for number in range(rounds):
                for front in order(self.fronts, number):
                    yield stage.measure(scenario, front, number, up[front.name], job)

    def _idle(self, stage: _Stage, scenario: Scenario, job: dict[str, Any], rounds: int) -> Iterator[Sample]:
        """A fresh process each time: what it holds before must not be what connections before have left."""
        for number in range(rounds):
            for front in order(self.fronts, number):
                with _Up(stage, [front]) as up:
                    running = up[front.name]
                    if running.program is not None:
                        stage.warm(running)
                        yield stage.measure_idle(scenario, front, number, running, job)


class _Stage:
    """The processes that are the same for all fronts."""

    def __init__(self, directory: Path, front_core: int, load_core: int, hosts: int) -> None:
        self._directory = directory
        self._front_core = front_core
        self._load_core = load_core
        # An address for each front: none of them uses up the ports of another.
        self._hosts = [f"127.0.0.{number + 1}" for number in range(hosts)]
        self._unix = directory / "backend.sock"
        self._started = 0
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        try:
            self._backend = self._python("backend", str(self._unix), *self._hosts)
            self._port = int(self._backend.hear())
            self._generator = self._python("load")
            self._load = Load(self._generator)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.stop()

    def _python(self, module: str, *arguments: str) -> Program:
        command = [sys.executable, "-m", f"bench.{module}", *arguments]
        program = Program(command, core=self._load_core, errors=self._directory / f"{module}.errors", talks=True)
        self._programs.append(program)
        return program

    def start(self, front: Front, number: int) -> Running:
        """Starts a front; its backend is the `number`-th address."""
        self._started += 1
        directory = self._directory / f"{self._started}-{front.name}"
        directory.mkdir()
        host = self._hosts[number % len(self._hosts)]
        return front.start(Site(directory, self._front_core, (host, self._port), self._unix))

    def warm(self, running: Running) -> None:
        """A first few connections, which nobody measures."""
        self._load.prepare("connections", running.address, count=WARM_CONNECTIONS, in_flight=32, size=1024, seconds=10)
        self._load.go()
        self._load.release()
        time.sleep(SETTLE_SECONDS)

    def measure(self, scenario: Scenario, front: Front, number: int, running: Running, job: dict[str, Any]) -> Sample:
        """One front in one round."""
        program = running.program
        self._load.prepare(scenario.work, running.address, **job)
        time.sleep(SETTLE_SECONDS / 3)
        lines = running.log_lines
        backend, busy, begin = self._backend.cpu(), core_busy(self._front_core), time.monotonic()
        before = program.cpu() if program is not None else None
        result = self._load.go()
        if not result["units"]:
            raise RuntimeError(f"{front.name}: nothing done in time")
        time.sleep(SETTLE_SECONDS)
        used = program.cpu() - before if program is not None and before is not None else None
        busy, elapsed = core_busy(self._front_core) - busy, time.monotonic() - begin
        backend = self._backend.cpu() - backend
        self._load.release()
        total = used.total if used is not None else 0.0
        return Sample(
            scenario=scenario.name,
            front=front.name,
            round=number,
            units=result["units"],
            seconds=result["seconds"],
            cpu=total,
            user=used.user if used is not None else 0.0,
            system=used.system if used is not None else 0.0,
            load_cpu=result["cpu"],
            backend_cpu=backend.total,
            disturbance=min(max(busy - total, 0.0) / elapsed, 1.0),
            log_lines=running.log_lines - lines,
            p50=result.get("p50"),
            p99=result.get("p99"),
            memory=program.memory() if program is not None else None,
        )

    def measure_idle(
        self, scenario: Scenario, front: Front, number: int, running: Running, job: dict[str, Any]
    ) -> Sample:
        """Memory before and after so many connections have come to stay, and what they cost while they do nothing."""
        program = running.program
        assert program is not None
        before = program.memory()
        self._load.prepare(scenario.work, running.address, **job)
        result = self._load.go()
        time.sleep(SETTLE_SECONDS)
        after = program.memory()
        begin, backend, cpu = time.monotonic(), self._backend.cpu(), program.cpu()
        time.sleep(IDLE_SECONDS)
        cpu, elapsed, backend = program.cpu() - cpu, time.monotonic() - begin, self._backend.cpu() - backend
        self._load.release()
        return Sample(
            scenario=scenario.name,
            front=front.name,
            round=number,
            units=result["units"] * elapsed,
            seconds=elapsed,
            cpu=cpu.total,
            user=cpu.user,
            system=cpu.system,
            load_cpu=result["cpu"],
            backend_cpu=backend.total,
            disturbance=0.0,
            log_lines=0,
            memory=after,
            memory_before=before,
            connections=result["units"],
        )


class _Up:
    """Fronts that are up for as long as the block lasts, by name."""

    def __init__(self, stage: _Stage, fronts: Sequence[Front]) -> None:
        self._stage = stage
        self._fronts = fronts
        self._running: dict[str, Running] = {}

    def __enter__(self) -> dict[str, Running]:
        try:
            for number, front in enumerate(self._fronts):
                self._running[front.name] = self._stage.start(front, number)
        except BaseException:
            self.__exit__()
            raise
        return self._running

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            running.stop()


def order(fronts: Sequence[Front], number: int) -> list[Front]:
    """The fronts in the order of this round: begins at another one each time, and goes backwards every other time."""
    start = number % len(fronts)
    turned = [*fronts[start:], *fronts[:start]]
    return turned[::-1] if number % 2 else turned


def figure(scenario: Scenario, sample: Sample) -> float:
    """CPU time of the front per unit of work, as the tables show it."""
    return sample.cpu / sample.units * scenario.scale


def _progress(scenario: Scenario, sample: Sample) -> str:
    used = figure(scenario, sample)
    return f"{scenario.name:14} round {sample.round + 1}  {sample.front:14} {used:8.2f} {scenario.figure}"
