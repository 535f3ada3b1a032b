"""Lay out a user's row as bytes, and bring rows of older layouts to the newest one.

Version 3, which is written: 8-byte aligned words, little-endian, so that rows of many users can be
gathered as columns. `HEADER` (9 words); the events (5 words each, `EVENT`); the ring of event ids
(2 words each: hash, event time in ms as its producer gave it), the oldest first; one word each:
hashes of items taken beyond the history, of items served last, the last rec_ids; what the user does
not want listed (3 words each, `FILTER`).

Versions 1 and 2 can be read. Their rings hold other hashes, without times, and only version 2 has
`silent_until` and filters.
"""

from __future__ import annotations

import struct

import numpy as np

from export.errors import DriftlineError

CODEC_VERSION = 3
#: version, flags, then counts: events, ids in the ring, taken items, served items, rec_ids,
#: filters, and all events ever folded; fingerprint, applied offset, seq, newest event time, request
#: time of the newest list, digest of interests, up to which source offset nothing is listed.
HEADER = struct.Struct("<BBHHHBBHIQqQqqQq")
#: The same, to read headers of many rows at once.
HEADER_DTYPE = np.dtype(
    [
        ("version", "u1"),
        ("flags", "u1"),
        ("events", "<u2"),
        ("ring", "<u2"),
        ("taken", "<u2"),
        ("served", "u1"),
        ("rec_ids", "u1"),
        ("filters", "<u2"),
        ("events_total", "<u4"),
        ("source", "<u8"),
        ("applied_offset", "<i8"),
        ("seq", "<u8"),
        ("newest_ms", "<i8"),
        ("list_ms", "<i8"),
        ("interests_digest", "<u8"),
        ("silent_until", "<i8"),
    ]
)
#: One event of a history. A missing value or portion is NaN, a missing session 0. `offset` is that
#: on the user's partition, MERGED_OFFSET for one that came with a merged user.
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
MERGED_OFFSET = -1
EVENT_STRUCT = struct.Struct("<QqqffII")
EVENT_BYTES = EVENT_STRUCT.size
#: One thing that is not to be listed: kind, hash of its name, time in ms at which this ends.
FILTER = struct.Struct("<Q8sq")
HASH_BYTES = 8
#: An entry of the ring: hash of an event id, as XXH3 writes it, and the event's time in ms as its
#: producer gave it.
RING_ENTRY = np.dtype([("hash", ">u8"), ("time_ms", "<i8")])
RING_ENTRY_STRUCT = struct.Struct("<8sq")
RING_ENTRY_BYTES = RING_ENTRY_STRUCT.size
#: The latest time in the ring, whatever a producer says.
LATEST_MS = 2**62
#: Stands for the time of an id of which none was kept: such an entry leaves the ring by count.
UNTIMED = (2**63 - 1).to_bytes(8, "little")
#: Bits of a header's flags: a list of this user is postponed; the ring holds ids of versions 1, 2.
POSTPONED, OLD_IDS = 1, 2

_OLD_VERSIONS = (1, 2)
_OLD_HEADER = struct.Struct("<BBHHHHHIQqQqqQ")
#: At the end of version 2: `silent_until`, and how many filters follow.
_OLD_CONTROLS = struct.Struct("<qH")
_OLD_FILTER = struct.Struct("<B8sq")


class RowError(DriftlineError):
    """A stored row cannot be read as this worker's."""


def is_postponed(data: bytes) -> bool:
    """Whether a stored row of any version says that a list is postponed; reads nothing else."""
    return bool(data[1] & POSTPONED)


def as_newest(data: bytes) -> bytes:
    """A row of an older version as it is written now; ids in its ring get UNTIMED.

    Raises RowError for bytes of no version that is known, or of another length than they tell.
    """
    if not data or data[0] not in _OLD_VERSIONS or len(data) < _OLD_HEADER.size:
        known = ", ".join(map(str, _OLD_VERSIONS))
        raise RowError(
            f"wanted a row of codec version {known} or {CODEC_VERSION}, got {data[:1].hex()!r} "
            f"and {len(data)} bytes; run the version that wrote it, or rebuild the state"
        )
    version, flags, n_events, n_ring, n_taken, n_served, n_rec_ids, *numbers = (
        _OLD_HEADER.unpack_from(data)
    )
    ring_begin = _OLD_HEADER.size + n_events * EVENT_BYTES
    ring_end = ring_begin + n_ring * HASH_BYTES
    end = ring_end + (n_taken + n_served + n_rec_ids) * HASH_BYTES
    silent_until, filters, whole = -1, b"", end
    if version == 2:
        silent_until, filters, whole = _old_controls(data, end)
    see_length(data, whole)
    ring = b"".join(
        data[at : at + HASH_BYTES] + UNTIMED for at in range(ring_begin, ring_end, HASH_BYTES)
    )
    header = HEADER.pack(
        CODEC_VERSION,
        flags | (OLD_IDS if n_ring else 0),
        n_events,
        n_ring,
        n_taken,
        n_served,
        n_rec_ids,
        len(filters) // FILTER.size,
        *numbers,
        silent_until,
    )
    events, hashes = data[_OLD_HEADER.size : ring_begin], data[ring_end:end]
    return b"".join((header, events, ring, hashes, filters))


def see_length(data: bytes, wanted: int) -> None:
    """Raises RowError for a row that is not as long as it tells."""
    if len(data) != wanted:
        raise RowError(
            f"wanted a row of {wanted} bytes, got {len(data)}; the state is damaged: remove the "
            "data directory, it is rebuilt from the changelog"
        )


def _old_controls(data: bytes, at: int) -> tuple[int, bytes, int]:
    """What version 2 has at byte `at`, filters as they are written now, and where it ends.

    The end of cut bytes is put behind theirs.
    """
    begin = at + _OLD_CONTROLS.size
    if begin > len(data):
        return -1, b"", begin
    silent_until, count = _OLD_CONTROLS.unpack_from(data, at)
    end = begin + count * _OLD_FILTER.size
    if end > len(data):
        return -1, b"", end
    kept = b"".join(FILTER.pack(*one) for one in _OLD_FILTER.iter_unpack(data[begin:end]))
    return silent_until, kept, end
