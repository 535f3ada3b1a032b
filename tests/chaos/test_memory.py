"""A worker's memory depends on users, items and settings, not on how many events have passed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from engine import Engine, Worker, event, wait_until

ROUNDS, EVENTS = 5, 200_000
USERS, ITEMS = 2000, 500
#: Between the second round and the last one; caches and write buffers are full by the second.
MAX_GROWTH_MB = 40.0


def send_round(engine: Engine, first: int, rng: random.Random) -> None:
    users = rng.choices(range(USERS), [1 / (rank + 1) for rank in range(USERS)], k=EVENTS)
    engine.send(
        (b"user-%d" % user, event(f"user-{user}", first + n, item_id=f"item-{n * user % ITEMS}"))
        for n, user in enumerate(users)
    )


def resident_mb(worker: Worker) -> float:
    assert worker.process is not None
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_a_million_events_of_the_same_users_leave_the_memory_as_it_was(engine: Engine) -> None:
    rng = random.Random(5)
    worker = engine.worker().start()
    after_mb = []

    for number in range(ROUNDS):
        send_round(engine, number * EVENTS, rng)
        wait_until(engine.is_all_committed, lambda: f"all is committed; {engine.logs()}", 400)
        after_mb.append(resident_mb(worker))

    print("\nMB after each round:", *(f"{mb:.0f}" for mb in after_mb))
    assert worker.is_running
    assert max(after_mb[2:]) - after_mb[1] < MAX_GROWTH_MB, after_mb
