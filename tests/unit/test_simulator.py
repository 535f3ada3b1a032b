"""Simulated users do what the model says: drift, jumps, season, fatigue, ageing, position bias."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from stream.demo.catalogue import (
    CATEGORIES,
    ESTABLISHED,
    ITEMS_PER_CATEGORY,
    birth_times,
    demo_items,
)
from stream.demo.simulator import (
    DAY_MS,
    SEASON_PEAK_MS,
    WEEK_MS,
    Clicks,
    Simulator,
    SimulatorSettings,
)

#: A Thursday's midnight, far from every age in the test catalogues.
NOW_MS = 2900 * WEEK_MS
K = ITEMS_PER_CATEGORY


def simulator(users: int = 400, seed: int = 1, **settings: int) -> Simulator:
    born_ms = birth_times(NOW_MS, 45_000)
    return Simulator(SimulatorSettings(users=users, seed=seed, **settings), born_ms)


def month(simulated: Simulator, count: int = 40_000) -> Clicks:
    return simulated.clicks(count, NOW_MS - 28 * DAY_MS, NOW_MS)


def test_the_same_seed_gives_the_same_clicks_and_another_one_others() -> None:
    one, again, other = (month(simulator(seed=seed), 5000) for seed in (1, 1, 2))

    for name in Clicks.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.items, other.items)


def test_interests_drift_slowly_from_click_to_click() -> None:
    simulated = simulator(users=1, seed=4)
    place, at = np.array([0]), np.array([NOW_MS])
    begun = simulated.truth(place, at)[0]
    moved = []
    while simulated.numbers[0] == 0 and simulated.last_jump(0) is None:
        moved.append(float(np.abs(simulated.truth(place, at)[0] - begun).sum()))
        simulated.act(place, at)

    assert len(moved) > 25
    assert moved[1] < 0.1 < max(moved)
    assert all(abs(b - a) < 0.1 for a, b in pairwise(moved))


def test_after_a_jump_most_clicks_are_of_what_mattered_least_and_the_moment_is_known() -> None:
    clicks = month(simulator())
    category = clicks.items // K
    soon = (clicks.since_jump >= 1) & (clicks.since_jump <= 10)
    late = clicks.since_jump > 60

    hit = category == clicks.jumped_to
    assert np.count_nonzero(clicks.since_jump == 1) > 300
    assert 0.65 < hit[soon].mean() < 0.85
    assert hit[late].mean() < hit[soon].mean() - 0.2


def test_the_truth_names_the_jump_from_its_first_click_on() -> None:
    simulated = simulator(users=1, seed=2)
    place = np.array([0])
    at_ms = NOW_MS
    while (jump := simulated.last_jump(0)) is None:
        at_ms += 1000
        simulated.act(place, np.array([at_ms]))

    assert (jump.time_ms, jump.clicks) == (at_ms, 1)
    truth = simulated.truth(place, np.array([at_ms]))[0]
    assert truth.argmax() == jump.category and truth[jump.category] > 0.7
    assert truth.sum() == pytest.approx(1.0)


def test_seasonal_categories_return_every_week_the_others_do_not_move() -> None:
    clicks = month(simulator(users=4000), 200_000)
    organic = clicks.since_jump == 0
    week = (clicks.times_ms[organic] - SEASON_PEAK_MS) / WEEK_MS
    is_seasonal = (clicks.items[organic] // K) % 2 == 1
    near_peak = np.abs(week - np.round(week)) < 0.1

    share = [is_seasonal[near_peak].mean(), is_seasonal[~near_peak].mean()]
    weeks = [is_seasonal[near_peak & (np.round(week) == w)].mean() for w in np.unique(week.round())]
    assert share[0] > share[1] + 0.1
    assert max(weeks[:-1]) - min(weeks[:-1]) < 0.08  # the last one has hardly begun


def test_a_user_tires_of_a_category_that_he_just_had() -> None:
    """He leaves it more often than independent draws from the same interests would."""
    same, expected = [], []
    simulated = simulator(users=800, seed=3)
    places = np.arange(800)
    last: np.ndarray | None = None
    for step in range(25):
        at = np.full(800, NOW_MS + step)
        truth = simulated.truth(places, at)
        category = simulated.act(places, at).items // K
        if last is not None:
            same.append(np.mean(category == last))
            expected.append(truth[places, last].mean())
        last = category

    assert np.mean(same[10:]) < np.mean(expected[10:]) - 0.02


def test_items_are_seldom_taken_twice_while_there_are_others() -> None:
    clicks = month(simulator(users=4000), 20_000)

    pairs = clicks.users * 1_000_000 + clicks.items
    assert len(np.unique(pairs)) > 0.97 * len(pairs)


def test_items_appear_at_their_time_and_age() -> None:
    simulated = simulator(users=4000)
    clicks = month(simulated, 100_000)
    age_ms = clicks.times_ms - simulated.born_ms.ravel()[clicks.items]

    # 20 * 12 items are at least 5 days old halfway; the clicks each of them got, by its age
    week_old = np.count_nonzero((age_ms > 0) & (age_ms < 7 * DAY_MS))
    items_week_old = _item_time(simulated.born_ms, 0, 7 * DAY_MS)
    fifth_week = np.count_nonzero((age_ms > 28 * DAY_MS) & (age_ms < 35 * DAY_MS))
    items_fifth_week = _item_time(simulated.born_ms, 28 * DAY_MS, 35 * DAY_MS)
    assert age_ms.min() >= 0
    assert week_old / items_week_old > 2 * fifth_week / items_fifth_week


def _item_time(born_ms: np.ndarray, from_age: int, to_age: int) -> float:
    """How long, in milliseconds, items were of an age within the month, all together."""
    begin = np.maximum(born_ms + from_age, NOW_MS - 28 * DAY_MS)
    end = np.minimum(born_ms + to_age, NOW_MS)
    return float(np.maximum(end - begin, 0).sum())


def test_the_first_places_of_a_list_are_clicked_most_whatever_stands_there() -> None:
    simulated = simulator(users=4000, seed=5)
    rng = np.random.default_rng(1)
    there = np.flatnonzero(simulated.born_ms.ravel() <= NOW_MS)
    shown = rng.permuted(np.tile(there, (4000, 1)), axis=1)[:, :10]

    clicks = simulated.act(np.arange(4000), np.full(4000, NOW_MS), shown)

    counts = np.bincount(clicks.positions[clicks.positions >= 0], minlength=10)
    assert counts[0] > 1.5 * counts[1] > 2 * counts[9]
    from_list = clicks.positions >= 0
    assert np.array_equal(clicks.items[from_list], shown[from_list, clicks.positions[from_list]])
    assert 0.02 < from_list.mean() < 0.9


def test_a_list_of_what_he_likes_is_clicked_more_than_one_of_what_he_does_not() -> None:
    taken = {}
    for name, pick in (("most", -1), ("least", 0)):
        simulated = simulator(users=2000, seed=6)
        places, at = np.arange(2000), np.full(2000, NOW_MS)
        category = np.argsort(simulated.truth(places, at), axis=1)[:, pick]
        shown = category[:, None] * K + np.arange(K)
        taken[name] = np.mean(simulated.act(places, at, shown).positions >= 0)

    assert taken["most"] > 3 * taken["least"]


def test_users_leave_and_others_come_with_numbers_of_their_own() -> None:
    clicks = month(simulator(users=100), 30_000)

    numbers, count = np.unique(clicks.users, return_counts=True)
    assert len(numbers) > 150
    assert count.max() <= 180
    assert len(set(numbers.tolist()) - set(range(100))) > 50


def test_the_world_is_the_same_for_every_crowd() -> None:
    first = np.bincount(month(simulator(users=4000, seed=1), 60_000).items, minlength=360)
    other = np.bincount(month(simulator(users=4000, seed=2), 60_000).items, minlength=360)

    assert np.corrcoef(first, other)[0, 1] > 0.9


def test_a_hundred_thousand_clicks_take_less_than_a_second() -> None:
    simulated = simulator(users=5000)
    fastest_s = min(_seconds(lambda: month(simulated, 50_000)) for _ in range(3))

    assert 50_000 / fastest_s >= 100_000


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def test_the_catalogue_has_a_readable_title_a_category_and_an_id_of_its_own_for_every_item() -> (
    None
):
    items = demo_items()

    assert len(items) == len(CATEGORIES) * K == len({item.item_id for item in items})
    assert len({item.title for item in items}) == len(items)
    assert all(item.categories == [CATEGORIES[n // K]] for n, item in enumerate(items))
    born_ms = birth_times(NOW_MS, 45_000)
    assert np.all((born_ms <= NOW_MS).sum(axis=1) == ESTABLISHED)
    later = np.sort(born_ms[born_ms > NOW_MS])
    assert np.all(np.diff(later) == 45_000)
