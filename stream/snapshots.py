"""Save the live statistics in a file, so that a new worker need not read them from the beginning.

A snapshot is a compressed numpy archive beside the releases, with `latest.json` pointing at the
newest by name and checksum. Both are written under another name, synced and renamed: a crash
leaves the former ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from export.errors import DriftlineError
from export.items import ItemIndex
from export.pair_counts import PairColumns, levels_of, pair_keys, rows_of
from export.statistics import ItemStatistics, StatisticsSettings
from export.transitions import TransitionColumns
from stream.kafka.marks import SOURCE_REMADE, ForeignStateError
from stream.statistics import LiveStatistics, StatisticsTopics

SNAPSHOT_VERSION = 2
#: Snapshots kept beside the newest one: a worker may be reading the one before.
_KEPT = 2


class SnapshotError(DriftlineError):
    """A snapshot cannot be used; a worker reads the topic from its beginning instead."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the statistics and how far they are read, for a thread to write."""

    events: int
    arrays: dict[str, NDArray[np.generic]]


def take_snapshot(live: LiveStatistics, source: str) -> Snapshot:
    """Copy the statistics; `source` names topics and settings."""
    return Snapshot(live.statistics.events, _arrays(live, source))


def save_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot and point at it; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **snapshot.arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    name = f"statistics-{snapshot.events:012d}.npz"
    _write(folder / name, data)
    pointer = {"file": name, "sha256": hashlib.sha256(data).hexdigest()}
    _write(folder / "latest.json", json.dumps(pointer, indent=1).encode())
    others = [path for path in folder.glob("statistics-*.npz") if path.name != name]
    for old in sorted(others, key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return folder / name


def load_snapshot(
    folder: Path,
    index: ItemIndex,
    settings: StatisticsSettings,
    source: str,
    topics: StatisticsTopics | None = None,
) -> LiveStatistics | None:
    """The newest snapshot's statistics, or None where there is none.

    What it holds is gone on with on a topic of deltas that was made anew, from its beginning.

    Raises SnapshotError if it is damaged or of other topics or settings, ForeignStateError if the
    events' topic was made anew and that of the deltas was not: its deltas are of other events.
    """
    try:
        pointer = json.loads((folder / "latest.json").read_bytes())
        data = (folder / pointer["file"]).read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{folder}/latest.json cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != pointer.get("sha256"):
        raise SnapshotError(f"{folder}/{pointer['file']} is damaged: its checksum differs")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        wanted = [SNAPSHOT_VERSION, source, msgspec.to_builtins(settings)]
        found = [about["version"], about["source"], about["settings"]]
        if found != json.loads(json.dumps(wanted)):
            raise SnapshotError(
                f"{folder}/{pointer['file']}: wanted version, topics and settings {wanted}, "
                f"got {found}"
            )
        of = StatisticsTopics(*about["topics"]) if "topics" in about else None
        if of and topics:
            _require_same_events(of, topics, folder)
        statistics = ItemStatistics(index, settings)
        _restore(statistics, arrays, about)
    positions = {int(partition): offset for partition, offset in about["positions"].items()}
    if of and topics and of.deltas != topics.deltas:
        positions = {}
    return LiveStatistics(statistics, positions, topics=topics or of)


def _require_same_events(of: StatisticsTopics, now: StatisticsTopics, folder: Path) -> None:
    if of.events == now.events:
        return
    if of.deltas == now.deltas:
        raise ForeignStateError(SOURCE_REMADE)
    raise SnapshotError(f"the snapshot in {folder} counts events of a topic that was deleted")


def _arrays(live: LiveStatistics, source: str) -> dict[str, NDArray[np.generic]]:
    statistics = live.statistics
    transitions = statistics.transitions.columns()
    about = {
        "version": SNAPSHOT_VERSION,
        "source": source,
        "settings": msgspec.to_builtins(statistics.settings),
        "positions": live.positions,
        **({"topics": dataclasses.astuple(live.topics)} if live.topics else {}),
        "watermarks": statistics.watermarks,
        "newest_ms": statistics.newest_ms,
        "events": statistics.events,
        "chain_epoch": transitions.newest_epoch,
        "chain_floors": transitions.floors,
        "epochs": [sorted(counts.sums) for counts in statistics.popularity_counts],
    }
    size = len(statistics.index)
    arrays: dict[str, NDArray[np.generic]] = {
        "about": np.array(json.dumps(about)),
        "items": np.array(json.dumps(statistics.index.ids)),
    }
    for name, columns in (("", transitions.pairs), ("above-", transitions.above_floor)):
        lower, higher = rows_of(columns.keys)
        arrays[f"{name}pairs"] = np.stack([lower, higher], axis=1).astype(np.int32)
        arrays[f"{name}levels"] = levels_of(columns.keys).astype(np.int8)
        arrays[f"{name}lasting"] = columns.lasting.copy()
        arrays[f"{name}decaying"] = columns.decaying.copy()
    for number, counts in enumerate(statistics.popularity_counts):
        for epoch, sums in counts.sums.items():
            arrays[f"popularity-{number}-{epoch}"] = sums[:size].copy()
    return arrays


def _restore(statistics: ItemStatistics, arrays: object, about: dict[str, object]) -> None:
    """Fill empty statistics; the snapshot's rows are mapped to those of the index."""
    columns = cast(dict[str, NDArray[np.int64]], arrays)
    rows = statistics.index.rows(json.loads(str(columns["items"])))
    size = len(statistics.index)
    for number, counts in enumerate(statistics.popularity_counts):
        for epoch in cast(list[list[int]], about["epochs"])[number]:
            sums = np.zeros(size, dtype=np.int64)
            saved = columns[f"popularity-{number}-{epoch}"]
            sums[rows[: len(saved)]] = saved
            counts.sums[epoch] = sums
    pairs, above_floor = (_pair_columns(columns, name, rows) for name in ("", "above-"))
    floors = tuple(cast(list[int], about["chain_floors"]))
    statistics.transitions.restore(
        TransitionColumns(pairs, above_floor, cast(int, about["chain_epoch"]), floors)
    )
    marks = cast(dict[str, int], about["watermarks"])
    statistics.watermarks = {int(partition): offset for partition, offset in marks.items()}
    statistics.newest_ms = cast(int, about["newest_ms"])
    statistics.events = cast(int, about["events"])


def _pair_columns(
    columns: dict[str, NDArray[np.int64]], name: str, rows: NDArray[np.int64]
) -> PairColumns:
    one, other = rows[columns[f"{name}pairs"]].T
    keys = pair_keys(one, other, columns[f"{name}levels"].astype(np.int64))
    return PairColumns(keys, columns[f"{name}lasting"], columns[f"{name}decaying"])


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
