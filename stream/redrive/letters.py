"""Tell what a record of dead-letters says, and whether it can be sent again, and under which key.

Pure: records in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from stream.dead_letters import MAX_KEPT_BYTES
from stream.settings import Settings

#: Header of a record that was sent again: topic/partition/offset of the one that was refused.
REDRIVEN_FROM = "redriven-from"
#: Reasons of these beginnings are given by stream.refused and stream.state.
_REFUSED_BATCH = "the batch of offsets "
_UNSUPPORTED_CONTROL = "not supported yet: control event"


@dataclass(frozen=True, slots=True)
class Letter:
    """What is said of a refused record, without its bytes; there may be many."""

    partition: int  # of dead-letters
    offset: int
    written_ms: int
    reason: str
    topic: str  # where it was refused
    origin: str  # topic/partition/offset there; a crash may make two letters of one record
    value_bytes: int  # of the whole value
    obstacle: str  # why it cannot be sent again; empty if it can

    @property
    def position(self) -> str:
        """Where the letter lies, PARTITION:OFFSET."""
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters are meant."""

    reason: str = ""  # a part of it, in any case
    topic: str = ""  # the full name
    since_ms: int = 0

    def takes(self, letter: Letter) -> bool:
        """Whether it is one of them."""
        return (
            letter.written_ms >= self.since_ms
            and (not self.topic or letter.topic == self.topic)
            and self.reason.lower() in letter.reason.lower()
        )


class _Event(Struct, gc=False):
    """Whose event it is; the rest may be anything."""

    user_id: str | UnsetType = UNSET
    anonymous_id: str | UnsetType = UNSET


class _Schema(Struct, gc=False):
    """What kind of message it is."""

    schema: str


class _Item(Struct, gc=False):
    item_id: str


def letter_of(record: Any, settings: Settings) -> Letter | None:
    """What a record of dead-letters says; None for one that no worker wrote."""
    told = headers_of(record.headers)
    numbers = [told.get(name, "") for name in ("partition", "offset", "bytes")]
    if not told.get("topic") or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    topic, (partition, offset, size) = told["topic"], map(int, numbers)
    reason = told.get("reason", "")
    return Letter(
        record.partition,
        record.offset,
        record.timestamp,
        reason,
        topic,
        f"{topic}/{partition}/{offset}",
        size,
        _obstacle(record, topic, reason, size, settings),
    )


def headers_of(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Headers as text."""
    return {name: (value or b"").decode(errors="replace") for name, value in headers}


def right_key(topic: str, key: bytes | None, value: bytes, settings: Settings) -> bytes | None:
    """The key that a record must have by its value; its own where the value does not tell."""
    try:
        if topic == settings.topic("items"):
            return msgspec.json.decode(value, type=_Item).item_id.encode()
        event = msgspec.json.decode(value, type=_Event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return key
    owner = event.anonymous_id if event.user_id is UNSET else event.user_id
    return key if owner is UNSET else owner.encode()


def _obstacle(record: Any, topic: str, reason: str, size: int, settings: Settings) -> str:
    if topic not in (settings.topic("user-events"), settings.topic("items")):
        return "comes from a topic that is none of this engine's"
    if reason.startswith(_REFUSED_BATCH):
        return "stands for a whole batch that was never opened: its records must be sent anew"
    if record.value is None:
        return "has no value"
    if reason.startswith(_UNSUPPORTED_CONTROL) or _is_control(record.value):
        return "is a control event, which counts at its place among the events: send it anew"
    if size > len(record.value):
        return f"only {len(record.value):,} bytes of its value are kept: send the record anew"
    key = right_key(topic, record.key, record.value, settings)
    if key is None:
        return "has no key, and its value tells none"
    if len(key) >= MAX_KEPT_BYTES:
        return "has a key that may have been cut, and its value tells none"
    return ""


def _is_control(value: bytes) -> bool:
    try:
        schema = msgspec.json.decode(value, type=_Schema).schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return schema.startswith(("driftline.control/", "driftline.merge-"))
