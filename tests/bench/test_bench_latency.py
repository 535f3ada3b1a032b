"""The benchmark of latency, tiny: it answers every event, and draws what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from kafka_cluster import Broker

from stream.bench.curve import wait_curve
from stream.bench.latency import LatencyReport, LatencyRun
from stream.bench.open_loop import Answers, Load, list_rate
from stream.bench.worker_process import BatchSteps
from stream.cli import main


def test_a_load_comes_at_its_rate_and_independently_of_the_answers() -> None:
    load = Load.poisson("a", 100.0, 20.0, 50, ["x", "y"], seed=1)

    assert len(load.at_s) == 2000
    assert load.at_s[-1] == pytest.approx(20.0, rel=0.1)
    assert np.all(np.diff(load.at_s) > 0)
    again = Load.poisson("a", 100.0, 20.0, 50, ["x", "y"], seed=1)
    assert np.array_equal(load.at_s, again.at_s) and load.items == again.items


def test_a_burst_has_every_user_once_so_that_each_event_gets_its_own_list() -> None:
    load = Load.burst("b", 40, 50, ["x"], seed=1)

    assert len(set(load.users.tolist())) == len(load.at_s) == 40


def test_the_rate_of_a_burst_is_that_of_its_lists_after_the_first_tenth() -> None:
    answers = Answers(list_s=[0.0] * 10 + [float(second) for second in range(90)])

    assert list_rate(answers) == pytest.approx(1.0)


def test_while_events_are_sent_lists_that_come_later_do_not_count() -> None:
    while_sending = [float(second) for second in range(100)]
    answers = Answers(list_s=[*while_sending, *[100 + second / 10 for second in range(100)]])

    assert list_rate(answers, until_s=99.5) == pytest.approx(1.0)
    assert list_rate(answers) > 1.5


def test_an_even_load_has_its_rate() -> None:
    load = Load.burst("b", 40, 50, ["x"], seed=1, rate=20.0)

    assert np.diff(load.at_s) == pytest.approx(np.full(39, 1 / 20))


def test_unanswered_and_mismatched_events_void_the_figures() -> None:
    assert Answers(latency_ms=[1.0]).wrong() == []
    assert len(Answers(unanswered=2, mismatched=1).wrong()) == 2


def test_the_picture_has_two_lines_for_each_load_and_none_of_a_void_run() -> None:
    runs = [
        LatencyRun(wait, load, 10.0, 100, 3.0 + wait, 9.0, 12.0, 15.0, 0.5, 0.1, 2.0, {}, [])
        for wait in (0.0, 5.0)
        for load in (10.0, 50.0)
    ]
    void = msgspec.structs.replace(runs[0], load_percent=80.0, wrong=["one list is missing"])

    drawn = wait_curve(LatencyReport("d/1", 10, 5, 8, 0.0, 0.0, {0.0: 1.0}, [*runs, void]))

    picture = ElementTree.fromstring(drawn)
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4
    assert "p99 at 50 %" in drawn and "80 %" not in drawn


@pytest.mark.broker
def test_every_event_gets_its_list_and_the_state_is_right(kafka: Broker, tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    arguments = ["--seconds", "1", "--users", "300", "--items", "400", "--loads", "10"]
    arguments += ["--wait-ms", "0,5", "--picture", str(picture), "--json"]

    done = CliRunner().invoke(
        main,
        ["bench", "latency", "--bootstrap", kafka.bootstrap, *arguments],
    )

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [run["wait_ms"] for run in report["runs"]] == [0, 5]
    for run in report["runs"]:
        assert run["wrong"] == []
        assert 0 < run["p50_ms"] <= run["p99_ms"] <= run["p999_ms"] <= run["max_ms"]
    ElementTree.parse(picture)


def test_the_steps_of_a_load_are_those_of_the_batches_done_meanwhile() -> None:
    before, after = BatchSteps(10, {"fold": 1.0}), BatchSteps(30, {"fold": 1.5, "rank": 0.2})

    assert after.mean_ms_since(before) == pytest.approx({"fold": 25.0, "rank": 10.0})
