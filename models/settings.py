"""The settings that a trainer shares with the workers, from the same file and variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from export.decompress import MAX_BATCH_BYTES
from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.settings import SettingsError, convert, gather
from export.statistics import DAY_MS, Pairs, StatisticsSettings


class TrainerSettings(Struct, frozen=True):
    """Those of the worker's settings that decide what a model learns from, and where it goes."""

    bootstrap: str = "127.0.0.1:9092"
    prefix: str = ""  # before every topic name
    registry: str = "registry"
    release: str = "driftline"
    seen_items: Literal["filter", "allow"] = "filter"
    max_event_bytes: int = 65_536
    max_batch_bytes: int = MAX_BATCH_BYTES
    max_future_ms: int = DAY_MS
    popularity_half_lives_ms: tuple[int, int] = (DAY_MS, 7 * DAY_MS)
    chain_half_life_ms: int = 14 * DAY_MS
    neighbours: int = 64
    max_pairs: Pairs = 4_000_000
    event_types: dict[str, EventRole] = field(default_factory=dict)

    def role_of(self, event_type: str) -> EventRole | None:
        """What a type does; None: unknown, so ignored."""
        return self.event_types.get(event_type) or DEFAULT_EVENT_TYPES.get(event_type)

    def topic(self, name: str) -> str:
        """The full name of one of the topics."""
        return self.prefix + name

    @property
    def statistics(self) -> StatisticsSettings:
        """Settings of the live statistics."""
        return StatisticsSettings.of(self)


def load_trainer_settings(
    path: Path | None,
    overrides: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> TrainerSettings:
    """Settings of file, DRIFTLINE_* variables and `overrides` (those not None); the last wins.

    Settings that only concern workers are passed over: the worker checks them. Raises
    SettingsError naming every impossible setting.
    """
    values, impossible = convert(gather(path, overrides, environment), TrainerSettings)
    if impossible:
        raise SettingsError("\n".join(impossible))
    return TrainerSettings(**values)
