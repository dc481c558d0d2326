"""Settings of the property tests: the same examples on every run; HYPOTHESIS_PROFILE=thorough tries many more.

`make fuzz` sets HYPOTHESIS_PROFILE=fuzz: other examples on every run, and many of them.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=30,
    derandomize=True,
    deadline=None,  # machines are busy at times
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=100)
settings.register_profile(
    "fuzz", settings.get_profile("default"), max_examples=3000, derandomize=False, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
