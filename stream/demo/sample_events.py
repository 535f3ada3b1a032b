"""Make a small catalogue, its users' past, and what they do next; the same for the same seed.

Users have a favourite category and follow its items in order more often than not, so that both
popularity and chain have something to find. One user's favourite changes halfway.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from stream.events import Item, UserEvent

CATEGORIES = ("jazz", "hiking", "cooking", "astronomy", "chess", "gardening")
ITEMS_PER_CATEGORY = 30
PAST_USERS = 60
PAST_EVENTS = 1500
#: How far back the past reaches.
_PAST_MS = 3 * 86_400_000
#: How often a user takes an item of the favourite category, and how often the next one in order.
_FAVOURITE_SHARE, _IN_ORDER_SHARE = 0.8, 0.6


@dataclass(slots=True)
class SampleUser:
    """A user with a favourite category; `last` is the number of the item taken last in each."""

    name: str
    favourite: str
    last: dict[str, int]


def sample_items() -> list[Item]:
    """The catalogue: so many items of every category."""
    return [
        Item(
            item_id=_item_id(category, number),
            version=1,
            title=f"{category.capitalize()}, part {number}",
            categories=[category],
        )
        for category in CATEGORIES
        for number in range(ITEMS_PER_CATEGORY)
    ]


def sample_users() -> list[SampleUser]:
    """Three users with names, who act before our eyes, and those who only have a past."""
    shown = [
        SampleUser("ada", "jazz", {}),
        SampleUser("bob", "cooking", {}),
        SampleUser("cyd", "astronomy", {}),
    ]
    others = [
        SampleUser(f"user-{number:02d}", CATEGORIES[number % len(CATEGORIES)], {})
        for number in range(PAST_USERS)
    ]
    return shown + others


def past_events(users: list[SampleUser], rng: Random, now_ms: int) -> list[UserEvent]:
    """What the users did in the last days, in the order of time."""
    times_ms = sorted(now_ms - rng.randrange(1000, _PAST_MS) for _ in range(PAST_EVENTS))
    return [
        click(rng.choice(users), number, time_ms, rng) for number, time_ms in enumerate(times_ms)
    ]


def click(user: SampleUser, number: int, time_ms: int, rng: Random) -> UserEvent:
    """The user takes an item, of the favourite category most of the time."""
    is_true = rng.random() < _FAVOURITE_SHARE
    category = user.favourite if is_true else rng.choice(CATEGORIES)
    last = user.last.get(category)
    if last is None or rng.random() >= _IN_ORDER_SHARE:
        taken = min(int(rng.expovariate(0.12)), ITEMS_PER_CATEGORY - 1)
    else:
        taken = (last + 1) % ITEMS_PER_CATEGORY
    user.last[category] = taken
    return UserEvent(
        event_id=f"sample-{number:06d}",
        type="click",
        event_time=time_ms,
        user_id=user.name,
        item_id=_item_id(category, taken),
    )


def visit(user: SampleUser, number: int, time_ms: int) -> UserEvent:
    """The user is here, and wants a list."""
    return UserEvent(f"sample-{number:06d}", "visit", time_ms, user_id=user.name)


def _item_id(category: str, number: int) -> str:
    return f"{category}-{number:02d}"
