"""The operator's command that makes HAProxy read its files again, for what cannot be done at run time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from typing import TYPE_CHECKING, Final

from sniproxy.errors import DeliveryError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND_SECONDS = 60.0
"""For the command to end. `systemctl reload haproxy` checks the configuration first, which takes seconds with thousands
of certificates, and returns when the new process is ready."""

QUOTED_BYTES: Final = 600
"""Of what it said, from the end: that is where programs say what is wrong."""

_READ_BYTES = 64 * 1024
_COMMAND_CHARS = 200


async def run_reload_command(command: Sequence[str], *, seconds: float = COMMAND_SECONDS) -> None:
    """Runs the command: no shell, nothing to read, what it says kept for the error. Raises DeliveryError if it fails.

    It and all that it has started are killed after so many seconds, and when this is cancelled.
    """
    loop = asyncio.get_running_loop()
    output, inherited = os.pipe()
    said = bytearray()
    ended = False

    def listen() -> None:
        nonlocal ended
        with contextlib.suppress(BlockingIOError):
            part = os.read(output, _READ_BYTES)
            said.extend(part)
            del said[:-QUOTED_BYTES]
            if not part and not ended:
                ended = True
                loop.remove_reader(output)

    os.set_blocking(output, False)
    loop.add_reader(output, listen)
    try:
        try:
            status = await _run(command, inherited, seconds)
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            raise DeliveryError(f"{_about(command)} cannot be run: {words}") from None
        if not ended:
            listen()
    finally:
        loop.remove_reader(output)
        os.close(output)
    if status == 0:
        return
    if status is None:
        how = f"has not ended after {seconds:g} s"
    elif status < 0:
        how = f"was killed by signal {-status}"
    else:
        how = f"ended with exit status {status}"
    raise DeliveryError(f"{_about(command)} {how}{_quoted(said)}")


async def _run(command: Sequence[str], output: int, seconds: float) -> int | None:
    """Its exit status; None if it had to be killed. Closes `output`. Raises OSError and ValueError."""
    try:
        # Not a pipe of asyncio's, which would be waited for: what a command leaves behind may keep it open for ever.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    finally:
        os.close(output)
    try:
        async with asyncio.timeout(seconds):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _about(command: Sequence[str]) -> str:
    return f"haproxy.reload_command: `{_in_one_line(shlex.join(command))[:_COMMAND_CHARS]}`"


def _quoted(said: bytearray) -> str:
    text = _in_one_line(said.decode(errors="replace"))
    return f': "{text}"' if text else ", and said nothing"


def _in_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
