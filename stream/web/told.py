"""Turn what is known into the messages that the page is told."""

from __future__ import annotations

from msgspec import UNSET, Struct

from stream.events import KEY_SEPARATOR, RankedItem, Recommendation
from stream.web.hit_rates import METHODS
from stream.web.items import ItemCard
from stream.web.picture import Picture
from stream.web.pulse import WorkerState
from stream.web.users import SHOWN_PLACES, Jump, KnownUser, Weights

#: Words for what gave most of a score, where no reason is given.
_SOURCES = {
    "chain": "often taken together with yours",
    "trend": "popular now",
    "sequence": "what you took so far",
}
_CODES = {
    "popular": "popular now",
    "new_item": "new in the catalogue",
    "interest": "your interest",
    "explore": "something to explore",
    "promotion": "promoted",
    "similar_users": "taken by similar users",
}


class Place(Struct, frozen=True):
    """One place of a list: `why` in words, `because` the items that the words speak of."""

    item: ItemCard
    why: str
    because: list[ItemCard]
    source: str


class ShownList(Struct, frozen=True):
    """The top of a user's newest list."""

    rec_id: str
    seq: int
    event_id: str | None  # the event that made it due
    generated_at: int
    request_time: int | None  # of the newest event that it knows
    release: str
    places: list[Place]


class YourList(Struct, frozen=True):
    """What a visitor is told. Until there is a list `shown` is None and `trending` stands in."""

    shown: ShownList | None
    trending: list[Place]
    now: Weights
    next: Weights
    clicks: int


class ShownStep(Struct, frozen=True):
    """One event of a user; weights are None where nothing new was told with it."""

    at: int
    type: str
    item: ItemCard | None
    from_list: bool
    now: Weights | None
    next: Weights | None
    truth: Weights | None


class ShownUser(Struct, frozen=True):
    """A user as the page draws it. `jump_seen_after`: events until *next* had it on top."""

    key: str
    name: str
    is_simulated: bool
    events: int
    steps: list[ShownStep]
    shown: ShownList | None
    jump: Jump | None
    jump_seen_after: int | None


class UserLine(Struct, frozen=True):
    """A user in the list to pick from."""

    key: str
    name: str
    events: int
    active_at: int
    interest: str
    is_simulated: bool
    jump: str


class EngineFigures(Struct, frozen=True):
    """How the engine does at this moment. Times in milliseconds."""

    at: int
    events_per_s: float
    lists_per_s: float
    p50: int | None
    p99: int | None
    timed: int
    lag: int | None
    worker: WorkerState
    release: str
    release_at: int | None
    ranks: str
    dead_letters: int
    reasons: list[tuple[str, int]]
    newest_refused: list[dict[str, str | int]]
    users: int
    items: int
    viewers: int
    events: list[int]
    lists: list[int]


class RateFigures(Struct, frozen=True):
    """Hit rates of engine and baselines, now and over time."""

    methods: tuple[str, ...]
    judged: int
    in_window: int
    now: list[dict[str, float | str]]
    at: list[int]
    points: list[tuple[float, ...]]


def display_name(key: str) -> str:
    """A user's key for people: its id, and what it is where it is no known user of the default."""
    if key.count(KEY_SEPARATOR) < 3:
        return key
    tenant, kind, named = key.split(KEY_SEPARATOR, 2)
    owner, _, _ = named.rpartition(KEY_SEPARATOR)
    return f"{owner} ({'anonymous' if kind == 'a' else 'known'}, {tenant})"


def places(picture: Picture, items: list[RankedItem]) -> list[Place]:
    """The first places with titles and reasons."""
    return [_place(picture, item) for item in items[:SHOWN_PLACES]]


def _place(picture: Picture, item: RankedItem) -> Place:
    source = "" if item.source is UNSET else item.source
    because: list[ItemCard] = []
    why = _SOURCES.get(source, source or "listed")
    reason = item.reason
    if reason is not UNSET and reason.code is not UNSET:
        named = [] if reason.items is UNSET else reason.items
        because = [picture.items.card(each) for each in named]
        why = (
            "because of" if reason.code == "because_item" else _CODES.get(reason.code, reason.code)
        )
        if reason.text is not UNSET and reason.text:
            why = f"{why}: {reason.text}" if reason.code == "interest" else reason.text
    return Place(picture.items.card(item.item_id), why, because, source)


def shown_list(picture: Picture, found: Recommendation) -> ShownList:
    """A list as it is shown."""
    return ShownList(
        found.rec_id,
        found.seq,
        None if found.trigger.event_id is UNSET else found.trigger.event_id,
        found.generated_at,
        None if found.request_time is UNSET else found.request_time,
        f"{found.release.name}/{found.release.version}",
        places(picture, found.items),
    )


def your_list(picture: Picture, key: str) -> YourList:
    """What a visitor is told: the own list, or until there is one what is popular."""
    user = picture.users.get(key)
    newest = user.newest if user else None
    steps = list(user.steps) if user else []
    clicks = sum(1 for step in steps if step.item_id)
    now = next((step.now for step in reversed(steps) if step.now is not None), [])
    coming = next((step.next for step in reversed(steps) if step.next is not None), [])
    if newest is not None:
        return YourList(shown_list(picture, newest), [], now, coming, clicks)
    trending = places(picture, picture.trending.items) if picture.trending else []
    return YourList(None, trending, now, coming, clicks)


def shown_user(picture: Picture, user: KnownUser) -> ShownUser:
    """All that is drawn of a user."""
    steps = [
        ShownStep(
            step.at_ms,
            step.type,
            None if step.item_id is None else picture.items.card(step.item_id),
            step.is_from_list,
            step.now,
            step.next,
            step.truth,
        )
        for step in user.steps
    ]
    return ShownUser(
        user.key,
        display_name(user.key),
        user.is_simulated,
        user.events,
        steps,
        None if user.newest is None else shown_list(picture, user.newest),
        user.jump,
        user.events_to_see_jump(),
    )


def user_lines(picture: Picture, words: str, count: int) -> list[UserLine]:
    """Users to pick from, those with news last first."""
    lines = []
    for user in picture.users.newest_first(words):
        top = next((step.now[0][0] for step in reversed(user.steps) if step.now), "")
        lines.append(
            UserLine(
                user.key,
                display_name(user.key),
                user.events,
                user.active_ms,
                top,
                user.is_simulated,
                user.jump.label if user.jump and user.has_jump_in_sight() else "",
            )
        )
        if len(lines) == count:
            break
    return lines


def engine_figures(picture: Picture, now_ms: int, viewers: int) -> EngineFigures:
    """How the engine does."""
    p50, p99 = picture.list_times.percentiles(0.5, 0.99) or (None, None)
    release = picture.release
    return EngineFigures(
        at=now_ms,
        events_per_s=round(picture.events.rate(now_ms), 1),
        lists_per_s=round(picture.lists.rate(now_ms), 1),
        p50=p50,
        p99=p99,
        timed=len(picture.list_times),
        lag=picture.worker.lag,
        worker=picture.worker.state(now_ms),
        release=f"{release.name}/{release.version}" if release else "",
        release_at=release.at if release else None,
        ranks=picture.ranks,
        dead_letters=picture.dead_letters.total,
        reasons=picture.dead_letters.reasons(),
        newest_refused=list(picture.dead_letters.newest),
        users=len(picture.users),
        items=len(picture.items),
        viewers=viewers,
        events=picture.events.series(now_ms),
        lists=picture.lists.series(now_ms),
    )


def rate_figures(picture: Picture) -> RateFigures:
    """Hit rates now and over time."""
    rates = picture.hit_rates
    return RateFigures(
        METHODS,
        rates.judged,
        rates.in_window,
        rates.rates(),
        [point.at_ms for point in rates.points],
        [point.rates for point in rates.points],
    )
