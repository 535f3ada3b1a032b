"""What is told of the engine's speed and health follows from what came when."""

from __future__ import annotations

from stream.web.pulse import (
    SHOWN_SECONDS,
    SILENT_MS,
    SILENT_UNKNOWN_LAG_MS,
    DeadLetterCounts,
    ListTimes,
    SecondCounts,
    WorkerWatch,
)

NOW = 1_800_000_000_000


def test_a_rate_is_the_mean_of_the_last_whole_seconds() -> None:
    counts = SecondCounts()
    for second in range(10):
        counts.add(NOW + second * 1000, 7)

    assert counts.rate(NOW + 10_000) == 7
    assert counts.rate(NOW + 15_000) == 3.5


def test_counts_of_long_ago_are_forgotten() -> None:
    counts = SecondCounts()
    for second in range(10 * SHOWN_SECONDS):
        counts.add(NOW + second * 1000)

    assert len(counts._counts) <= SHOWN_SECONDS + 2
    assert counts.series(NOW + 10 * SHOWN_SECONDS * 1000) == [1] * SHOWN_SECONDS


def test_a_lists_time_is_that_from_the_record_of_its_own_event() -> None:
    times = ListTimes()
    for offset, took_ms in enumerate((10, 20, 30, 1000)):
        times.note_event(3, offset, NOW)
        times.note_list(3, offset, NOW + took_ms)
    times.note_list(4, 0, NOW + 99_000)  # of an event that was never met

    assert times.percentiles(0.5, 0.99) == [30, 1000]


def test_times_of_more_than_a_minute_ago_do_not_count() -> None:
    times = ListTimes()
    times.note_event(0, 0, NOW)
    times.note_list(0, 0, NOW + 5000)
    times.note_event(0, 1, NOW + 120_000)
    times.note_list(0, 1, NOW + 120_007)

    assert times.percentiles(0.5) == [7]


def test_a_worker_that_stops_is_noticed_and_so_is_its_return() -> None:
    watch = WorkerWatch()
    watch.note_lag(NOW, 0, 100)
    watch.note_lag(NOW + 1000, 5, 100)

    assert watch.state(NOW + 1000 + SILENT_MS - 1).answers
    silent = watch.state(NOW + 1000 + SILENT_MS)
    assert not silent.answers and silent.since_ms == NOW + 1000

    watch.note_lag(NOW + 9000, 2, 108)
    back = watch.state(NOW + 9000)
    assert back.answers and back.since_ms == NOW + 9000 and back.silent_ms == 8000


def test_a_worker_that_is_behind_but_moves_answers() -> None:
    watch = WorkerWatch()
    for second in range(20):
        watch.note_lag(NOW + second * 1000, 50_000, second * 700)
        assert watch.state(NOW + second * 1000).answers


def test_a_group_without_events_to_do_is_not_silent() -> None:
    watch = WorkerWatch()
    watch.note_lag(NOW, 0, 100)

    assert watch.state(NOW + 3_600_000).answers


def test_without_a_lag_lists_that_do_not_come_tell() -> None:
    watch = WorkerWatch()
    watch.note_events(NOW)
    assert watch.state(NOW + SILENT_UNKNOWN_LAG_MS - 1).answers
    assert not watch.state(NOW + SILENT_UNKNOWN_LAG_MS).answers

    watch.note_list(NOW + 20_000)
    assert watch.state(NOW + 20_000).answers
    assert watch.state(NOW + 90_000).answers


def test_many_different_reasons_are_counted_in_bounded_memory() -> None:
    letters = DeadLetterCounts()
    for number in range(5000):
        letters.take([("reason", f"byte {number}".encode() * 200)], NOW)

    assert letters.total == 5000
    assert sum(count for _, count in letters.reasons(100)) == 5000
    assert len(letters.reasons(1000)) == letters.MAX_REASONS + 1
    assert len(letters.newest) == letters.MAX_NEWEST
    assert max(len(reason) for reason, _ in letters.reasons(1000)) <= letters.MAX_SHOWN
