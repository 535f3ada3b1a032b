"""Merge what an anonymous user did into a known user: three legs over two partitions, each once.

1. `user_merge` is folded on the known user's partition, and a `MergeRequest` is sent to the
   anonymous user's.
2. It is folded there: what the anonymous row holds is sent back as `MergePart`s, and forgotten. The
   row keeps its ring, so that what was folded before is not folded again.
3. A part is folded on the known user's partition: histories become one in event-time order, with
   what was taken and the newest ids. Nothing is counted in the statistics again.

A leg sends its records before its own row is written. So after a crash they are sent again, with
the ids that they had: they follow from the record that the leg has folded and from its offset. Each
id is folded once, and a row of the partition's says at which offset, for ever: the ring of a user
has forgotten it long before a lost changelog is built again, which has all legs sent once more. A
part whose user was deleted, has opted out or had the history erased after the merge was asked for
is passed over.

Whoever may write to user-events may send such records, too. They can do no more than the user's own
events and control events could: columns are checked, times of events set back to that of the
record, and an anonymous user's events can be taken away by a `user_merge` as well.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream.control import apply_control
from stream.events import ControlEvent, MergePart, MergeRequest, Wish, encode
from stream.history import OPTED_OUT, RowLimits, UserRow, id_hash
from stream.row_codec import (
    EVENT,
    EVENT_BYTES,
    HASH_BYTES,
    LATEST_MS,
    MERGED_OFFSET,
    RING_ENTRY_BYTES,
    RING_ENTRY_STRUCT,
    UNTIMED,
)

#: Keys of the rows that say where a leg was folded begin so; a hash of its user and id follows.
_LEG_KEY = b"\x00leg-"
_OFFSET = struct.Struct("<q")

#: Bytes of a part beside its columns, at the longest ids there can be.
_PART_BESIDE_BYTES = 4096
#: A column is sent as base64.
_BASE64 = 4 / 3
_COLUMNS = (("ids", RING_ENTRY_BYTES), ("taken", HASH_BYTES), ("events", EVENT_BYTES))


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """A record for user-events that a worker makes itself, under the key of its user.

    `sent_ms`, its timestamp, follows from the log: a worker's clock has no part in what is folded.
    """

    key: bytes
    value: bytes
    sent_ms: int


class Turn(NamedTuple):
    """An event's place in the log."""

    offset: int
    time_ms: int
    sent_ms: int  # the time of its record


def leg_key(row_key: bytes, event_id: str) -> bytes:
    """Key of the row that says where a leg came to the user of this row key."""
    which = row_key + b"\x1f" + event_id.encode()
    return _LEG_KEY + hashlib.blake2b(which, digest_size=16).digest()


def leg_row(key: bytes, offset: int) -> tuple[bytes, bytes]:
    """The row that says: this leg came at this offset, and is folded, or passed over, no more."""
    return key, _OFFSET.pack(offset)


def folded_at(row: bytes | None) -> int | None:
    """The offset that such a row says; None: the leg is new."""
    return None if row is None else int(_OFFSET.unpack(row)[0])


def part_refusal(part: MergePart) -> str:
    """Why a well-formed part cannot be folded; empty where it can."""
    for name, size in _COLUMNS:
        if len(getattr(part, name)) % size:
            return f"{name} of a merge are no whole entries of {size} bytes"
    events = np.frombuffer(part.events, dtype=EVENT)
    ids_ms = np.frombuffer(part.ids, dtype="<i8")[1::2]
    if (events["time_ms"] < 0).any() or (ids_ms < 0).any():
        return "a time of a merge is before 1970"
    portions = events["portion"]
    if np.isinf(events["value"]).any() or ((portions < 0) | (portions > 1)).any():
        return "a value or portion of a merge is none that an event can have"
    return ""


def fold_wish(
    row: UserRow, wish: Wish, turn: Turn, limits: RowLimits, max_event_bytes: int
) -> list[OwnRecord]:
    """Change a row as a control event, or a leg of a merge, says; gives the records to be sent.

    The caller has seen to it that the event is new, a part not overtaken, and to the row's offset.
    """
    if isinstance(wish, MergeRequest):
        return _hand_over(row, wish, turn, limits, max_event_bytes)
    if isinstance(wish, MergePart):
        _take_over(row, wish, turn, limits)
        return []
    asks_to_merge = wish.type == "user_merge" and row.silent_until != OPTED_OUT
    apply_control(row, wish, turn.time_ms, turn.offset, limits)
    return [_request(wish, turn)] if asks_to_merge else []


def is_overtaken_by(row: UserRow, wish: Wish, offset: int) -> bool:
    """Whether the user was forgotten, or has opted out, after a wish or while it was on its way."""
    asked_offset = wish.asked_offset if isinstance(wish, MergePart) else offset
    return min(asked_offset, offset) <= row.silent_until


def _request(event: ControlEvent, turn: Turn) -> OwnRecord:
    anonymous = str(event.from_anonymous_id)
    request = MergeRequest(
        "driftline.merge-request/1",
        _id_of(event.tenant, anonymous, event.user_id, event.event_id, str(turn.offset)),
        turn.time_ms,
        anonymous,
        event.user_id,
        turn.offset,
        event.tenant,
    )
    return OwnRecord(anonymous.encode(), encode(request), turn.sent_ms)


def _hand_over(
    row: UserRow, request: MergeRequest, turn: Turn, limits: RowLimits, max_event_bytes: int
) -> list[OwnRecord]:
    """What a row holds, as parts of which none is too large to be folded; the row forgets it.

    Of the ids only the newest, half of a ring: they must not drive out all that the other row
    knows.
    """
    at = max(len(row.ring) - limits.dedupe_ring // 2 * RING_ENTRY_BYTES, 0)
    ids = [row.ring[i : i + RING_ENTRY_BYTES] for i in range(at, len(row.ring), RING_ENTRY_BYTES)]
    timed = b"".join(entry for entry in ids if entry[HASH_BYTES:] != UNTIMED)
    columns = {"ids": timed, "taken": row.taken, "events": row.events}
    most = int((max_event_bytes - _PART_BESIDE_BYTES) / _BASE64)
    parts = [
        MergePart(
            "driftline.merge-part/1",
            _id_of(request.event_id, str(turn.offset), str(number)),
            turn.time_ms,
            request.into_user_id,
            request.anonymous_id,
            request.asked_offset,
            request.event_id,
            turn.offset,
            number,
            request.tenant,
            **piece,
        )
        for number, piece in enumerate(_pieces(columns, most) if row.taken or row.events else ())
    ]
    sent_ms = max(turn.sent_ms, row.newest_ms)  # not before what they hold, which it would cut
    row.forget_events()
    row.rec_ids, row.list_ms, row.is_postponed = b"", 0, False
    row.silent_until = turn.offset
    row.remember(id_hash(request.event_id), max(turn.time_ms, row.newest_ms), limits)
    return [OwnRecord(part.user_id.encode(), encode(part), sent_ms) for part in parts]


def _pieces(columns: dict[str, bytes], most: int) -> list[dict[str, bytes]]:
    """Columns cut between entries, one after another, into pieces of at most so many bytes."""
    pieces: list[dict[str, bytes]] = [{}]
    left = most
    for name, size in _COLUMNS:
        data = columns[name]
        while data:
            if left < size:
                pieces.append({})
                left = most
            fits = left // size * size
            pieces[-1][name], data = data[:fits], data[fits:]
            left -= len(pieces[-1][name])
    return pieces


def _take_over(row: UserRow, part: MergePart, turn: Turn, limits: RowLimits) -> None:
    """Put a part into a row.

    No later event is linked with what came so in the statistics: a reader of the known user's
    deltas need not have met the other partition's items by then.
    """
    events = np.frombuffer(part.events, dtype=EVENT).copy()
    events["time_ms"] = np.minimum(events["time_ms"], turn.sent_ms)
    events["offset"] = MERGED_OFFSET
    row.take_over(events, part.taken, limits)
    for hashed, id_ms in RING_ENTRY_STRUCT.iter_unpack(part.ids):
        row.remember(hashed, min(id_ms, LATEST_MS), limits)
    row.remember(id_hash(part.event_id), max(turn.time_ms, row.newest_ms), limits)
    row.served = b""  # so that the next list is sent, however much it is like the last one


def _id_of(*parts: str) -> str:
    """An event id that follows from these."""
    return "merge-" + hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()
