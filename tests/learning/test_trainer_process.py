"""The trainer as a process beside a real Kafka: it learns, releases, announces, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka_cluster import Broker
from streams import made_up_events

from export.registry import Registry
from models.publish import load_former

COMMAND = [sys.executable, "-c", "from stream.cli import main; main()"]
PATIENCE_S = 600.0

pytestmark = [pytest.mark.broker, pytest.mark.slow]


class Log:
    """Sends made-up events, and reads what the trainer announces."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.prefix = prefix
        self.events = made_up_events(4000)
        self.sent = 0
        self.producer = KafkaProducer(bootstrap_servers=bootstrap)
        self.consumer = KafkaConsumer(
            bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest"
        )

    def send(self, count: int) -> None:
        for number in range(self.sent, self.sent + count):
            user, item, time_ms = self.events[number]
            event = {
                "event_id": f"event-{number:05d}",
                "type": "click",
                "user_id": user,
                "item_id": item,
                "event_time": time_ms,
            }
            self.producer.send(
                f"{self.prefix}user-events", json.dumps(event).encode(), user.encode()
            )
        self.sent += count
        self.producer.flush()

    def announced(self, topic: str) -> list[dict[str, Any]]:
        """All records of a topic, in the order of one partition after another."""
        name = self.prefix + topic
        partitions = [
            TopicPartition(name, p) for p in sorted(self.consumer.partitions_for_topic(name))
        ]
        self.consumer.assign(partitions)
        self.consumer.seek_to_beginning()
        ends = self.consumer.end_offsets(partitions)
        found = []
        while any(self.consumer.position(tp) < end for tp, end in ends.items()):
            for records in self.consumer.poll(timeout_ms=500).values():
                found += [json.loads(record.value) for record in records]
        return found

    def wait_for_live(self, version: int, trainer: subprocess.Popen[bytes]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for stage in self.announced("model-releases"):
                if stage["version"] == version and stage["stage"] == "live":
                    return stage
            assert trainer.poll() in (None, 0), "the trainer died"
            time.sleep(0.5)
        raise AssertionError(f"no release {version} went live in {PATIENCE_S:.0f} s")


def trainer(kafka: Broker, prefix: str, registry: Path, releases: int) -> subprocess.Popen[bytes]:
    options = ["--bootstrap", kafka.bootstrap, "--prefix", prefix, "--registry", str(registry)]
    due = ["--every-events", "1000", "--releases", str(releases), "--nice", "0"]
    return subprocess.Popen([*COMMAND, "trainer", *options, *due, "--repeats", "allow"])


def test_a_trainer_releases_again_and_again_and_goes_on_after_a_restart(
    kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    topics = ["topics", "create", "--bootstrap", kafka.bootstrap, "--prefix", prefix]
    subprocess.run([*COMMAND, *topics], check=True, timeout=60)
    log, registry = Log(kafka.bootstrap, prefix), Registry(tmp_path)
    log.send(1500)
    process = trainer(kafka, prefix, tmp_path, releases=2)
    try:
        first = log.wait_for_live(1, process)
        log.send(1000)
        log.wait_for_live(2, process)
        assert process.wait(timeout=60) == 0
        log.send(1000)
        process = trainer(kafka, prefix, tmp_path, releases=1)
        log.wait_for_live(3, process)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()

    release = registry.open("driftline", 1)
    assert first["sha256"] == release.sha256
    assert Path(first["path"]) == release.path.resolve()
    lineage = {v: registry.open("driftline", v).manifest.lineage for v in (1, 2, 3)}
    assert [lineage[v].parent for v in (1, 2, 3)] == [None, 1, 2]
    read = lineage[3].offsets[f"{prefix}user-events"]
    assert sum(end - begin for begin, end in read.values()) == 3500
    stages = [(s["version"], s["stage"]) for s in log.announced("release-log")]
    assert stages == [(v, stage) for v in (1, 2, 3) for stage in ("candidate", "live")]
    assert load_former(registry.open("driftline", 3)).model.config.items > 0
