"""Lists that expire are renewed for users who were here lately, through restarts and exactly."""

from __future__ import annotations

import json

import pytest
from engine import Engine, event, wait_until

pytestmark = pytest.mark.broker

HOUR_MS = 3_600_000
SETTINGS = {
    "DRIFTLINE_LIST_LIFETIME_MS": str(HOUR_MS),
    "DRIFTLINE_REFRESH_EXPIRING": "50",
    "DRIFTLINE_REFRESH_ACTIVE_MS": str(6 * HOUR_MS),
}


def click(engine: Engine, user: str, number: int, hour: float) -> int:
    """One click at this hour; returns its event time in ms."""
    at_ms = 1_700_000_000_000 + int(hour * HOUR_MS)
    body = event(user, number, item_id=f"item-{number}", event_time=at_ms)
    engine.send([(user.encode(), body)])
    return at_ms


def lists_of(engine: Engine, user: str) -> list[dict]:
    lists = [json.loads(record.value) for record in engine.read("recommendations")]
    return [each for each in lists if each["user_id"] == user]


def test_expired_lists_of_active_users_are_renewed_for_the_newest_event_time(
    engine: Engine,
) -> None:
    worker = engine.worker().start(**SETTINGS)
    for number in range(100, 105):
        click(engine, "first", number, 0)
    engine.wait_until_all_is_done()
    for number, (user, hour) in enumerate([("gone", 0), ("here", 8), ("ada", 8.5)]):
        click(engine, user, number, hour)
        engine.wait_until_all_is_done()
    assert [len(lists_of(engine, user)) for user in ("gone", "here", "ada")] == [1, 1, 1]

    worker.kill()  # nothing but the rows tells of what is to come
    worker.start(**SETTINGS)
    now_ms = click(engine, "ada", 3, 12)
    wait_until(lambda: len(lists_of(engine, "here")) == 2, "the expired list is renewed")

    renewed = lists_of(engine, "here")[-1]
    assert renewed["trigger"]["reason"] == "ttl"
    assert renewed["request_time"] == now_ms
    assert renewed["expires_at"] == now_ms + HOUR_MS
    assert renewed["seq"] == 2
    later_ms = click(engine, "ada", 4, 13.5)
    wait_until(lambda: len(lists_of(engine, "here")) == 3, "it is renewed again")
    assert lists_of(engine, "here")[-1]["request_time"] == later_ms
    assert len(lists_of(engine, "gone")) == 1, "his last click is too long ago"
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    worker.stop()
    code, report = engine.verify_fold(worker)
    assert code == 0, json.dumps(report, indent=1)
