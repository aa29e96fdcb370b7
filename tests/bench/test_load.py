from __future__ import annotations

import pytest

from bench.load import percentile


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)])
def test_percentile(share: float, value: int) -> None:
    assert percentile(list(range(1, 101)), share) == value


def test_percentile_of_one() -> None:
    assert percentile([7], 0.99) == 7
