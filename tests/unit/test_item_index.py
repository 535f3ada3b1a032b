"""An item's hash is stable for ever; its row for as long as the process lives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from export.items import NO_ROW, ItemIndex, item_hash

ids = st.text(min_size=1, max_size=20)


def test_the_hash_of_an_item_never_changes():
    assert item_hash("tt0111161") == 0x3F5AAAD9998688D6
    assert item_hash("é") == 0x2F19F3EF8BBF1ACB


@given(st.lists(ids, max_size=50), st.lists(ids, max_size=50))
def test_a_row_stays_valid_while_the_index_grows(first, later):
    index = ItemIndex()

    rows = index.rows(first).tolist()
    index.rows(later)

    assert index.rows(first).tolist() == rows
    assert [index.ids[row] for row in rows] == first
    assert len(index) == len({*first, *later})


@given(st.lists(ids, max_size=50, unique=True))
def test_rows_are_given_without_gaps_in_the_order_items_are_met(met):
    index = ItemIndex()

    assert index.rows(met).tolist() == list(range(len(met)))
    assert index.hashes.tolist() == [item_hash(item) for item in met]


@given(st.lists(ids, min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_a_hash_leads_back_to_its_row_and_an_unknown_one_to_none(met, strange):
    index = ItemIndex()
    hashes = [index.hash_of(item) for item in met]

    found = index.rows_of_hashes(np.array([*hashes, strange], dtype=np.uint64))

    assert found[:-1].tolist() == index.rows(met).tolist()
    assert found[-1] == (hashes.index(strange) if strange in hashes else NO_ROW)
    assert index.rows_of_hashes(hashes).tolist() == found[:-1].tolist()


@given(st.lists(ids, max_size=20), st.lists(ids, max_size=20), st.integers(0, 2**64 - 1))
def test_many_hashes_lead_back_to_the_same_rows_as_few(met, later, strange):
    index = ItemIndex()

    for items in (met, later):
        index.rows(items)
        few = [*map(item_hash, [*met, *later]), strange]
        many = np.array(300 * few, dtype=np.uint64)

        assert index.rows_of_hashes(many).tolist() == 300 * index.rows_of_hashes(few).tolist()


def test_an_index_takes_more_items_than_it_had_room_for():
    index = ItemIndex()
    many = [str(number) for number in range(5000)]

    hashes = [index.hash_of(item) for item in many]

    assert hashes == [item_hash(item) for item in many]
    assert index.hashes.tolist() == hashes
