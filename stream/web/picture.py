"""What the page knows: the fold of the topics, kept as records come, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from export.items import ItemIndex
from export.statistics import ItemStatistics
from stream.catalogue import Catalogue
from stream.events import (
    Decision,
    Interests,
    Recommendation,
    ReleaseStage,
    Trending,
    UserEvent,
    decode_release_stage,
    decode_user_event,
)
from stream.settings import Settings
from stream.web.hit_rates import HitRates, JudgedEvent
from stream.web.items import Items
from stream.web.log_reader import Reading
from stream.web.pulse import DeadLetterCounts, ListTimes, SecondCounts, WorkerWatch
from stream.web.raw_messages import RawMessages
from stream.web.users import KnownUser, Truth, Users, key_of_event

#: The `source` of events that the page itself sends: people try things out, nothing to judge by.
PAGE_SOURCE = "driftline-page"
#: Records of each topic that are read of those that were there before.
_NEWEST = {
    "user-events": 50_000,
    "recommendations": 8_000,
    "interests": 20_000,
    "decisions": 2_000,
    "demo-truth": 20_000,
    "dead-letters": 2_000,
}
#: Events that are counted together, at most: the baselines' counts are so many events old.
_LEARN_TOGETHER = 16
#: Clicks that are judged of one handing over, at most: a flood must not hold up the viewers.
_JUDGED_TOGETHER = 25
_ALL = ("items", "trending", "model-releases")

_decode_recommendation = msgspec.json.Decoder(Recommendation).decode
_decode_interests = msgspec.json.Decoder(Interests).decode
_decode_decision = msgspec.json.Decoder(Decision).decode
_decode_trending = msgspec.json.Decoder(Trending).decode
_decode_truth = msgspec.json.Decoder(Truth).decode

T = TypeVar("T")


def readings(settings: Settings) -> list[Reading]:
    """The topics that the page reads."""
    newest = [
        Reading(settings.topic(name), count, may_be_missing=name == "demo-truth")
        for name, count in _NEWEST.items()
    ]
    return newest + [Reading(settings.topic(n), None, is_first=n == "items") for n in _ALL]


class Picture:
    """Takes records of all topics, and holds what is shown.

    `on_list` is called with the key of every user whose newer list came. `now_ms` is the clock of
    what is counted as it comes; records of the past count neither for rates nor for times.
    """

    def __init__(self, settings: Settings, now_ms: Callable[[], int]) -> None:
        self.index = ItemIndex()
        self.catalogue = Catalogue(self.index)
        self.items = Items(self.catalogue)
        self.users = Users()
        self.raw = RawMessages()
        self.hit_rates = HitRates(
            ItemStatistics(
                self.index,
                settings.statistics,
            ),
            self.index,
            self.catalogue,
            settings.popularity_share,
            settings.seen_items == "filter",
        )
        self.events, self.lists = SecondCounts(), SecondCounts()
        self.list_times = ListTimes()
        self.worker = WorkerWatch()
        self.dead_letters = DeadLetterCounts()
        self.release: ReleaseStage | None = None
        self.trending: Trending | None = None
        self.ranks = ""  # what the newest list was ranked by, as name/version
        self.unreadable = 0
        self.is_live = False  # whether what was there at the start is read
        self.on_list: Callable[[str], None] = lambda key: None
        self.changed: set[str] = set()  # users with news, for whoever shows them
        self._settings = settings
        self._now_ms = now_ms
        self._learn: list[JudgedEvent] = []
        self._may_judge = 0
        self._take_one: dict[str, Callable[[Any], None]] = {
            settings.topic("items"): self._take_item,
            settings.topic("user-events"): self._take_event,
            settings.topic("recommendations"): self._take_list,
            settings.topic("interests"): self._take_interests,
            settings.topic("decisions"): self._take_decision,
            settings.topic("demo-truth"): self._take_truth,
            settings.topic("dead-letters"): self._take_dead_letter,
            settings.topic("trending"): self._take_trending,
            settings.topic("model-releases"): self._take_release,
        }

    def take(self, records: list[Any]) -> None:
        """Take records of any topics, in order of time. One that cannot be read is counted."""
        self._may_judge = _JUDGED_TOGETHER
        for record in records:
            self._take_one[record.topic](record)
        self._learn_now()

    def _decoded(self, decode: Callable[[bytes], T], record: Any) -> T | None:
        if record.value is None:
            return None
        try:
            return decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            return None

    def _take_item(self, record: Any) -> None:
        if not self.items.take(record.key, record.value):
            self.unreadable += 1

    def _take_event(self, record: Any) -> None:
        if self.is_live:
            self.events.add(self._now_ms())
        try:
            event = decode_user_event(record.value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return  # a control event, or one that the worker refuses: it says so on dead-letters
        key, role = key_of_event(event), self._settings.role_of(event.type)
        if key is None or role is None:
            return
        if role.refreshes and self.is_live:
            self.list_times.note_event(record.partition, record.offset, record.timestamp)
            self.worker.note_events(self._now_ms())
        user = self.users.touch(key)
        if role.role in ("positive", "negative", "visit"):
            user.add_event(event)
            self.changed.add(key)
        if role.role == "positive" and event.item_id is not UNSET:
            self._judge(event, user, record.timestamp, role.weight)

    def _judge(self, event: UserEvent, user: KnownUser, written_ms: int, weight: float) -> None:
        """Judge an event that nobody suggested; learn from all. What came before counts for it."""
        listed = None
        if event.rec is UNSET and event.source != PAGE_SOURCE and self._may_judge > 0:
            listed = user.list_before(written_ms, event.event_time)
            self._may_judge -= listed is not None
        self._learn.append(
            JudgedEvent(
                user.key,
                str(event.item_id),
                event.event_time,
                written_ms,
                weight,
                None if listed is None else listed.item_ids,
            )
        )
        if len(self._learn) >= _LEARN_TOGETHER:
            self._learn_now()

    def _learn_now(self) -> None:
        self.hit_rates.take(self._learn)
        self._learn = []

    def _take_list(self, record: Any) -> None:
        found = self._decoded(_decode_recommendation, record)
        if found is None or record.key is None:
            return
        key = record.key.decode(errors="replace")
        self.raw.add_recommendation(found.rec_id, record.value)
        self.users.touch(key).add_list(found, record.timestamp)
        self.ranks = f"{found.release.name}/{found.release.version}"
        trigger = found.trigger
        if trigger.partition is not UNSET and trigger.offset is not UNSET:
            self.list_times.note_list(trigger.partition, trigger.offset, record.timestamp)
        self.changed.add(key)
        if self.is_live:
            self.lists.add(self._now_ms())
            self.worker.note_list(self._now_ms())
            self.on_list(key)

    def _take_interests(self, record: Any) -> None:
        told = self._decoded(_decode_interests, record)
        if told is not None and record.key is not None:
            key = record.key.decode(errors="replace")
            self.users.touch(key).add_interests(told)
            self.changed.add(key)

    def _take_decision(self, record: Any) -> None:
        decision = self._decoded(_decode_decision, record)
        if decision is not None:
            self.raw.add_decision(decision.rec_id, record.value)

    def _take_truth(self, record: Any) -> None:
        truth = self._decoded(_decode_truth, record)
        if truth is not None:
            self.users.touch(truth.user_id).add_truth(truth)
            self.changed.add(truth.user_id)

    def _take_dead_letter(self, record: Any) -> None:
        self.dead_letters.take(record.headers, record.timestamp)

    def _take_trending(self, record: Any) -> None:
        self.trending = self._decoded(_decode_trending, record) or self.trending

    def _take_release(self, record: Any) -> None:
        try:
            stage = decode_release_stage(record.value or b"null")
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if stage.stage == "live" and stage.name == self._settings.release:
            self.release = stage
