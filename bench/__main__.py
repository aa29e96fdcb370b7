"""The command line: python -m bench [--quick] [--rounds N] [--only SCENARIO]... [--json FILE]."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import micro
from bench.fronts import FRONTS
from bench.report import machine, report
from bench.scenarios import SCENARIOS, Bench

if TYPE_CHECKING:
    from types import FrameType

MICRO = "micro"


def main() -> None:
    """Runs what is asked for, the progress on standard error and the report on standard output."""
    groups = list(dict.fromkeys(scenario.group for scenario in SCENARIOS))
    parser = argparse.ArgumentParser(prog="bench", description="HAProxy's loop and sniproxy side by side.")
    parser.add_argument("--quick", action="store_true", help="a minute and a half instead of five: less of everything")
    parser.add_argument("--rounds", type=int, metavar="N", help="so many rounds of each scenario")
    parser.add_argument("--only", action="append", choices=[*groups, MICRO], help="this scenario; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single sample there too")
    arguments = parser.parse_args()
    wanted = arguments.only or [*groups, MICRO]

    # So that everything is stopped in the usual way.
    signal.signal(signal.SIGTERM, _terminate)
    fronts = [front for front in FRONTS if not _missing(front.label, front.missing())]
    scenarios = [scenario for scenario in SCENARIOS if scenario.group in wanted]
    bench = Bench(fronts, quick=arguments.quick, rounds=arguments.rounds, say=_say)
    facts = machine(bench.front_core, bench.load_core)
    timings = []
    if MICRO in wanted:
        _say("micro")
        timings = list(micro.timings())
    if scenarios:
        bench.run(scenarios)
    print(report(facts, scenarios, fronts, bench.samples, timings))
    if arguments.json is not None:
        whole = {
            "machine": facts,
            "samples": [sample.as_dict() for sample in bench.samples],
            "micro": {timing.name: timing.nanoseconds for timing in timings},
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _missing(label: str, why: str) -> bool:
    if why:
        _say(f"{label}: left out, {why}")
    return bool(why)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
