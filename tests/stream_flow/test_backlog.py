"""State always, lists when there is time: a worker behind a backlog, killed before it is done."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter

import pytest
from engine import Engine, event, wait_until

USERS = 8_000
EVENTS = 24_000


@pytest.mark.parametrize("disk", ["kept", "wiped"])
def test_after_a_backlog_each_user_gets_the_newest_list_though_the_worker_is_killed(
    engine: Engine, disk: str
) -> None:
    """Every user has three events in the backlog, the last users the newest ones."""
    engine.send((b"first", event("first", n, item_id=f"item-{n}")) for n in range(100))
    worker = engine.worker().start(DRIFTLINE_POSTPONE_AFTER_MS="50")
    engine.wait_until_all_is_done()
    worker.stop()
    engine.send(
        (user.encode(), event(user, 100 + number, item_id=f"item-{number % 100}"))
        for number in range(EVENTS)
        for user in [f"user-{number * USERS // EVENTS}"]
    )

    worker.start(DRIFTLINE_POSTPONE_AFTER_MS="50")
    wait_until(engine.is_all_committed, lambda: f"the backlog is folded; {engine.logs()}", 120)
    worker.process.send_signal(signal.SIGSTOP)
    assert engine.has_postponed(), "all lists have been sent: nothing was postponed"
    worker.kill()
    if disk == "wiped":
        shutil.rmtree(worker.data_dir)
    worker.start(DRIFTLINE_POSTPONE_AFTER_MS="50")
    engine.wait_until_all_is_done(120)
    engine.wait_for_snapshot()
    worker.stop()

    code, report = engine.verify_fold(worker)
    assert code == 0, json.dumps(report, indent=1)
    lists = Counter(record.key for record in engine.read("recommendations"))
    assert len(lists) == USERS  # the first user has taken all items, and gets none
    assert lists.total() < EVENTS / 2, "lists were made for steps on the way"
