"""Keep one user's state in a few kilobytes of bytes, and fold one event into it.

A row holds the newest events of a user in event-time order, what is needed to apply every event
exactly once (the last applied source offset, a ring of event ids), the sequence number of the
user's lists, and the items taken before the history begins. Folding an event costs a slice and a
concatenation of bytes; nothing is decoded that is not needed.

Layout, version 1, little-endian: `_HEADER`, then the events (40 bytes each, `EVENT`), then 64-bit
hashes: the dedupe ring, items taken beyond the history, items served last, the last rec_ids.
Version 2 has `_CONTROLS` after that, and what the user does not want listed (17 bytes each,
`FILTER`). A row is written in it only when the user has asked for something of that kind.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.errors import DriftlineError
from export.statistics import CHAIN_DEPTH

#: Without and with what the user has asked for in control events.
PLAIN_VERSION, CONTROLS_VERSION = 1, 2

#: One event of a history. A missing value or portion is NaN, a missing session 0.
EVENT = np.dtype(
    [
        ("item", "<u8"),
        ("time_ms", "<i8"),
        ("offset", "<i8"),
        ("value", "<f4"),
        ("portion", "<f4"),
        ("session", "<u4"),
        ("type", "<u4"),
    ]
)
_EVENT = struct.Struct("<QqqffII")
_EVENT_BYTES = _EVENT.size
_HEADER = struct.Struct("<BBHHHHHIQqQqqQ")
#: Up to which source offset nothing may be listed, and how many filters follow.
_CONTROLS = struct.Struct("<qH")
#: One thing that is not to be listed: kind, hash of its name, time in ms at which this ends.
FILTER = struct.Struct("<B8sq")
_HASH_BYTES = 8
#: A `silent_until` above every offset: the user has opted out.
OPTED_OUT = 2**63 - 1
#: The bit of a header's flags that says: a list of this user is postponed.
_POSTPONED = 1
#: Lists of a user whose ids and first items the row remembers.
MAX_REC_IDS = 4
MAX_SERVED = 20


class RowError(DriftlineError):
    """A stored row cannot be read as this worker's."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How much a row keeps; with it a row stays below about 90 kB at the largest settings."""

    max_history: int = 50
    max_taken: int = 2000
    dedupe_ring: int = 64


def hash64(text: str) -> bytes:
    """The 8 bytes by which a row knows an event id."""
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


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


class UserRow:
    """The state of one user. Starts empty; `decode` reads a stored one."""

    __slots__ = (
        "applied_offset",
        "events",
        "events_total",
        "filters",
        "fingerprint",
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
        self.newest_ms = 0
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
        if len(data) < _HEADER.size or data[0] not in (PLAIN_VERSION, CONTROLS_VERSION):
            raise RowError(
                f"wanted a row of codec version {PLAIN_VERSION} or {CONTROLS_VERSION}, got "
                f"{data[:1].hex()!r} and {len(data)} bytes; run the version that wrote it, or "
                "rebuild the state"
            )
        row = cls(fingerprint)
        _, flags, n_events, n_ring, n_taken, n_served, n_rec_ids, total, source, *rest = (
            _HEADER.unpack_from(data)
        )
        if source != fingerprint:
            raise RowError(
                "a row belongs to another topic or partition count than user-events has now; "
                "wanted the topic this state was built from: give the worker another prefix or "
                "group, or remove its data directory and changelog to start anew"
            )
        row.events_total = total
        row.applied_offset, row.seq, row.newest_ms, row.list_ms, row.interests_digest = rest
        row.is_postponed = bool(flags & _POSTPONED)
        begin, end = _HEADER.size, _HEADER.size + n_events * _EVENT_BYTES
        row.events = data[begin:end]
        begin, end = end, end + n_ring * _HASH_BYTES
        row.ring = data[begin:end]
        begin, end = end, end + n_taken * _HASH_BYTES
        row.taken = data[begin:end]
        begin, end = end, end + n_served * _HASH_BYTES
        row.served = data[begin:end]
        begin, end = end, end + n_rec_ids * _HASH_BYTES
        row.rec_ids = data[begin:end]
        if data[0] == CONTROLS_VERSION:
            end = row._read_controls(data, end)
        if end != len(data):
            raise RowError(
                f"wanted a row of {end} bytes, got {len(data)}; the state is damaged: remove the "
                "data directory, it is rebuilt from the changelog"
            )
        return row

    def encode(self) -> bytes:
        """The row as bytes; `decode` gives the same row back."""
        version = self.codec_version
        header = _HEADER.pack(
            version,
            _POSTPONED if self.is_postponed else 0,
            len(self.events) // _EVENT_BYTES,
            len(self.ring) // _HASH_BYTES,
            len(self.taken) // _HASH_BYTES,
            len(self.served) // _HASH_BYTES,
            len(self.rec_ids) // _HASH_BYTES,
            self.events_total,
            self.fingerprint,
            self.applied_offset,
            self.seq,
            self.newest_ms,
            self.list_ms,
            self.interests_digest,
        )
        data = (header, self.events, self.ring, self.taken, self.served, self.rec_ids)
        if version == PLAIN_VERSION:
            return b"".join(data)
        controls = _CONTROLS.pack(self.silent_until, len(self.filters) // FILTER.size)
        return b"".join((*data, controls, self.filters))

    @property
    def codec_version(self) -> int:
        """The version in which this row is written."""
        return CONTROLS_VERSION if self.filters or self.silent_until >= 0 else PLAIN_VERSION

    def __len__(self) -> int:
        """Events in the history."""
        return len(self.events) // _EVENT_BYTES

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

    def has_event(self, event_hash: bytes) -> bool:
        """Whether an event with this id is in the ring."""
        return _find(self.ring, event_hash)

    def fold(self, event: HistoryEvent, limits: RowLimits) -> list[int]:
        """Put an event into the history, at its place in (event time, offset) order.

        The caller has seen to it that the event is new: its offset is above `applied_offset` and
        its id is not in the ring.

        Returns: hashes of the up to CHAIN_DEPTH items before it, newest first.
        """
        event_hash, item, time_ms, offset, kind, value, portion, session = event
        packed = _EVENT.pack(item, time_ms, offset, value, portion, session, kind)
        events = self.events
        at = len(events)
        if time_ms < self.newest_ms:
            place = np.searchsorted(self.history()["time_ms"], time_ms, side="right")
            at = int(place) * _EVENT_BYTES
            self.events = b"".join((events[:at], packed, events[at:]))
        else:
            self.newest_ms = time_ms
            self.events = events + packed
        self.events_total += 1
        self.applied_offset = offset
        most = limits.max_history * _EVENT_BYTES
        while len(self.events) > most:  # more than once where it was set lower
            self._drop_oldest(limits.max_taken)
        if limits.dedupe_ring:
            self.ring = (self.ring + event_hash)[-limits.dedupe_ring * _HASH_BYTES :]
        return _items_before(events, at)

    def forget_events(self) -> None:
        """Forget what the user did and was shown; the ring still knows what came before."""
        self.events = self.taken = self.served = b""
        self.events_total = self.newest_ms = self.interests_digest = 0

    def forget_user(self, offset: int) -> None:
        """Forget all but `seq` and how far the source is applied; `offset` is that of the wish.

        Events up to it make no list due from now on, also when they are read again after a crash.
        """
        self.forget_events()
        self.ring = self.rec_ids = self.filters = b""
        self.list_ms = 0
        self.is_postponed = False
        self.silent_until = offset

    def served_list(self, rec_id: bytes, items: NDArray[np.uint64]) -> None:
        """Remember a list that is about to be sent: its id (8 bytes) and its first items."""
        self.served = items[:MAX_SERVED].astype("<u8").tobytes()
        self.rec_ids = (self.rec_ids + rec_id)[-MAX_REC_IDS * _HASH_BYTES :]

    def _read_controls(self, data: bytes, at: int) -> int:
        """Read what version 2 has after version 1, at byte `at`; returns where it ends.

        The end of cut bytes is put behind theirs, for `decode` to refuse.
        """
        begin = at + _CONTROLS.size
        if begin > len(data):
            return begin
        n_filters: int
        self.silent_until, n_filters = _CONTROLS.unpack_from(data, at)
        end = begin + n_filters * FILTER.size
        self.filters = data[begin:end]
        return end

    def _drop_oldest(self, max_taken: int) -> None:
        item = self.events[:_HASH_BYTES]
        self.events = self.events[_EVENT_BYTES:]
        if max_taken and not _find(self.taken, item):
            self.taken = (self.taken + item)[-max_taken * _HASH_BYTES :]


#: Reads the items of n consecutive events.
_ITEMS = [struct.Struct("<" + "Q32x" * n) for n in range(CHAIN_DEPTH + 1)]


def _items_before(events: bytes, at: int) -> list[int]:
    """Items of the last CHAIN_DEPTH events that end before byte `at`, newest first."""
    count = min(at // _EVENT_BYTES, CHAIN_DEPTH)
    return list(_ITEMS[count].unpack_from(events, at - count * _EVENT_BYTES)[::-1])


#: From so many bytes on, comparing all hashes at once is faster than searching for one.
_MANY_BYTES = 4096
_HASHES = np.dtype("<u8")


def _find(hashes: bytes, wanted: bytes) -> bool:
    """Whether one of the 8-byte hashes is the wanted one."""
    if len(hashes) >= _MANY_BYTES:
        return bool(
            np.count_nonzero(np.frombuffer(hashes, _HASHES) == np.frombuffer(wanted, _HASHES))
        )
    at = hashes.find(wanted)
    while at >= 0 and at % _HASH_BYTES:
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


def is_postponed(data: bytes) -> bool:
    """Whether a stored row says that a list is postponed; reads nothing else of it."""
    return bool(data[1] & _POSTPONED)


@lru_cache(maxsize=1024)
def key_beginning(tenant: str, is_known: bool) -> bytes:
    """What comes before the user's id in a row's key."""
    return f"{tenant}{_SEPARATOR}{'u' if is_known else 'a'}{_SEPARATOR}".encode()
