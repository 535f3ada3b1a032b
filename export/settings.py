"""Gather settings from a TOML file, DRIFTLINE_* variables and options, for worker and trainer."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from export.errors import DriftlineError

ENVIRONMENT_PREFIX = "DRIFTLINE_"
#: Variables that tests read; they are no settings.
_TEST_PREFIX = "DRIFTLINE_TEST_"


class SettingsError(DriftlineError):
    """One or more settings are unknown or impossible; the message names every one."""


@dataclass(frozen=True, slots=True)
class Given:
    """A setting as it was given: which file, variable or option it came from, and its value."""

    origin: str
    value: Any


def gather(
    path: Path | None, overrides: Mapping[str, object], environment: Mapping[str, str]
) -> dict[str, Given]:
    """Name -> the setting of file, environment and `overrides` (those not None); the last wins.

    Raises SettingsError for a file that cannot be read.
    """
    given: dict[str, Given] = {}
    if path is not None:
        given |= {name: Given(str(path), value) for name, value in _read_file(path).items()}
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and not variable.startswith(_TEST_PREFIX):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            given[name] = Given(variable, _parsed(text))
    for name, value in overrides.items():
        if value is not None:
            given[name] = Given("--" + name.replace("_", "-"), value)
    return given


def convert(
    given: Mapping[str, Given], kind: type[msgspec.Struct]
) -> tuple[dict[str, Any], list[str]]:
    """The values that are settings of `kind`, in their types; and what is wrong with the others.

    A name that `kind` does not have is in neither.
    """
    values, wrong = {}, []
    for field in msgspec.structs.fields(kind):
        setting = given.get(field.name)
        if setting is None:
            continue
        try:
            values[field.name] = msgspec.convert(setting.value, field.type, strict=False)
        except msgspec.ValidationError as error:
            wrong.append(f"{setting.origin}: {field.name} = {setting.value!r}: {error}")
    return values, wrong


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: wanted a TOML file of settings, got: {error}") from error


def _parsed(text: str) -> Any:
    """A variable's list or object as JSON; everything else stays the text it is."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
