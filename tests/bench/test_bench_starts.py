"""The benchmarks of starting, recovering, failing over and memory, tiny."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from kafka_cluster import Broker

from stream.bench.check import RECOVERY
from stream.bench.starts import RecoveryReport
from stream.cli import main


def test_recovery_takes_what_a_wiped_disk_adds_to_a_start() -> None:
    report = RecoveryReport(10, 5, 1000, 2.0, [1.0, 1.2, 9.0], [3.0, 3.2, 3.4], 0.0, 0.0, [])

    assert report.recovery_s == pytest.approx(2.0)
    assert report.records_per_s == pytest.approx(500.0)


def test_a_recovery_that_the_noise_hides_has_no_rate_and_meets_no_bound() -> None:
    report = RecoveryReport(10, 5, 1000, 2.0, [3.0], [2.0], 0.0, 0.0, [])

    assert not RECOVERY.is_met(report.records_per_s)


@pytest.mark.broker
def test_a_wiped_worker_has_its_rows_again(kafka: Broker) -> None:
    arguments = ["--events", "3000", "--users", "300", "--rounds", "1", "--json"]

    done = CliRunner().invoke(
        main, ["bench", "recovery", "--bootstrap", kafka.bootstrap, *arguments]
    )

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["records"] >= report["users"] > 100
    assert min(report["kept_s"] + report["wiped_s"]) > 0


@pytest.mark.broker
def test_a_worker_on_nothing_becomes_ready(kafka: Broker) -> None:
    done = CliRunner().invoke(
        main, ["bench", "start", "--bootstrap", kafka.bootstrap, "--rounds", "1", "--json"]
    )

    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["empty_s"]) == 1


@pytest.mark.broker
@pytest.mark.slow
def test_a_standby_takes_over_and_every_event_gets_its_list(kafka: Broker) -> None:
    arguments = ["--users", "300", "--rounds", "1", "--session-timeout-s", "4", "--json"]

    done = CliRunner().invoke(
        main, ["bench", "failover", "--bootstrap", kafka.bootstrap, *arguments]
    )

    assert done.exit_code == 0, done.output
    (outage_s,) = json.loads(done.stdout)["outage_s"]
    assert outage_s > 2  # the group cannot know earlier


@pytest.mark.broker
@pytest.mark.slow
def test_a_soak_tells_what_a_user_takes(kafka: Broker) -> None:
    arguments = ["--users", "300", "--items", "300", "--minutes", "0.1", "--json"]

    done = CliRunner().invoke(main, ["bench", "memory", "--bootstrap", kafka.bootstrap, *arguments])

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["users"] == 300
    assert 0 < report["row_bytes_per_user"] <= report["changelog_bytes_per_user"]
    assert report["settled_mb"] <= report["peak_mb"]
