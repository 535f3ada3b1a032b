"""Fold an engine's log anew for `verify parity`: histories, what counts, what is not to be listed.

Plain Python, and nothing of the workers' code.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
import struct
from typing import Any

import xxhash
from kafka.partitioner import murmur2

from models.parity_log import (
    EventLog,
    HistoryEntry,
    LoggedEvent,
    ParityError,
    ParityPlan,
    User,
    Wish,
    partitions_of,
    read_catalogue,
    read_events,
)

_LINKS = 5
_FORGETTING = ("user_delete", "user_opt_out", "history_reset")
#: What a wish of this type is about; see CatalogueVersion.
_SUBJECTS = {"item_block": "item", "category_mute": "category", "creator_block": "creator"}
_MAX_WISHES = 256
#: Records by which workers merge users, and columns in them.
_REQUEST, _PART = "driftline.merge-request/1", "driftline.merge-part/1"
_LEGS = (_REQUEST, _PART)
_EVENT, _SEEN = struct.Struct("<8sqqffII"), struct.Struct("<8sq")
#: Before the hash of an item whose id is not known yet.
_UNNAMED = "\x00"
_FOR_EVER_MS = 2**63 - 1


def read_log(plan: ParityPlan) -> EventLog:
    """Fold all of user-events and read all of items."""
    log = EventLog()
    fold = LogFold(plan, log, len(partitions_of(plan, "user-events")))
    for record in read_events(plan):
        fold.take(record)
    fold.finish()
    log.catalogue = read_catalogue(plan)
    return log


class LogFold:
    """Applies events in the order of the log to an EventLog, of a topic of so many partitions."""

    def __init__(self, plan: ParityPlan, log: EventLog, partitions: int) -> None:
        self._plan = plan
        self._log = log
        self._recent: dict[User, list[HistoryEntry]] = {}  # by time, at most max_history
        self._rings: dict[User, list[tuple[str, int]]] = {}  # event id, event time
        self._newest_ms: dict[User, int] = {}
        self._opted_out: set[User] = set()
        self._legs: set[tuple[User, str]] = set()  # of merges; each counts once
        self._partitions = partitions
        self._item_of: dict[bytes, str] = {}  # hash -> id
        self._type_of = {_hash(name, 4): name for name in plan.roles}

    def take(self, record: Any) -> None:
        """Take the next record of its partition, which is not refused."""
        fields = json.loads(record.value)
        if fields.get("schema") == "driftline.control/1":
            self._take_control(fields, record)
            return
        if fields.get("schema") in _LEGS:
            self._take_leg(fields, record)
            return
        role = self._plan.roles.get(fields["type"])
        known = "user_id" in fields
        owner = fields["user_id" if known else "anonymous_id"]
        if role is None or role.role not in ("positive", "negative"):
            return
        if record.key != owner.encode() or self._lies_elsewhere(record):
            return
        user = (fields.get("tenant", "default"), known, owner)
        time_ms = min(fields["event_time"], record.timestamp)
        if user in self._opted_out or time_ms < self._horizon_ms(user):
            return
        if self._knows(user, fields["event_id"]):
            return
        self._newest_ms[user] = max(self._newest_ms.get(user, 0), time_ms)
        self._remember(user, fields["event_id"], fields["event_time"])
        self._item_of[_hash(fields["item_id"], 8)] = fields["item_id"]
        entry = HistoryEntry(time_ms, record.offset, 0, fields["item_id"], fields["type"])
        weight = round(16 * role.weight) if role.role == "positive" else 0
        previous = self._insert(user, entry)
        self._log.of_user.setdefault(user, []).append(entry)
        self._log.events.append(
            LoggedEvent(record.partition, entry.offset, entry.item, time_ms, weight, previous)
        )

    def finish(self) -> None:
        """Name the items of merged events: rows know them by hashes, the log by their ids."""
        for taken in self._log.taken.values():
            taken[:] = [(offset, self._name(item)) for offset, item in taken]
        for entries in self._log.of_user.values():
            entries[:] = [entry._replace(item=self._name(entry.item)) for entry in entries]

    def _name(self, item: str) -> str:
        if not item.startswith(_UNNAMED):
            return item
        known = self._item_of.get(bytes.fromhex(item.removeprefix(_UNNAMED)))
        if known is None:
            raise ParityError(
                "a merged user has an item of which no event is on user-events any more; wanted "
                "the whole log: compare an engine with a longer retention"
            )
        return known

    def _take_leg(self, fields: dict[str, Any], record: Any) -> None:
        """Take a record by which workers merge users."""
        is_request = fields["schema"] == _REQUEST
        owner = fields["anonymous_id" if is_request else "user_id"]
        user = (fields.get("tenant", "default"), not is_request, owner)
        if record.key != owner.encode() or self._lies_elsewhere(record):
            return
        leg = user, fields["event_id"]
        is_known = leg in self._legs or self._knows(*leg)
        self._legs.add(leg)
        asked_offset = record.offset if is_request else fields["asked_offset"]
        is_overtaken = asked_offset <= max(self._log.forgotten.get(user, [-1]))
        if is_known or is_overtaken or user in self._opted_out:
            return
        if is_request:
            self._log.forgotten.setdefault(user, []).append(record.offset)
            self._recent.pop(user, None)
        else:
            self._merge(user, fields, record)
        time_ms = min(fields["event_time"], record.timestamp)
        self._remember(user, fields["event_id"], max(time_ms, self._newest_ms.get(user, 0)))

    def _merge(self, user: User, fields: dict[str, Any], record: Any) -> None:
        events = _EVENT.iter_unpack(base64.b64decode(fields.get("events", "")))
        for place, (item, time_ms, *_, kind) in enumerate(events):
            name, known_ms = _UNNAMED + item.hex(), min(time_ms, record.timestamp)
            entry = HistoryEntry(known_ms, record.offset, place, name, self._type_of.get(kind, ""))
            self._insert(user, entry)
            self._log.of_user.setdefault(user, []).append(entry)
            self._newest_ms[user] = max(self._newest_ms.get(user, 0), known_ms)
        taken = base64.b64decode(fields.get("taken", ""))
        self._log.taken.setdefault(user, []).extend(
            (record.offset, _UNNAMED + taken[at : at + 8].hex()) for at in range(0, len(taken), 8)
        )
        for hashed, time_ms in _SEEN.iter_unpack(base64.b64decode(fields.get("ids", ""))):
            self._remember(user, hashed.hex(), time_ms)

    def _take_control(self, fields: dict[str, Any], record: Any) -> None:
        user = (fields.get("tenant", "default"), True, fields["user_id"])
        if record.key != fields["user_id"].encode() or self._lies_elsewhere(record):
            return
        if self._knows(user, fields["event_id"]):
            return
        kind, wishes = fields["type"], self._log.wishes.setdefault(user, [])
        now_ms = min(fields["event_time"], record.timestamp)
        if kind in _FORGETTING:
            self._log.forgotten.setdefault(user, []).append(record.offset)
            self._recent.pop(user, None)
        if kind == "user_opt_out":
            self._opted_out.add(user)
        elif kind in ("user_delete", "user_opt_in"):
            self._opted_out.discard(user)
        if kind == "user_delete":
            wishes.append((record.offset, []))
        elif kind in _SUBJECTS:
            before = wishes[-1][1] if wishes else []
            wishes.append((record.offset, _with_wish(before, fields, now_ms)))
        self._remember(user, fields["event_id"], max(now_ms, self._newest_ms.get(user, 0)))

    def _knows(self, user: User, event_id: str) -> bool:
        names = (event_id, xxhash.xxh3_64_hexdigest(event_id.encode()))
        return any(known in names for known, _ in self._rings.get(user, []))

    def _remember(self, user: User, event_id: str, time_ms: int) -> None:
        ring = self._rings.setdefault(user, [])
        ring.append((event_id, time_ms))
        del ring[: max(len(ring) - self._plan.dedupe_ring, 0)]
        while ring and ring[0][1] < self._horizon_ms(user):
            del ring[0]

    def _horizon_ms(self, user: User) -> int:
        """Events of before are too late."""
        return self._newest_ms.get(user, 0) - self._plan.max_lateness_ms

    def _insert(self, user: User, entry: HistoryEntry) -> tuple[str, ...]:
        recent = self._recent.setdefault(user, [])
        place = bisect.bisect(recent, entry)
        before = reversed(recent[max(place - _LINKS, 0) : place])
        previous = tuple("" if entry.item.startswith(_UNNAMED) else entry.item for entry in before)
        recent.insert(place, entry)
        del recent[: max(len(recent) - self._plan.max_history, 0)]
        return previous

    def _lies_elsewhere(self, record: Any) -> bool:
        return bool((murmur2(record.key) & 0x7FFFFFFF) % self._partitions != record.partition)


def _hash(name: str, size: int) -> Any:
    """By what rows know an item (8 bytes), or a type (a number of 4 bytes)."""
    digest = hashlib.blake2b(name.encode(), digest_size=size).digest()
    return digest if size == 8 else int.from_bytes(digest, "little") or 1


def _with_wish(before: list[Wish], fields: dict[str, Any], now_ms: int) -> list[Wish]:
    """The newest wishes that have not ended, each of one target once."""
    wish = Wish(_SUBJECTS[fields["type"]], fields["target"], fields.get("until", _FOR_EVER_MS))
    others = [other for other in before if other[:2] != wish[:2]]
    return [each for each in (*others, wish) if each.until_ms > now_ms][-_MAX_WISHES:]
