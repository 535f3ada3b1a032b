"""The reason of a listed item is what a slow and plain reading of the same ranking says too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.json import decode
from numpy.typing import NDArray
from statistics_strategies import ITEMS, START_MS, Counted, counted_events, statistics_of

from export.items import item_hash
from export.statistics import CHAIN_DEPTH, DAY_MS, ItemStatistics
from stream.catalogue import NO_CATEGORY, Catalogue, CatalogueColumns
from stream.events import Item, RankedItem, Reason, encode
from stream.history import HistoryEvent, RowLimits, UserRow, hash64
from stream.list_texts import ListTexts
from stream.ranker import RankedLists, StatisticsRanker
from stream.reasons import NEW_ITEM_MS, ReasonTexts, reasons_of
from stream.requests import LiveTensors, UserColumns, build_columns

TREND, CHAIN, SEQUENCE = range(3)
#: Two of these or none are given to every item by its number.
LABELS = ["jazz", "hiking", "chess"]


def user_of(*items: str) -> UserRow:
    """A user who took these items, the oldest first."""
    row = UserRow(0)
    for number, item in enumerate(items):
        event = HistoryEvent(hash64(str(number)), item_hash(item), START_MS + number, number, 1)
        row.fold(event, RowLimits())
    return row


def catalogue_of(statistics: ItemStatistics, **items: Item) -> Catalogue:
    """A catalogue that holds these items."""
    catalogue = Catalogue(statistics.index)
    for item in items.values():
        assert catalogue.take(item.item_id.encode(), encode(item)) is None
    return catalogue


def all_items(statistics: ItemStatistics) -> Catalogue:
    """Every item with up to two categories, some of them published lately."""
    items = [
        Item(
            item,
            1,
            categories=[LABELS[number % 3], LABELS[number // 3 % 3]] if number % 4 else [],
            publish_time=START_MS - number * DAY_MS if number % 2 else UNSET,
        )
        for number, item in enumerate(ITEMS)
    ]
    return catalogue_of(statistics, **{item.item_id: item for item in items})


def columns_of(users: list[UserRow], statistics: ItemStatistics) -> UserColumns:
    rows = [(user, START_MS) for user in users]
    return build_columns(rows, statistics.index, statistics, {}, len(ITEMS), False)


def told(
    users: list[UserRow],
    statistics: ItemStatistics,
    lists: RankedLists,
    catalogue: CatalogueColumns,
) -> list[list[Reason]]:
    columns = columns_of(users, statistics)
    reasons = reasons_of(columns, lists, [START_MS] * len(users), catalogue)
    texts = ReasonTexts(ListTexts(statistics.index.ids, catalogue.labels))
    return [
        [read(tail) for tail in reasons.of(place, lists.rows.shape[1], texts)]
        for place in range(len(users))
    ]


def read(tail: bytes) -> Reason:
    """The reason at the end of an item's entry, which is written as the encoder writes it."""
    head = b'{"item_id":"a","score":0.0'
    item = decode(head + tail.removesuffix(b","), type=RankedItem)
    assert encode(item)[len(head) :] + b"," == tail
    assert isinstance(item.reason, Reason)
    return item.reason


def plain_reason(
    user: list[str], item: str, source: int, statistics: ItemStatistics, catalogue: Catalogue
) -> Reason:
    """The same from the user's items (oldest first), one link after another."""
    index = statistics.index
    recent = user[::-1][:CHAIN_DEPTH]
    given_by: dict[str, float] = {}
    places = {index.row(r): place for place, r in reversed(list(enumerate(recent)))}
    whole, whole_shares = statistics.chain([index.row(r) for r in recent])
    at = 0
    for origin in recent:
        count = len(statistics.chain([index.row(origin)])[0])
        for to, share in zip(
            whole[at : at + count].tolist(), whole_shares[0, at : at + count], strict=True
        ):
            if index.ids[to] == item:
                given_by[origin] = given_by.get(origin, 0.0) + float(share)
        at += count
    if source != TREND and given_by:
        ordered = sorted(given_by, key=lambda i: (-given_by[i], places[index.row(i)]))
        named, reached = [], 0.0
        while len(named) < 3 and reached < sum(given_by.values()) / 2:
            reached += given_by[ordered[len(named)]]
            named.append(ordered[len(named)])
        return Reason("because_item", named)
    number = ITEMS.index(item)
    if number % 2 and number * DAY_MS <= NEW_ITEM_MS:
        return Reason("new_item")
    if source == TREND:
        return Reason("popular")
    for taken in reversed(user):
        shared = [c for c in catalogue.categories(item) if c in catalogue.categories(taken)]
        if shared:
            return Reason("interest", text=shared[0])
    return Reason("interest")


@given(
    st.lists(st.lists(st.sampled_from(ITEMS), max_size=8), min_size=1, max_size=4),
    counted_events(),
    st.integers(0, 2**32),
)
def test_reasons_are_those_of_a_plain_reading(users, events, seed):
    statistics = statistics_of([events])
    catalogue = all_items(statistics)
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(len(ITEMS)) for _ in users])
    sources = rng.integers(0, 3, rows.shape)
    parts = (np.arange(3)[:, None, None] == sources).astype(np.float32)
    lists = RankedLists(rows, np.ones(rows.shape, dtype=np.float32), parts)

    reasons = told([user_of(*user) for user in users], statistics, lists, catalogue.columns())

    for place, user in enumerate(users):
        for row, source, reason in zip(rows[place], sources[place], reasons[place], strict=True):
            wanted = plain_reason(user, ITEMS[row], int(source), statistics, catalogue)
            assert (reason.code, reason.items) == (wanted.code, wanted.items)
            assert reason.text == wanted.text


def listed(
    users: list[UserRow], statistics: ItemStatistics, columns: CatalogueColumns
) -> list[dict[str, Reason]]:
    """Item -> reason of each user's list, ranked without a model."""
    popularity = statistics.popularity()
    live = LiveTensors(popularity, (popularity[1] > 0).astype(np.float32), {}, START_MS)
    size = len(live.known)
    lists = StatisticsRanker(0.3).rank(columns_of(users, statistics).requests, live, size)
    lists = lists.ordered(statistics.index.hashes, size)
    ids = statistics.index.ids
    reasons = told(users, statistics, lists, columns)
    return [
        {ids[row]: reason for row, reason in zip(rows, mine, strict=True)}
        for rows, mine in zip(lists.rows.tolist(), reasons, strict=True)
    ]


def followed(*pairs: tuple[str, str]) -> ItemStatistics:
    """Statistics in which the second of each pair followed the first, as often as it is given."""
    events = [Counted(0, n, b, (a,), START_MS, 16) for n, (a, b) in enumerate(pairs)]
    return statistics_of([events])


def test_what_follows_a_users_last_item_names_it_and_the_rest_is_popular():
    statistics = followed(("item-0", "item-1"), ("item-2", "item-3"))

    (reasons,) = listed([user_of("item-0")], statistics, all_items(statistics).columns())

    assert reasons["item-1"] == Reason("because_item", ["item-0"])
    assert reasons["item-3"].code in {"popular", "new_item"}


def test_the_fewest_items_that_gave_half_are_named_the_strongest_first():
    links = [("item-0", "item-9")] * 8 + [("item-1", "item-9")] * 7
    links += [("item-1", "item-8")] * 8 + [("item-2", "item-9")]
    statistics = followed(*links)

    (both,) = listed([user_of("item-0", "item-1")], statistics, all_items(statistics).columns())
    (one,) = listed([user_of("item-1", "item-0")], statistics, all_items(statistics).columns())

    assert both["item-9"].items == ["item-0"]
    assert one["item-9"].items == ["item-0"]
    assert one["item-8"].items == ["item-1"]


@pytest.mark.parametrize(
    ("age_ms", "code"),
    [(0, "new_item"), (NEW_ITEM_MS, "new_item"), (NEW_ITEM_MS + 1, "popular"), (-1, "popular")],
)
def test_an_item_is_new_for_a_week_of_event_time_after_its_publish_time(age_ms, code):
    statistics = followed(("item-2", "item-3"))
    item = Item("item-3", 1, publish_time=START_MS - age_ms)
    catalogue = catalogue_of(statistics, item=item)

    (reasons,) = listed([user_of("item-0")], statistics, catalogue.columns())

    assert reasons["item-3"].code == code


@pytest.mark.parametrize("publish_time", [2**63 - 1, 2**63, 10**30])
def test_a_publish_time_of_any_size_is_taken_and_is_not_new(publish_time):
    statistics = followed(("item-2", "item-3"))
    catalogue = catalogue_of(statistics)
    said = {"item_id": "item-3", "version": 1, "publish_time": publish_time}

    assert catalogue.take(b"item-3", json.dumps(said).encode()) is None

    (reasons,) = listed([user_of("item-0")], statistics, catalogue.columns())
    assert reasons["item-3"].code == "popular"


def names_in(columns: CatalogueColumns, rows: NDArray[np.int64]) -> list[list[str]]:
    return [
        [columns.labels[number] for number in numbers if number != NO_CATEGORY]
        for numbers in columns.categories_of(rows).tolist()
    ]


def test_columns_handed_out_do_not_change_with_the_catalogue():
    statistics = followed(("item-2", "item-3"))
    item = Item("item-3", 1, categories=["jazz"], publish_time=START_MS)
    catalogue = catalogue_of(statistics, item=item)
    row = statistics.index.row("item-3")
    before = catalogue.columns()

    catalogue.take(b"item-3", encode(Item("item-3", 2, categories=["chess"], publish_time=1)))
    catalogue.take(b"later", encode(Item("later", 1, categories=["chess"])))
    changed = catalogue.columns()
    catalogue.take(b"item-3", None)

    rows = np.array([row, statistics.index.row("later")])
    assert names_in(before, rows) == [["jazz"], []]
    assert names_in(changed, rows) == [["chess"], ["chess"]]
    assert names_in(catalogue.columns(), rows) == [[], ["chess"]]
    assert before.published_at(rows)[0] == START_MS and before.published_at(rows)[1] < 0
    assert changed.published_at(rows)[0] == 1
    assert catalogue.columns().published_at(rows).max() < 0


def test_a_user_without_a_history_is_listed_what_is_popular():
    statistics = followed(("item-2", "item-3"))
    columns = Catalogue(statistics.index).columns()

    (reasons,) = listed([UserRow(0)], statistics, columns)

    assert {reason.code for reason in reasons.values()} == {"popular"}
