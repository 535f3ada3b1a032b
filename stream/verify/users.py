"""Fold the log into what every user's row and every delta must be, one event after another."""

from __future__ import annotations

import bisect
import hashlib
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from stream.settings import Settings
from stream.verify.events import LATEST_MS, Control, Event, Judged
from stream.verify.merges import Given, MergePart, MergeRequest, Merges, request_id

_HISTORY_EVENT = struct.Struct("<QqqffII")
#: An event is linked with so many items before it.
_LINKS = 5
_SIXTEENTHS = 16
_MAX_FILTERS = 256
#: Stands for the offset of an event of a merged user, which nothing is linked with any more.
_MERGED_OFFSET = -1
_FOR_EVER_MS = 2**63 - 1
_FILTER_KINDS = {"item_block": 1, "category_mute": 2, "creator_block": 3}


class Delta(NamedTuple):
    """What one event adds to the statistics of all users."""

    item_id: str
    previous: tuple[int, ...]  # hashes, newest first
    time_ms: int
    weight: int  # sixteenths


class SeenId(NamedTuple):
    """An event id that a row must know, as its hash; of a merged one the id is not known."""

    hashed: bytes
    time_ms: int
    event_id: str = ""


@dataclass(slots=True)
class ExpectedUser:
    """What a user's row must hold."""

    partition: int
    history: list[tuple[int, int, bytes]] = field(default_factory=list)  # time, offset, event
    ring: deque[SeenId] = field(default_factory=deque)
    taken: list[bytes] = field(default_factory=list)
    applied_offset: int = -1
    events_total: int = 0
    newest_ms: int = 0
    due_offset: int = -1  # of the newest event that made a list due; -1: none did
    due_visit_offset: int = -1
    may_list_offset: int = -1  # of the newest event that could: some lists are left out
    due_ms: int = 0  # newest time of an event that made a list due
    taken_ever: set[int] = field(default_factory=set)
    filters: list[tuple[int, bytes, int]] = field(default_factory=list)  # kind, target, end in ms
    forgotten_offset: int = -1  # of the newest delete or opt-out
    opted_in_offset: int = -1  # of an opt-in after an opt-out
    reset_offset: int = -1  # of the newest reset of the history
    has_opted_out: bool = False
    shown_nothing_offset: int = -1  # of what made the row forget what was listed last
    no_interests_offset: int = -1  # of what took the interests away

    def offsets(self) -> list[int]:
        """The source offsets of the events in the history."""
        return [_HISTORY_EVENT.unpack(packed)[2] for _, _, packed in self.history]

    def becomes_due(self, offset: int, time_ms: int) -> None:
        """An event asks for a list; one that comes late, for a list as of those before it."""
        self.due_offset, self.due_ms = offset, max(self.due_ms, time_ms)

    def silent_until(self) -> int | None:
        """The last event that makes nothing due; None: there is no such event yet."""
        if self.has_opted_out:
            return _FOR_EVER_MS
        last = max(self.forgotten_offset, self.opted_in_offset, self.reset_offset - 1)
        return None if last < 0 else last


class ExpectedState:
    """The fold of a log, to be compared with what an engine has made of it."""

    def __init__(self, settings: Settings) -> None:
        self.users: dict[tuple[str, str, str], ExpectedUser] = {}
        self.deltas: dict[tuple[int, int], Delta] = {}  # partition, offset
        self.merges = Merges()
        self._legs: set[tuple[tuple[str, str, str], str]] = set()  # user, event id
        self.duplicates = self.late = 0
        self.newest_ms = 0
        self._max_history = settings.max_history
        self._max_taken = settings.max_taken
        self._ring_size = settings.dedupe_ring
        self._max_lateness_ms = settings.max_lateness_ms
        self._list_lifetime_ms = settings.list_lifetime_ms
        #: Lists of events may be left out as too little of them is new; those of visits never are.
        self._leaves_out = settings.refresh_min_change > 0

    def has_expired(self, user: ExpectedUser) -> bool:
        """Whether the list due last may have been skipped: it would have expired by now."""
        return user.due_ms + self._list_lifetime_ms <= self.newest_ms

    def apply(self, event: Judged, partition: int, offset: int, is_again: bool = False) -> None:
        """Take the next event of its partition; `is_again`: a copy that was sent on before."""
        user = self.users.get(event.user)
        if user is None:
            user = self.users[event.user] = ExpectedUser(partition)
        if isinstance(event, Control):
            self._obey(user, event, offset, is_again)
        elif isinstance(event, MergeRequest):
            self._hand_over(user, event, offset, is_again)
        elif isinstance(event, MergePart):
            self._take_over(user, event, offset, is_again)
        else:
            self._see(user, event, (partition, offset), is_again)

    def _see(
        self, user: ExpectedUser, event: Event, place: tuple[int, int], is_again: bool
    ) -> None:
        """Take an event of the user."""
        partition, offset = place
        user.applied_offset = offset
        if user.has_opted_out:
            return
        is_visit = event.role.role == "visit"
        if not is_visit and event.time_ms < self._horizon_ms(user):
            self.late += 1
            return
        is_duplicate = not is_visit and self._is_duplicate(user, event.event_id, is_again)
        # what comes again of a user of whom nothing is known came before the user was forgotten
        may_ask = is_visit or user.events_total or not is_duplicate
        if event.makes_due and may_ask:
            user.may_list_offset = offset
            if is_visit or not self._leaves_out:
                user.becomes_due(offset, event.time_ms)
            if is_visit:
                user.due_visit_offset = offset
        if not (is_visit or is_duplicate):
            self._fold(user, event, partition, offset)

    def _fold(self, user: ExpectedUser, event: Event, partition: int, offset: int) -> None:
        assert event.item_id is not None
        item = int.from_bytes(hash8(event.item_id), "little")
        packed = _HISTORY_EVENT.pack(
            item,
            event.time_ms,
            offset,
            event.value,
            event.portion,
            0 if event.session_id is None else hash4(event.session_id),
            hash4(event.type),
        )
        place = bisect.bisect(user.history, (event.time_ms, offset))
        before = user.history[max(place - _LINKS, 0) : place]
        previous = without_end(tuple(_linked(kept[2]) for kept in reversed(before)))
        user.history.insert(place, (event.time_ms, offset, packed))
        if len(user.history) > self._max_history:
            self._take(user, user.history.pop(0)[2][:8])
        user.taken_ever.add(item)
        user.events_total += 1
        user.newest_ms = max(user.newest_ms, event.time_ms)
        self._remember_id(user, event.event_id, event.said_ms)
        self.newest_ms = max(self.newest_ms, event.time_ms)
        weight = round(event.role.weight * _SIXTEENTHS) if event.role.role == "positive" else 0
        self.deltas[partition, offset] = Delta(event.item_id, previous, event.time_ms, weight)

    def _obey(self, user: ExpectedUser, control: Control, offset: int, is_again: bool) -> None:
        """Take a control event: once by its id, as others."""
        user.applied_offset = offset
        is_duplicate = self._is_duplicate(user, control.event_id, is_again)
        if control.type in (*_FILTER_KINDS, "history_reset") and not user.has_opted_out:
            self._asks_for_list(user, offset, control.time_ms, is_duplicate)
        if is_duplicate:
            return
        if control.type == "user_merge":
            self._ask(user, control, offset)
        elif control.type == "user_opt_in":
            user.opted_in_offset = offset if user.has_opted_out else user.opted_in_offset
            user.has_opted_out = False
        elif control.type == "history_reset":
            _forget_history(user, offset)
            user.reset_offset = offset
        elif control.type in _FILTER_KINDS:
            user.filters = _with_filter(user.filters, control)
            user.shown_nothing_offset = offset
        else:
            _forget_all(user, offset)
            user.has_opted_out = control.type == "user_opt_out"
            if control.type == "user_delete":
                user.filters = []
        self._remember_id(user, control.event_id, max(control.time_ms, user.newest_ms))

    def _asks_for_list(
        self, user: ExpectedUser, offset: int, time_ms: int, is_duplicate: bool
    ) -> None:
        """A wish makes a list due; one that comes again changes nothing that a list must show."""
        if not (is_duplicate and self._leaves_out):
            user.becomes_due(offset, time_ms)

    def _ask(self, user: ExpectedUser, control: Control, offset: int) -> None:
        """Note that an anonymous user must be asked to hand over."""
        assert control.from_anonymous_id is not None
        if not user.has_opted_out:
            anonymous = (control.user[0], "a", control.from_anonymous_id)
            event_id = request_id(anonymous, control.user, control.event_id, offset)
            self.merges.asked[event_id] = (anonymous, control.user, offset)

    def _hand_over(
        self, user: ExpectedUser, request: MergeRequest, offset: int, is_again: bool
    ) -> None:
        """Note what an anonymous user has to hand over, and forget it."""
        user.applied_offset = offset
        if self._is_known_leg(user, request, is_again):
            return
        newest = list(user.ring)[max(len(user.ring) - self._ring_size // 2, 0) :]
        given = Given(
            tuple(packed for _, _, packed in user.history),
            tuple(user.taken),
            tuple((seen.hashed, seen.time_ms) for seen in newest),
        )
        self.merges.given[request.event_id, offset] = given
        _forget_history(user, offset)
        user.due_offset = user.due_visit_offset = -1
        user.due_ms = 0
        user.forgotten_offset = offset
        self._remember_id(user, request.event_id, max(request.time_ms, user.newest_ms))

    def _take_over(self, user: ExpectedUser, part: MergePart, offset: int, is_again: bool) -> None:
        """Take what an anonymous user has handed over, unless the user was forgotten meanwhile."""
        user.applied_offset = offset
        is_duplicate = self._is_known_leg(user, part, is_again)
        silent_until = user.silent_until()
        if silent_until is not None and min(part.asked_offset, offset) <= silent_until:
            return
        self._asks_for_list(user, offset, part.time_ms, is_duplicate)
        if is_duplicate:
            return
        for item in part.taken:
            self._take(user, item)
        for packed in part.events:
            item, time_ms, _, *rest = _HISTORY_EVENT.unpack(packed)
            time_ms = min(time_ms, part.sent_ms)
            place = bisect.bisect(user.history, (time_ms, offset + 1))
            merged = _HISTORY_EVENT.pack(item, time_ms, _MERGED_OFFSET, *rest)
            user.history.insert(place, (time_ms, offset, merged))
            user.newest_ms = max(user.newest_ms, time_ms)
        while len(user.history) > self._max_history:
            self._take(user, user.history.pop(0)[2][:8])
        user.events_total += len(part.events)
        taken = [*part.taken, *(packed[:8] for packed in part.events)]
        user.taken_ever |= {int.from_bytes(item, "little") for item in taken}
        for hashed, time_ms in part.ids:
            self._remember(user, SeenId(hashed, min(time_ms, LATEST_MS)))
        self._remember_id(user, part.event_id, max(part.time_ms, user.newest_ms))
        user.shown_nothing_offset = offset

    def _is_known_leg(
        self, user: ExpectedUser, leg: MergeRequest | MergePart, is_again: bool
    ) -> bool:
        """Of a leg each id counts once for its user, however long ago that was."""
        which = leg.user, leg.event_id
        is_known = which in self._legs or self._is_duplicate(user, leg.event_id, is_again)
        self._legs.add(which)
        return is_known

    def _is_duplicate(self, user: ExpectedUser, event_id: str, is_again: bool) -> bool:
        hashed = id8(event_id)
        found = is_again or any(seen.hashed == hashed for seen in user.ring)
        self.duplicates += found
        return found

    def _remember_id(self, user: ExpectedUser, event_id: str, time_ms: int) -> None:
        self._remember(user, SeenId(id8(event_id), time_ms, event_id))

    def _remember(self, user: ExpectedUser, seen: SeenId) -> None:
        user.ring.append(seen)
        if len(user.ring) > self._ring_size:
            user.ring.popleft()
        while user.ring and user.ring[0].time_ms < self._horizon_ms(user):
            user.ring.popleft()

    def _horizon_ms(self, user: ExpectedUser) -> int:
        """Events of before are too late."""
        return user.newest_ms - self._max_lateness_ms

    def _take(self, user: ExpectedUser, item: bytes) -> None:
        if self._max_taken and item not in user.taken:
            user.taken.append(item)
            if len(user.taken) > self._max_taken:
                user.taken.pop(0)


def _forget_history(user: ExpectedUser, offset: int) -> None:
    user.history, user.taken, user.taken_ever = [], [], set()
    user.events_total = 0
    user.shown_nothing_offset = user.no_interests_offset = offset


def _forget_all(user: ExpectedUser, offset: int) -> None:
    _forget_history(user, offset)
    user.due_offset = user.due_visit_offset = -1
    user.due_ms = 0
    user.forgotten_offset = offset


def _with_filter(
    filters: list[tuple[int, bytes, int]], control: Control
) -> list[tuple[int, bytes, int]]:
    """The newest filters that have not ended, each of one target once."""
    assert control.target is not None
    until_ms = _FOR_EVER_MS if control.until_ms is None else min(control.until_ms, _FOR_EVER_MS)
    wanted = (_FILTER_KINDS[control.type], hash8(control.target), until_ms)
    others = [entry for entry in filters if entry[:2] != wanted[:2]]
    return [entry for entry in (*others, wanted) if entry[2] > control.time_ms][-_MAX_FILTERS:]


def _linked(packed: bytes) -> int:
    """The hash of an event's item that a later event is linked with; 0: it is not."""
    item, _, offset, *_ = _HISTORY_EVENT.unpack(packed)
    return 0 if offset == _MERGED_OFFSET else int(item)


def without_end(links: tuple[int, ...]) -> tuple[int, ...]:
    """Links without the empty places at their end."""
    while links and not links[-1]:
        links = links[:-1]
    return links


def id8(event_id: str) -> bytes:
    """The 8 bytes that stand for an event id."""
    return xxhash.xxh3_64(event_id.encode()).digest()


def hash8(text: str) -> bytes:
    """The 8 bytes that stand for an item; in rows of versions 1 and 2 also for an event id."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def hash4(text: str) -> int:
    """The number that stands for an event type or a session; never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") or 1
