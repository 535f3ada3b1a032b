"""Lay out the valid events of one partition as columns, those of one user together.

What can be worked out for all events of a batch at once is worked out here, in numpy: the bytes
that histories and rings of ids take in, what the statistics get, and whose events can be taken in
whole. Most users' can: they come in time order, and none comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from stream.decoding import Kind, Record
from stream.events import WISHES, UserEvent, Wish
from stream.history import hash32
from stream.row_codec import EVENT, RING_ENTRY

#: Item ids in, their hashes out.
HashesOf = Callable[[Sequence[str]], Sequence[int]]

_T = TypeVar("_T")
_NAN = float("nan")


@dataclass(slots=True)
class AcceptedEvents:
    """N valid events of one partition, entry by entry."""

    records: list[Record] = field(default_factory=list)
    events: list[UserEvent | Wish] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    times_ms: list[int] = field(default_factory=list)
    row_keys: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events)

    def reordered(self, order: list[int]) -> AcceptedEvents:
        """The events at these places, in this order."""
        columns = [getattr(self, column.name) for column in fields(self)]
        return AcceptedEvents(*[[column[at] for at in order] for column in columns])


@dataclass(frozen=True, slots=True)
class KeptEvents:
    """K events that are to enter histories, those of one user together."""

    items: list[str]
    times_ms: list[int]
    weights: list[int]  # in sixteenths
    packed: NDArray[np.void]  # [K] EVENT
    ids: NDArray[np.void]  # [K] RING_ENTRY
    packed_bytes: bytes  # the same, to cut from
    id_bytes: bytes


@dataclass(frozen=True, slots=True)
class UserSpan:
    """Where one user's events lie: among all of them, and among those that are kept.

    `is_in_order`: no wish is among them, the times of the kept ones never fall, and no id
    comes twice.
    """

    begin: int
    end: int
    kept_begin: int
    kept_end: int
    is_in_order: bool


@dataclass(frozen=True, slots=True)
class EventColumns:
    """The events of a partition, user by user; each user's in the order of their offsets.

    `may_ask`: whether any of them is of a kind that makes a list due.
    """

    all: AcceptedEvents
    kept: KeptEvents
    users: dict[bytes, UserSpan]  # by row key, in the order in which users came
    may_ask: bool


def by_user(accepted: AcceptedEvents, hashes_of: HashesOf) -> EventColumns:
    """Lay out events, given in the order of their offsets, user by user."""
    numbers: dict[bytes, int] = {}
    users = np.array([numbers.setdefault(key, len(numbers)) for key in accepted.row_keys])
    order = np.argsort(users, kind="stable")
    users = users[order]
    events = accepted.reordered(order.tolist())
    is_kept = np.array([kind.is_kept for kind in events.kinds])
    kept_users = users[is_kept]
    kept = _laid_out(events.reordered(np.flatnonzero(is_kept).tolist()), hashes_of)
    is_in_order = np.ones(len(numbers), dtype=np.bool_)
    is_in_order[_out_of_order(kept_users, kept)] = False
    is_wish = np.array([isinstance(event, WISHES) for event in events.events])
    is_in_order[users[is_wish]] = False
    ends = np.cumsum(np.bincount(users)).tolist()
    kept_ends = np.cumsum(np.bincount(kept_users, minlength=len(numbers))).tolist()
    spans = map(UserSpan, [0, *ends], ends, [0, *kept_ends], kept_ends, is_in_order.tolist())
    may_ask = any(kind.refreshes for kind in set(events.kinds))
    return EventColumns(events, kept, dict(zip(numbers, spans, strict=True)), may_ask)


def _laid_out(accepted: AcceptedEvents, hashes_of: HashesOf) -> KeptEvents:
    events: list[UserEvent] = accepted.events  # type: ignore[assignment]  # only such are kept
    items: list[str] = [event.item_id for event in events]  # type: ignore[misc]  # none without
    packed = np.empty(len(events), dtype=EVENT)
    packed["item"] = hashes_of(items)
    packed["time_ms"] = accepted.times_ms
    packed["offset"] = accepted.offsets
    packed["value"] = _mapped([event.value for event in events], nan_if_unset)
    packed["portion"] = _mapped([event.portion for event in events], nan_if_unset)
    packed["session"] = _mapped([event.session_id for event in events], session_hash)
    packed["type"] = [kind.hash for kind in accepted.kinds]
    ids = np.empty(len(events), dtype=RING_ENTRY)
    ids["hash"] = [xxh3_64_intdigest(event.event_id.encode()) for event in events]
    ids["time_ms"] = packed["time_ms"]
    weights = [kind.weight for kind in accepted.kinds]
    return KeptEvents(
        items, accepted.times_ms, weights, packed, ids, packed.tobytes(), ids.tobytes()
    )


def _mapped(
    values: list[_T | UnsetType], change: Callable[[_T | UnsetType], float]
) -> list[float] | float:
    """Each value changed, or one number for all where none is set."""
    if values.count(UNSET) == len(values):
        return change(UNSET)
    return [change(value) for value in values]


def nan_if_unset(number: float | UnsetType) -> float:
    """How a history says that there is no such number."""
    return _NAN if number is UNSET else number


def session_hash(session_id: str | UnsetType) -> int:
    """The number by which a history knows a session; 0: there is none."""
    return 0 if session_id is UNSET else hash32(session_id)


def _out_of_order(users: NDArray[np.int64], kept: KeptEvents) -> NDArray[np.int64]:
    """Users of [K] events whose times fall, or who have an id twice."""
    is_same = users[1:] == users[:-1]
    times_ms, hashes = kept.ids["time_ms"], kept.ids["hash"].astype(np.uint64)
    falls = is_same & (times_ms[1:] < times_ms[:-1])
    order = np.lexsort((hashes, users))
    hashes = hashes[order]
    is_twice = is_same & (hashes[1:] == hashes[:-1])  # sorted by user as before
    out_of_order: NDArray[np.int64] = users[1:][falls | is_twice]
    return out_of_order
