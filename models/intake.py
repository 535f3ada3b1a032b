"""Take records of `user-events` and `items` as a worker does, and keep what training needs."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from typing import Protocol

import msgspec
from msgspec import UNSET

from export.catalogue import attributes_of
from export.items import ItemIndex, item_hash
from export.statistics import WEIGHT_ONE
from models.event_log import EventBuffer, user_hash
from models.settings import TrainerSettings
from stream.events import (
    ControlEvent,
    Item,
    MergePart,
    MergeRequest,
    decode_control_event,
    decode_item,
    decode_merge_part,
    decode_merge_request,
    decode_user_event,
)

#: Event ids that are remembered, to drop what was sent twice.
_REMEMBERED_IDS = 200_000
_MAX_ITEM_BYTES = 262_144


#: After these a worker knows nothing any more of what the user did.
_FORGETTING = ("user_delete", "user_opt_out", "history_reset")


class Record(Protocol):
    """What is read of a record of Kafka."""

    key: bytes | None
    value: bytes | None
    timestamp: int


class Intake:
    """Refuses what a worker refuses, and counts it. Nothing that comes makes it fail.

    `attributes` holds the names of every item's attributes, `buffer` the events not taken yet.
    A user who was forgotten goes on as another one, of whom nothing is known. The former one's
    events stand in the buffer as they count in the statistics; `take_forgotten` tells of them.
    Merged users are learned from as the two that they were: what each did next is true of either.
    With the known user what the anonymous one did before is forgotten as well.
    """

    def __init__(self, settings: TrainerSettings, index: ItemIndex) -> None:
        self.buffer = EventBuffer(index)
        self.attributes: dict[str, tuple[str, ...]] = {}
        self.counts: Counter[str] = Counter()
        self._settings = settings
        self._versions: dict[str, int] = {}
        self._ids: dict[int, None] = {}  # hashes of event ids, oldest first
        self._lives: Counter[str] = Counter()  # owner -> how often the owner was forgotten
        self._opted_out: set[str] = set()
        self._forgotten: set[int] = set()
        self._merged: dict[str, list[int]] = {}  # known user -> anonymous ones, while both are

    def take_event(self, record: Record) -> None:
        """Take a record of `user-events`."""
        value = record.value
        if value is None or record.key is None or len(value) > self._settings.max_event_bytes:
            self.counts["refused"] += 1
            return
        try:
            event = decode_user_event(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._take_control(record)
            return
        role = self._settings.role_of(event.type)
        if role is None or role.role not in ("positive", "negative"):
            self.counts["ignored"] += 1
            return
        owner, item = event.owner(), event.item_id
        # A record under another key comes again under the right one.
        if owner is None or item is UNSET or record.key != owner.encode():
            self.counts["refused"] += 1
            return
        if event.event_time > record.timestamp + self._settings.max_future_ms:
            self.counts["refused"] += 1
            return
        if self._is_duplicate(event.event_id):
            self.counts["duplicates"] += 1
            return
        kind = "u" if event.user_id is not UNSET else "a"
        user = f"{event.tenant}\x1f{kind}\x1f{owner}"
        if user in self._opted_out:
            self.counts["opted out"] += 1
            return
        self.buffer.append(
            self._name_of(user),
            item,
            event.type,
            min(event.event_time, record.timestamp),
            round(role.weight * WEIGHT_ONE) if role.role == "positive" else 0,
        )
        self.counts["taken"] += 1

    def take_forgotten(self) -> set[int]:
        """The users since the last call whose events up to then are not to be learned from."""
        forgotten, self._forgotten = self._forgotten, set()
        return forgotten

    def take_item(self, record: Record) -> None:
        """Take a record of `items`: the highest version of an item wins, a null value deletes."""
        if record.key is None or (record.value and len(record.value) > _MAX_ITEM_BYTES):
            self.counts["items refused"] += 1
            return
        if record.value is None:
            item_id = record.key.decode(errors="replace")
            self.attributes.pop(item_id, None)
            self._versions.pop(item_id, None)
            return
        try:
            item = decode_item(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.counts["items refused"] += 1
            return
        if item.item_id.encode() != record.key:
            self.counts["items refused"] += 1
            return
        if item.version < self._versions.get(item.item_id, item.version):
            return
        self._versions[item.item_id] = item.version
        self.attributes[item.item_id] = _attributes(item)

    def _take_control(self, record: Record) -> None:
        """Take what is no user event: a control event, or something to refuse."""
        try:
            event = decode_control_event(record.value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._take_leg(record)
            return
        is_ahead = event.event_time > record.timestamp + self._settings.max_future_ms
        if is_ahead or record.key != event.user_id.encode():
            self.counts["refused"] += 1
        elif self._is_duplicate(event.event_id):
            self.counts["duplicates"] += 1
        else:
            self._obey(event)
            self.counts["control"] += 1

    def _take_leg(self, record: Record) -> None:
        """Take what is no control event either: a leg of a merge, or something to refuse."""
        leg = _leg_of(record.value or b"")
        if leg is None:
            self.counts["refused"] += 1
            return
        self.counts["merges"] += 1
        if isinstance(leg, MergeRequest) and record.key == leg.anonymous_id.encode():
            anonymous = f"{leg.tenant}\x1fa\x1f{leg.anonymous_id}"
            if not self._is_duplicate(leg.event_id):
                known = f"{leg.tenant}\x1fu\x1f{leg.into_user_id}"
                self._merged.setdefault(known, []).append(user_hash(self._name_of(anonymous)))
                self._lives[anonymous] += 1

    def _obey(self, event: ControlEvent) -> None:
        user = f"{event.tenant}\x1fu\x1f{event.user_id}"
        if event.type in _FORGETTING:
            self._forgotten.add(user_hash(self._name_of(user)))
            self._forgotten.update(self._merged.pop(user, ()))
            self._lives[user] += 1
        if event.type == "user_opt_out":
            self._opted_out.add(user)
        elif event.type in ("user_opt_in", "user_delete"):
            self._opted_out.discard(user)

    def _name_of(self, user: str) -> str:
        life = self._lives.get(user)
        return f"{user}\x1f{life}" if life else user

    def _is_duplicate(self, event_id: str) -> bool:
        stable = item_hash(event_id)
        if stable in self._ids:
            return True
        self._ids[stable] = None
        if len(self._ids) > _REMEMBERED_IDS:
            del self._ids[next(iter(self._ids))]
        return False


def _leg_of(value: bytes) -> MergeRequest | MergePart | None:
    """The record by which workers merge users, if it is one."""
    for decode in (decode_merge_request, decode_merge_part):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return decode(value)
    return None


def _attributes(item: Item) -> tuple[str, ...]:
    names = attributes_of(
        "" if item.title is UNSET else item.title,
        [] if item.categories is UNSET else item.categories,
        [] if item.tags is UNSET else item.tags,
        "" if item.creator_id is UNSET else item.creator_id,
    )
    return tuple(map(sys.intern, names))
