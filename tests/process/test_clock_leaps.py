"""Clocks of workers and producers leap: states, counts and lists go by event times alone."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import pytest
from engine import Engine, event, wait_until
from kafka.errors import InvalidTimestampError

from stream.chaos.leaping_clock import set_ahead, write_folder

HOUR_MS = 3_600_000
USERS = [f"user-{number}" for number in range(10)]


def send(engine: Engine, first: int, count: int = 40, timestamp_ms: int | None = None) -> None:
    """Events of all users, numbered on; `timestamp_ms` is what their producer's clock says."""
    topic = engine.topic("user-events")
    sent = [
        engine.producer.send(
            topic,
            key=(user := USERS[number % len(USERS)]).encode(),
            value=event(user, number, item_id=f"item-{number % 97}"),
            timestamp_ms=timestamp_ms,
        )
        for number in range(first, first + count)
    ]
    engine.producer.flush()
    for future in sent:
        future.get(10)


def event_ms(number: int) -> int:
    return json.loads(event("user", number))["event_time"]


@pytest.mark.broker
def test_the_wall_clock_of_a_worker_shows_in_generated_at_and_nowhere_else(
    engine: Engine, tmp_path: Path
) -> None:
    clock = write_folder(tmp_path / "clock")
    worker = engine.worker().start(PYTHONPATH=str(clock.parent))
    for number, hours in enumerate((0.0, 0.8, -100.0)):
        set_ahead(clock, hours * 3600)
        send(engine, 40 * number)
        engine.wait_until_all_is_done()
    set_ahead(clock, 0.0)
    engine.wait_for_snapshot()

    worker.stop()
    code, report = engine.verify_fold(worker)
    assert code == 0, json.dumps(report, indent=1)
    lists = [json.loads(record.value) for record in engine.read("recommendations")]
    ahead_h = {round((each["generated_at"] / 1000 - time.time()) / 3600, 1) for each in lists}
    assert ahead_h == {0.0, 0.8, -100.0}
    assert {each["expires_at"] - each["request_time"] for each in lists} == {24 * HOUR_MS}
    assert {each["request_time"] for each in lists} <= {event_ms(n) for n in range(120)}


@pytest.mark.broker
def test_a_worker_whose_clock_kafka_does_not_take_ends_and_loses_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    clock = write_folder(tmp_path / "clock")
    worker = engine.worker().start(PYTHONPATH=str(clock.parent))
    send(engine, 0)
    engine.wait_until_all_is_done()
    set_ahead(clock, 7 * 3600.0)
    send(engine, 40)

    assert worker.wait_for_end() == 1
    assert "InvalidTimestamp" in worker.log_path.read_text()

    set_ahead(clock, 0.0)
    worker.start()
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    worker.stop()
    code, report = engine.verify_fold(worker)
    assert code == 0, json.dumps(report, indent=1)


@pytest.mark.broker
def test_events_under_a_producers_wrong_clock_are_folded_as_their_records_say_or_refused(
    engine: Engine,
) -> None:
    worker = engine.worker().start()
    send(engine, 0)
    send(engine, 40, timestamp_ms=event_ms(40) - 7 * HOUR_MS)  # they count as that old
    send(engine, 80, timestamp_ms=event_ms(80) - 50 * HOUR_MS)  # too far ahead of their records
    send(engine, 120, timestamp_ms=int(time.time() * 1000) + HOUR_MS // 2)
    send(engine, 160)
    with pytest.raises(InvalidTimestampError):  # by Kafka itself, from 4.0 on
        send(engine, 200, 1, timestamp_ms=int(time.time() * 1000) + 5 * HOUR_MS)
    engine.wait_until_all_is_done()
    wait_until(lambda: len(engine.read("dead-letters")) == 40, "the dead letters are there")
    engine.wait_for_snapshot()

    worker.stop()
    code, report = engine.verify_fold(worker)
    assert code == 0, json.dumps(report, indent=1)
    reasons = [dict(r.headers)["reason"] for r in engine.read("dead-letters")]
    assert all(reason.endswith(b"after the record's timestamp") for reason in reasons)


def test_only_what_is_written_down_reads_the_wall_clock() -> None:
    """`generated_at` and the timestamps of what is sent: in three modules of the worker."""
    root = Path(__file__).parents[2]
    modules = [
        *root.glob("stream/*.py"),
        *root.glob("stream/kafka/*.py"),
        *root.glob("export/*.py"),
    ]
    readers = {path.name for path in modules if reads_wall_clock(path)}

    assert readers == {"agents.py", "release_stages.py", "shared_outputs.py", "wiring.py"}


def reads_wall_clock(path: Path) -> bool:
    names = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    clocks = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
    return bool(names & clocks)
