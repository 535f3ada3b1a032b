"""What is kept of users is bounded, and estimates stand at the event they were made after."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from stream.events import (
    InterestNext,
    InterestNow,
    Interests,
    RankedItem,
    Recommendation,
    ReleaseReference,
    Trigger,
    UserEvent,
)
from stream.web.users import MAX_STEPS, Jump, KnownUser, Truth, TruthLabel, Users, key_of_event

NOW = 1_800_000_000_000


def event(at: int, item: str = "a", user: str = "ada", **fields: Any) -> UserEvent:
    return UserEvent(f"event-{at:04d}", "click", NOW + at, user_id=user, item_id=item, **fields)


def interests(at: int, label: str) -> Interests:
    now, coming = [InterestNow(label, 1.0, "steady")], [InterestNext(label, 1.0)]
    return Interests("driftline.interests/1", "default", NOW + at, now, coming, user_id="ada")


def found(seq: int, *items: str) -> Recommendation:
    return Recommendation(
        schema="driftline.recommendation/1",
        rec_id=f"rec-{seq}",
        tenant="default",
        scenario="home",
        seq=seq,
        generated_at=NOW,
        expires_at=NOW + 86_400_000,
        trigger=Trigger("event"),
        release=ReleaseReference("driftline", 1),
        items=[RankedItem(item, 1.0) for item in items],
        user_id="ada",
    )


def test_users_without_news_are_forgotten_first() -> None:
    users = Users(max_users=3)
    for name in ("ada", "bob", "cyd", "ada", "dan"):
        users.touch(name)

    assert len(users) == 3
    assert users.get("bob") is None and users.get("ada") is not None


def test_a_users_events_are_bounded_and_in_the_order_of_time() -> None:
    user = KnownUser("ada")
    for at in [*range(0, 400, 2), 391]:
        user.add_event(event(at))

    times = [step.at_ms - NOW for step in user.steps]
    assert len(times) == MAX_STEPS and times == sorted(times) and 391 in times
    assert user.events == 201


def test_an_estimate_stands_at_the_event_that_it_was_made_after() -> None:
    user = KnownUser("ada")
    for at in (10, 20, 30):
        user.add_event(event(at))
    user.add_interests(interests(20, "jazz"))

    assert [step.now for step in user.steps] == [None, [("jazz", 1.0)], None]


def test_a_truth_that_comes_before_its_event_waits_for_it() -> None:
    user = KnownUser("ada")
    user.add_event(event(10))
    user.add_truth(Truth("ada", NOW + 20, [TruthLabel("jazz", 1.0)]))
    assert user.steps[-1].truth is None

    user.add_event(event(20))
    assert [step.truth for step in user.steps] == [None, [("jazz", 1.0)]]


def test_the_events_until_a_jump_was_seen_are_counted_from_the_jump() -> None:
    user = KnownUser("ada")
    for at in (10, 20, 30, 40):
        user.add_event(event(at))
        user.add_truth(Truth("ada", NOW + at, [], Jump("hiking", NOW + 15) if at > 15 else None))
        user.add_interests(interests(at, "hiking" if at >= 40 else "jazz"))

    assert user.events_to_see_jump() == 3
    assert user.has_jump_in_sight()


def test_an_event_is_judged_by_the_list_that_was_there_when_it_was_written() -> None:
    user = KnownUser("ada")
    user.add_list(found(1, "a"), NOW + 100)
    user.add_list(found(2, "b"), NOW + 200)

    before = [user.list_before(NOW + at, NOW + at) for at in (100, 150, 250)]
    assert [past and past.item_ids for past in before] == [None, ("a",), ("b",)]
    assert user.list_before(NOW + 250, NOW + 90_000_000) is None  # expired


def test_a_list_with_a_lower_seq_is_passed_over() -> None:
    user = KnownUser("ada")
    user.add_list(found(2, "b"), NOW)
    user.add_list(found(1, "a"), NOW + 1)

    assert user.newest is not None and user.newest.seq == 2


def test_events_and_lists_of_a_user_have_the_same_key() -> None:
    assert key_of_event(event(0)) == "ada"
    anonymous = UserEvent("event-0000", "visit", NOW, anonymous_id="ada")
    assert key_of_event(anonymous) == "default\x1fa\x1fada\x1fhome"
    assert key_of_event(event(0, tenant="shop")) == "shop\x1fu\x1fada\x1fhome"
    assert key_of_event(UserEvent("event-0000", "visit", NOW, user_id=UNSET)) is None
