"""Tell which records of user-events are events, whose, and what they must do.

Written anew from the schemas, in plain Python, and not taken from the worker: the two must agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from kafka.partitioner import murmur2

from export.event_types import EventRole
from stream.settings import Settings
from stream.verify.merges import (
    PART_SCHEMA,
    REQUEST_SCHEMA,
    MergePart,
    MergeRequest,
    are_events,
    are_ids,
    are_taken,
    part_of,
    request_of,
)

_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SCENARIO = re.compile(r"[a-z][a-z0-9_-]{0,31}")
#: Rows know an id at this time at the latest.
LATEST_MS = 2**62
_MAX_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class Event:
    """A valid event of a user, at the place where it counts."""

    user: tuple[str, str, str]  # tenant, u or a, id
    event_id: str
    type: str
    time_ms: int
    item_id: str | None
    value: float
    portion: float
    session_id: str | None
    role: EventRole
    makes_due: bool
    said_ms: int  # the time that its producer gave it


@dataclass(frozen=True, slots=True)
class Control:
    """What a user asks of the engine, at the place where it counts."""

    user: tuple[str, str, str]  # tenant, u, id
    event_id: str
    type: str
    time_ms: int
    target: str | None
    until_ms: int | None
    from_anonymous_id: str | None = None


Judged = Event | Control | MergeRequest | MergePart


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that belongs on dead-letters."""

    reason: str


@dataclass(frozen=True, slots=True)
class SentOn:
    """A record that belongs to another key or partition: it must be there again."""

    key: bytes


class EventRules:
    """Judges records of a user-events topic of so many partitions."""

    def __init__(self, settings: Settings, partitions: int) -> None:
        self._settings = settings
        self._partitions = partitions
        self._partition_of_key: dict[bytes, int] = {}

    def judge(self, record: Any) -> Judged | Refused | SentOn | None:
        """What a record is; None: valid, and of a type that changes nothing."""
        try:
            fields = self._fields(record)
        except _RefusedError as refused:
            return Refused(str(refused))
        known = "user_id" in fields and fields.get("schema") != REQUEST_SCHEMA
        owner = fields["user_id"] if known else fields["anonymous_id"]
        key = owner.encode()
        if record.key != key:
            return SentOn(key)
        if fields.get("schema") in _OF_SCHEMA:
            return self._wish(fields, key, record)
        role = self._settings.role_of(fields["type"])
        if role is None or role.role in ("impression", "ignored"):
            return None
        if self.partition_of(key) != record.partition:
            return SentOn(key)
        return Event(
            (fields.get("tenant", "default"), "u" if known else "a", owner),
            fields["event_id"],
            fields["type"],
            min(fields["event_time"], record.timestamp),
            fields.get("item_id"),
            float(fields.get("value", math.nan)),
            float(fields.get("portion", math.nan)),
            fields.get("session_id"),
            role,
            role.refreshes and fields.get("scenario", "home") == "home",
            min(fields["event_time"], LATEST_MS),
        )

    def _wish(self, fields: dict[str, Any], key: bytes, record: Any) -> Judged | SentOn:
        if self.partition_of(key) != record.partition:
            return SentOn(key)
        time_ms = min(fields["event_time"], record.timestamp)
        if fields["schema"] == REQUEST_SCHEMA:
            return request_of(fields, time_ms)
        if fields["schema"] == PART_SCHEMA:
            return part_of(fields, time_ms, record.timestamp)
        return Control(
            (fields.get("tenant", "default"), "u", fields["user_id"]),
            fields["event_id"],
            fields["type"],
            time_ms,
            fields.get("target"),
            fields.get("until"),
            fields.get("from_anonymous_id"),
        )

    def partition_of(self, key: bytes) -> int:
        """Where Kafka's default partitioner puts a key."""
        partition = self._partition_of_key.get(key)
        if partition is None:
            partition = (murmur2(key) & 0x7FFFFFFF) % self._partitions
            self._partition_of_key[key] = partition
        return partition

    def _fields(self, record: Any) -> dict[str, Any]:
        if record.value is None or record.key is None:
            raise _RefusedError("no key or no value")
        if len(record.value) > self._settings.max_event_bytes:
            raise _RefusedError("too long")
        fields = _decode(record.value)
        schema = fields["schema"] if type(fields.get("schema")) is str else ""
        _see_fields(fields, *_OF_SCHEMA.get(schema, _OF_EVENT))
        if fields["event_time"] > record.timestamp + self._settings.max_future_ms:
            raise _RefusedError("in the future")
        if schema in _OF_SCHEMA:
            if schema == _CONTROL_SCHEMA:
                _see_wish(fields)
            return fields
        if "user_id" not in fields and "anonymous_id" not in fields:
            raise _RefusedError("no owner")
        role = self._settings.role_of(fields["type"])
        if role and role.role in ("positive", "negative") and "item_id" not in fields:
            raise _RefusedError("no item")
        return fields


class _RefusedError(Exception):
    pass


def _see_wish(fields: dict[str, Any]) -> None:
    if fields["type"] in _WITH_TARGET and "target" not in fields:
        raise _RefusedError("no target")
    if fields["type"] == "user_merge" and "from_anonymous_id" not in fields:
        raise _RefusedError("no from_anonymous_id")


def _see_fields(
    fields: dict[str, Any],
    needed: dict[str, Callable[[Any], bool]],
    optional: dict[str, Callable[[Any], bool]],
) -> None:
    for name, is_valid in needed.items():
        if name not in fields or not is_valid(fields[name]):
            raise _RefusedError(name)
    for name, is_valid in optional.items():
        if name in fields and not is_valid(fields[name]):
            raise _RefusedError(name)


def _decode(value: bytes) -> dict[str, Any]:
    try:
        # a field that nobody reads may hold anything: what is read is looked at in _is_text
        fields = json.loads(value.decode("utf-8", "surrogateescape"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _RefusedError(str(error)) from error
    if not isinstance(fields, dict):
        raise _RefusedError("no object")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_text(least: int, most: int) -> Callable[[Any], bool]:
    def is_valid(value: Any) -> bool:
        if not isinstance(value, str) or not least <= len(value) <= most:
            return False
        return not any("\ud800" <= character <= "\udfff" for character in value)

    return is_valid


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(_float(value))


def _is_float32(value: Any) -> bool:
    return _is_number(value) and abs(_float(value)) <= _MAX_FLOAT32


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_object(
    needed: dict[str, Callable[[Any], bool]], optional: dict[str, Callable[[Any], bool]]
) -> Callable[[Any], bool]:
    def is_valid(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value and check(value[name]) for name, check in needed.items())
            and all(check(value[name]) for name, check in optional.items() if name in value)
        )

    return is_valid


_is_id = _is_text(1, 256)
_is_listed_item = _is_object(
    {"item_id": _is_id},
    {
        "position": _is_count,
        "visible_ms": _is_count,
        "quantity": _is_number,
        "price": _is_number,
    },
)


def _is_items(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 200 and all(map(_is_listed_item, value))


def _is_context(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 32
        and all(_is_text(0, 2**31)(name) for name in value)
        and all(
            v is None or type(v) is bool or _is_number(v) or _is_text(0, 2**31)(v)
            for v in value.values()
        )
    )


_NEEDED: dict[str, Callable[[Any], bool]] = {
    "event_id": _is_text(8, 64),
    "type": _matches(_TYPE),
    "event_time": _is_count,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "user_id": _is_id,
    "anonymous_id": _is_id,
    "item_id": _is_id,
    "tenant": _matches(_TENANT),
    "schema": lambda value: value == "driftline.event/1",
    "session_id": _is_text(0, 128),
    "items": _is_items,
    "sent_time": _is_count,
    "value": _is_float32,
    "portion": _is_share,
    "rec": _is_object({"rec_id": _is_text(0, 64)}, {"position": _is_count}),
    "query": _is_text(0, 1024),
    "scenario": _matches(_SCENARIO),
    "context": _is_context,
    "consent": lambda value: value in ("full", "session", "none"),
    "source": _is_text(0, 128),
}
_OF_EVENT = _NEEDED, _OPTIONAL

_CONTROL_SCHEMA = "driftline.control/1"
_WITH_TARGET = ("item_block", "category_mute", "creator_block")
#: Those that workers do; the others are refused.
_CONTROL_TYPES = (
    *_WITH_TARGET,
    "user_delete",
    "user_opt_out",
    "user_opt_in",
    "user_merge",
    "history_reset",
)
_OF_CONTROL: tuple[dict[str, Callable[[Any], bool]], dict[str, Callable[[Any], bool]]] = (
    _NEEDED | {"type": lambda value: value in _CONTROL_TYPES, "user_id": _is_id},
    {
        "tenant": _matches(_TENANT),
        "from_anonymous_id": _is_id,
        "target": _is_id,
        "until": _is_count,
        "request_id": _is_text(0, 64),
    },
)
_OF_MERGE: dict[str, Callable[[Any], bool]] = {
    "event_id": _is_text(8, 64),
    "event_time": _is_count,
    "asked_offset": _is_count,
}
_OF_SCHEMA = {
    _CONTROL_SCHEMA: _OF_CONTROL,
    REQUEST_SCHEMA: (
        _OF_MERGE | {"anonymous_id": _is_id, "into_user_id": _is_id},
        {"tenant": _matches(_TENANT)},
    ),
    PART_SCHEMA: (
        _OF_MERGE
        | {
            "user_id": _is_id,
            "from_anonymous_id": _is_id,
            "request_id": _is_text(8, 64),
            "request_offset": _is_count,
            "part": _is_count,
        },
        {
            "tenant": _matches(_TENANT),
            "events": are_events,
            "taken": are_taken,
            "ids": are_ids,
        },
    ),
}
