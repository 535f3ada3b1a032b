"""An event on the wrong partition is sent on, even while its user has right ones in the batch."""

from __future__ import annotations

from folding import PARTITIONS, RecordSlice, Store, Tp, partition_of, record

RIGHT = partition_of("ada")
WRONG = (RIGHT + 1) % PARTITIONS


def test_a_user_of_two_partitions_in_one_batch_is_folded_on_the_right_one_only():
    store = Store()

    batch = store.fold_slices(
        [
            RecordSlice(Tp(RIGHT), [record(1)]),
            RecordSlice(Tp(WRONG), [record(900)]),
        ]
    )
    later = store.fold_slices([RecordSlice(Tp(RIGHT), [record(2)])])

    assert [letter.key for letter in batch.misrouted] == [b"ada"]
    assert store.row("ada").applied_offset == 2
    assert later.counts == {"folded": 1}
    assert set(batch.deltas) == {RIGHT}


def test_the_order_of_the_partitions_makes_no_difference():
    store = Store()

    batch = store.fold_slices(
        [
            RecordSlice(Tp(WRONG), [record(900)]),
            RecordSlice(Tp(RIGHT), [record(1)]),
        ]
    )

    assert len(batch.misrouted) == 1
    assert store.row("ada").applied_offset == 1
