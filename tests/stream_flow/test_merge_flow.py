"""Merging users on a real Kafka, by two workers that are killed between legs: each merge once."""

from __future__ import annotations

import json

import pytest
from engine import Engine, Worker, driftline, event, wait_until

pytestmark = pytest.mark.broker

STEPS = ("send", "changelog", "write", "ack")
ITEMS = [f"item-{number}" for number in range(30)]

Record = tuple[bytes, bytes]


def rating(user: str, number: int, item: str) -> Record:
    return user.encode(), event(user, number, item_id=item)


def by_guest(guest: str, number: int, kind: str = "rate", item: str = "item-0") -> Record:
    fields = json.loads(event("", number, kind, anonymous_id=guest, item_id=item))
    del fields["user_id"]
    return guest.encode(), json.dumps(fields).encode()


def merging(user: str, number: int, guest: str) -> Record:
    about = {"schema": "driftline.control/1", "from_anonymous_id": guest}
    return user.encode(), event(user, number, "user_merge", **about)


def run_to_the_end(engine: Engine, workers: list[Worker]) -> None:
    """Until all is done; who ends is started again, and ends no more."""

    def is_done() -> bool:
        for worker in workers:
            if not worker.is_running:
                worker.start()
        return engine.is_all_committed() and not engine.has_postponed()

    wait_until(is_done, engine.logs, 120)


def newest_list(engine: Engine, key: bytes) -> dict | None:
    values = [r.value for r in engine.read("recommendations") if r.key == key]
    assert values, f"there was no list of {key!r}"
    return values[-1] and json.loads(values[-1])


def key_of_guest(guest: str) -> bytes:
    return f"default\x1fa\x1f{guest}\x1fhome".encode()


@pytest.mark.parametrize(
    "batch", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_merges_are_done_once_whatever_dies_between_their_legs(engine: Engine, batch: int) -> None:
    """Each worker dies in its first, second or third batch: of the three legs it has up to two."""
    workers = [engine.worker("worker-1").start(), engine.worker("worker-2").start()]
    engine.send(rating("first", number, item) for number, item in enumerate(ITEMS))
    number = 1000
    pairs = []
    for step in STEPS:
        user, guest = f"user-{step}", f"guest-{step}"
        pairs.append((user, guest))
        engine.send(
            [
                rating(user, number, "item-1"),
                by_guest(guest, number + 1, item="item-2"),
                by_guest(guest, number + 2, item="item-3"),
                by_guest(guest, number + 3, "visit"),
            ]
        )
        run_to_the_end(engine, workers)
        for worker in workers:
            worker.kill()
            worker.start(crash=f"{step}:{batch}")
        merge = merging(user, number + 4, guest)
        engine.send([merge, by_guest(guest, number + 5, item="item-4"), merge])
        number += 10
        wait_until(
            lambda: engine.is_all_committed() or not all(w.is_running for w in workers),
            engine.logs,
        )
        run_to_the_end(engine, workers)

    user, guest = pairs[0]
    engine.send(
        [
            merging(user, number, guest),
            merging(user, number + 1, "a guest of whom nothing is known"),
            by_guest("guest-last", number + 2, item="item-9"),
            merging("user-last", number + 3, "guest-last"),
        ]
    )
    run_to_the_end(engine, workers)
    engine.wait_for_snapshot()

    for user, guest in pairs[1:]:
        mine = newest_list(engine, user.encode())
        assert mine is not None
        known = set(ITEMS) - {item["item_id"] for item in mine["items"]}
        assert known - {"item-4"} == {"item-1", "item-2", "item-3"}
        theirs = newest_list(engine, key_of_guest(guest))
        if "item-4" in known:  # the guest's last click came before the request to hand over
            assert theirs is None
        else:
            assert theirs is not None
            assert {item["item_id"] for item in theirs["items"]} == set(ITEMS) - {"item-4"}
    last = newest_list(engine, b"user-last")
    assert last is not None
    assert "item-9" not in {item["item_id"] for item in last["items"]}
    assert newest_list(engine, key_of_guest("guest-last")) is None
    assert not engine.read("dead-letters")
    assert [worker.stop() for worker in workers] == [0, 0]
    code, report = engine.verify_fold(*workers)
    assert code == 0, report
    assert report["checks"]["merges"]["checked"] == len(pairs) + 3
    parity = driftline(
        "verify", "parity", *engine.options, "--json", "--samples", 300, patience_s=300
    )
    assert parity.returncode == 0, parity.stdout
