"""What renewals cost those who are connected: python -m bench.certificates [--renewals N].

Two measurements, each with Pebble as the CA and a real HAProxy:

- how late the event loop is while certificates with RSA-4096 keys are ordered, the very first one (which imports the
  ACME libraries) on its own;
- renewals under continuous requests: how many failed, and how long after the commit the first client saw each new one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import uvloop

from bench.report import machine
from sniproxy.app.demo.files import CLIENT, NAME
from sniproxy.app.demo.setup import Setup
from sniproxy.app.demo.traffic import Client, Traffic
from sniproxy.app.proxy import Proxy
from sniproxy.config import load
from sniproxy.haproxy.runtime import RuntimeApi

if TYPE_CHECKING:
    from collections.abc import Callable

    from sniproxy.app.certificates import Certificates

KEY_TYPE = "rsa-4096"
HEARTBEAT_SECONDS = 0.001
PATIENCE_SECONDS = 60.0

T = TypeVar("T")


class Heartbeat:
    """A timer of a millisecond on the loop, and by how much it was late each time, in seconds."""

    def __init__(self) -> None:
        self.late: list[float] = []

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            due = time.monotonic() + HEARTBEAT_SECONDS
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.late.append(time.monotonic() - due)

    def since(self, mark: int) -> str:
        """Worst, and two quantiles, from a mark on, as cells of a table."""
        late = sorted(self.late[mark:])
        cells = (late[-1], late[int(len(late) * 0.999)], statistics.median(late))
        return " | ".join(f"{cell * 1000:.1f}" for cell in cells)


class Commits:
    """When HAProxy had taken each certificate: the last answer to a commit, as seconds since the epoch."""

    def __init__(self) -> None:
        self.last = 0.0
        ask: Callable[..., object] = RuntimeApi._ask

        async def timed(api: RuntimeApi, command: str, *more: object, **options: object) -> object:
            reply = await ask(api, command, *more, **options)  # type: ignore[misc]
            if command.startswith("commit ssl cert"):
                self.last = time.time()
            return reply

        RuntimeApi._ask = timed  # type: ignore[assignment,method-assign]


async def measure(setup: Setup, renewals: int) -> None:
    """Runs the proxy in this process, and prints as it goes."""
    text = setup.config_file.read_text().replace(
        'challenges = ["tls-alpn-01"]', f'challenges = ["tls-alpn-01"]\nkey_type = "{KEY_TYPE}"'
    )
    setup.config_file.write_text(text + '\n[log]\nlevel = "error"\n')
    setup.bundle.parent.mkdir(mode=0o700)
    proxy = Proxy(load(setup.config_file), setup.config_file)
    heartbeat = Heartbeat()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(proxy.run())
        await _until(setup.bundle.exists)
        beating = tasks.create_task(heartbeat.beat())
        await asyncio.to_thread(setup.start_haproxy)
        print("| order | worst ms | p99.9 ms | median ms |\n|---|---|---|---|")
        await _until(lambda: all(status.deployed for status in proxy._statuses()))
        print(f"| the first, {KEY_TYPE} | {heartbeat.since(0)} |")
        certificates = proxy._certificates
        assert certificates is not None
        mark = len(heartbeat.late)
        for _ in range(5):
            await _renew(certificates)
        print(f"| five more, {KEY_TYPE} | {heartbeat.since(mark)} |")
        beating.cancel()
        await _swaps(setup, certificates, renewals)
        proxy._on_stop()
        await serving


async def _swaps(setup: Setup, certificates: Certificates, renewals: int) -> None:
    commits = Commits()
    traffic = Traffic(partial(Client(setup.port, setup.ca_file).connect, NAME, CLIENT, "http/1.1"))
    traffic.start()
    seen_after = []
    try:
        for _ in range(renewals):
            serial = await _renew(certificates)
            seen = await _until(partial(_seen_at, traffic, serial))
            seen_after.append(max(seen - commits.last, 0.0))
    finally:
        await asyncio.to_thread(traffic.stop)
    totals = traffic.totals()
    print(
        f"\n{renewals} renewals, {totals.requests} requests of which {totals.kept} on a connection that stayed open,"
        f" {totals.failed} failed; from commit to the first client that saw it:"
        f" median {statistics.median(seen_after) * 1000:.0f} ms, worst {max(seen_after) * 1000:.0f} ms"
    )


def _seen_at(traffic: Traffic, serial: str) -> float:
    """When a client first got this certificate, in seconds since the epoch; 0 as long as none has."""
    return next((sighting.at for sighting in traffic.totals().sightings if sighting.served.serial == serial), 0.0)


async def _until(condition: Callable[[], T]) -> T:
    """What `condition` returns once that is true."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (found := condition()):  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(HEARTBEAT_SECONDS)
    return found


async def _renew(certificates: Certificates) -> str:
    (result,) = await certificates.renew([], force=True, dry_run=False, tell=lambda _: None)
    assert result["result"] == "renewed", result
    return str(result["status"]["serial"])


def main() -> None:
    """Runs both, within two minutes."""
    parser = argparse.ArgumentParser(
        prog="bench.certificates", description="What renewals cost those who are connected."
    )
    parser.add_argument("--renewals", type=int, default=20, metavar="N", help="under traffic [20]")
    arguments = parser.parse_args()
    for name, value in machine(0, 0).items():
        print(f"{name}: {value}")
    print()
    with (
        Setup(keep=False, validity_seconds=3600) as setup,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        setup.start_ca(NAME)
        runner.run(measure(setup, arguments.renewals))


if __name__ == "__main__":
    main()
