"""Control events on a real Kafka, while workers are killed: what users ask for is done, once."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
from engine import Engine, Worker, driftline, event, wait_until

pytestmark = pytest.mark.broker

USERS = [f"user-{number}" for number in range(12)]
ITEMS = [f"item-{number}" for number in range(30)]
WISHES = ["item_block", "category_mute", "creator_block"]
KINDS = ["history_reset", "user_delete", "user_opt_out", "user_opt_in", *WISHES, "user_export"]

Record = tuple[bytes | None, bytes | None]


def asking(user: str, number: int, kind: str, **fields: object) -> Record:
    schema, event_id = "driftline.control/1", f"control-{number:06d}"
    value = event(user, number, kind, schema=schema, **{"event_id": event_id, **fields})
    return user.encode(), value


def rating(user: str, number: int, item: str) -> Record:
    return user.encode(), event(user, number, item_id=item)


def mixed(count: int, first: int, rng: random.Random) -> Iterator[Record]:
    """Ratings, visits, and of every ten about two wishes; some of them are sent twice."""
    for number in range(first, first + count):
        user, chance = rng.choice(USERS), rng.random()
        if chance < 0.2:
            target = rng.choice([*ITEMS, "kind-0", "kind-1", "maker-2"])
            until = {"until": 1_700_000_000_000 + (number + 50) * 1000} if chance < 0.05 else {}
            record = asking(user, number, rng.choice(KINDS), target=target, **until)
        elif chance < 0.4:
            record = user.encode(), event(user, number, "visit")
        else:
            record = rating(user, number, rng.choice(ITEMS))
        yield record
        if chance > 0.95 or chance < 0.02:
            yield record


def send_items(engine: Engine) -> None:
    for number, item in enumerate(ITEMS):
        about = {"categories": [f"kind-{number % 5}"], "creator_id": f"maker-{number % 4}"}
        value = json.dumps({"item_id": item, "version": 1, **about}).encode()
        engine.producer.send(engine.topic("items"), key=item.encode(), value=value)
    engine.producer.flush()


def send_and_wait(engine: Engine, worker: Worker, records: Iterator[Record]) -> None:
    """Until the worker has done something with them, or has ended."""
    before = engine.written()
    engine.send(records)
    wait_until(lambda: not worker.is_running or engine.written() > before, engine.logs)


def newest(engine: Engine, topic: str, user: str) -> dict | None:
    values = [record.value for record in engine.read(topic) if record.key == user.encode()]
    return json.loads(values[-1]) if values and values[-1] is not None else None


def test_what_users_ask_for_holds_though_workers_die(engine: Engine) -> None:
    rng = random.Random(1)
    send_items(engine)
    engine.send(rating("first", number, item) for number, item in enumerate(ITEMS))
    worker = engine.worker()
    number = 0
    for step in ("send:7", "changelog:5", "ack:5"):
        worker.start(crash=step)
        while worker.is_running:
            send_and_wait(engine, worker, mixed(30, number, rng))
            number += 30
    worker.start()
    last = [
        asking("user-0", 900_001, "user_delete"),
        asking("user-1", 900_002, "user_opt_out"),
        asking("user-2", 900_003, "user_delete"),
        rating("user-2", 900_004, "item-3"),
        asking("user-3", 900_005, "user_delete"),
        rating("user-3", 900_006, "item-3"),
        asking("user-3", 900_007, "item_block", target="item-4"),
        asking("user-3", 900_008, "category_mute", target="kind-1"),
        asking("user-3", 900_009, "creator_block", target="maker-2"),
    ]
    engine.send(last)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()

    for user in ("user-0", "user-1"):
        assert newest(engine, "recommendations", user) is None
        assert newest(engine, "interests", user) is None
    anew, blocked = (newest(engine, "recommendations", user) for user in ("user-2", "user-3"))
    assert anew is not None and blocked is not None
    assert {i["item_id"] for i in anew["items"]} == set(ITEMS) - {"item-3"}
    unwanted = {item for n, item in enumerate(ITEMS) if n % 5 == 1 or n % 4 == 2}
    assert {i["item_id"] for i in blocked["items"]} == set(ITEMS) - unwanted - {"item-3", "item-4"}
    reasons = {dict(record.headers)["reason"] for record in engine.read("dead-letters")}
    assert reasons == {b"not supported yet: control event user_export"}
    assert worker.stop() == 0
    code, report = engine.verify_fold(worker)
    assert code == 0, report
    assert report["checks"]["forgotten interests"]["checked"] >= 2
    parity = driftline(
        "verify", "parity", *engine.options, "--json", "--samples", 300, patience_s=300
    )
    assert parity.returncode == 0, parity.stdout
    assert json.loads(parity.stdout)["lists"] >= 20
