"""Runs the real engine for a test: its topics, workers as processes, events in, verdicts out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

PATIENCE_S = 60.0
COMMAND = [sys.executable, "-c", "from stream.cli import main; main()"]
#: Fast to notice a dead worker, and to save what it has counted.
QUICK = {
    "DRIFTLINE_SESSION_TIMEOUT_S": "4",
    "DRIFTLINE_SNAPSHOT_INTERVAL_S": "0.5",
    "DRIFTLINE_COMMIT_INTERVAL_S": "0.3",
}


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str], patience_s: float = PATIENCE_S
) -> Any:
    """The first true value of the condition; fails after the patience."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            what = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {patience_s:.0f} s in vain until {what}")
        time.sleep(0.05)
    return value


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of its own, plus these."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTLINE_")}
    return plain | settings


def driftline(
    *arguments: object, patience_s: float = PATIENCE_S, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=patience_s,
        env=environment(**settings),
    )


class Worker:
    """One worker process with its own disk; started again it finds its disk and its identity."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        self.data_dir = engine.home / name
        self.log_path = engine.home / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, crash: str = "", **settings: str) -> Worker:
        """Start it; `crash` is "STEP:N", see stream.app."""
        options = ["--instance", self.name, "--data-dir", str(self.data_dir), *arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "worker", *self.engine.options, *options],
                stdout=log,
                stderr=log,
                env=environment(**QUICK | settings | {"DRIFTLINE_TEST_CRASH": crash}),
            )
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def wait_for_end(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended by itself."""
        assert self.process is not None
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end; its log:\n{self.log()}") from None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """The end of what it wrote."""
        return self.log_path.read_text(errors="replace")[-6000:]


class Engine:
    """Topics under a prefix, and what a test does with them."""

    def __init__(self, bootstrap: str, prefix: str, home: Path) -> None:
        self.bootstrap, self.prefix, self.home = bootstrap, prefix, home
        self.registry = home / "registry"
        self.workers: list[Worker] = []
        self.producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
        self.consumer = KafkaConsumer(bootstrap_servers=bootstrap)
        self.committed_reader = KafkaConsumer(
            bootstrap_servers=bootstrap, group_id=f"{prefix}driftline", enable_auto_commit=False
        )
        created = driftline("topics", "create", "--bootstrap", bootstrap, "--prefix", prefix)
        assert created.returncode == 0, created.stderr

    @property
    def options(self) -> list[str]:
        """Where this engine is, for every verb."""
        where = ["--bootstrap", self.bootstrap, "--prefix", self.prefix]
        return [*where, "--registry", str(self.registry)]

    def close(self) -> None:
        """End what runs."""
        for worker in self.workers:
            if worker.is_running:
                worker.kill()
        self.producer.close()
        self.consumer.close()
        self.committed_reader.close()

    def worker(self, name: str = "worker") -> Worker:
        """A worker that is not started yet."""
        worker = Worker(self, name)
        self.workers.append(worker)
        return worker

    def topic(self, name: str) -> str:
        return self.prefix + name

    def send(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Put (key, value) records on user-events and wait until they are there."""
        for key, value in records:
            self.producer.send(self.topic("user-events"), key=key, value=value)
        self.producer.flush()

    def ends(self, topic: str) -> dict[int, int]:
        """Partition -> end of a topic."""
        numbers = self.consumer.partitions_for_topic(topic) or set()
        tps = [TopicPartition(topic, number) for number in numbers]
        return {tp.partition: end for tp, end in self.consumer.end_offsets(tps).items()}

    def written(self) -> int:
        """Records on the changelog of the rows: grows with every batch."""
        return sum(self.ends(f"{self.prefix}driftline-user-state-changelog").values())

    def read(self, name: str) -> list[Any]:
        """All records of a topic."""
        topic = self.topic(name)
        reader = KafkaConsumer(bootstrap_servers=self.bootstrap, auto_offset_reset="earliest")
        ends = self.ends(topic)
        tps = [TopicPartition(topic, number) for number in ends]
        reader.assign(tps)
        reader.seek_to_beginning(*tps)
        records: list[Any] = []
        while any(reader.position(tp) < ends[tp.partition] for tp in tps):
            for found in reader.poll(timeout_ms=500).values():
                records += found
        reader.close()
        return records

    def is_all_committed(self) -> bool:
        """Whether the group has committed all of user-events."""
        topic = self.topic("user-events")
        return all(
            self.committed_reader.committed(TopicPartition(topic, partition)) == end
            for partition, end in self.ends(topic).items()
            if end
        )

    def has_postponed(self) -> bool:
        """Whether the rows of any partition tell of postponed lists."""
        marks = {
            record.partition: record.value
            for record in self.read("driftline-user-state-changelog")
            if record.key == b"\x00postponed"
        }
        return any(marks.values())

    def wait_until_all_is_done(self, patience_s: float = PATIENCE_S) -> None:
        """Until all is committed and all lists are sent; fails if no worker is left to do it."""

        def is_done() -> bool:
            if self.is_all_committed() and not self.has_postponed():
                return True
            assert any(worker.is_running for worker in self.workers), self.logs()
            return False

        wait_until(is_done, lambda: f"all is committed; {self.logs()}", patience_s)

    def wait_for_snapshot(self) -> None:
        """Until a snapshot holds all that the topic of deltas has brought."""
        folder = self.registry / ".statistics" / f"{self.prefix}driftline"

        def is_current() -> bool:
            if not (folder / "latest.json").exists():
                return False
            name = json.loads((folder / "latest.json").read_text())["file"]
            with np.load(folder / name, allow_pickle=False) as arrays:
                positions = json.loads(str(arrays["about"]))["positions"]
            ends = self.ends(self.topic("item-statistics"))
            return all(positions.get(str(p), 0) == end for p, end in ends.items())

        wait_until(is_current, lambda: f"the statistics are saved; {self.logs()}")

    def verify_fold(self, *workers: Worker) -> tuple[int, dict[str, Any]]:
        """`driftline verify fold`: exit code and report."""
        disks = [part for worker in workers for part in ("--data-dir", worker.data_dir)]
        done = driftline("verify", "fold", *self.options, *disks, "--json", patience_s=300, **QUICK)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def logs(self) -> str:
        """The ends of all workers' logs."""
        return "\n".join(f"-- {w.name}:\n{w.log()}" for w in self.workers if w.log_path.exists())


def event(user: str, number: int, type: str = "rate", **fields: object) -> bytes:
    """A user event's JSON; times grow with the number."""
    body = {
        "event_id": f"event-{number:08d}",
        "type": type,
        "event_time": 1_700_000_000_000 + number * 1000,
        "user_id": user,
        **fields,
    }
    return json.dumps(body).encode()
