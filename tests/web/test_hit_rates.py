"""Every click is judged on what was known before it, and learned after it."""

from __future__ import annotations

import random

import pytest

from export.items import ItemIndex
from export.statistics import ItemStatistics
from stream.catalogue import Catalogue
from stream.events import Item, encode
from stream.web.hit_rates import MAX_POINTS, METHODS, MIN_JUDGED, HitRates, JudgedEvent

NOW = 1_800_000_000_000


def hit_rates(filters_seen: bool = True) -> HitRates:
    index = ItemIndex()
    statistics = ItemStatistics(index)
    return HitRates(statistics, index, Catalogue(index), 0.7, filters_seen)


def click(user: str, item: str, number: int, listed: tuple[str, ...] | None = None) -> JudgedEvent:
    return JudgedEvent(user, item, NOW + number * 1000, NOW + number * 1000, 1.0, listed)


def rate(rates: HitRates, method: str) -> float:
    found = {entry["method"]: float(entry["rate"]) for entry in rates.rates()}
    return found[method]


def test_an_item_does_not_count_for_its_own_first_click() -> None:
    rates = hit_rates()
    for number in range(MIN_JUDGED):
        rates.take([click(f"user-{number}", f"item-{number}", number, ())])

    assert [entry["rate"] for entry in rates.rates()] == [0.0] * len(METHODS)


def test_each_method_hits_where_it_should() -> None:
    rates = hit_rates()
    number = 0
    for _ in range(40):  # everybody takes a, b, c, one after another
        for item in ("a", "b", "c"):
            rates.take([click(f"user-{number // 3}", item, number)])
            number += 1
    for item in (f"often-{n}" for n in range(20)):  # popular ones push b from the ten
        for _ in range(200):
            rates.take([click(f"other-{number}", item, number)])
            number += 1
    for new in range(MIN_JUDGED):
        rates.take([click(f"new-{new}", "a", number)])
        rates.take([click(f"new-{new}", "b", number + 1, ("x", "b"))])
        number += 2

    assert rate(rates, "engine") == 1.0
    assert rate(rates, "chain") == 1.0
    assert rate(rates, "popularity") == 0.0


@pytest.mark.parametrize("filters_seen", [True, False])
def test_what_a_user_has_taken_is_left_out_if_the_engine_leaves_it_out(filters_seen: bool) -> None:
    rates = hit_rates(filters_seen)
    for number in range(2 * MIN_JUDGED):
        rates.take([click("ada", "a", number, ("a",))])

    assert (rate(rates, "popularity") > 0.5) == (not filters_seen)


def test_a_hidden_item_is_in_no_baselines_list() -> None:
    index = ItemIndex()
    catalogue = Catalogue(index)
    catalogue.take(b"a", encode(Item(item_id="a", version=1, hidden=True)))
    rates = HitRates(ItemStatistics(index), index, catalogue, 0.7, True)
    for number in range(2 * MIN_JUDGED):
        rates.take([click(f"user-{number}", "a", number, ())])

    assert rate(rates, "popularity") == 0.0


def test_the_picture_keeps_all_of_the_time_in_bounded_memory() -> None:
    rates = hit_rates()
    for number in range(6000):
        at_ms = number * 5000
        event = JudgedEvent(f"user-{number % 7}", "a", NOW + at_ms, NOW + at_ms, 1.0, ("a",))
        rates.take([event])

    assert MAX_POINTS / 3 < len(rates.points) <= MAX_POINTS
    assert rates.points[0].at_ms < NOW + 1_000_000
    assert rates.points[-1].at_ms > NOW + 5800 * 5000


def test_the_engines_lead_is_paired_over_the_same_clicks() -> None:
    rates = hit_rates()
    rng = random.Random(1)
    hits = [rng.random() < 0.5 for _ in range(400)]
    for number, is_hit in enumerate(hits):
        listed = (f"item-{number}",) if is_hit else ()
        rates.take([click(f"user-{number}", f"item-{number}", number, listed)])

    lead = {entry["method"]: entry for entry in rates.rates()}["popularity"]
    assert lead["ahead"] == pytest.approx(sum(hits) / 400, abs=1e-4)
    assert float(lead["ahead_within"]) == pytest.approx(1.96 * 0.5 / 20, rel=0.02)
