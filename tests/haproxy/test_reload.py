"""The reload command: run as it is written, waited for, and quoted when it fails."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from sniproxy.errors import DeliveryError
from sniproxy.haproxy.reload import QUOTED_BYTES, run_reload_command
from tests.support.engine import open_descriptors
from tests.support.processes import until

if TYPE_CHECKING:
    from pathlib import Path


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


async def failure_of(*command: str, seconds: float = 60.0) -> str:
    with pytest.raises(DeliveryError) as caught:
        await run_reload_command(command, seconds=seconds)
    assert str(caught.value).startswith("haproxy.reload_command: `")
    assert str(caught.value).isprintable()
    return str(caught.value)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as status:  # noqa: PTH123
            return status.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    await asyncio.to_thread(until, lambda: not is_alive(pid), f"{pid} is gone")


async def pid_in(path: Path) -> int:
    def read() -> int:
        until(lambda: path.exists() and path.read_text().endswith("\n"), f"a pid in {path}")
        return int(path.read_text())

    return await asyncio.to_thread(read)


async def test_it_is_run_without_a_shell(runner: asyncio.Runner, tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]) + sys.stdin.read())"

    await run_reload_command(python(code, str(tmp_path / "out"), "a b", "$HOME", "*; false"))

    assert (tmp_path / "out").read_text() == "['a b', '$HOME', '*; false']"


async def test_what_a_success_says_does_not_matter(runner: asyncio.Runner) -> None:
    await run_reload_command(python("print('all is bad'); import sys; sys.stderr.write('x' * 1_000_000)"))


async def test_nothing_is_left_open(runner: asyncio.Runner) -> None:
    await run_reload_command(("true",))
    before = open_descriptors()
    await run_reload_command(("true",))
    await failure_of("false")
    await failure_of("/nowhere/reload")

    assert open_descriptors() == before


async def test_a_failure_is_quoted(runner: asyncio.Runner) -> None:
    code = "import sys; print('[ALERT] no\\nsuch\\x1b[1m file'); sys.exit(3)"
    told = await failure_of(*python(code))

    assert 'ended with exit status 3: "[ALERT] no such?[1m file"' in told


async def test_a_failure_without_a_word(runner: asyncio.Runner) -> None:
    assert await failure_of("false") == "haproxy.reload_command: `false` ended with exit status 1, and said nothing"


async def test_of_much_that_is_said_the_end_is_quoted(runner: asyncio.Runner) -> None:
    code = "import sys; sys.stdout.write('x' * 3_000_000 + ' the reason'); sys.stdout.flush(); sys.exit(1)"
    told = await failure_of(*python(code))

    assert told.endswith(' the reason"')
    assert told.count("x") < QUOTED_BYTES + 100


async def test_death_by_a_signal(runner: asyncio.Runner) -> None:
    assert "was killed by signal 9" in await failure_of(*python("import os; os.kill(os.getpid(), 9)"))


@pytest.mark.parametrize("command", ["/nowhere/reload", "/", "reload\0"], ids=["missing", "directory", "nul"])
async def test_a_command_that_cannot_be_run(runner: asyncio.Runner, command: str) -> None:
    with pytest.raises(DeliveryError, match="cannot be run: "):
        await run_reload_command((command,))


async def test_one_that_hangs_is_killed_with_all_it_has_started(runner: asyncio.Runner, tmp_path: Path) -> None:
    """As `sh -c` with a pipe in it would be."""
    script = 'sleep 600 & echo $! > "$0"; echo waiting; wait'
    loop = asyncio.get_running_loop()
    task = loop.create_task(failure_of("sh", "-c", script, str(tmp_path / "pid"), seconds=3.0))
    child = await pid_in(tmp_path / "pid")

    assert 'has not ended after 3 s: "waiting"' in await task
    await gone(child)


async def test_cancelled_it_is_killed(runner: asyncio.Runner, tmp_path: Path) -> None:
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    task = asyncio.get_running_loop().create_task(run_reload_command(python(code, str(tmp_path / "pid"))))
    child = await pid_in(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await gone(child)


async def test_what_it_leaves_in_the_background_is_not_waited_for(runner: asyncio.Runner, tmp_path: Path) -> None:
    """It holds standard output open: a daemon that the command has started, say."""
    await run_reload_command(("sh", "-c", 'sleep 600 & echo $! > "$0"', str(tmp_path / "pid")))

    child = await pid_in(tmp_path / "pid")
    assert is_alive(child)
    os.kill(child, 9)
