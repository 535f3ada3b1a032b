"""The settings that a trainer shares with the workers, from the same file and variables."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from export.errors import DriftlineError
from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.statistics import DAY_MS, StatisticsSettings

_ENVIRONMENT_PREFIX = "DRIFTLINE_"


class TrainerSettingsError(DriftlineError):
    """One or more settings are impossible; the message names every one."""


class TrainerSettings(Struct, frozen=True):
    """Those of the worker's settings that decide what a model learns from, and where it goes."""

    bootstrap: str = "127.0.0.1:9092"
    prefix: str = ""  # before every topic name
    registry: str = "registry"
    release: str = "driftline"
    seen_items: Literal["filter", "allow"] = "filter"
    max_event_bytes: int = 65_536
    max_future_ms: int = DAY_MS
    popularity_half_lives_ms: tuple[int, int] = (DAY_MS, 7 * DAY_MS)
    chain_half_life_ms: int = 14 * DAY_MS
    neighbours: int = 64
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
        return StatisticsSettings(
            self.popularity_half_lives_ms, self.chain_half_life_ms, self.neighbours
        )


def load_trainer_settings(
    path: Path | None,
    overrides: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> TrainerSettings:
    """Settings of file, DRIFTLINE_* variables and `overrides` (those not None); the last wins.

    Settings that only concern workers are passed over: the worker checks them. Raises
    TrainerSettingsError naming every impossible setting.
    """
    known = {f.name: f.type for f in msgspec.structs.fields(TrainerSettings)}
    merged: dict[str, tuple[str, Any]] = {}
    if path is not None:
        merged |= {name: (str(path), value) for name, value in _read_file(path).items()}
    for variable, text in environment.items():
        if variable.startswith(_ENVIRONMENT_PREFIX):
            name = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
            merged[name] = (variable, _parsed(text))
    merged |= {
        name: ("--" + name.replace("_", "-"), value)
        for name, value in overrides.items()
        if value is not None
    }
    values, wrong = {}, []
    for name, (origin, value) in merged.items():
        if name not in known:
            continue
        try:
            values[name] = msgspec.convert(value, known[name], strict=False)
        except msgspec.ValidationError as error:
            wrong.append(f"{origin}: {name} = {value!r}: {error}")
    if wrong:
        raise TrainerSettingsError("\n".join(wrong))
    return TrainerSettings(**values)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainerSettingsError(
            f"{path}: wanted a TOML file of settings, got: {error}"
        ) from error


def _parsed(text: str) -> Any:
    """A variable's list or object as JSON; everything else stays the text it is."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
