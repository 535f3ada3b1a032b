"""Tell what users are interested in now, and what probably comes next.

An interest is a category of the catalogue. Both are functions of the state and the ranking alone.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from msgspec import UNSET, Raw
from numpy.typing import NDArray

from export.items import Rows
from stream.catalogue import CatalogueColumns
from stream.events import InterestNext, InterestNow, Interests, Trend, encode
from stream.folded_batch import TouchedUser
from stream.list_texts import ListTexts
from stream.requests import Histories

#: Events after which an event counts half in *now*.
HALF_LIFE_EVENTS = 8
#: The newest events that make a category `new` if it stands in no older one.
NEW_EVENTS = 3
#: Decayed over undecayed weight from which an interest rises, and below which it falls.
RISING, FALLING = 1.25, 0.8
MAX_INTERESTS = 16
_TRENDS: tuple[Trend, ...] = ("new", "rising", "steady", "falling")
_NEW, _RISING, _STEADY, _FALLING = range(4)


@dataclass(frozen=True, slots=True)
class UserInterests:
    """Now and next of one user, as JSON."""

    now: bytes
    next: bytes

    @property
    def are_known(self) -> bool:
        """Whether there is anything to tell."""
        return len(self.now) > len(b"[]") or len(self.next) > len(b"[]")

    def digest(self) -> int:
        """Equal for interests that a consumer would not tell apart; never 0."""
        data = b"[%b,%b]" % (self.now, self.next)
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1

    def message(self, user: TouchedUser, seq: int) -> Interests:
        """The message on `interests`, for encoding: now and next stand in it as JSON."""
        return Interests(
            schema="driftline.interests/1",
            tenant=user.tenant,
            request_time=user.request_ms,
            now=cast(list[InterestNow], Raw(self.now)),
            next=cast(list[InterestNext], Raw(self.next)),
            user_id=user.owner if user.is_known else UNSET,
            anonymous_id=UNSET if user.is_known else user.owner,
            seq=seq,
        )


def user_interests(
    histories: Histories,
    listed: Rows,
    scores: NDArray[np.float32],
    lengths: NDArray[np.int64],
    catalogue: CatalogueColumns,
    texts: ListTexts,
) -> list[UserInterests]:
    """Interests of B users from what they took, and from their lists: [B, k] rows and scores, of
    which the first `lengths` [B] count.

    *now*: every event spreads its weight 2^(-age / HALF_LIFE_EVENTS), its age in events, evenly
    over its item's categories; weights sum to one. *next*: the same with the ranking's scores.
    Weights are rounded to hundredths: smaller moves are no news.
    """
    users = len(lengths)
    takers = np.arange(users).repeat(histories.lengths)
    ends = histories.lengths.cumsum()
    ages = np.arange(len(takers)) - (ends - histories.lengths)[takers]  # newest first
    is_listed = np.arange(listed.shape[1]) < lengths[:, None]
    # the lists are taken for histories of as many users more: one pass does both
    spread = _Spread(
        np.concatenate([histories.item_rows[ends[takers] - 1 - ages], listed[is_listed]]),
        np.concatenate([takers, users + is_listed.nonzero()[0]]),
        2 * users,
        catalogue,
    )
    shares = spread.strongest(np.concatenate([_DECAY[ages], scores[is_listed]]))
    trends = spread.trends(shares, np.concatenate([ages, np.zeros_like(lengths).repeat(lengths)]))
    told = _told(shares, trends, users, texts)
    return [UserInterests(*pair) for pair in zip(told[:users], told[users:], strict=True)]


#: 2^(-age / HALF_LIFE_EVENTS), to the longest history that a row may hold.
_DECAY = np.array([2.0 ** (-age / HALF_LIFE_EVENTS) for age in range(1024)])


@dataclass(frozen=True, slots=True)
class _Shares:
    """Categories of users with their shares; users ascend, the strongest of each comes first."""

    users: NDArray[np.int64]  # [N]
    categories: NDArray[np.int64]  # [N]
    shares: NDArray[np.float64]  # [N]
    pairs: NDArray[np.int64]  # [N] where _Spread keeps this user's category


class _Spread:
    """Items of B users, each of which spreads a weight evenly over its categories."""

    def __init__(
        self, rows: Rows, at_user: NDArray[np.int64], users: int, catalogue: CatalogueColumns
    ) -> None:
        found = catalogue.categories_of(rows)  # [N, W]
        has = found >= 0
        self._users, self._at_user = users, at_user
        self._counts = np.add.reduce(has.T, axis=0, dtype=np.int64)
        self._entry = has.nonzero()[0]  # [E] which item each of its categories is of
        self._categories, places = _by_name(found[has], catalogue.labels)
        self._pairs = at_user[self._entry] * len(self._categories) + places  # [E]

    def strongest(self, weights: NDArray[np.float64]) -> _Shares:
        """The MAX_INTERESTS categories of each user with the largest shares of [N] weights."""
        mass = self._mass(weights)
        pairs = (mass > 0).nonzero()[0]
        user = pairs // max(len(self._categories), 1)
        order = np.lexsort((-mass[pairs], user))  # stable: of equals the first by name
        pairs, user = pairs[order], user[order]
        firsts = user.searchsorted(np.arange(self._users))
        kept = np.arange(len(user)) - firsts[user] < MAX_INTERESTS
        pairs, user = pairs[kept], user[kept]
        shares = mass[pairs] / self._total(weights)[user]
        return _Shares(user, self._categories[pairs % len(self._categories)], shares, pairs)

    def trends(self, of: _Shares, ages: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of _TRENDS each share is, from the items' [N] ages in events."""
        even = np.ones(len(ages))
        plain = self._mass(even)[of.pairs] / self._total(even)[of.users]
        oldest = np.zeros(self._users * len(self._categories), dtype=np.int64)
        np.maximum.at(oldest, self._pairs, ages[self._entry])
        ratio = of.shares / plain
        moves = np.where(ratio > RISING, _RISING, np.where(ratio < FALLING, _FALLING, _STEADY))
        return np.where(oldest[of.pairs] < NEW_EVENTS, _NEW, moves)

    def _mass(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[B * L] what each user's categories get of [N] weights, added in the items' order."""
        parts = weights[self._entry] / self._counts[self._entry]
        return _sums(self._pairs, parts, self._users * len(self._categories))

    def _total(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[B] the weight of each user's items that have categories."""
        return _sums(self._at_user, weights * (self._counts > 0), self._users)


def _sums(
    places: NDArray[np.int64], weights: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """[size] the weights at each place, added in their order."""
    return np.bincount(places, weights, minlength=size).astype(np.float64, copy=False)


def _by_name(
    numbers: NDArray[np.int32], labels: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct categories in the order of their names, and the place of each number in it."""
    is_there = np.zeros(len(labels), dtype=bool)
    is_there[numbers] = True
    ordered = sorted(is_there.nonzero()[0].tolist(), key=labels.__getitem__)
    place_of = np.zeros(len(labels), dtype=np.int64)
    place_of[ordered] = np.arange(len(ordered))
    return np.array(ordered, dtype=np.int64), place_of[numbers]


_HUNDREDTHS = 101
#: How the encoder ends an entry of *now*: by trend and hundredths, and one of *next*: by those.
_NOW_ENDS = [
    encode(InterestNow("", number / 100, trend)).split(b'""')[1]
    for trend in _TRENDS
    for number in range(_HUNDREDTHS)
]
_NEXT_ENDS = [
    encode(InterestNext("", number / 100)).split(b'""')[1] for number in range(_HUNDREDTHS)
]


def _told(of: _Shares, trends: NDArray[np.int64], users: int, texts: ListTexts) -> list[bytes]:
    """[2 B] the JSON of what users are interested in now, and of what comes next."""
    ends = of.users.searchsorted(np.arange(2 * users + 1))
    hundredths = _hundredths(of.shares)
    half = int(ends[users])
    numbers = (hundredths[:half] + trends[:half] * _HUNDREDTHS).tolist()
    tails = [_NOW_ENDS[number] for number in numbers]
    tails += [_NEXT_ENDS[number] for number in hundredths[half:].tolist()]
    heads = map(texts.labelled.__getitem__, of.categories.tolist())
    entries = list(map(operator.add, heads, tails))
    return [b"[%b]" % b",".join(entries[a:b]) for a, b in itertools.pairwise(ends.tolist())]


def _hundredths(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """`round(share, 2)` of shares up to one, in hundredths."""
    exact = shares * 100
    rounded: NDArray[np.int64] = np.rint(exact).astype(np.int64)
    # the product is rounded, too: near a half only Python's rounding of the decimals is right
    for at in (np.abs(exact - np.floor(exact) - 0.5) < 1e-9).nonzero()[0].tolist():
        rounded[at] = round(round(float(shares[at]), 2) * 100)
    return rounded
