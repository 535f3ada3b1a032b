"""Read the public data sets that Driftline is replayed, trained and judged on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from export.errors import DriftlineError

Format = Literal["movietweetings", "rsc15", "jsonl"]
FORMATS: tuple[str, ...] = get_args(Format)


class DatasetError(DriftlineError):
    """A data set cannot be read; the message names the file and the line."""


class Interaction(NamedTuple):
    """One event of a data set."""

    user: str
    item: str
    time_s: float
    type: str
    value: float | None


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """What a data set says of an item."""

    title: str = ""
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Interactions in time order (those of one time in the order of the file), and the items."""

    interactions: list[Interaction]
    items: dict[str, DatasetItem] = field(default_factory=dict)


def read_dataset(path: Path, format: str) -> Dataset:
    """Read a folder (`movietweetings`, `rsc15`) or a file (`jsonl`).

    jsonl holds one object a line: {"user", "item", "time" in seconds, and perhaps "type", "value",
    "title", "categories"}.

    Raises DatasetError for an unknown format, a file that is not there and a line that is wrong.
    """
    readers: dict[str, Callable[[Path], Dataset]] = {
        "movietweetings": _read_movietweetings,
        "rsc15": _read_rsc15,
        "jsonl": _read_jsonl,
    }
    if format not in readers:
        raise DatasetError(f"wanted one of the formats {', '.join(FORMATS)}, got {format!r}")
    data = readers[format](path)
    if not data.interactions:
        raise DatasetError(f"{path} holds no events; name the folder or file of the data set")
    return Dataset(sorted(data.interactions, key=lambda event: event.time_s), data.items)


def _read_movietweetings(folder: Path) -> Dataset:
    def rating(line: str) -> Interaction:
        user, item, value, time_s = line.split("::")
        return Interaction(user, item, float(time_s), "rate", float(value))

    def movie(line: str) -> tuple[str, DatasetItem]:
        item, title, genres = [*line.split("::"), "", ""][:3]
        return item, DatasetItem(title, tuple(g for g in genres.split("|") if g))

    events = _parse(folder / "ratings.dat", rating, "user::movie::rating::seconds")
    return Dataset(events, dict(_parse(folder / "movies.dat", movie, "movie::title::genre|genre")))


def _read_rsc15(folder: Path) -> Dataset:
    def click(line: str) -> Interaction:
        session, item, time_s = line.replace(",", "\t").split("\t")[:3]
        return Interaction(session, item, float(time_s), "click", None)

    events = []
    for name in ("train_full.txt", "test.txt"):
        events += _parse(folder / name, click, "SessionId ItemId Time", header_lines=1)
    return Dataset(events)


def _read_jsonl(path: Path) -> Dataset:
    items: dict[str, DatasetItem] = {}

    def interaction(line: str) -> Interaction:
        row = json.loads(line)
        event = Interaction(
            str(row["user"]),
            str(row["item"]),
            float(row["time"]),
            str(row.get("type", "click")),
            None if row.get("value") is None else float(row["value"]),
        )
        if not math.isfinite(event.time_s):
            raise ValueError("time must be a number of seconds")
        if "title" in row or "categories" in row:
            categories = tuple(map(str, row.get("categories", ())))
            items[event.item] = DatasetItem(str(row.get("title", "")), categories)
        return event

    events = _parse(path, interaction, '{"user": str, "item": str, "time": seconds, ...}')
    return Dataset(events, items)


def _parse(path: Path, parse: Callable[[str], Any], wanted: str, header_lines: int = 0) -> Any:
    """What `parse` makes of every line after the header that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    parsed = []
    for number, line in enumerate(lines[header_lines:], start=header_lines + 1):
        if not line.strip():
            continue
        try:
            parsed.append(parse(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{path}, line {number}: wanted {wanted}, got {line[:120]!r}: {error}"
            ) from error
    return parsed
