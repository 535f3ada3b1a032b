"""Keep what the page shows of each user: events, interests, truth, newest list. Bounded."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import UNSET, Struct

from stream.events import (
    DEFAULT_SCENARIO,
    DEFAULT_TENANT,
    KEY_SEPARATOR,
    Interests,
    Recommendation,
    UserEvent,
)

#: Users kept; the one that was longest without news is forgotten first.
MAX_USERS = 4000
#: Events of a user that are kept, and shown as steps of the pictures.
MAX_STEPS = 60
#: Lists of a user that are kept to judge by: what was in force when an event came.
MAX_LISTS = 4
#: Places of a list that are shown, and that a hit must be in.
SHOWN_PLACES = 10

#: A label with its weight.
Weights = list[tuple[str, float]]


class TruthLabel(Struct, frozen=True):
    """A category with the weight that a simulated user gives it."""

    label: str
    weight: float


class Jump(Struct, frozen=True):
    """A simulated user's new interest: which, since when, and how many events ago."""

    label: str
    event_time: int
    event: int = 0


class Truth(Struct, frozen=True):
    """What a simulated user is really interested in, on `demo-truth`; the key is the user."""

    user_id: str
    event_time: int
    now: list[TruthLabel]
    jump: Jump | None = None


@dataclass(slots=True)
class Step:
    """One event of a user, with what was estimated, and was true, after it."""

    event_id: str
    at_ms: int
    type: str
    item_id: str | None
    is_from_list: bool
    now: Weights | None = None
    next: Weights | None = None
    truth: Weights | None = None


@dataclass(frozen=True, slots=True)
class PastList:
    """The top of a list: what its user saw from then on."""

    written_ms: int
    expires_ms: int
    item_ids: tuple[str, ...]


@dataclass(slots=True)
class KnownUser:
    """What is kept of one user."""

    key: str
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))
    lists: deque[PastList] = field(default_factory=lambda: deque(maxlen=MAX_LISTS))
    newest: Recommendation | None = None
    jump: Jump | None = None
    is_simulated: bool = False
    events: int = 0
    active_ms: int = 0
    #: Truths that came before their events.
    early: deque[Truth] = field(default_factory=lambda: deque(maxlen=8))

    def add_event(self, event: UserEvent) -> None:
        """One more step, at its place in time."""
        step = Step(
            event.event_id,
            event.event_time,
            event.type,
            None if event.item_id is UNSET else event.item_id,
            event.rec is not UNSET,
        )
        self.events += 1
        self.active_ms = max(self.active_ms, event.event_time)
        later = []
        while self.steps and self.steps[-1].at_ms > step.at_ms:
            later.append(self.steps.pop())
        self.steps.extend([step, *reversed(later)])
        while self.early and self.early[0].event_time <= step.at_ms:
            self._enter_truth(self.early.popleft())

    def add_list(self, found: Recommendation, written_ms: int) -> None:
        """A newer list; one that is older than what is known is passed over."""
        if self.newest is not None and found.seq < self.newest.seq:
            return
        self.newest = found
        top = tuple(item.item_id for item in found.items[:SHOWN_PLACES])
        self.lists.append(PastList(written_ms, found.expires_at, top))

    def add_interests(self, told: Interests) -> None:
        """Estimates, at the step they were made after."""
        step = self._step_at(told.request_time)
        if step is not None:
            step.now = [(interest.label, interest.weight) for interest in told.now]
            step.next = [(interest.label, interest.probability) for interest in told.next]

    def add_truth(self, truth: Truth) -> None:
        """What is true, at its step."""
        self.is_simulated = True
        self.jump = truth.jump or self.jump
        if self.steps and self.steps[-1].at_ms >= truth.event_time:
            self._enter_truth(truth)
        else:
            self.early.append(truth)

    def has_jump_in_sight(self) -> bool:
        """Whether the jump lies among the steps that are kept."""
        return bool(self.jump and self.steps and self.jump.event_time >= self.steps[0].at_ms)

    def list_before(self, written_ms: int, event_ms: int) -> PastList | None:
        """The list that the user had when an event was written; None: none, or an expired one."""
        for past in reversed(self.lists):
            if past.written_ms < written_ms:
                return past if event_ms < past.expires_ms else None
        return None

    def events_to_see_jump(self) -> int | None:
        """Events after the jump until *next* had it on top; None: no jump, or not seen yet."""
        if self.jump is None:
            return None
        after = [s for s in self.steps if s.at_ms >= self.jump.event_time and s.item_id]
        for number, step in enumerate(after, start=1):
            if step.next and step.next[0][0] == self.jump.label:
                return number
        return None

    def _enter_truth(self, truth: Truth) -> None:
        step = self._step_at(truth.event_time)
        if step is not None:
            step.truth = [(part.label, round(part.weight, 3)) for part in truth.now]

    def _step_at(self, time_ms: int) -> Step | None:
        """The newest step that is not later than this."""
        return next((s for s in reversed(self.steps) if s.at_ms <= time_ms), None)


class Users:
    """The users of whom there was news last, by the key of their lists."""

    def __init__(self, max_users: int = MAX_USERS) -> None:
        self._max_users = max_users
        self._users: OrderedDict[str, KnownUser] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    def get(self, key: str) -> KnownUser | None:
        """A user, if kept."""
        return self._users.get(key)

    def touch(self, key: str) -> KnownUser:
        """A user of whom there is news; a new one where none is kept."""
        user = self._users.get(key)
        if user is None:
            user = self._users[key] = KnownUser(key)
            if len(self._users) > self._max_users:
                self._users.popitem(last=False)
        else:
            self._users.move_to_end(key)
        return user

    def newest_first(self, words: str) -> Iterator[KnownUser]:
        """Users whose key holds these words in any case, the last one with news first."""
        wanted = words.casefold()
        for key in reversed(self._users):
            if wanted in key.casefold() and self._users[key].events:
                yield self._users[key]


def key_of_event(event: UserEvent) -> str | None:
    """The key that the lists of an event's user have; None where it names nobody."""
    owner, is_known = event.owner(), event.user_id is not UNSET
    if owner is None or (event.tenant == DEFAULT_TENANT and is_known):
        return owner
    return KEY_SEPARATOR.join((event.tenant, "u" if is_known else "a", owner, DEFAULT_SCENARIO))
