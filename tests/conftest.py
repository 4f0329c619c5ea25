"""What every test needs: one Hypothesis profile, so that no test fails for being slow today."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "umbel", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("umbel")
