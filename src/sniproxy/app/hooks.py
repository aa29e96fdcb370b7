"""[hooks]: programs that are told what happened to a certificate. Nothing of ours waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from typing import TYPE_CHECKING

from sniproxy.app.certificate_json import as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sniproxy.model import CertificateStatus

OUTPUT_BYTES = 4096
"""Of what a hook says, for the log, should it fail."""

END_SECONDS = 2.0
"""For a process that has been killed to be gone."""

log = logging.getLogger(__name__)


def environment(event: str, status: CertificateStatus, bundle: Path | None) -> dict[str, str]:
    """What a hook finds in its environment, beside ours.

    event: "renewed" or "failed". bundle: where HAProxy's PEM file is, None where there is none.
    """
    known = {
        "SNIPROXY_EVENT": event,
        "SNIPROXY_CERTIFICATE": status.name,
        "SNIPROXY_NAMES": " ".join(status.names),
        "SNIPROXY_SERIAL": status.serial,
        "SNIPROXY_ISSUER": status.issuer,
        "SNIPROXY_NOT_AFTER": f"{status.not_after:%Y-%m-%dT%H:%M:%SZ}" if status.not_after else None,
        "SNIPROXY_BUNDLE": str(bundle) if bundle else None,
        "SNIPROXY_ERROR": status.last_error,
    }
    # The kernel ends a value at a NUL, and Python refuses to pass one.
    return {name: value.replace("\0", "") for name, value in known.items() if value is not None}


async def run_hook(
    command: Sequence[str], event: str, status: CertificateStatus, bundle: Path | None, seconds: float
) -> None:
    """Runs a hook, no shell: what happened in its environment, and as a line of JSON on its standard input.

    It is killed, with all it has started, after `seconds`. What goes wrong with it is logged, and nothing else.
    """
    try:
        with _readable(json.dumps({"event": event, **as_json(status)}).encode() + b"\n") as told:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=told,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **environment(event, status, bundle)},
                start_new_session=True,
            )
    except OSError as error:
        log.error("hook %s: cannot be run: %s", command[0], error.strerror)  # noqa: TRY400  the operator's to mend
        return
    said = b""
    try:
        async with asyncio.timeout(seconds):
            said = await _heard(process)
            code = await process.wait()
    except TimeoutError:
        log.error("hook %s: not done after %g s: killed", command[0], seconds)  # noqa: TRY400  likewise
        return
    finally:
        await _end(process)
    if code:
        words = said.decode("utf-8", "replace").strip()
        log.error("hook %s: exit status %d%s", command[0], code, f": {words}" if words else "")
    else:
        log.info("hook %s: done (%s %s)", command[0], event, status.name)


@contextlib.contextmanager
def _readable(text: bytes) -> Iterator[int]:
    """A descriptor to read this from, which is closed in the end.

    No pipe: a hook need not read, and may have ended before anything is written. It is in memory, and takes no time.
    """
    descriptor = os.memfd_create("sniproxy-hook")
    try:
        os.write(descriptor, text)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def _heard(process: asyncio.subprocess.Process) -> bytes:
    """What it says: the first bytes for the log, and the rest so that it never waits."""
    assert process.stdout is not None
    said = b""
    while more := await process.stdout.read(OUTPUT_BYTES):
        said = (said + more)[:OUTPUT_BYTES]
    return said


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends it and what it has started, whatever that does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them are gone already
    try:
        # So that nothing of it is left in this process. One that has left its session may hold its output open.
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        pass
