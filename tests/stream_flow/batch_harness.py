"""Drives `batch_worker.py` as processes, and reads from Kafka what they have done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import faust
from batch_worker import PARTITIONS
from faust.types import TP
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaError

from stream.kafka.batches import BatchOptions
from stream.kafka.own_rows import FENCE_KEY, SOURCE_KEY
from stream.kafka.producer import BatchProducer
from stream.kafka.wiring import BrokerLimits, faust_settings, install

PATIENCE_S = 40.0
USERS = 40


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:.0f} s in vain until {what}")
        time.sleep(0.05)


class Scene:
    """Topics of one test, and what is in them."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.group = f"{prefix}group"
        self.events = f"{prefix}events"
        self.changelog = f"{prefix}group-rows-changelog"
        self.sent = 0
        self.admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        self.create_topics()

    def create_topics(self) -> None:
        compact = {"cleanup.policy": "compact"}
        self.admin.create_topics(
            [
                NewTopic(self.events, PARTITIONS, 1),
                NewTopic(self.changelog, PARTITIONS, 1, topic_configs=compact),
            ],
            wait_for_metadata=True,
        )

    def close(self) -> None:
        self.admin.close()

    def send(self, count: int) -> None:
        """More events, numbered on; the user and so the partition follow from the number."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=5)
        for number in range(self.sent, self.sent + count):
            producer.send(self.events, key=b"user-%d" % (number % USERS), value=b"%d" % number)
        producer.flush()
        producer.close()
        self.sent += count

    def expected(self) -> dict[str, list[int]]:
        users = {f"user-{number % USERS}": [] for number in range(min(self.sent, USERS))}
        for number in range(self.sent):
            users[f"user-{number % USERS}"].append(number)
        return users

    def ends(self, topic: str) -> dict[int, int]:
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap)
        ends = consumer.end_offsets([TopicPartition(topic, p) for p in range(PARTITIONS)])
        consumer.close()
        return {tp.partition: end for tp, end in ends.items()}

    def committed(self) -> dict[int, int]:
        try:
            offsets = self.admin.list_group_offsets({self.group: None})[self.group]
        except KafkaError:  # a new broker has no coordinator for a moment
            return {}
        return {
            tp.partition: found.offset for tp, found in offsets.items() if tp.topic == self.events
        }

    def rows(self) -> dict[str, list[int]]:
        """The state that a wiped worker would recover: the newest row of each user."""
        newest = {record.key: record.value for record in self.changelog_records()}
        newest.pop(SOURCE_KEY, None)
        newest.pop(FENCE_KEY, None)
        return {user.decode(): json.loads(row)["n"] for user, row in newest.items()}

    def lose_changelog_tail(self, count: int) -> None:
        """Of each partition of the changelog, the last records are gone: the topic is made anew
        with those before, as where all brokers lose power and what was not on their disks."""
        kept: dict[int, list[ConsumerRecord]] = {}
        for record in self.changelog_records():
            kept.setdefault(record.partition, []).append(record)
        self.make_anew(self.changelog)
        producer = KafkaProducer(bootstrap_servers=self.bootstrap)
        for partition, records in kept.items():
            assert [record.offset for record in records] == list(range(len(records)))
            for record in records[:-count]:
                producer.send(
                    self.changelog, key=record.key, value=record.value, partition=partition
                )
        producer.flush()
        producer.close()

    def make_anew(self, topic: str, partitions: int = PARTITIONS) -> None:
        """Delete a topic and make it again, empty."""
        self.admin.delete_topics([topic])
        wait_until(lambda: topic not in self.admin.list_topics(), f"{topic} is deleted")
        self.admin.create_topics({topic: {"num_partitions": partitions}})

    def changelog_records(self) -> Iterator[ConsumerRecord]:
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, auto_offset_reset="earliest")
        partitions = [TopicPartition(self.changelog, p) for p in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            for records in consumer.poll(timeout_ms=500).values():
                yield from records
        consumer.close()

    def wait_until_all_is_done(self) -> None:
        ends = {p: end for p, end in self.ends(self.events).items() if end}
        wait_until(
            lambda: {p: at for p, at in self.committed().items() if p in ends} == ends,
            f"the group has committed {ends}",
        )


class WorkerProcess:
    """One worker, its disk in `directory`; started again it finds its disk and its identity."""

    def __init__(self, scene: Scene, directory: Path, name: str, **wishes: object) -> None:
        self.directory = directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.events_path = self.directory / f"{name}.log"
        self.output_path = self.directory / f"{name}.out"
        self.wishes: dict[str, object] = {
            "bootstrap": scene.bootstrap,
            "prefix": scene.prefix,
            "directory": str(self.directory),
            "name": name,
            **wishes,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **wishes: object) -> WorkerProcess:
        plan = json.dumps(self.wishes | wishes)
        script = Path(__file__).with_name("batch_worker.py")
        with self.output_path.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(script), plan], stdout=out, stderr=out
            )
        return self

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def told(self, word: str) -> list[dict]:
        if not self.events_path.exists():
            return []
        lines = [json.loads(line) for line in self.events_path.read_text().splitlines()]
        return [line for line in lines if line["word"] == word]

    def wait_for(self, word: str, beyond: int = 0, **fields: object) -> dict:
        """The newest line with this word and these fields, when there are more than `beyond`."""

        def found() -> list[dict]:
            lines = self.told(word)[beyond:]
            return [line for line in lines if fields.items() <= line.items()]

        try:
            wait_until(found, f"{self.events_path.stem} tells {word} {fields}")
        except AssertionError as error:
            raise AssertionError(f"{error}; its output ends:\n{self.output[-4000:]}") from None
        return found()[-1]

    def wait_until_ready(self, partitions: int = PARTITIONS, beyond: int = 0) -> dict:
        def found() -> list[dict]:
            lines = self.told("ready")[beyond:]
            return [line for line in lines if len(line["partitions"]) == partitions]

        wait_until(found, f"{self.events_path.stem} has {partitions} partitions")
        return found()[-1]

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal, and the exit code."""
        self.send_signal(number)
        return self.exit_code()

    def exit_code(self, patience_s: float = PATIENCE_S) -> int:
        return self.process.wait(patience_s)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextlib.asynccontextmanager
async def running_producer(
    bootstrap: str, limits: BrokerLimits | None = None
) -> AsyncIterator[BatchProducer]:
    """The producer of a worker, alone."""
    app = faust.App("producer", broker=f"kafka://{bootstrap}", **faust_settings(limits))
    install(app, BatchOptions(frozenset()))
    await app.producer.start()
    yield app.producer
    await app.producer.stop()


def new_topics(bootstrap: str, *names: str, partitions: int = 1) -> None:
    """Make topics; all clients know of them."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name, partitions, 1) for name in names], wait_for_metadata=True)
    admin.close()


def values_of(bootstrap: str, tp: TP) -> list[bytes]:
    """The values of a partition, all but the fence's rows."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    where = TopicPartition(*tp)
    consumer.assign([where])
    (end,) = consumer.end_offsets([where]).values()
    found: list[bytes] = []
    while consumer.position(where) < end:
        for records in consumer.poll(timeout_ms=500).values():
            found += [record.value for record in records if record.key != FENCE_KEY]
    consumer.close()
    return found
