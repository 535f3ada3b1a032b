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

from stream.verify.report import Check
from stream.verify.users import Delta, hash8

#: The definitions of the statistics (DESIGN 2): time in 4096ths of a half-life, 12 half-lives an
#: epoch; popularity keeps 3 epochs and transitions 2; the k-th item before counts 60/k.
_STEPS = 4096
_EPOCH_HALF_LIVES = 12
_POPULARITY_EPOCHS = 3
_CHAIN_EPOCHS = 2
_CHAIN_ONE = 60
_POWERS = [round(2.0 ** (16 + step / _STEPS)) for step in range(_STEPS)]


@dataclass(slots=True)
class Counts:
    """Whole-number counts by item id."""

    events: int = 0
    popularity: list[Counter[tuple[int, str]]] = field(default_factory=list)  # epoch, item
    lasting: Counter[tuple[int, str, str]] = field(default_factory=Counter)  # epoch, from, to
    decaying: Counter[tuple[int, str, str]] = field(default_factory=Counter)


def count(
    deltas: Mapping[tuple[int, int], Delta],
    watermarks: Mapping[int, int],
    half_lives_ms: list[int],
    chain_half_life_ms: int,
) -> Counts:
    """The counts of all deltas up to each partition's watermark."""
    below = [d for (p, offset), d in deltas.items() if offset <= watermarks.get(p, -1)]
    counts = Counts(len(below))
    name_of = {int.from_bytes(hash8(d.item_id), "little"): d.item_id for d in deltas.values()}
    for half_life_ms in half_lives_ms:
        dated = [(*_epoch_and_weight(d.time_ms, half_life_ms), d) for d in below]
        newest = max((epoch for epoch, _, _ in dated), default=0)
        popularity: Counter[tuple[int, str]] = Counter()
        for epoch, decay, delta in dated:
            if epoch > newest - _POPULARITY_EPOCHS:
                popularity[epoch, delta.item_id] += decay * delta.weight
        counts.popularity.append(+popularity)
    dated = [(*_epoch_and_weight(d.time_ms, chain_half_life_ms), d) for d in below]
    newest = max((epoch for epoch, _, _ in dated), default=0)
    for epoch, decay, delta in dated:
        if epoch > newest - _CHAIN_EPOCHS and delta.weight:
            _link(counts, epoch, decay, delta, name_of)
    return counts


def _link(counts: Counts, epoch: int, decay: int, delta: Delta, name_of: Mapping[int, str]) -> None:
    item = delta.item_id
    for distance, hashed in enumerate(delta.previous, start=1):
        before = name_of.get(hashed, "")
        if before in ("", item):
            continue
        amount = _CHAIN_ONE // distance * delta.weight
        for pair in ((before, item), (item, before)):
            counts.lasting[epoch, *pair] += amount
            counts.decaying[epoch, *pair] += amount * decay


def _epoch_and_weight(time_ms: int, half_life_ms: int) -> tuple[int, int]:
    steps = time_ms * _STEPS // half_life_ms
    epoch, within = divmod(steps, _EPOCH_HALF_LIVES * _STEPS)
    return epoch, _POWERS[within % _STEPS] << (within // _STEPS)


def check_snapshot(
    folder: Path,
    deltas: Mapping[tuple[int, int], Delta],
    half_lives_ms: list[int],
    chain_half_life_ms: int,
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
    return check_counts(arrays, deltas, half_lives_ms, chain_half_life_ms)


def check_counts(
    arrays: Mapping[str, Any],
    deltas: Mapping[tuple[int, int], Delta],
    half_lives_ms: list[int],
    chain_half_life_ms: int,
) -> Check:
    """The counts in the arrays of a snapshot against those of the log up to its watermarks."""
    check = Check("counts of the snapshot", "counts")
    about = json.loads(str(arrays["about"]))
    watermarks = {int(partition): offset for partition, offset in about["watermarks"].items()}
    wanted = count(deltas, watermarks, half_lives_ms, chain_half_life_ms)
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
    lasting, decaying = _transitions(about["chain_epoch"], arrays, ids)
    _compare(check, "lasting transitions", wanted.lasting, lasting)
    _compare(check, "decaying transitions", wanted.decaying, decaying)
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


def _transitions(
    newest: int, arrays: Mapping[str, Any], ids: list[str]
) -> tuple[Counter[Any], Counter[Any]]:
    """Column c of the arrays is the newest epoch that is c modulo the epochs kept."""
    kinds: tuple[Counter[Any], Counter[Any]] = (Counter(), Counter())
    pairs = arrays["pairs"].tolist()
    for counts, name in zip(kinds, ("lasting", "decaying"), strict=True):
        for column in range(_CHAIN_EPOCHS):
            epoch = newest - (newest - column) % _CHAIN_EPOCHS
            for pair, value in zip(pairs, arrays[name][:, column].tolist(), strict=True):
                if value:
                    counts[epoch, ids[pair >> 32], ids[pair & 0xFFFFFFFF]] = value
    return kinds


def _compare(check: Check, name: str, wanted: Counter[Any], got: Counter[Any]) -> None:
    check.checked += len(wanted)
    for what in wanted.keys() | got.keys():
        should, has = wanted.get(what, 0), got.get(what, 0)
        if should != has:
            check.miss(f"{name} of {what}: wanted {should}, got {has}")
