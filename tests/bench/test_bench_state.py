"""The benchmark of the state path, tiny: it must measure something, and notice a wrong state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from kafka import KafkaConsumer
from kafka_cluster import Broker

from export.statistics import DAY_MS
from stream.bench.raw_loop import count_in, row_of
from stream.bench.state_check import Changelog, state_errors
from stream.bench.workload import Workload, user_id
from stream.cli import main
from stream.events import decode_user_event
from stream.history import HistoryEvent, RowLimits, UserRow, id_hash, row_key


@pytest.mark.broker
def test_all_contestants_end_with_the_right_state_and_leave_no_topic(kafka: Broker) -> None:
    arguments = ["--events", "3000", "--users", "300", "--batches", "32", "--rounds", "1"]
    arguments += ["--output-bytes", "200"]

    done = CliRunner().invoke(
        main, ["bench", "state", "--bootstrap", kafka.bootstrap, *arguments, "--json"]
    )

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    contestants = ["raw", "outputs", "confluent", "driftline"]
    assert [run["contestant"] for run in report["runs"]] == contestants
    assert all(run["wrong"] == [] and run["events_per_s"] > 0 for run in report["runs"])
    raw, outputs, confluent, ours = report["runs"]
    assert outputs["delta_bytes_per_event"] == 200
    assert confluent["delta_bytes_per_event"] == raw["delta_bytes_per_event"]
    for written in ("delta_bytes_per_event", "changelog_bytes_per_event"):
        assert raw[written] == pytest.approx(ours[written], rel=0.1)
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    assert not [name for name in consumer.topics() if name.startswith("driftline-bench-")]
    consumer.close()


def test_the_report_has_a_row_for_each_contestant_and_the_ratio() -> None:
    from stream.bench.state import StateReport, StateRun

    runs = [
        StateRun("raw", 256, 0, 1000.0, 10.0, 250.0, 500.0, 70.0, []),
        StateRun("driftline", 256, 0, 500.0, 20.0, 250.0, 500.0, 70.0, ["one row is missing"]),
    ]

    report = StateReport(1000, 10, 1, 8, 0.1, 0.0, 0.0, runs)

    table = report.as_table()
    assert "raw" in table and "WRONG: one row is missing" in table
    assert "ratio of events/s 0.50 (0.50); of CPU 2.00 (2.00)" in table
    assert not report.holds


def test_a_workload_is_the_same_every_time_and_keyed_by_its_users() -> None:
    workload = Workload(500, users=50)

    records = list(workload.records())

    assert records == list(Workload(500, users=50).records())
    numbers = workload.user_numbers().tolist()
    assert [key.decode() for key, _ in records] == [user_id(number) for number in numbers]
    events = [decode_user_event(value) for _, value in records]
    assert [event.user_id for event in events] == [key.decode() for key, _ in records]
    assert len({event.event_id for event in events}) == 500


def test_a_hot_user_has_its_share_of_the_events() -> None:
    numbers = Workload(2000, users=1000, hot_share=0.5).user_numbers()

    assert np.mean(numbers == 0) == pytest.approx(0.55, abs=0.1)
    assert len(set(numbers.tolist())) > 100


def test_few_interactions_are_sent_again_under_new_ids_and_later_times(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    lines = [{"user": "u", "item": f"i{n}", "time": 1_600_000_000 + n} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))

    events = [
        decode_user_event(value)
        for _, value in Workload(7, users=5, path=path, data_format="jsonl").records()
    ]

    assert [event.item_id for event in events] == ["i0", "i1", "i2"] * 2 + ["i0"]
    times = [event.event_time for event in events]
    assert times == sorted(set(times))
    assert len({event.event_id for event in events}) == 7


def test_a_missing_row_and_a_wrong_count_are_noticed(tmp_path: Path) -> None:
    users = np.array([0, 0, 1])
    rows = {row_key("default", True, user_id(0)): row_of(1, 1)}

    errors = list(state_errors(Changelog(rows=rows), users, tmp_path, "raw", 0))

    assert errors == [
        "wanted rows of 2 users, got 1",
        "wanted 3 events in the rows, got 1",
        "2 of 2 users have another number of events than were sent",
        "the rows on disk are not those of the changelog",
    ]


@pytest.mark.parametrize("events", [1, 60, 300, 5000])
@pytest.mark.parametrize("apart_ms", [1, DAY_MS // 10, DAY_MS + 1])
def test_the_raw_loops_rows_are_as_large_as_a_workers(events: int, apart_ms: int) -> None:
    row, limits = UserRow(0), RowLimits()
    for number in range(events):
        event = HistoryEvent(id_hash(str(number)), number, number * apart_ms, number, 1)
        row.fold(event, limits)

    data = row_of(events, min(events, 1 + DAY_MS // apart_ms))

    assert (len(data), count_in(data)) == (len(row.encode()), events)
