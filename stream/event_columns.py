"""Lay out the valid events of a batch as columns, those of one user together.

What can be worked out for all events of a batch at once is worked out here, in numpy: the bytes
that histories and rings of ids take in, what the statistics get, and whose events can be taken in
whole. Most users' can: they come in time order, and none comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

#: Places in columns, or numbers of users.
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AcceptedEvents:
    """N valid events, entry by entry; those of one partition together, by their offsets.

    `times_ms`: none after its record's; `said_ms`: as their producers gave them.
    """

    records: list[Record]
    events: list[UserEvent | Wish]
    kinds: list[Kind]
    offsets: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    said_ms: NDArray[np.int64]
    has_wishes: bool

    def __len__(self) -> int:
        return len(self.events)

    @classmethod
    def joined(cls, parts: Sequence[AcceptedEvents]) -> AcceptedEvents:
        """The events of several partitions, one's behind another's."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [record for part in parts for record in part.records],
            [event for part in parts for event in part.events],
            [kind for part in parts for kind in part.kinds],
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.times_ms for part in parts]),
            np.concatenate([part.said_ms for part in parts]),
            any(part.has_wishes for part in parts),
        )


@dataclass(frozen=True, slots=True)
class PartitionEvents:
    """The valid events of one partition.

    `key_beginning` and an entry of `keys` together are the key of the row that an event changes.
    """

    partition: int
    events: AcceptedEvents
    keys: list[bytes]
    key_beginning: bytes


@dataclass(frozen=True, slots=True)
class KeptEvents:
    """K events that are to enter histories, in the order of all events but for the bytes.

    `order` are their places user by user, each user's in the order of their offsets; `packed` and
    `ids` stand in that order. Those of user u are there from `bounds[u]` to `bounds[u + 1]`.
    """

    items: list[str]
    offsets: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    weights: NDArray[np.int64]  # in sixteenths
    order: Places
    packed: NDArray[np.void]  # [K] EVENT
    ids: NDArray[np.void]  # [K] RING_ENTRY
    bounds: Places  # [U + 1]

    @property
    def counts(self) -> Places:
        """[U] how many each user has."""
        return np.diff(self.bounds)


@dataclass(frozen=True, slots=True)
class Span:
    """Where the events, the users and the kept events of one partition are: each stand together."""

    partition: int
    events: slice
    users: slice
    kept: slice


@dataclass(frozen=True, slots=True)
class EventColumns:
    """The events of U users, who stand in the order in which they came, partition by partition.

    A key that events of two partitions have is two users. `users` are the numbers of the events'
    users, and `spans` tell what is of which partition. `order` are the events' places user by user,
    each user's in the order of their offsets: those of user u are there from `bounds[u]` to
    `bounds[u + 1]`.
    `is_in_order`: no wish is among a user's events, the times of the kept ones never fall, and no
    id comes twice. `may_ask`: whether any event is of a kind that makes a list due.
    """

    all: AcceptedEvents
    kept: KeptEvents
    spans: list[Span]
    row_keys: list[bytes]  # [U]
    users: Places  # [N]
    order: Places
    bounds: Places  # [U + 1]
    is_in_order: NDArray[np.bool_]  # [U]
    may_ask: bool

    def places_of(self, user: int) -> list[int]:
        """The places of a user's events among all."""
        places: list[int] = self.order[self.bounds[user] : self.bounds[user + 1]].tolist()
        return places


def by_user(parts: Sequence[PartitionEvents], hashes_of: HashesOf) -> EventColumns:
    """Lay out events, of which each partition has at least one, user by user."""
    accepted = AcceptedEvents.joined([part.events for part in parts])
    row_keys: list[bytes] = []
    users = np.empty(len(accepted), dtype=np.int64)
    ends = []  # of each partition: events, users
    at = 0
    for part in parts:
        numbers = {key: n for n, key in enumerate(dict.fromkeys(part.keys), len(row_keys))}
        end = at + len(part.keys)
        users[at:end] = np.fromiter(map(numbers.__getitem__, part.keys), np.int64, end - at)
        row_keys += [part.key_beginning + key for key in numbers]
        ends.append((end, len(row_keys)))
        at = end
    order, bounds = _grouped(users, len(row_keys))
    is_in_order = np.ones(len(row_keys), dtype=np.bool_)
    if accepted.has_wishes:
        is_wish = np.array([isinstance(event, WISHES) for event in accepted.events])
        is_in_order[users[is_wish]] = False
    if all(kind.is_kept for kind in set(accepted.kinds)):
        kept_users, kept_order, kept_bounds = users, order, bounds
        kept = _laid_out(accepted, None, order, bounds, hashes_of)
        kept_ends = [end for end, _ in ends]
    else:
        places = np.flatnonzero(np.array([kind.is_kept for kind in accepted.kinds]))
        kept_users = users[places]
        kept_order, kept_bounds = _grouped(kept_users, len(row_keys))
        kept = _laid_out(accepted, places, kept_order, kept_bounds, hashes_of)
        kept_ends = np.searchsorted(places, [end for end, _ in ends]).tolist()
    is_in_order[_out_of_order(kept_users[kept_order], kept)] = False
    may_ask = any(kind.refreshes for kind in set(accepted.kinds))
    spans = _spans([part.partition for part in parts], ends, kept_ends)
    return EventColumns(accepted, kept, spans, row_keys, users, order, bounds, is_in_order, may_ask)


def _spans(partitions: list[int], ends: list[tuple[int, int]], kept_ends: list[int]) -> list[Span]:
    """What each partition has, one behind another, by where its events, users and kept ones end."""
    spans = []
    event = user = kept = 0
    for partition, (event_end, user_end), kept_end in zip(partitions, ends, kept_ends, strict=True):
        spans.append(
            Span(partition, slice(event, event_end), slice(user, user_end), slice(kept, kept_end))
        )
        event, user, kept = event_end, user_end, kept_end
    return spans


def _grouped(users: Places, count: int) -> tuple[Places, Places]:
    """([N] places user by user, [count + 1] where each user's begin and the last one's end)."""
    bounds = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(users, minlength=count), out=bounds[1:])
    return np.argsort(users, kind="stable"), bounds


def _laid_out(
    accepted: AcceptedEvents,
    places: Places | None,
    order: Places,
    bounds: Places,
    hashes_of: HashesOf,
) -> KeptEvents:
    """The events at these places, or all of them."""
    events: list[UserEvent] = accepted.events  # type: ignore[assignment]  # only such are kept
    kinds, offsets = accepted.kinds, accepted.offsets
    times_ms, said_ms = accepted.times_ms, accepted.said_ms
    if places is not None:
        at = places.tolist()
        events, kinds = [events[place] for place in at], [kinds[place] for place in at]
        offsets, times_ms, said_ms = offsets[places], times_ms[places], said_ms[places]
    items: list[str] = [event.item_id for event in events]  # type: ignore[misc]  # none without
    packed = np.empty(len(events), dtype=EVENT)
    packed["item"] = np.fromiter(hashes_of(items), np.uint64, len(events))
    packed["time_ms"] = times_ms
    packed["offset"] = offsets
    packed["value"] = _mapped([event.value for event in events], nan_if_unset)
    packed["portion"] = _mapped([event.portion for event in events], nan_if_unset)
    packed["session"] = _mapped([event.session_id for event in events], session_hash)
    packed["type"] = _of_kinds(kinds, lambda kind: kind.hash)
    ids = np.empty(len(events), dtype=RING_ENTRY)
    hashes = [xxh3_64_intdigest(event.event_id.encode()) for event in events]
    ids["hash"] = np.fromiter(hashes, np.uint64, len(events))
    ids["time_ms"] = said_ms
    weights = _of_kinds(kinds, lambda kind: kind.weight)
    return KeptEvents(
        items, offsets, times_ms, weights, order, packed.take(order), ids.take(order), bounds
    )


def _of_kinds(kinds: list[Kind], number: Callable[[Kind], int]) -> NDArray[np.int64]:
    """[K] a number of each event's kind; most batches have one kind only."""
    numbers = {kind: number(kind) for kind in set(kinds)}
    if len(numbers) == 1:
        return np.full(len(kinds), number(kinds[0]), dtype=np.int64)
    return np.fromiter(map(numbers.__getitem__, kinds), np.int64, len(kinds))


def _mapped(
    values: list[_T | UnsetType], change: Callable[[_T | UnsetType], float]
) -> list[float] | float:
    """Each value changed, or one number for all where none is set."""
    if values and values[0] is UNSET and values.count(UNSET) == len(values):
        return change(UNSET)
    return [change(value) for value in values]


def nan_if_unset(number: float | UnsetType) -> float:
    """How a history says that there is no such number."""
    return _NAN if number is UNSET else number


def session_hash(session_id: str | UnsetType) -> int:
    """The number by which a history knows a session; 0: there is none."""
    return 0 if session_id is UNSET else hash32(session_id)


def _out_of_order(users: Places, kept: KeptEvents) -> Places:
    """Users of [K] events whose times fall, or who have an id twice."""
    is_same = users[1:] == users[:-1]
    times_ms, hashes = kept.packed["time_ms"], kept.ids["hash"].astype(np.uint64)
    falls = is_same & (times_ms[1:] < times_ms[:-1])
    order = np.lexsort((hashes, users))
    hashes = hashes[order]
    is_twice = is_same & (hashes[1:] == hashes[:-1])  # sorted by user as before
    out_of_order: NDArray[np.int64] = users[1:][falls | is_twice]
    return out_of_order
