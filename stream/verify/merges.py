"""Tell the records by which workers merge users; see that each merge has all that belongs to it."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stream.verify.report import Check

User = tuple[str, str, str]  # tenant, u or a, id

REQUEST_SCHEMA, PART_SCHEMA = "driftline.merge-request/1", "driftline.merge-part/1"
#: Columns of a part: item, time, offset, value, portion, session, type; an item; an id, its time.
_EVENT, _HASH, _SEEN = struct.Struct("<QqqffII"), struct.Struct("<8s"), struct.Struct("<8sq")


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """A worker asks an anonymous user to hand over to a known one."""

    user: User
    event_id: str
    time_ms: int
    into: User
    asked_offset: int


@dataclass(frozen=True, slots=True)
class MergePart:
    """What an anonymous user hands over, or a part of it."""

    user: User
    event_id: str
    time_ms: int
    sent_ms: int  # no time counts that is after it
    asked_offset: int
    request: tuple[str, int]  # id, offset
    number: int
    events: tuple[bytes, ...]
    taken: tuple[bytes, ...]
    ids: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Given:
    """What an anonymous user had to hand over."""

    events: tuple[bytes, ...]
    taken: tuple[bytes, ...]
    ids: tuple[tuple[bytes, int], ...]


@dataclass(slots=True)
class Merges:
    """What must be on the log, by the request's id, and its offset where it was folded."""

    asked: dict[str, tuple[User, User, int]] = field(default_factory=dict)  # who, into, offset
    given: dict[tuple[str, int], Given] = field(default_factory=dict)


@dataclass(slots=True)
class MergeLog:
    """What is on the log; of records with the same id the first."""

    requests: dict[str, MergeRequest] = field(default_factory=dict)
    parts: dict[tuple[str, int], dict[int, MergePart]] = field(default_factory=dict)

    def take(self, record: MergeRequest | MergePart) -> None:
        """Take note of the next one."""
        if isinstance(record, MergeRequest):
            self.requests.setdefault(record.event_id, record)
        else:
            self.parts.setdefault(record.request, {}).setdefault(record.number, record)


def check_merges(log: MergeLog, expected: Merges) -> Check:
    """Each merge that was asked for has its request, and each request the parts that it must."""
    check = Check("merges", "requests", len(expected.asked))
    for event_id, (user, into, offset) in expected.asked.items():
        request = log.requests.get(event_id)
        if request is None:
            check.lose(f"user {user} was not asked to hand over to {into}")
        elif (request.user, request.into, request.asked_offset) != (user, into, offset):
            check.miss(f"request {event_id} is not of user {user} and offset {offset} of {into}")
    for event_id in log.requests.keys() - expected.asked.keys():
        check.miss(f"request {event_id} belongs to no merge")
    for where, given in expected.given.items():
        parts = log.parts.get(where, {})
        found = [parts.get(number) for number in range(len(parts))]
        if _together(found) != (given if given.events or given.taken else Given((), (), ())):
            check.lose(f"{len(parts)} parts of request {where} are not what its user had")
    for where in log.parts.keys() - expected.given.keys():
        check.miss(f"parts of request {where}, which was not folded there")
    return check


def _together(parts: list[MergePart | None]) -> Given:
    events: list[bytes] = []
    taken: list[bytes] = []
    ids: list[tuple[bytes, int]] = []
    for part in parts:
        if part is not None:
            events += part.events
            taken += part.taken
            ids += part.ids
    return Given(tuple(events), tuple(taken), tuple(ids))


def request_id(user: User, into: User, event_id: str, offset: int) -> str:
    """The id of the request that follows from a `user_merge` at an offset."""
    text = "\x1f".join((user[0], user[2], into[2], event_id, str(offset)))
    return "merge-" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def request_of(fields: dict[str, Any], time_ms: int) -> MergeRequest:
    """A request, of fields that are right."""
    tenant = fields.get("tenant", "default")
    return MergeRequest(
        (tenant, "a", fields["anonymous_id"]),
        fields["event_id"],
        time_ms,
        (tenant, "u", fields["into_user_id"]),
        fields["asked_offset"],
    )


def part_of(fields: dict[str, Any], time_ms: int, sent_ms: int) -> MergePart:
    """A part, of fields that are right."""
    events = _bytes(fields.get("events", ""))
    taken = _bytes(fields.get("taken", ""))
    return MergePart(
        (fields.get("tenant", "default"), "u", fields["user_id"]),
        fields["event_id"],
        time_ms,
        sent_ms,
        fields["asked_offset"],
        (fields["request_id"], fields["request_offset"]),
        fields["part"],
        tuple(events[at : at + _EVENT.size] for at in range(0, len(events), _EVENT.size)),
        tuple(taken[at : at + 8] for at in range(0, len(taken), 8)),
        tuple(_SEEN.iter_unpack(_bytes(fields.get("ids", "")))),
    )


def are_events(value: Any) -> bool:
    """Whether a field holds events such as a row can have."""
    return _are_entries(value, _EVENT, _is_event)


def are_taken(value: Any) -> bool:
    """Whether a field holds hashes of items."""
    return _are_entries(value, _HASH, lambda item: True)


def are_ids(value: Any) -> bool:
    """Whether a field holds event ids with their times."""
    return _are_entries(value, _SEEN, lambda hashed, ms: ms >= 0)


def _are_entries(value: Any, kind: struct.Struct, fits: Callable[..., bool]) -> bool:
    try:
        return all(fits(*entry) for entry in kind.iter_unpack(_bytes(value)))
    except (ValueError, TypeError, struct.error):
        return False


def _is_event(item: int, ms: int, offset: int, value: float, portion: float, *_: int) -> bool:
    return ms >= 0 and not math.isinf(value) and (math.isnan(portion) or 0 <= portion <= 1)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
