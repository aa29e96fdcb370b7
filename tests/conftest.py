"""What all tests share: how hard hypothesis tries.

`fast` is for every run and draws the same examples each time; `HYPOTHESIS_PROFILE=deep` draws many, and new ones,
for some ten minutes (with `--timeout 600`, or a slow machine will not be given them).
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("fast", max_examples=60, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "deep", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
