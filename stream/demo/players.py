"""Say what the users of the demo do, as messages: simulated ones, or those of a data set."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Literal, Protocol
from uuid import uuid4

import msgspec
import numpy as np
from msgspec import Meta, Struct

from export.datasets import read_dataset
from stream.demo.catalogue import CATEGORIES, birth_times, demo_items
from stream.demo.simulator import DAY_MS, Clicks, Simulator, SimulatorSettings
from stream.events import Item, Recommendation, RecommendationReference, UserEvent
from stream.replay import event_of

#: The topic of what simulated users really want; only the demo has it.
TRUTH_TOPIC = "demo-truth"
#: Simulated users that have a past; `--users` of them go on.
_LEAST_CROWD = 400
_PAST_MS = 28 * DAY_MS
#: A new item appears so often, until the catalogue has no more: for an hour.
_NEW_ITEM_MS = 45_000
#: Clicks after a visit: one, and so many more on average.
_MORE_CLICKS = 1.5
#: Items that fit on a user's screen.
_SHOWN_ITEMS = 12
#: Categories below it are left out of the truth.
_LEAST_WEIGHT = 0.02

#: Topic without prefix, key, value.
Message = tuple[str, str, Struct]


class TrueInterest(Struct, frozen=True):
    """The share of a category in what a simulated user wants."""

    label: str
    weight: Annotated[float, Meta(ge=0, le=1)]


class TrueJump(Struct, frozen=True):
    """The last jump of a simulated user; `event`: clicks since then, 1 at the one that began it."""

    label: str
    event_time: int
    event: int


class DemoTruth(Struct, frozen=True):
    """On demo-truth, keyed by user: what a simulated user wants at the next click."""

    schema: Literal["driftline.demo-truth/1"]
    user_id: str
    event_time: int
    now: list[TrueInterest]
    jump: TrueJump | None


class Player(Protocol):
    """Users that have a past and go on acting. Times are in milliseconds."""

    #: Whether the bundled release knows their items.
    suits_release: bool

    def past(self) -> Iterator[Message]:
        """The catalogue, and then what was done before now, in the order of time."""
        ...

    def act(self, now_ms: int, lists: Mapping[str, Recommendation]) -> list[Message]:
        """What one user does next, the event first; `lists`: the newest one of each user.

        Empty when nobody does anything any more.
        """
        ...

    def news(self, now_ms: int) -> list[Message]:
        """Items that have appeared since this was last called."""
        ...


@dataclass(frozen=True, slots=True)
class CrowdSettings:
    """How many simulated users act, and how many clicks all together have made before."""

    users: int = 40
    past_clicks: int = 4000
    seed: int = 1


class Crowd:
    """Simulated users who visit, look at their list, and click: in it, or what else they want."""

    suits_release = True

    def __init__(self, settings: CrowdSettings, now_ms: int) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._items = demo_items()
        self._number_of = {item.item_id: number for number, item in enumerate(self._items)}
        self._born_ms = birth_times(now_ms, _NEW_ITEM_MS)
        crowd = SimulatorSettings(max(settings.users, _LEAST_CROWD), settings.seed)
        self._simulator = Simulator(crowd, self._born_ms)
        self._rng = np.random.default_rng(settings.seed)
        self._to_click = [0] * settings.users  # clicks of each user until the next visit
        self._told_ms = now_ms
        self._run = uuid4().hex[:8]
        self._ids = count()
        #: Jumps of users that acted, for the terminal.
        self.jumps = 0

    def past(self) -> Iterator[Message]:
        """Items that are there by now, and the clicks of the last four weeks."""
        yield from self._appeared(0, self._now_ms)
        clicks = self._settings.past_clicks
        if not clicks:
            return
        played = self._simulator.clicks(clicks, self._now_ms - _PAST_MS, self._now_ms)
        for at in range(clicks):
            yield self._click(played, at, None)

    def act(self, now_ms: int, lists: Mapping[str, Recommendation]) -> list[Message]:
        """A visit or a click of one user, and what that user wants by then."""
        place = int(self._rng.integers(self._settings.users))
        number = int(self._simulator.numbers[place])
        if self._to_click[place]:
            self._to_click[place] -= 1
            event = self._clicked(place, now_ms, lists.get(f"u-{number}"))
        else:
            self._to_click[place] = 1 + int(self._rng.poisson(_MORE_CLICKS))
            visit = UserEvent(self._event_id(), "visit", now_ms, user_id=f"u-{number}")
            event = ("user-events", f"u-{number}", visit)
        if self._simulator.numbers[place] != number:  # that was the last thing this user did
            self._to_click[place] = 0
            return [event]
        return [event, (TRUTH_TOPIC, f"u-{number}", self._truth(place, number, now_ms))]

    def news(self, now_ms: int) -> list[Message]:
        """Items that have appeared since this was last called."""
        appeared = list(self._appeared(self._told_ms, now_ms))
        self._told_ms = now_ms
        return appeared

    def _appeared(self, after_ms: int, until_ms: int) -> Iterator[Message]:
        born_ms = self._born_ms.ravel()
        for number in np.flatnonzero((born_ms > after_ms) & (born_ms <= until_ms)):
            item: Item = self._items[number]
            yield (
                "items",
                item.item_id,
                msgspec.structs.replace(item, publish_time=int(born_ms[number])),
            )

    def _clicked(self, place: int, now_ms: int, listed: Recommendation | None) -> Message:
        shown = np.full((1, _SHOWN_ITEMS), -1)
        if listed is not None:
            numbers = [self._number_of.get(i.item_id, -1) for i in listed.items[:_SHOWN_ITEMS]]
            shown[0, : len(numbers)] = numbers
        clicks = self._simulator.act(np.array([place]), np.array([now_ms]), shown)
        self.jumps += int(clicks.since_jump[0] == 1)
        return self._click(clicks, 0, listed)

    def _click(self, clicks: Clicks, at: int, listed: Recommendation | None) -> Message:
        user, position = f"u-{clicks.users[at]}", int(clicks.positions[at])
        event = UserEvent(
            event_id=self._event_id(),
            type="click",
            event_time=int(clicks.times_ms[at]),
            user_id=user,
            item_id=self._items[int(clicks.items[at])].item_id,
            rec=msgspec.UNSET
            if listed is None or position < 0
            else RecommendationReference(listed.rec_id, position),
        )
        return "user-events", user, event

    def _truth(self, place: int, number: int, now_ms: int) -> DemoTruth:
        weights = self._simulator.truth(np.array([place]), np.array([now_ms]))[0]
        order = np.argsort(-weights)
        jump = self._simulator.last_jump(place)
        return DemoTruth(
            "driftline.demo-truth/1",
            f"u-{number}",
            now_ms,
            [
                TrueInterest(CATEGORIES[c], round(float(weights[c]), 3))
                for c in order
                if weights[c] >= _LEAST_WEIGHT
            ],
            None
            if jump is None
            else TrueJump(CATEGORIES[jump.category], jump.time_ms, jump.clicks),
        )

    def _event_id(self) -> str:
        return f"demo-{self._run}-{next(self._ids):08d}"


class DataPlayer:
    """The users of a data set. Its past is moved so that it ends now; from there on, each event
    happens when it is sent, right after a visit of its user."""

    suits_release = False

    def __init__(self, data_format: str, path: Path, past_events: int, now_ms: int) -> None:
        """Raises DatasetError for data that cannot be read."""
        data = read_dataset(path, data_format)
        self._run = uuid4().hex[:8]
        self._items = data.items
        events = [event_of(data_format, at, event) for at, event in enumerate(data.interactions)]
        self._past = events[:past_events]
        self._moved_ms = now_ms - self._past[-1].event_time if self._past else 0
        self._coming = deque(events[past_events:])
        self._visitor: str | None = None
        self._visits = count()

    def past(self) -> Iterator[Message]:
        """All items, and the first events."""
        for item_id, about in self._items.items():
            item = Item(item_id, 1, title=about.title, categories=list(about.categories))
            yield "items", item_id, item
        for event in self._past:
            yield self._at(event, event.event_time + self._moved_ms)

    def act(self, now_ms: int, lists: Mapping[str, Recommendation]) -> list[Message]:
        """The visit before the next event of the data set, and then the event."""
        if not self._coming:
            return []
        user = str(self._coming[0].user_id)
        if self._visitor != user:
            self._visitor = user
            event_id = f"visit-{self._run}-{next(self._visits):08d}"
            return [("user-events", user, UserEvent(event_id, "visit", now_ms, user_id=user))]
        self._visitor = None
        return [self._at(self._coming.popleft(), now_ms)]

    def news(self, now_ms: int) -> list[Message]:
        """None: all items are there from the start."""
        return []

    def _at(self, event: UserEvent, time_ms: int) -> Message:
        moved = msgspec.structs.replace(event, event_time=time_ms)
        return "user-events", str(event.user_id), moved
