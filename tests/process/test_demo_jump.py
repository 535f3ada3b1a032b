"""How soon a real worker sees that a simulated user's interest has jumped."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pytest
from engine import Engine, wait_until
from kafka import KafkaConsumer, TopicPartition

from export.registry import Registry
from stream.demo.catalogue import CATEGORIES, birth_times, demo_items
from stream.demo.release import BUNDLED_REGISTRY
from stream.demo.simulator import DAY_MS, Clicks, Simulator, SimulatorSettings

pytestmark = pytest.mark.broker

USERS, PAST_CLICKS, ROUNDS = 100, 3000, 50
SEED = 11
#: Clicks after a jump within which its category must lead *next*, in the median.
WANTED_CLICKS = 5
#: Clicks that a jump must have been watched for.
ENOUGH_CLICKS = 12


@dataclass
class Watched:
    """What `recommendations` and `interests` have brought, by user."""

    consumer: KafkaConsumer
    answered: set[str] = field(default_factory=set)
    leads: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: Engine) -> Watched:
        consumer = KafkaConsumer(bootstrap_servers=engine.bootstrap)
        topics = engine.topic("recommendations"), engine.topic("interests")
        places = [TopicPartition(topic, p) for topic in topics for p in range(8)]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        return cls(consumer)

    def look(self) -> None:
        for records in self.consumer.poll(timeout_ms=100).values():
            for value in (json.loads(record.value) for record in records):
                if "trigger" in value:
                    self.answered.add(value["trigger"]["event_id"])
                elif value["next"]:
                    self.leads[value["user_id"]] = value["next"][0]["label"]


def send_world(engine: Engine, born_ms: np.ndarray, now_ms: int) -> None:
    """The items that are there, and the bundled release, live."""
    shutil.copytree(BUNDLED_REGISTRY, engine.registry)
    release = Registry(engine.registry).open("driftline")
    stage = {
        "schema": "driftline.model-release/1",
        "name": "driftline",
        "version": release.version,
        "stage": "live",
        "sha256": release.sha256,
        "path": f"driftline/{release.version}",
        "at": now_ms,
    }
    key = f"driftline/{release.version}".encode()
    engine.producer.send(engine.topic("model-releases"), key=key, value=json.dumps(stage).encode())
    for item, born in zip(demo_items(), born_ms.ravel(), strict=True):
        if born <= now_ms:
            about = {"item_id": item.item_id, "version": 1, "categories": item.categories}
            value = json.dumps(about).encode()
            engine.producer.send(engine.topic("items"), key=item.item_id.encode(), value=value)
    engine.producer.flush()


def send_clicks(engine: Engine, clicks: Clicks, name: str) -> set[str]:
    """Returns the ids of the events."""
    items, records, ids = demo_items(), [], set()
    columns = clicks.users.tolist(), clicks.items.tolist(), clicks.times_ms.tolist()
    for number, (user, item, time_ms) in enumerate(zip(*columns, strict=True)):
        event = {
            "event_id": f"{name}-{number:06d}",
            "type": "click",
            "event_time": time_ms,
            "user_id": f"u-{user}",
            "item_id": items[item].item_id,
        }
        ids.add(event["event_id"])
        records.append((event["user_id"].encode(), json.dumps(event).encode()))
    engine.send(records)
    return ids


def test_a_jump_leads_next_within_five_clicks_in_the_median(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    now_ms = time.time_ns() // 1_000_000
    born_ms = birth_times(now_ms, DAY_MS)
    simulated = Simulator(SimulatorSettings(USERS, SEED), born_ms)
    send_world(engine, born_ms, now_ms)
    send_clicks(engine, simulated.clicks(PAST_CLICKS, now_ms - 28 * DAY_MS, now_ms), "past")
    engine.worker().start()
    engine.wait_until_all_is_done()
    watched = Watched.of(engine)

    first_led: dict[tuple[int, int], int] = {}  # user, jump -> clicks until it led
    watched_for: dict[tuple[int, int], int] = {}  # user, jump -> clicks that were seen of it
    jumps: dict[int, int] = {}  # user -> how many jumps we have seen begin
    for round_ in range(ROUNDS):
        at_ms = now_ms + round_ * 20_000
        clicks = simulated.act(np.arange(USERS), np.full(USERS, at_ms))
        ids = send_clicks(engine, clicks, f"round-{round_}")

        def is_answered(ids: set[str] = ids) -> bool:
            watched.look()
            return ids <= watched.answered

        wait_until(is_answered, engine.logs)
        watched.look()  # interests come with the list, on a topic of their own
        for user, since, target in zip(
            clicks.users.tolist(),
            clicks.since_jump.tolist(),
            clicks.jumped_to.tolist(),
            strict=True,
        ):
            if since == 1:
                jumps[user] = jumps.get(user, 0) + 1
            if since and user in jumps:
                watched_for[user, jumps[user]] = since
                if watched.leads.get(f"u-{user}") == CATEGORIES[target]:
                    first_led.setdefault((user, jumps[user]), since)
    watched.consumer.close()

    # a jump of which little was seen could only show early: it says nothing of how long it takes
    waits = [first_led.get(j, np.inf) for j, seen in watched_for.items() if seen >= ENOUGH_CLICKS]
    with capsys.disabled():
        counts = np.bincount([int(min(wait, 20)) for wait in waits], minlength=8)
        print(
            f"\n{len(waits)} jumps lead next after {median(waits)} clicks in the median: {counts}"
        )
    assert len(waits) >= 20
    assert median(waits) <= WANTED_CLICKS
