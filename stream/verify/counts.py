"""Count popularity and transitions anew, and compare a worker's snapshot of its own with that."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stream.settings import Settings
from stream.verify.report import Check
from stream.verify.users import Delta, hash8

#: The definitions of the statistics: time in 4096ths of a half-life, 12 half-lives an epoch;
#: popularity keeps 3 epochs and transitions 2; the k-th item before counts 60/k.
_STEPS = 4096
_EPOCH_HALF_LIVES = 12
_POPULARITY_EPOCHS = 3
_CHAIN_EPOCHS = 2
_CHAIN_ONE = 60
_POWERS = [round(2.0 ** (16 + step / _STEPS)) for step in range(_STEPS)]
#: An event is of level k or more if the hash of its place ends in 3 k zeros.
_ZEROS_OF_A_LEVEL, _MAX_LEVEL = 3, 7
_SNAPSHOT_VERSION = 2
_64_BITS = 2**64 - 1

Pair = tuple[int, str, str]  # epoch, and two items in alphabetical order


@dataclass(frozen=True, slots=True)
class CountsSettings:
    """The settings that decide what is counted."""

    half_lives_ms: tuple[int, ...]
    chain_half_life_ms: int
    max_pairs: int

    @classmethod
    def of(cls, settings: Settings) -> CountsSettings:
        return cls(
            settings.popularity_half_lives_ms, settings.chain_half_life_ms, settings.max_pairs
        )


@dataclass(slots=True)
class Counts:
    """Whole-number counts by item id. Pairs are those of events at or above their epoch's floor."""

    events: int = 0
    popularity: list[Counter[tuple[int, str]]] = field(default_factory=list)  # epoch, item
    floors: dict[int, int] = field(default_factory=dict)  # of each epoch
    lasting: Counter[Pair] = field(default_factory=Counter)
    decaying: Counter[Pair] = field(default_factory=Counter)
    above_lasting: Counter[tuple[int, Pair]] = field(default_factory=Counter)  # by level
    above_decaying: Counter[tuple[int, Pair]] = field(default_factory=Counter)


def count(
    deltas: Mapping[tuple[int, int], Delta],
    watermarks: Mapping[int, int],
    settings: CountsSettings,
) -> Counts:
    """The counts of all deltas up to each partition's watermark."""
    below = {place: d for place, d in deltas.items() if place[1] <= watermarks.get(place[0], -1)}
    counts = Counts(len(below))
    for half_life_ms in settings.half_lives_ms:
        dated = [(*_epoch_and_weight(d.time_ms, half_life_ms), d) for d in below.values()]
        newest = max((epoch for epoch, _, _ in dated), default=0)
        popularity: Counter[tuple[int, str]] = Counter()
        for epoch, decay, delta in dated:
            if epoch > newest - _POPULARITY_EPOCHS:
                popularity[epoch, delta.item_id] += decay * delta.weight
        counts.popularity.append(+popularity)
    name_of = {int.from_bytes(hash8(d.item_id), "little"): d.item_id for d in deltas.values()}
    _count_pairs(counts, below, name_of, settings)
    return counts


def _count_pairs(
    counts: Counts,
    below: Mapping[tuple[int, int], Delta],
    name_of: Mapping[int, str],
    settings: CountsSettings,
) -> None:
    half_life_ms = settings.chain_half_life_ms
    epochs = [_epoch_and_weight(d.time_ms, half_life_ms)[0] for d in below.values()]
    newest = max(epochs, default=0)
    at_level: dict[int, list[set[Pair]]] = {}  # of each epoch, pairs with an event of each level
    links = []
    for place, delta in below.items():
        epoch, decay = _epoch_and_weight(delta.time_ms, half_life_ms)
        if epoch <= newest - _CHAIN_EPOCHS or not delta.weight:
            continue
        level = event_level(*place)
        of_level = at_level.setdefault(epoch, [set() for _ in range(_MAX_LEVEL + 1)])[level]
        for distance, hashed in enumerate(delta.previous, start=1):
            before = name_of.get(hashed, "")
            if before not in ("", delta.item_id):
                pair = _pair(epoch, before, delta.item_id)
                of_level.add(pair)
                links.append((level, pair, _CHAIN_ONE // distance * delta.weight, decay))
    for epoch, levels in at_level.items():
        counts.floors[epoch] = _floor(levels, settings.max_pairs // _CHAIN_EPOCHS)
    for level, pair, amount, decay in links:
        floor = counts.floors[pair[0]]
        if level >= floor:
            counts.lasting[pair] += amount
            counts.decaying[pair] += amount * decay
        if level > floor:
            counts.above_lasting[level, pair] += amount
            counts.above_decaying[level, pair] += amount * decay


def _pair(epoch: int, one: str, other: str) -> Pair:
    return epoch, min(one, other), max(one, other)


def _floor(levels: list[set[Pair]], at_most: int) -> int:
    """The lowest level from which on there are few enough pairs."""
    pairs: set[Pair] = set()
    for level in reversed(range(len(levels))):
        pairs |= levels[level]
        if len(pairs) > at_most:
            return level + 1
    return 0


def event_level(partition: int, offset: int) -> int:
    """The level of an event: its place, hashed as SplitMix64 does."""
    bits = (offset + partition * 0x9E3779B97F4A7C15) & _64_BITS
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & _64_BITS
    bits ^= bits >> 31
    zeros = (bits & -bits).bit_length() - 1 if bits else 64
    return min(zeros // _ZEROS_OF_A_LEVEL, _MAX_LEVEL)


def _epoch_and_weight(time_ms: int, half_life_ms: int) -> tuple[int, int]:
    steps = time_ms * _STEPS // half_life_ms
    epoch, within = divmod(steps, _EPOCH_HALF_LIVES * _STEPS)
    return epoch, _POWERS[within % _STEPS] << (within // _STEPS)


def check_snapshot(
    folder: Path,
    deltas: Mapping[tuple[int, int], Delta],
    settings: CountsSettings,
) -> Check:
    """The counts in the newest snapshot against those of the log up to its watermarks."""
    check = Check("counts of the snapshot", "counts")
    try:
        arrays = _read(folder)
    except FileNotFoundError:
        check.notes.append(f"there is no snapshot in {folder}: a worker's own counts are not seen")
        return check
    except (OSError, ValueError, KeyError) as error:
        check.miss(f"the snapshot in {folder} cannot be read: {error}")
        return check
    return check_counts(arrays, deltas, settings)


def check_counts(
    arrays: Mapping[str, Any],
    deltas: Mapping[tuple[int, int], Delta],
    settings: CountsSettings,
) -> Check:
    """The counts in the arrays of a snapshot against those of the log up to its watermarks."""
    check = Check("counts of the snapshot", "counts")
    about = json.loads(str(arrays["about"]))
    made_with = about["version"], about["settings"].get("max_pairs")
    if made_with != (_SNAPSHOT_VERSION, settings.max_pairs):
        check.notes.append("the snapshot is of another version or max_pairs: it is not compared")
        return check
    watermarks = {int(partition): offset for partition, offset in about["watermarks"].items()}
    wanted = count(deltas, watermarks, settings)
    if about["events"] > wanted.events:
        check.repeat(
            f"{about['events']} events counted of {wanted.events}", about["events"] - wanted.events
        )
    elif about["events"] < wanted.events:
        check.lose(
            f"{about['events']} events counted of {wanted.events}", wanted.events - about["events"]
        )
    ids = json.loads(str(arrays["items"]))
    for number, popularity in enumerate(wanted.popularity):
        got = _popularity(number, about["epochs"][number], arrays, ids)
        _compare(check, f"popularity {number}", popularity, got)
    _compare_pairs(check, wanted, about, arrays, ids)
    check.notes.append(
        f"the snapshot holds {wanted.events:,} of {len(deltas):,} events, as its watermarks say"
    )
    return check


def _read(folder: Path) -> dict[str, Any]:
    pointer = json.loads((folder / "latest.json").read_bytes())
    data = (folder / pointer["file"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != pointer["sha256"]:
        raise ValueError(f"{pointer['file']} has another checksum than its pointer names")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = dict(archive.items())
    json.loads(str(arrays["about"]))
    return arrays


def _popularity(
    number: int, epochs: list[int], arrays: Mapping[str, Any], ids: list[str]
) -> Counter[Any]:
    counts: Counter[Any] = Counter()
    for epoch in epochs:
        for row, value in enumerate(arrays[f"popularity-{number}-{epoch}"].tolist()):
            if value:
                counts[epoch, ids[row]] = value
    return counts


def _compare_pairs(
    check: Check,
    wanted: Counts,
    about: Mapping[str, Any],
    arrays: Mapping[str, Any],
    ids: list[str],
) -> None:
    newest = about["chain_epoch"]
    floors = {
        _epoch_of(newest, column): floor for column, floor in enumerate(about["chain_floors"])
    }
    for epoch, floor in wanted.floors.items():
        if floors.get(epoch) != floor:
            check.miss(f"floor of epoch {epoch}: wanted {floor}, got {floors.get(epoch)}")
    for kind, sums, above in (
        ("lasting", wanted.lasting, wanted.above_lasting),
        ("decaying", wanted.decaying, wanted.above_decaying),
    ):
        got = Counter({pair: n for (_, pair), n in _pairs("", kind, newest, arrays, ids).items()})
        _compare(check, f"{kind} transitions", sums, got)
        got_above = _pairs("above-", kind, newest, arrays, ids)
        _compare(check, f"{kind} transitions above the floor", above, got_above)


def _pairs(
    prefix: str, kind: str, newest: int, arrays: Mapping[str, Any], ids: list[str]
) -> Counter[tuple[int, Pair]]:
    """Sums by level and pair. Column c is the newest epoch that is c modulo the epochs kept."""
    counts: Counter[tuple[int, Pair]] = Counter()
    levels = arrays[f"{prefix}levels"].tolist()
    rows = arrays[f"{prefix}pairs"].tolist()
    for column in range(_CHAIN_EPOCHS):
        sums = arrays[f"{prefix}{kind}"][:, column].tolist()
        for level, (one, other), value in zip(levels, rows, sums, strict=True):
            if value:
                counts[level, _pair(_epoch_of(newest, column), ids[one], ids[other])] = value
    return counts


def _epoch_of(newest: int, column: int) -> int:
    epoch: int = newest - (newest - column) % _CHAIN_EPOCHS
    return epoch


def _compare(check: Check, name: str, wanted: Counter[Any], got: Counter[Any]) -> None:
    check.checked += len(wanted)
    for what in wanted.keys() | got.keys():
        should, has = wanted.get(what, 0), got.get(what, 0)
        if should != has:
            check.miss(f"{name} of {what}: wanted {should}, got {has}")
