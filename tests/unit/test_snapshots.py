"""A snapshot gives back the same bits in another worker; a damaged one is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_strategies import (
    FEW_PAIRS,
    ITEMS,
    SETTINGS,
    START_MS,
    Counted,
    bits,
    counted_events,
    deltas_of,
    index_of,
    statistics_of,
)

from export.items import item_hash
from export.statistics import StatisticsSettings
from stream.kafka.marks import ForeignStateError
from stream.snapshots import SnapshotError, load_snapshot, save_snapshot, take_snapshot
from stream.statistics import LiveStatistics, StatisticsTopics
from stream.verify.counts import CountsSettings, check_counts
from stream.verify.users import Delta

SOURCE = "item-statistics/8"
EVENTS = [
    Counted(number % 3, number, ITEMS[number], (ITEMS[0],), START_MS + number, 16)
    for number in range(1, 10)
]


@given(st.data())
def test_statistics_come_back_bit_for_bit_in_another_order_of_rows(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("snapshots")
    settings = data.draw(st.sampled_from([SETTINGS, FEW_PAIRS]))
    events = data.draw(counted_events())
    live = LiveStatistics(statistics_of([events], settings=settings), {0: 5, 2: 9})
    index = index_of(data.draw(st.permutations(ITEMS))[: data.draw(st.integers(0, 12))])

    save_snapshot(folder, take_snapshot(live, SOURCE))
    back = load_snapshot(folder, index, settings, SOURCE)

    assert back is not None
    assert bits(back.statistics) == bits(live.statistics)
    assert back.positions == {0: 5, 2: 9}


@given(st.data())
def test_statistics_go_on_from_a_snapshot_as_if_they_had_never_stopped(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("snapshots")
    events = data.draw(counted_events())
    cut = data.draw(st.integers(1, len(events)))
    settings = data.draw(st.sampled_from([SETTINGS, FEW_PAIRS]))
    stopped = LiveStatistics(statistics_of([events[:cut]], settings=settings))

    save_snapshot(folder, take_snapshot(stopped, SOURCE))
    back = load_snapshot(folder, index_of(ITEMS[::-1]), settings, SOURCE)
    assert back is not None
    back.statistics.apply(*deltas_of(events, back.statistics.index))

    assert bits(back.statistics) == bits(statistics_of([events], settings=settings))


@given(counted_events(), st.integers(2, 40))
def test_what_is_held_is_what_the_checker_counts(events, max_pairs):
    settings = dataclasses.replace(SETTINGS, max_pairs=max_pairs)
    known = {event.item for event in events}
    events = [
        dataclasses.replace(event, previous=tuple(n for n in event.previous if n in known))
        for event in events
    ]
    snapshot = take_snapshot(LiveStatistics(statistics_of([events], settings=settings)), SOURCE)
    deltas = {
        (event.partition, event.offset): Delta(
            event.item,
            tuple(map(item_hash, event.previous)),
            event.time_ms,
            event.weight,
        )
        for event in events
    }

    check = check_counts(
        snapshot.arrays,
        deltas,
        CountsSettings(
            settings.popularity_half_lives_ms, settings.chain_half_life_ms, settings.max_pairs
        ),
    )

    assert check.holds, check.told


@given(counted_events())
def test_a_snapshot_holds_the_moment_it_was_taken_whatever_is_counted_after(events):
    statistics = statistics_of([events[:1]])
    before = bits(statistics_of([events[:1]]))
    snapshot = take_snapshot(LiveStatistics(statistics), SOURCE)

    statistics.apply(*deltas_of(events, statistics.index))

    arrays = {name: array.tobytes() for name, array in snapshot.arrays.items()}
    fresh = take_snapshot(LiveStatistics(statistics_of([events[:1]])), SOURCE)
    assert arrays == {name: array.tobytes() for name, array in fresh.arrays.items()}
    assert before["events"] == snapshot.events


@pytest.fixture
def saved(tmp_path):
    """A folder with one snapshot, and its file."""
    live = LiveStatistics(statistics_of([]))
    return tmp_path, save_snapshot(tmp_path, take_snapshot(live, SOURCE))


def load(folder, settings=SETTINGS, source=SOURCE):
    return load_snapshot(folder, index_of([]), settings, source)


def test_where_there_is_no_snapshot_there_are_no_statistics(tmp_path):
    assert load(tmp_path / "nowhere") is None


def test_a_flipped_bit_is_refused(saved):
    folder, path = saved
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(SnapshotError, match="checksum"):
        load(folder)


def test_a_cut_file_is_refused(saved):
    folder, path = saved
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(SnapshotError, match="checksum"):
        load(folder)


@pytest.mark.parametrize("pointer", ["", "[]", "{}", '{"file": 7}', "\0"])
def test_a_damaged_pointer_is_refused(saved, pointer):
    folder, _ = saved
    (folder / "latest.json").write_text(pointer)

    with pytest.raises(SnapshotError, match="cannot be read"):
        load(folder)


def test_a_snapshot_of_other_topics_or_settings_is_refused_and_says_which(saved):
    folder, _ = saved

    with pytest.raises(SnapshotError, match=r"item-statistics/16.*item-statistics/8"):
        load(folder, source="item-statistics/16")
    with pytest.raises(SnapshotError, match="neighbours"):
        load(folder, StatisticsSettings(neighbours=7))


class TestTopicsMadeAnew:
    """The snapshot was taken of topics with the ids e1 (events) and d1 (deltas)."""

    @pytest.fixture
    def folder(self, tmp_path):
        topics = StatisticsTopics("e1", "d1")
        live = LiveStatistics(statistics_of([EVENTS]), {0: 5, 2: 9}, topics=topics)
        save_snapshot(tmp_path, take_snapshot(live, SOURCE))
        return tmp_path

    def load(self, folder, events, deltas):
        topics = StatisticsTopics(events, deltas)
        return load_snapshot(folder, index_of([]), SETTINGS, SOURCE, topics)

    def test_on_the_same_topics_it_goes_on_where_it_was(self, folder):
        back = self.load(folder, "e1", "d1")

        assert back is not None
        assert back.positions == {0: 5, 2: 9}

    def test_new_deltas_are_read_from_their_beginning_and_counts_stay(self, folder):
        back = self.load(folder, "e1", "d2")

        assert back is not None
        assert back.positions == {}
        assert bits(back.statistics) == bits(statistics_of([EVENTS]))
        assert back.topics == StatisticsTopics("e1", "d2")

    def test_deltas_of_events_that_are_no_more_are_refused(self, folder):
        with pytest.raises(ForeignStateError, match="delete the changelog and item-statistics"):
            self.load(folder, "e2", "d1")

    def test_counts_of_events_that_are_no_more_are_not_gone_on_with(self, folder):
        with pytest.raises(SnapshotError, match="a topic that was deleted"):
            self.load(folder, "e2", "d2")

    def test_a_running_worker_reads_new_deltas_anew_and_counts_none_twice(self):
        live = LiveStatistics(statistics_of([EVENTS]), {0: 5}, topics=StatisticsTopics("e1", "d1"))

        live.deltas_made_anew("d2")

        assert live.positions == {}
        assert live.topics == StatisticsTopics("e1", "d2")
        assert live.statistics.apply(*deltas_of(EVENTS, live.statistics.index)) == 0


def test_a_write_that_was_cut_short_leaves_the_former_snapshot(saved):
    folder, path = saved
    (folder / (path.name + ".part")).write_bytes(b"half")

    assert load(folder) is not None


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_the_newest_snapshot_stays_whatever_counts_the_others_have(tmp_path_factory, counts):
    folder = tmp_path_factory.mktemp("snapshots")

    for count in counts:
        statistics = statistics_of([])
        statistics.events = count
        path = save_snapshot(folder, take_snapshot(LiveStatistics(statistics), SOURCE))

    assert path.exists()
    assert json.loads((folder / "latest.json").read_text())["file"] == path.name
    assert load(folder).statistics.events == counts[-1]
    assert len(list(folder.glob("*.npz"))) <= 3
