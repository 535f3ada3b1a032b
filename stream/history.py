"""Keep one user's state in a few kilobytes of bytes, and fold one event into it.

A row holds the newest events of a user in event-time order, what is needed to apply every event
exactly once (the last applied source offset, a ring of event ids), the sequence number of the
user's lists, and the items taken before the history begins. Folding an event costs a slice and a
concatenation of bytes; nothing is decoded that is not needed. The layout is that of
stream.row_codec; `stream.whole_rows` folds events into many rows at once.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from export.statistics import CHAIN_DEPTH, DAY_MS
from stream.row_codec import (
    CODEC_VERSION,
    EVENT,
    EVENT_BYTES,
    EVENT_STRUCT,
    FILTER,
    HASH_BYTES,
    HEADER,
    MERGED_OFFSET,
    OLD_IDS,
    POSTPONED,
    RING_ENTRY_BYTES,
    RING_ENTRY_STRUCT,
    UNTIMED,
    RowError,
    as_newest,
    see_length,
)

#: A `silent_until` above every offset: the user has opted out.
OPTED_OUT = 2**63 - 1
#: Lists of a user whose ids and first items the row remembers.
MAX_REC_IDS = 4
MAX_SERVED = 20


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How much a row keeps: 94,792 bytes at the largest settings, 28,504 at the default ones.

    `max_lateness_ms`: how far an event's time may be behind its user's newest event.
    """

    max_history: int = 50
    max_taken: int = 2000
    dedupe_ring: int = 256
    max_lateness_ms: int = DAY_MS


def id_hash(event_id: str) -> bytes:
    """The 8 bytes by which a row knows an event id: its XXH3."""
    return xxhash.xxh3_64_digest(event_id.encode())


def hash64(text: str) -> bytes:
    """The 8 bytes by which a row knows a name; rows of codec versions 1 and 2 event ids, too."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def hash32(text: str) -> int:
    """The number by which a row knows an event type or a session; never 0."""
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


def source_fingerprint(topic_id: str, partitions: int) -> int:
    """Names the topic that offsets in a row belong to: another topic or partition count differs."""
    return int.from_bytes(hash64(f"{topic_id}/{partitions}"), "little")


class HistoryEvent(NamedTuple):
    """What a history keeps of an event; hashes instead of texts."""

    event_hash: bytes
    item: int
    time_ms: int
    offset: int
    type: int
    value: float = float("nan")
    portion: float = float("nan")
    session: int = 0
    said_ms: int = 0  # the time that its producer gave it, before it was set back to its record's


class UserRow:
    """The state of one user. Starts empty; `decode` reads a stored one."""

    __slots__ = (
        "applied_offset",
        "events",
        "events_total",
        "filters",
        "fingerprint",
        "has_old_ids",
        "interests_digest",
        "is_postponed",
        "list_ms",
        "newest_ms",
        "rec_ids",
        "ring",
        "seq",
        "served",
        "silent_until",
        "taken",
    )

    def __init__(self, fingerprint: int) -> None:
        self.fingerprint = fingerprint
        self.events = b""
        self.ring = b""
        self.taken = b""
        self.served = b""
        self.rec_ids = b""
        self.applied_offset = -1
        self.seq = 0
        #: Of all events since the user was forgotten; erasing the history alone leaves it.
        self.newest_ms = 0
        #: Whether the ring begins with ids of codec versions 1 and 2.
        self.has_old_ids = False
        #: Request time of the newest list; of the list that is to come where it is postponed.
        self.list_ms = 0
        self.is_postponed = False
        self.events_total = 0
        self.interests_digest = 0
        #: Events up to this source offset make no list due: they were erased, or the user had
        #: opted out. OPTED_OUT stands for all events to come.
        self.silent_until = -1
        #: FILTERs, the oldest first.
        self.filters = b""

    @classmethod
    def decode(cls, data: bytes, fingerprint: int) -> UserRow:
        """Read a stored row.

        Raises RowError for bytes of another codec version or another length than they tell, and
        for a row whose offsets belong to another topic or partition count.
        """
        if not data or data[0] != CODEC_VERSION or len(data) < HEADER.size:
            data = as_newest(data)
        row = cls(fingerprint)
        (
            _,
            flags,
            n_events,
            n_ring,
            n_taken,
            n_served,
            n_rec_ids,
            n_filters,
            row.events_total,
            source,
            row.applied_offset,
            row.seq,
            row.newest_ms,
            row.list_ms,
            row.interests_digest,
            row.silent_until,
        ) = HEADER.unpack_from(data)
        if source != fingerprint:
            raise RowError(
                "a row belongs to another topic or partition count than user-events has now; "
                "wanted the topic this state was built from: give the worker another prefix or "
                "group, or remove its data directory and changelog to start anew"
            )
        row.is_postponed = bool(flags & POSTPONED)
        row.has_old_ids = bool(flags & OLD_IDS)
        begin, end = HEADER.size, HEADER.size + n_events * EVENT_BYTES
        row.events = data[begin:end]
        begin, end = end, end + n_ring * RING_ENTRY_BYTES
        row.ring = data[begin:end]
        begin, end = end, end + n_taken * HASH_BYTES
        row.taken = data[begin:end]
        begin, end = end, end + n_served * HASH_BYTES
        row.served = data[begin:end]
        begin, end = end, end + n_rec_ids * HASH_BYTES
        row.rec_ids = data[begin:end]
        begin, end = end, end + n_filters * FILTER.size
        row.filters = data[begin:end]
        see_length(data, end)
        return row

    def encode(self) -> bytes:
        """The row as bytes; `decode` gives the same row back."""
        header = HEADER.pack(
            CODEC_VERSION,
            (POSTPONED if self.is_postponed else 0) | (OLD_IDS if self.has_old_ids else 0),
            len(self.events) // EVENT_BYTES,
            len(self.ring) // RING_ENTRY_BYTES,
            len(self.taken) // HASH_BYTES,
            len(self.served) // HASH_BYTES,
            len(self.rec_ids) // HASH_BYTES,
            len(self.filters) // FILTER.size,
            self.events_total,
            self.fingerprint,
            self.applied_offset,
            self.seq,
            self.newest_ms,
            self.list_ms,
            self.interests_digest,
            self.silent_until,
        )
        return b"".join(
            (
                header,
                self.events,
                self.ring,
                self.taken,
                self.served,
                self.rec_ids,
                self.filters,
            )
        )

    def __len__(self) -> int:
        """Events in the history."""
        return len(self.events) // EVENT_BYTES

    def history(self) -> NDArray[np.void]:
        """[len(self)] the events, oldest first, as records of EVENT."""
        return np.frombuffer(self.events, dtype=EVENT)

    def taken_items(self) -> NDArray[np.uint64]:
        """Hashes of all items the user is known to have taken; some can stand twice."""
        beyond = np.frombuffer(self.taken, dtype="<u8")
        return np.concatenate([self.history()["item"], beyond])

    def recent_items(self) -> list[int]:
        """Hashes of the last CHAIN_DEPTH items, newest first."""
        return _items_before(self.events, len(self.events))

    def has_event(self, event_id: str, hashed: bytes) -> bool:
        """Whether this event id is in the ring; `hashed` is its id_hash."""
        if _find(self.ring, hashed, RING_ENTRY_BYTES):
            return True
        return self.has_old_ids and _find(self.ring, hash64(event_id), RING_ENTRY_BYTES)

    def fold(self, event: HistoryEvent, limits: RowLimits) -> list[int]:
        """Put an event into the history, at its place in (event time, offset) order.

        The caller has seen to it that the event is new: its offset is above `applied_offset` and
        its id is not in the ring.

        Returns: hashes of the up to CHAIN_DEPTH items before it, newest first; 0 for those that
        came with a merged user.
        """
        event_hash, item, time_ms, offset, kind, value, portion, session, said_ms = event
        packed = EVENT_STRUCT.pack(item, time_ms, offset, value, portion, session, kind)
        events = self.events
        at = len(events)
        if time_ms < self.newest_ms:
            place = np.searchsorted(self.history()["time_ms"], time_ms, side="right")
            at = int(place) * EVENT_BYTES
            self.events = b"".join((events[:at], packed, events[at:]))
        else:
            self.newest_ms = time_ms
            self.events = events + packed
        self.events_total += 1
        self.applied_offset = offset
        if len(self.events) > limits.max_history * EVENT_BYTES:
            self._drop_oldest(limits)
        self.remember(event_hash, max(time_ms, said_ms), limits)
        return _links_before(events, at)

    def take_over(self, events: NDArray[np.void], taken: bytes, limits: RowLimits) -> None:
        """Put in events and taken items of another row, in the order of event time.

        Of equal times those that were here before stay first.
        """
        self._take(taken, HASH_BYTES, limits.max_taken)
        if not len(events):
            return
        both = np.concatenate([self.history(), events])
        self.events = both[np.argsort(both["time_ms"], kind="stable")].tobytes()
        self.events_total += len(events)
        self.newest_ms = max(self.newest_ms, int(both["time_ms"].max()))
        if len(self.events) > limits.max_history * EVENT_BYTES:
            self._drop_oldest(limits)

    def remember(self, event_hash: bytes, time_ms: int, limits: RowLimits) -> None:
        """Put an event id in the ring, and drop the oldest ones that it need not know any more.

        It keeps the newest `dedupe_ring` ids. Of these those at its beginning go whose events would
        be too late by now: were they sent again, they would not be folded anyway. So `time_ms` is
        what the producer said: sent again, an event from ahead is set back to a later record's.
        """
        ring = self.ring + RING_ENTRY_STRUCT.pack(event_hash, time_ms)
        self.ring = ring_at(ring, self.newest_ms, limits)
        if self.has_old_ids:
            self.has_old_ids = self.ring[HASH_BYTES:RING_ENTRY_BYTES] == UNTIMED

    def forget_events(self) -> None:
        """Forget what the user did and was shown.

        The ring still knows what came before, and `newest_ms` what would be too late: nothing that
        is sent again comes back.
        """
        self.events = self.taken = self.served = b""
        self.events_total = self.interests_digest = 0

    def forget_user(self, offset: int) -> None:
        """Forget all but `seq`, how far the source is applied, and what would come again.

        `offset` is that of the wish. Events up to it make no list due from now on, also when they
        are read again after a crash; those that are sent again are known by their ids, or too late.
        """
        self.forget_events()
        self.rec_ids = self.filters = b""
        self.list_ms = 0
        self.is_postponed = False
        self.silent_until = offset

    def served_list(self, rec_id: bytes, items: NDArray[np.uint64]) -> None:
        """Remember a list that is about to be sent: its id (8 bytes) and its first items."""
        self.served = items[:MAX_SERVED].astype("<u8").tobytes()
        self.rec_ids = (self.rec_ids + rec_id)[-MAX_REC_IDS * HASH_BYTES :]

    def _drop_oldest(self, limits: RowLimits) -> None:
        """Keep the newest events; of the others only the items are remembered."""
        begin = len(self.events) - limits.max_history * EVENT_BYTES
        dropped, self.events = self.events[:begin], self.events[begin:]
        self._take(dropped, EVENT_BYTES, limits.max_taken)

    def _take(self, items: bytes, step: int, max_taken: int) -> None:
        """Remember items, whose hashes stand `step` bytes apart, as taken."""
        self.taken = taken_after(self.taken, items, step, max_taken)


def ring_at(ring: bytes, newest_ms: int, limits: RowLimits) -> bytes:
    """What `UserRow.remember` leaves of a ring when its user's newest event has this time."""
    end = len(ring)
    begin = max(end - limits.dedupe_ring * RING_ENTRY_BYTES, 0)
    horizon_ms = newest_ms - limits.max_lateness_ms
    while begin < end and RING_ENTRY_STRUCT.unpack_from(ring, begin)[1] < horizon_ms:
        begin += RING_ENTRY_BYTES
    return ring[begin:]


def taken_after(taken: bytes, items: bytes, step: int, max_taken: int) -> bytes:
    """Hashes of taken items and of further ones, which stand `step` bytes apart.

    One after another, each that is not there is put behind the others, and of more than
    `max_taken` the oldest is dropped.
    """
    further = np.frombuffer(items, _HASHES)[:: step // HASH_BYTES]
    for begin in range(0, len(further), _AT_ONCE):
        words, part = np.frombuffer(taken, _HASHES), further[begin : begin + _AT_ONCE]
        is_same = words == part[:, None]
        found = np.flatnonzero(is_same.any(axis=1))
        last = len(words) - 1 - is_same[found, ::-1].argmax(axis=1) if len(found) else found
        places = dict(zip(part[found].tolist(), last.tolist(), strict=True))
        taken = put_behind(taken, part.tolist(), places, max_taken)
    return taken


def put_behind(taken: bytes, items: Iterable[int], places: dict[int, int], max_taken: int) -> bytes:
    """What `taken_after` says; `places` are the last ones of those of the items that are there."""
    if not max_taken:
        return taken
    begin, end, added = 0, len(taken) // HASH_BYTES, []  # those before `begin` are dropped by then
    for item in items:
        if places.get(item, -1) < begin:
            places[item] = end
            end += 1
            begin = max(begin, end - max_taken)
            added.append(item)
    return b"".join((taken, struct.pack(f"<{len(added)}Q", *added)))[begin * HASH_BYTES :]


#: Reads the items of n consecutive events.
_ITEMS = [struct.Struct("<" + "Q32x" * n) for n in range(CHAIN_DEPTH + 1)]
#: The same with their offsets.
_LINKS = [struct.Struct("<" + "Q8xq16x" * n) for n in range(CHAIN_DEPTH + 1)]


def _items_before(events: bytes, at: int) -> list[int]:
    """Items of the last CHAIN_DEPTH events that end before byte `at`, newest first."""
    count = min(at // EVENT_BYTES, CHAIN_DEPTH)
    return list(_ITEMS[count].unpack_from(events, at - count * EVENT_BYTES)[::-1])


def _links_before(events: bytes, at: int) -> list[int]:
    """The same items, 0 in the place of those that came with a merged user."""
    count = min(at // EVENT_BYTES, CHAIN_DEPTH)
    found = _LINKS[count].unpack_from(events, at - count * EVENT_BYTES)
    return [
        0 if offset == MERGED_OFFSET else item
        for item, offset in zip(found[-2::-2], found[::-2], strict=True)
    ]


#: From so many bytes on, comparing all hashes at once is faster than searching for one.
_MANY_BYTES = 4096
#: So many items are looked for at once at most.
_AT_ONCE = 64
_HASHES = np.dtype("<u8")


def _find(hashes: bytes, wanted: bytes, step: int = HASH_BYTES) -> bool:
    """Whether one of the 8-byte hashes, `step` bytes apart, is the wanted one."""
    if len(hashes) >= _MANY_BYTES:
        words = np.frombuffer(hashes, _HASHES)[:: step // HASH_BYTES]
        return bool(np.count_nonzero(words == np.frombuffer(wanted, _HASHES)))
    at = hashes.find(wanted)
    while at >= 0 and at % step:
        at = hashes.find(wanted, at + 1)
    return at >= 0


#: Joins tenant, kind and id in a row's key.
_SEPARATOR = "\x1f"


def row_key(tenant: str, is_known: bool, owner: str) -> bytes:
    """The key of a user's row: known and anonymous users, and tenants, never share one."""
    return key_beginning(tenant, is_known) + owner.encode()


def split_row_key(key: bytes) -> tuple[str, bool, str]:
    """Tenant, whether the user is known, and id of a row's key."""
    tenant, kind, owner = key.decode().split(_SEPARATOR, 2)
    return tenant, kind == "u", owner


@lru_cache(maxsize=1024)
def key_beginning(tenant: str, is_known: bool) -> bytes:
    """What comes before the user's id in a row's key."""
    return f"{tenant}{_SEPARATOR}{'u' if is_known else 'a'}{_SEPARATOR}".encode()
