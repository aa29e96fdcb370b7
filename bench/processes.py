"""Programs that the benchmark starts: pinned to a core, drained, measured, and stopped whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent
_LAUNCH = Path(__file__).with_name("launch.py")
_TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 5.0


# ---------------------------------------------------------------------- what the kernel says


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says of a process: CPU seconds of its own and of children it has waited for."""

    name: str
    parent: int
    user: float
    system: float
    children_user: float
    children_system: float


def parse_stat(text: str, ticks: int = _TICKS) -> Stat:
    """Reads /proc/PID/stat. The name may hold spaces and parentheses: it ends at the last one."""
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    user, system, children_user, children_system = (int(field) / ticks for field in fields[11:15])
    return Stat(name, int(fields[1]), user, system, children_user, children_system)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process tree holds, in bytes: all of it, its fair share of what is shared, and what is its alone."""

    rss: int
    pss: int
    private: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.private + other.private)


def parse_smaps_rollup(text: str) -> Memory:
    """Reads /proc/PID/smaps_rollup."""
    kilobytes = {}
    for line in text.splitlines()[1:]:
        key, _, value = line.partition(":")
        kilobytes[key] = int(value.split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Memory(kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024, private * 1024)


def parse_core_busy(text: str, core: int, ticks: int = _TICKS) -> float:
    """Seconds that a core has not been idle since boot, from /proc/stat."""
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
            return (user + nice + system + irq + softirq + steal) / ticks
    raise ValueError(f"no core {core}")


def core_busy(core: int) -> float:
    """Seconds that a core has not been idle since boot."""
    return parse_core_busy(Path("/proc/stat").read_text(encoding="ascii"), core)


def tree(pid: int) -> Iterator[int]:
    """A process and everything below it."""
    yield pid
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text(encoding="ascii").split():
                yield from tree(int(child))
    except OSError:
        pass  # ended in the meantime


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds. `total` is exact, its division into `user` and `system` comes in ticks of a hundredth."""

    total: float
    user: float
    system: float

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.total + other.total, self.user + other.user, self.system + other.system)

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.total - other.total, self.user - other.user, self.system - other.system)


def _cpu_clock(pid: int) -> int:
    # clock_getcpuclockid(3): all threads of the process, those that have ended included, in nanoseconds.
    return ~pid << 3 | 2


# ---------------------------------------------------------------------- programs


class Program:
    """One program that we have started, and everything that it has started in turn."""

    def __init__(self, command: Sequence[str], *, core: int, errors: Path, talks: bool = False) -> None:
        self.errors = errors
        self.lines = 0
        with errors.open("ab") as error_file:
            self._popen: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, str(_LAUNCH), str(core), *command],
                cwd=ROOT,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=error_file,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        assert self._popen.stdout is not None
        self._output: IO[bytes] = self._popen.stdout
        self._drain: threading.Thread | None = None
        if not talks:
            self._drain = threading.Thread(target=self._count_lines, daemon=True)
            self._drain.start()

    def say(self, line: str) -> None:
        """Writes one line to the program."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()

    def hear(self) -> str:
        """The next line of the program; raises RuntimeError when it has ended instead."""
        line = self._output.readline()
        if not line:
            raise RuntimeError(f"ended: {self.last_words()}")
        return line.decode().rstrip("\n")

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return self.errors.read_text(encoding="utf-8", errors="replace")[-2000:].strip()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def cpu(self) -> Cpu:
        """CPU time of the whole tree so far."""
        total = Cpu(0.0, 0.0, 0.0)
        for pid in tree(self.pid):
            try:
                stat = parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
                exact = time.clock_gettime(_cpu_clock(pid)) + stat.children_user + stat.children_system
            except OSError:
                continue  # ended in the meantime; its parent has it among its children
            total += Cpu(exact, stat.user + stat.children_user, stat.system + stat.children_system)
        return total

    def memory(self) -> Memory:
        """What the whole tree holds."""
        total = Memory(0, 0, 0)
        for pid in tree(self.pid):
            total += parse_smaps_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))
        return total

    def stop(self) -> None:
        """Ends the whole group: politely, then not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
            try:
                self._popen.wait(STOP_SECONDS if number == signal.SIGTERM else None)
            except subprocess.TimeoutExpired:
                continue
        self._popen.wait()
        if self._drain is not None:
            self._drain.join()
        self._output.close()
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def _count_lines(self) -> None:
        while data := os.read(self._output.fileno(), 1 << 16):
            self.lines += data.count(b"\n")
