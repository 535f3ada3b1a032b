"""Tell what a user is interested in now, and what probably comes next.

An interest is a category of the catalogue. Both are functions of the state and the ranking alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import UNSET

from stream.catalogue import Catalogue
from stream.events import InterestNext, InterestNow, Interests, encode
from stream.state import TouchedUser

#: Events after which an event counts half in *now*.
HALF_LIFE_EVENTS = 8
#: The newest events that make a category `new` if it stands in no older one.
NEW_EVENTS = 3
#: Decayed over undecayed weight from which an interest rises, and below which it falls.
RISING, FALLING = 1.25, 0.8
MAX_INTERESTS = 16


@dataclass(frozen=True, slots=True)
class UserInterests:
    """Now and next of one user."""

    now: list[InterestNow]
    next: list[InterestNext]

    def digest(self) -> int:
        """Equal for interests that a consumer would not tell apart; never 0."""
        data = encode([self.now, self.next])
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1

    def message(self, user: TouchedUser, seq: int) -> Interests:
        """The message on `interests`."""
        return Interests(
            schema="driftline.interests/1",
            tenant=user.tenant,
            request_time=user.request_ms,
            now=self.now,
            next=self.next,
            user_id=user.owner if user.is_known else UNSET,
            anonymous_id=UNSET if user.is_known else user.owner,
            seq=seq,
        )


def user_interests(
    history: Sequence[str], listed: Sequence[str], scores: Sequence[float], catalogue: Catalogue
) -> UserInterests:
    """Interests from a history of items (oldest first) and a ranking with its scores.

    *now*: every event spreads its weight 2^(-age / HALF_LIFE_EVENTS), its age in events, evenly
    over its item's categories; weights sum to one. *next*: the same with the ranking's scores.
    Weights are rounded to hundredths: smaller moves are no news.
    """
    decayed: dict[str, float] = defaultdict(float)
    plain: dict[str, float] = defaultdict(float)
    oldest_age: dict[str, int] = {}
    for age, item in enumerate(reversed(history)):
        categories = catalogue.categories(item)
        for category in categories:
            decayed[category] += 2.0 ** (-age / HALF_LIFE_EVENTS) / len(categories)
            plain[category] += 1.0 / len(categories)
            oldest_age[category] = age
    total, plain_total = sum(decayed.values()), sum(plain.values())
    now = [
        InterestNow(
            category,
            round(weight / total, 2),
            _trend(weight / total, plain[category] / plain_total, oldest_age[category]),
        )
        for category, weight in _strongest(decayed)
    ]
    ahead: dict[str, float] = defaultdict(float)
    for item, score in zip(listed, scores, strict=True):
        categories = catalogue.categories(item)
        for category in categories:
            ahead[category] += score / len(categories)
    mass = sum(ahead.values())
    coming = [InterestNext(c, round(weight / mass, 2)) for c, weight in _strongest(ahead)]
    return UserInterests(now, coming)


def _strongest(weights: dict[str, float]) -> list[tuple[str, float]]:
    ordered = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))
    return [pair for pair in ordered[:MAX_INTERESTS] if pair[1] > 0]


def _trend(
    decayed: float, plain: float, oldest_age: int
) -> Literal["new", "rising", "steady", "falling"]:
    if oldest_age < NEW_EVENTS:
        return "new"
    ratio = decayed / plain
    return "rising" if ratio > RISING else "falling" if ratio < FALLING else "steady"
