from __future__ import annotations

import pytest

from bench.fronts import BASELINE, FRONTS
from bench.load import WORKS
from bench.scenarios import SCENARIOS, Scenario, order


def test_every_round_has_every_front_once() -> None:
    for number in range(12):
        assert sorted(front.name for front in order(FRONTS, number)) == sorted(front.name for front in FRONTS)


def test_every_front_begins_some_round() -> None:
    rounds = range(2 * len(FRONTS))
    assert {order(FRONTS, number)[0].name for number in rounds} == {front.name for front in FRONTS}


def test_the_first_front_is_what_ratios_are_to() -> None:
    assert FRONTS[0].name == BASELINE


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_work_is_known_and_bounded_and_quick_is_less(scenario: Scenario) -> None:
    assert scenario.work in WORKS
    full, quick = scenario.job(quick=False), scenario.job(quick=True)
    assert full["seconds"] <= 60
    assert full.keys() == quick.keys()
    assert any(quick[key] < full[key] for key in ("count", "bytes") if key in full)
