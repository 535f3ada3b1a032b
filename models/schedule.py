"""Decide when the next training is due."""

from __future__ import annotations

import re
from dataclasses import dataclass

from export.errors import DriftlineError

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class ScheduleError(DriftlineError):
    """The schedule that was asked for makes no sense."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Train after so many new events, or after so much time with at least one new event.

    Exactly one of the two is set. The first training waits for `min_events`.
    """

    every_events: int | None = None
    every_ms: int | None = None
    min_events: int = 1000

    def __post_init__(self) -> None:
        if (self.every_events is None) == (self.every_ms is None):
            raise ScheduleError(
                "wanted either --every-events or --every, got both or neither; give one of them"
            )

    def reason(self, events: int, new_events: int, elapsed_ms: int | None) -> str | None:
        """Why a training is due now; None if it is not.

        events: all there are. new_events: those that no training has tried yet. elapsed_ms: since
        the last training began, None before the first.
        """
        if events < self.min_events or new_events < 1:
            return None
        if elapsed_ms is None:
            return f"first training, {events} events"
        if self.every_events is not None:
            if new_events >= self.every_events:
                return f"{new_events} new events"
            return None
        assert self.every_ms is not None
        if elapsed_ms >= self.every_ms:
            return f"{elapsed_ms // 1000} s since the last training, {new_events} new events"
        return None


def parse_duration(text: str) -> int:
    """Milliseconds of "90s", "15m", "1h" or "1d"; raises ScheduleError for anything else."""
    found = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if found is None or int(found.group(1)) == 0:
        raise ScheduleError(f"wanted a duration such as 90s, 15m, 1h or 1d, got {text!r}")
    return int(found.group(1)) * _UNITS_MS[found.group(2)]
