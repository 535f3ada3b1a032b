"""Interests now and next: shares of categories, and how they move."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.items import ItemIndex
from stream.catalogue import Catalogue
from stream.events import Item, encode
from stream.history import UserRow
from stream.interests import MAX_INTERESTS, UserInterests, user_interests
from stream.schemas import schema
from stream.state import TouchedUser

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


def labels(interests: UserInterests) -> tuple[dict[str, float], dict[str, float]]:
    now = {interest.label: interest.weight for interest in interests.now}
    return now, {interest.label: interest.probability for interest in interests.next}


items = st.sampled_from([*CATEGORIES, "unknown"])


@given(st.lists(items, max_size=20), st.lists(st.tuples(items, st.floats(0.001, 1)), max_size=20))
def test_now_and_next_are_shares_that_sum_to_one_strongest_first(history, ranking):
    listed, scores = [item for item, _ in ranking], [score for _, score in ranking]

    interests = user_interests(history, listed, scores, catalogue())

    for shares, of in (
        ([i.weight for i in interests.now], history),
        ([i.probability for i in interests.next], listed),
    ):
        assert shares == sorted(shares, reverse=True)
        known = any(CATEGORIES.get(item) for item in of)
        assert sum(shares) == pytest.approx(1 if known else 0, abs=0.02)
    message = interests.message(TouchedUser(b"", "ada", True, "default", 0, UserRow(0)), 1)
    jsonschema.validate(json.loads(encode(message)), schema("interests"))


def test_what_came_last_weighs_most_and_halves_every_eight_events():
    now, _ = labels(user_interests(["jazz-1", *["bare"] * 7, "rock-1"], [], [], catalogue()))

    assert now == {"rock": 0.67, "jazz": 0.33}


def test_an_item_of_several_categories_counts_for_each_in_part():
    now, coming = labels(user_interests(["both"], ["both", "jazz-1"], [0.5, 0.5], catalogue()))

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
    interests = user_interests(history, [], [], catalogue())

    assert {i.label: i.trend for i in interests.now}["jazz"] == trend


def test_no_more_interests_are_told_than_a_message_holds():
    many = {f"item-{n}": [f"category-{n}"] for n in range(MAX_INTERESTS + 9)}

    interests = user_interests(list(many), list(many), [1.0] * len(many), catalogue(many))

    assert len(interests.now) == len(interests.next) == MAX_INTERESTS


def test_interests_that_a_consumer_cannot_tell_apart_have_one_digest():
    one = user_interests(["jazz-1"], ["rock-1"], [0.5], catalogue())
    same = user_interests(["jazz-2"], ["rock-1"], [0.7], catalogue())
    other = user_interests(["rock-1"], ["rock-1"], [0.5], catalogue())

    assert one.digest() == same.digest() != other.digest()
    assert user_interests([], [], [], catalogue()).digest() != 0


def test_the_message_names_the_user_or_the_anonymous_one():
    interests = user_interests(["jazz-1"], [], [], catalogue())

    known = interests.message(TouchedUser(b"", "ada", True, "default", 0, UserRow(0)), 4)
    anonymous = interests.message(TouchedUser(b"", "dev", False, "shop", 0, UserRow(0)), 4)

    assert (known.user_id, known.seq, known.tenant) == ("ada", 4, "default")
    assert (anonymous.anonymous_id, anonymous.tenant) == ("dev", "shop")
