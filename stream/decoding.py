"""Decode records of user-events, and say of each that is refused why it is.

Pure: bytes go in, an event comes out, or the reason for a dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.statistics import WEIGHT_ONE
from stream.control import refusal
from stream.events import (
    ControlEvent,
    MergePart,
    UncheckedUserEvent,
    UserEvent,
    Wish,
    decode_control_event,
    decode_merge_part,
    decode_merge_request,
    decode_unchecked_user_event,
    decode_unchecked_user_events,
    decode_user_event,
)
from stream.history import hash32
from stream.merge import part_refusal
from stream.row_codec import LATEST_MS
from stream.settings import Settings


class Record(Protocol):
    """What is read of a Kafka record."""

    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What events of one type do, worked out once; compared by identity."""

    hash: int
    is_visit: bool
    is_kept: bool  # enters the history
    counts: bool  # changes a state or makes a list due
    refreshes: bool
    weight: int  # in sixteenths

    @classmethod
    def of(cls, name: str, role: EventRole) -> Kind:
        """What a type with this role does."""
        is_kept = role.role in ("positive", "negative")
        return cls(
            hash32(name),
            role.role == "visit",
            is_kept,
            is_kept or role.role == "visit",
            role.refreshes,
            round(role.weight * WEIGHT_ONE) if role.role == "positive" else 0,
        )


#: More than any span of time in milliseconds, and small enough to be added to a time.
LONGEST_MS = 2**62

#: Distinct names of events that are remembered as checked; the rest is checked each time.
_MAX_NAMES = 4096

#: Stands beside a control event or leg of a merge, which are no types that settings know.
CONTROL = Kind(0, False, False, True, False, 0)


def kinds_of(settings: Settings) -> dict[str, Kind]:
    """Event type -> what it does, of all known types."""
    roles = DEFAULT_EVENT_TYPES | settings.event_types
    return {name: Kind.of(name, role) for name, role in roles.items()}


@dataclass(slots=True)
class Decoded:
    """What is in records: events beside the records they came in, and reasons for dead letters.

    `times_ms`: [N] the events' times, none after its record's; `said_ms`: [N] as producers gave
    them. None where they were not worked out.
    Then any of the events may be a wish, otherwise none is.
    """

    records: list[Record] = field(default_factory=list)
    events: list[UserEvent | Wish] = field(default_factory=list)
    refused: list[tuple[Record, str]] = field(default_factory=list)
    times_ms: NDArray[np.int64] | None = None
    said_ms: NDArray[np.int64] | None = None


class EventDecoder:
    """Decodes records with the bounds of the settings."""

    def __init__(self, settings: Settings, kinds: dict[str, Kind]) -> None:
        self._settings = settings
        #: (type, tenant, scenario) of events that were as their patterns want them.
        self._checked_names: set[tuple[object, ...]] = set()
        self._about_items = {name for name, kind in kinds.items() if kind.is_kept}

    def decode_all(self, records: Sequence[Record]) -> Decoded:
        """What `decode` makes of each record; of good user events in a fraction of the time."""
        decoded = self._good_events(records)
        if decoded is not None:
            return decoded
        decoded = Decoded()
        for record in records:
            event = self.decode(record)
            if isinstance(event, str):
                decoded.refused.append((record, event))
            else:
                decoded.records.append(record)
                decoded.events.append(event)
        return decoded

    def _good_events(self, records: Sequence[Record]) -> Decoded | None:
        """The records' user events; None where one is anything else, or is to be looked at alone.

        A line each is what they are decoded as. The decoder needs no line end between two objects
        and takes one inside of an object: only where each value is known to be one object, as it
        begins and ends as one, has each record the event that stands beside it.
        """
        values = [record.value for record in records]
        if None in [record.key for record in records]:
            return None
        try:
            lines = b"\n".join(values)  # type: ignore[arg-type]  # where one is None, it raises
            longest = max(map(len, values), default=0)  # type: ignore[arg-type]
        except TypeError:
            return None
        line_ends = max(len(values) - 1, 0)
        if longest > self._settings.max_event_bytes or lines.count(b"\n") != line_ends:
            return None
        if lines.count(b"}\n{") != line_ends:
            return None
        try:
            events = decode_unchecked_user_events(lines)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if len(events) != len(values) or not self._are_good(events):
            return None
        times = self._times(events, records)
        return None if times is None else Decoded(list(records), list(events), [], *times)

    def _are_good(self, events: list[UncheckedUserEvent]) -> bool:
        """Whether `decode` would refuse none for what is in it, by what was seen of others."""
        names = {(event.type, event.tenant, event.scenario) for event in events}
        if not names <= self._checked_names or any(
            [event.user_id is UNSET and event.anonymous_id is UNSET for event in events]
        ):
            return False
        return self._about_items.isdisjoint(name for name, *_ in names) or not any(
            [event.item_id is UNSET and event.type in self._about_items for event in events]
        )

    def _times(
        self, events: list[UncheckedUserEvent], records: Sequence[Record]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """`times_ms` and `said_ms` of Decoded; None where one is too far after its record's."""
        try:
            said_ms = np.array([event.event_time for event in events], dtype=np.int64)
        except OverflowError:
            return None
        sent_ms = np.array([record.timestamp for record in records], dtype=np.int64)
        latest_ms = sent_ms + min(self._settings.max_future_ms, LONGEST_MS)
        if (said_ms > np.minimum(latest_ms, LATEST_MS)).any():
            return None
        return np.minimum(said_ms, sent_ms), said_ms

    def decode(self, record: Record) -> UserEvent | Wish | str:
        """The record's event, or why it is refused."""
        if record.value is None:
            return "no value: a user event is never null"
        if record.key is None:
            return "no key: the key of a user event is its user_id, else its anonymous_id"
        if len(record.value) > self._settings.max_event_bytes:
            return f"{len(record.value)} bytes: at most {self._settings.max_event_bytes} are taken"
        try:
            event = self._user_event(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._wish(record) or str(error)
        if event.user_id is UNSET and event.anonymous_id is UNSET:
            return "neither user_id nor anonymous_id"
        if event.event_time > record.timestamp + self._settings.max_future_ms:
            return self._in_the_future(event.event_time)
        if event.item_id is UNSET and event.type in self._about_items:
            return f"no item_id: an event of type {event.type} is about an item"
        return event

    def _user_event(self, value: bytes) -> UserEvent:
        """The event, as `decode_user_event` would take or refuse it, in a third of the time."""
        event = decode_unchecked_user_event(value)
        names = (event.type, event.tenant, event.scenario)
        if names not in self._checked_names:
            decode_user_event(value)
            if len(self._checked_names) < _MAX_NAMES:
                self._checked_names.add(names)
        return event

    def _wish(self, record: Record) -> Wish | str:
        """The record's control event or leg of a merge, or why it is refused; empty: neither."""
        wish = _decoded_wish(record.value or b"")
        if wish is None:
            return ""
        if wish.event_time > record.timestamp + self._settings.max_future_ms:
            return self._in_the_future(wish.event_time)
        if isinstance(wish, ControlEvent):
            return refusal(wish) or wish
        return (isinstance(wish, MergePart) and part_refusal(wish)) or wish

    def _in_the_future(self, event_ms: int) -> str:
        return (
            f"event_time {event_ms} is more than {self._settings.max_future_ms} ms "
            "after the record's timestamp"
        )


def _decoded_wish(value: bytes) -> Wish | None:
    for decode in (decode_control_event, decode_merge_request, decode_merge_part):
        try:
            return decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return None
