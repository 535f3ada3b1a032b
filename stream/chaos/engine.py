"""An engine under test: its topics, its workers, and how one tells that it has done everything."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, UnknownTopicOrPartitionError

from export.errors import DriftlineError
from stream.chaos.brokers import Cluster, free_ports
from stream.chaos.traffic import number_of
from stream.chaos.watch import Commits
from stream.chaos.workers import WorkerError, WorkerProcess
from stream.settings import Settings
from stream.topics import create_topics, find_topics, state_changelog
from stream.verify.topics import KafkaLog

#: A worker that is silent for so long is out of the group.
SESSION_S = 4.0
_PARTITIONS = 4
#: Small, so that rows come to files all the time: there a full disk and damage are met.
_WRITE_BUFFER_BYTES = 512 * 1024
_PATIENCE_S = 180.0
_POSTPONED_KEY = b"\x00postponed"


#: No settings other than the engine's own.
_NO_CHANGES: Mapping[str, Any] = {}


class StuckError(DriftlineError):
    """The engine does not get on with its work."""


class Engine:
    """Topics under a prefix on a cluster of the run's own, and the workers that serve them.

    `changes` are settings other than those that suit a run of faults.
    """

    def __init__(
        self, cluster: Cluster, home: Path, prefix: str, changes: Mapping[str, Any] = _NO_CHANGES
    ) -> None:
        self.cluster, self.home = cluster, home
        home.mkdir(parents=True)
        plain = Settings(
            bootstrap=cluster.bootstrap,
            prefix=prefix,
            partitions=_PARTITIONS,
            replication_factor=cluster.copies,
            registry=str(home / "registry"),
            session_timeout_s=SESSION_S,
            commit_interval_s=0.3,
            snapshot_interval_s=1.0,
            write_buffer_bytes=_WRITE_BUFFER_BYTES,
            list_length=10,
        )
        self.settings = msgspec.structs.replace(plain, **changes)
        config = {
            name: value
            for name, value in msgspec.to_builtins(self.settings).items()
            if value != getattr(Settings(), name) and name != "bootstrap"
        }
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in config.items())
        self._config = home / "worker.toml"
        self._config.write_text("".join(lines))
        self.commits = Commits(
            cluster.bootstrap, prefix + self.settings.group, self.events, _PARTITIONS
        )
        self.workers: list[WorkerProcess] = []
        create_topics(self.settings)

    @property
    def events(self) -> str:
        """The topic of user events."""
        return self.settings.topic("user-events")

    def worker(self, name: str, is_on_line: bool = False) -> WorkerProcess:
        """A worker that is not started yet; on the line it can be cut off from the brokers."""
        cluster = self.cluster
        bootstrap = cluster.line_bootstrap if is_on_line else cluster.bootstrap
        options = ["--config", str(self._config), "--bootstrap", bootstrap]
        (port,) = free_ports(1)
        worker = WorkerProcess(name, self.home, port, options)
        self.workers.append(worker)
        return worker

    def supervised(
        self,
        workers: Iterable[WorkerProcess],
        patience_s: float = _PATIENCE_S,
        arguments: Sequence[str] = (),
    ) -> None:
        """Wait until all that is in the log now is committed, starting again what has ended.

        Raises StuckError with the workers' last words if it is not by then.
        """
        ends: dict[int, int] = {}

        def is_done() -> bool:
            nonlocal ends
            for worker in workers:
                worker.start_if_ended(*arguments)
            try:
                ends = ends or self.commits.ends()
                return self.commits.is_done(ends)
            except (KafkaError, OSError):
                return False

        self._wait_until(is_done, "all events are committed", patience_s)

    def wait_until_at_rest(self, workers: list[WorkerProcess]) -> None:
        """Until all is committed, no list is postponed, and a snapshot holds all statistics."""
        self.supervised(workers)
        marks = _PostponedMarks(self.settings)
        try:
            self._wait_until(lambda: not marks.read(), "all postponed lists are sent", _PATIENCE_S)
        finally:
            marks.close()
        self.supervised(workers)
        self._wait_until(self._is_snapshot_current, "the statistics are saved", _PATIENCE_S)

    def make_changelog_anew(self) -> None:
        """Delete the changelog and make it again, as by a mistake; no worker may run."""
        name = state_changelog(self.settings)
        former = find_topics(self.settings).ids[name]

        def is_deleted() -> bool:
            try:
                self.commits.delete_topic(name)
            except UnknownTopicOrPartitionError:  # by an attempt whose answer was lost
                return True
            except (KafkaError, OSError):  # the controller is another by now
                return False
            return True

        self._wait_until(is_deleted, "the changelog is deleted", _PATIENCE_S)

        def is_another() -> bool:
            try:
                create_topics(self.settings)
                return find_topics(self.settings).ids[name] != former
            except DriftlineError:  # it is being deleted still
                return False

        self._wait_until(is_another, "the changelog is made anew", _PATIENCE_S)

    def close(self) -> None:
        """Kill the workers that run."""
        for worker in self.workers:
            worker.kill()
        self.commits.close()

    def missing_events(self, acknowledged: int) -> int:
        """Events with a smaller number that the brokers have taken and not kept."""
        if not acknowledged:
            return 0
        seen = bytearray(acknowledged)
        for record in KafkaLog(self.settings.bootstrap).read(self.events, "log"):
            number = number_of(record.value)
            if number is not None and number < acknowledged:
                seen[number] = 1
        return acknowledged - sum(seen)

    def _is_snapshot_current(self) -> bool:
        settings = self.settings
        folder = Path(settings.registry) / ".statistics" / (settings.prefix + settings.group)
        try:
            name = json.loads((folder / "latest.json").read_text())["file"]
            with np.load(folder / name, allow_pickle=False) as arrays:
                positions = json.loads(str(arrays["about"]))["positions"]
        except FileNotFoundError:  # none yet, or replaced meanwhile
            return False
        ends = KafkaLog(settings.bootstrap).ends(settings.topic("item-statistics"))
        return all(positions.get(str(p), 0) == end for p, end in ends.items())

    def _wait_until(self, condition: Callable[[], bool], what: str, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                words = "\n".join(f"-- {w.name}:\n{w.log_end()}" for w in self.workers)
                raise StuckError(f"waited {patience_s:.0f} s in vain until {what}\n{words}")
            time.sleep(0.1)


class _PostponedMarks:
    """Reads from the changelog which partitions have rows that tell of postponed lists."""

    def __init__(self, settings: Settings) -> None:
        self._marks: dict[int, bytes | None] = {}
        self._consumer = KafkaConsumer(
            bootstrap_servers=settings.bootstrap.split(","),
            enable_auto_commit=False,
            check_crcs=False,  # in Python they take longer than all that is read of the records
        )
        topic = state_changelog(settings)
        self._tps = [TopicPartition(topic, number) for number in range(settings.partitions)]
        self._consumer.assign(self._tps)
        self._consumer.seek_to_beginning(*self._tps)

    def read(self) -> bool:
        """Whether any partition has such rows, by all that the changelog holds now."""
        ends = self._consumer.end_offsets(self._tps)
        while any(self._consumer.position(tp) < ends[tp] for tp in self._tps):
            for records in self._consumer.poll(timeout_ms=500, max_records=5000).values():
                for record in records:
                    if record.key == _POSTPONED_KEY:
                        self._marks[record.partition] = record.value
        return any(self._marks.values())

    def close(self) -> None:
        self._consumer.close(autocommit=False)


def require_exit(worker: WorkerProcess, code: int, patience_s: float = 120.0) -> None:
    """Wait for the end of a worker that must end so. Raises WorkerError where it does not."""
    ended = worker.wait_for_end(patience_s)
    if ended != code:
        raise WorkerError(
            f"wanted {worker.name} to end with {code}, got {ended}; its log ends with\n"
            f"{worker.log_end()}"
        )
