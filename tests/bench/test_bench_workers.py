"""The benchmark of several workers measures something, and counts only what all have done."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from kafka_cluster import Broker

from stream.bench.state_check import Changelog
from stream.bench.workers import WorkersReport, WorkersRun, _done_since
from stream.cli import main


@pytest.mark.broker
def test_a_worker_is_measured_and_its_state_is_right(kafka: Broker) -> None:
    arguments = ["--events", "60000", "--users", "300", "--workers", "1", "--batch", "64"]

    done = CliRunner().invoke(
        main, ["bench", "workers", "--bootstrap", kafka.bootstrap, *arguments, "--json"]
    )

    assert done.exit_code == 0, done.output
    (run,) = json.loads(done.stdout)["runs"]
    assert run["wrong"] == [] and run["workers"] == 1
    assert 0 < run["events_timed"] <= 60_000
    assert run["events_per_s"] > 0 and run["cpu_us_per_event"] > 0


def test_what_was_done_before_all_were_ready_does_not_count() -> None:
    log = Changelog(progress=[(1_000, 7), (2_000, 20), (3_000, 30)])

    assert _done_since(log, 1.5) == (50, 3.0)
    assert _done_since(log, 9.0) == (0, 9.0)


def test_a_wrong_state_is_told_and_does_not_hold() -> None:
    report = WorkersReport(10, 2, 8, 64, 2, 0.0, 0.0, [WorkersRun(2, 9, 3.0, 1.0, ["a row"])])

    assert not report.holds
    assert "WRONG: a row" in report.as_table()
