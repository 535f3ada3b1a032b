"""Interests now and next: shares of categories, and how they move."""

from __future__ import annotations

import json
from collections import defaultdict

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.json import decode

from export.items import ItemIndex
from stream.catalogue import Catalogue
from stream.events import InterestNext, InterestNow, Item, encode
from stream.folded_batch import TouchedUser
from stream.history import UserRow
from stream.interests import (
    FALLING,
    HALF_LIFE_EVENTS,
    MAX_INTERESTS,
    NEW_EVENTS,
    RISING,
    UserInterests,
    user_interests,
)
from stream.list_texts import ListTexts
from stream.requests import Histories
from stream.schemas import schema

CATEGORIES = {
    "jazz-1": ["jazz"],
    "jazz-2": ["jazz"],
    "rock-1": ["rock"],
    "both": ["jazz", "rock"],
    "bare": [],
}


def catalogue(items: dict[str, list[str]] | None = None) -> Catalogue:
    made = Catalogue(ItemIndex())
    for item, categories in (items or CATEGORIES).items():
        assert made.take(item.encode(), encode(Item(item, 1, categories=categories))) is None
    return made


#: What a user has taken, the oldest first, and what is listed, with scores.
Taken = tuple[list[str], list[tuple[str, float]]]


def of_users(users: list[Taken], known: Catalogue) -> list[UserInterests]:
    """The interests of all these users at once."""
    index = known._index
    longest = max((len(ranking) for _, ranking in users), default=0)
    rows, scores = np.zeros((2, len(users), longest))
    for place, (_, ranking) in enumerate(users):
        rows[place, : len(ranking)] = index.rows([item for item, _ in ranking])
        scores[place, : len(ranking)] = [score for _, score in ranking]
    taken = [item for history, _ in users for item in history]
    return user_interests(
        Histories(index.rows(taken), np.array([len(history) for history, _ in users])),
        rows.astype(np.int64),
        scores.astype(np.float32),
        np.array([len(ranking) for _, ranking in users]),
        known.columns(),
        ListTexts(index.ids, known.labels),
    )


def interests_of(
    history: list[str], listed: list[str], scores: list[float], known: Catalogue
) -> UserInterests:
    (found,) = of_users([(history, list(zip(listed, scores, strict=True)))], known)
    return found


def read(interests: UserInterests) -> tuple[list[InterestNow], list[InterestNext]]:
    """Now and next, which are written as the encoder writes them."""
    now = decode(interests.now, type=list[InterestNow])
    coming = decode(interests.next, type=list[InterestNext])
    assert (encode(now), encode(coming)) == (interests.now, interests.next)
    return now, coming


def labels(interests: UserInterests) -> tuple[dict[str, float], dict[str, float]]:
    now, coming = read(interests)
    return {i.label: i.weight for i in now}, {i.label: i.probability for i in coming}


def plain(taken: Taken, known: Catalogue) -> tuple[list[InterestNow], list[InterestNext]]:
    """The same for one user, one category after another."""
    history, ranking = taken
    decayed: dict[str, float] = defaultdict(float)
    even: dict[str, float] = defaultdict(float)
    oldest: dict[str, int] = {}
    ahead: dict[str, float] = defaultdict(float)
    for age, item in enumerate(reversed(history)):
        for category in known.categories(item):
            decayed[category] += 2.0 ** (-age / HALF_LIFE_EVENTS) / len(known.categories(item))
            even[category] += 1.0 / len(known.categories(item))
            oldest[category] = age
    for item, score in ranking:
        for category in known.categories(item):
            ahead[category] += float(np.float32(score)) / len(known.categories(item))
    now = []
    for category, weight in strongest(decayed):
        ratio = weight / sum(decayed.values()) / (even[category] / sum(even.values()))
        trend = "rising" if ratio > RISING else "falling" if ratio < FALLING else "steady"
        if oldest[category] < NEW_EVENTS:
            trend = "new"
        now.append(InterestNow(category, round(weight / sum(decayed.values()), 2), trend))
    mass = sum(ahead.values())
    return now, [InterestNext(c, round(weight / mass, 2)) for c, weight in strongest(ahead)]


def strongest(weights: dict[str, float]) -> list[tuple[str, float]]:
    ordered = sorted(weights.items(), key=lambda pair: (-round(pair[1], 12), pair[0]))
    return [pair for pair in ordered[:MAX_INTERESTS] if pair[1] > 0]


items = st.sampled_from([*CATEGORIES, "unknown"])
rankings = st.lists(st.tuples(items, st.floats(0.001, 1)), max_size=20)


@given(st.lists(st.tuples(st.lists(items, max_size=20), rankings), min_size=1, max_size=5))
def test_interests_of_many_users_are_what_a_plain_program_says_of_each(users):
    known = catalogue()

    found = of_users(users, known)

    for taken, interests in zip(users, found, strict=True):
        for mine, wanted in zip(read(interests), plain(taken, known), strict=True):
            assert [i.label for i in mine] == [i.label for i in wanted]
            for one, other in zip(mine, wanted, strict=True):
                share = getattr(one, "weight", None) or getattr(one, "probability", 0.0)
                told = getattr(other, "weight", None) or getattr(other, "probability", 0.0)
                # a share that is a half of a hundredth can be rounded either way
                assert share == pytest.approx(told, abs=0.0101)
                assert getattr(one, "trend", "") == getattr(other, "trend", "")


@given(st.lists(items, max_size=20), st.lists(st.tuples(items, st.floats(0.001, 1)), max_size=20))
def test_now_and_next_are_shares_that_sum_to_one_strongest_first(history, ranking):
    listed, scores = [item for item, _ in ranking], [score for _, score in ranking]

    interests = interests_of(history, listed, scores, catalogue())

    now, coming = read(interests)
    for shares, of in (
        ([i.weight for i in now], history),
        ([i.probability for i in coming], listed),
    ):
        assert shares == sorted(shares, reverse=True)
        known = any(CATEGORIES.get(item) for item in of)
        assert sum(shares) == pytest.approx(1 if known else 0, abs=0.02)
    message = interests.message(TouchedUser(b"", "ada", True, "default", 0, UserRow(0)), 1)
    jsonschema.validate(json.loads(encode(message)), schema("interests"))


def test_what_came_last_weighs_most_and_halves_every_eight_events():
    now, _ = labels(interests_of(["jazz-1", *["bare"] * 7, "rock-1"], [], [], catalogue()))

    assert now == {"rock": 0.67, "jazz": 0.33}


def test_an_item_of_several_categories_counts_for_each_in_part():
    now, coming = labels(interests_of(["both"], ["both", "jazz-1"], [0.5, 0.5], catalogue()))

    assert now == {"jazz": 0.5, "rock": 0.5}
    assert coming == {"jazz": 0.75, "rock": 0.25}


@pytest.mark.parametrize(
    ("history", "trend"),
    [
        (["rock-1"] * 20 + ["jazz-1"] * 2, "new"),
        (["jazz-1"] + ["rock-1"] * 20 + ["jazz-1"] * 5, "rising"),
        (["jazz-1", "rock-1"] * 10, "steady"),
        (["jazz-1"] * 20 + ["rock-1"] * 10, "falling"),
    ],
)
def test_the_trend_of_an_interest_tells_where_it_goes(history, trend):
    interests = interests_of(history, [], [], catalogue())

    assert {i.label: i.trend for i in read(interests)[0]}["jazz"] == trend


def test_no_more_interests_are_told_than_a_message_holds():
    many = {f"item-{n}": [f"category-{n}"] for n in range(MAX_INTERESTS + 9)}

    interests = interests_of(list(many), list(many), [1.0] * len(many), catalogue(many))

    assert list(map(len, read(interests))) == [MAX_INTERESTS, MAX_INTERESTS]


def test_interests_that_a_consumer_cannot_tell_apart_have_one_digest():
    one = interests_of(["jazz-1"], ["rock-1"], [0.5], catalogue())
    same = interests_of(["jazz-2"], ["rock-1"], [0.7], catalogue())
    other = interests_of(["rock-1"], ["rock-1"], [0.5], catalogue())

    assert one.digest() == same.digest() != other.digest()
    assert interests_of([], [], [], catalogue()).digest() != 0


def test_the_message_names_the_user_or_the_anonymous_one():
    interests = interests_of(["jazz-1"], [], [], catalogue())

    known = interests.message(TouchedUser(b"", "ada", True, "default", 0, UserRow(0)), 4)
    anonymous = interests.message(TouchedUser(b"", "dev", False, "shop", 0, UserRow(0)), 4)

    assert (known.user_id, known.seq, known.tenant) == ("ada", 4, "default")
    assert (anonymous.anonymous_id, anonymous.tenant) == ("dev", "shop")
