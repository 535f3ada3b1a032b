"""A soak of seconds: it strikes, times, judges the state, and says what does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from kafka_cluster import Broker

from stream.bench.soak import (
    GROWTH_MB_PER_HOUR,
    LATE_PERCENT,
    SOAK_FAULTS,
    SoakMinute,
    SoakReport,
)
from stream.bench.soak_picture import soak_picture
from stream.chaos.faults import FAULTS
from stream.cli import main


def report(**changed: object) -> SoakReport:
    minutes = [
        SoakMinute("kill", True, 0.0, 1000, 5.0, 900.0, 4000.0, 60, 0),
        SoakMinute("term", False, 60.0, 1000, 5.0, 40.0, 90.0, 0, 0),
    ]
    fields: dict[str, object] = {
        "release": "driftline/1",
        "users": 5000,
        "items": 12_000,
        "maximum_per_s": 100.0,
        "events_per_s": 70.0,
        "minutes": minutes,
        "rss_at_s": [0.0, 60.0, 120.0],
        "rss_mb": [200.0, 210.0, 211.0],
        "growth_mb_per_hour": 3.0,
        "is_judged": False,
        "checked_users": 5000,
        "checked_lists": 4000,
        "load_before": 0.0,
        "load_after": 0.0,
        "wrong": [],
    }
    return SoakReport(**(fields | changed))


def test_the_table_tells_each_minute_and_what_all_came_to() -> None:
    table = report().as_table()

    assert "kill" in table and "term (idle)" in table
    short = ", not judged in a short soak"
    assert f"3.0 % of the lists came later than 1 s (bound {LATE_PERCENT:g} %{short})" in table
    assert f"+3 MB an hour (bound {GROWTH_MB_PER_HOUR:g}{short})" in table
    assert short not in report(is_judged=True).as_table()
    assert report().holds
    assert not report(wrong=["lost"]).holds and "WRONG: lost" in report(wrong=["lost"]).as_table()


def test_the_picture_is_well_formed_and_names_every_fault() -> None:
    picture = soak_picture(report())

    texts = [element.text for element in ElementTree.fromstring(picture).iter() if element.text]
    assert {"kill", "term"} <= {text.strip() for text in texts}


def test_every_fault_of_a_soak_is_one_of_chaos_for_one_node() -> None:
    assert all(1 in FAULTS[name].nodes for name in SOAK_FAULTS)


@pytest.mark.slow
@pytest.mark.broker
def test_a_short_soak_survives_its_faults(kafka: Broker, tmp_path: Path) -> None:
    picture = tmp_path / "soak.svg"
    load = ["--minutes", "0.4", "--every-s", "12", "--users", "5000", "--items", "500"]
    shown = ["--picture", str(picture), "--json"]

    done = CliRunner().invoke(main, ["bench", "soak", *load, "--faults", "kill,term", *shown])

    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [minute["fault"] for minute in told["minutes"]][:2] == ["kill", "term"]
    assert all(minute["unanswered"] == 0 for minute in told["minutes"])
    assert told["checked_users"] > 0 and told["rss_mb"]
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")
