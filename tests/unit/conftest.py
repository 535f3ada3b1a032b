"""How hypothesis draws: enough to find what is wrong, without a clock that a busy machine trips."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "driftline",
    deadline=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("driftline")
