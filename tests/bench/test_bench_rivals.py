"""Rivals count right on a small run, and a wrong count voids the figure."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from kafka import KafkaConsumer
from kafka_cluster import Broker

from stream.bench.rivals import RivalRun, RivalsReport, _errors
from stream.bench.workload import user_id
from stream.cli import main

#: An interpreter whose environment has quixstreams; CI has none, to stay quick.
QUIX = os.environ.get("DRIFTLINE_TEST_QUIX", "")


def run_rivals(kafka: Broker, *options: str) -> dict[str, object]:
    sizes = ["--rival-events", "2000", "--users", "200", "--batch", "256", "--partitions", "4"]
    broker = ["--bootstrap", kafka.bootstrap]

    done = CliRunner().invoke(main, ["bench", "rivals", *broker, *sizes, *options, "--json"])

    assert done.exit_code == 0, done.output
    report: dict[str, object] = json.loads(done.stdout)
    return report


def left_topics(kafka: Broker) -> list[str]:
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    found = [name for name in consumer.topics() if "driftline-bench-" in name]
    consumer.close()
    return found


@pytest.mark.broker
def test_stock_faust_ends_with_the_right_counts_and_no_topic_is_left(kafka: Broker) -> None:
    report = run_rivals(kafka)

    assert [run["contestant"] for run in report["runs"]] == ["raw", "driftline", "faust"]
    assert all(run["wrong"] == [] and run["events_per_s"] > 0 for run in report["runs"])
    assert ["Quix" in told for told in report["left_out"]] == [True]
    assert left_topics(kafka) == []


@pytest.mark.broker
@pytest.mark.skipif(not QUIX, reason="DRIFTLINE_TEST_QUIX names no Python that has quixstreams")
def test_quix_streams_ends_with_the_right_counts_and_no_topic_is_left(kafka: Broker) -> None:
    report = run_rivals(kafka, "--quix", QUIX)

    (run,) = [run for run in report["runs"] if run["contestant"] == "quix"]
    assert run["wrong"] == [] and run["events_per_s"] > 0
    assert left_topics(kafka) == []


def test_a_missing_user_and_a_wrong_count_are_noticed() -> None:
    users = np.array([0, 0, 1, 2])

    assert list(_errors({user_id(0): 2, user_id(1): 1, user_id(2): 1}, users)) == []
    assert list(_errors({user_id(0): 1, user_id(1): 1}, users)) == [
        "wanted rows of 3 users, got 2",
        "2 of 3 users have another number of events than were sent",
    ]


def test_the_table_has_a_line_for_each_contestant_beside_ours() -> None:
    runs = [
        RivalRun("raw", 0, 1000, 2000.0, 5.0, []),
        RivalRun("driftline", 0, 1000, 1000.0, 10.0, []),
        RivalRun("faust", 0, 100, 20.0, 500.0, ["one row is missing"]),
    ]

    report = RivalsReport(10, 8, 256, ["Quix Streams is left out"], 0.0, 0.0, runs)

    table = report.as_table()
    assert "0.020  WRONG: one row is missing" in table
    assert table.endswith("Quix Streams is left out")
    assert not report.holds


def test_the_rivals_are_files_that_need_nothing_of_driftline() -> None:
    folder = Path(str(find_spec("stream.bench").submodule_search_locations[0]))

    for path in folder.glob("rival_*.py"):
        assert "stream" not in [
            line.split()[1].partition(".")[0]
            for line in path.read_text().splitlines()
            if line.startswith(("from ", "import "))
        ]
