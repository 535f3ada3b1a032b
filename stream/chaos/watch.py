"""Follow the group's commits from outside, and measure for how long a partition stands still."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError

_INTERVAL_S = 0.2
_TIMEOUT_MS = 3000

Offsets = dict[int, int]


class Commits:
    """Asks the brokers where the log of a topic ends and what the group has committed.

    Raises KafkaError while the brokers do not answer.
    """

    def __init__(self, bootstrap: str, group: str, topic: str, partitions: int) -> None:
        self._bootstrap, self._group = bootstrap, group
        self._tps = [TopicPartition(topic, number) for number in range(partitions)]
        self._admin: KafkaAdminClient | None = None

    def ends(self) -> Offsets:
        """Partition -> the offset that the next record will have."""
        asked = {tp: OffsetSpec.LATEST for tp in self._tps}
        with self._connection() as admin:
            found = admin.list_partition_offsets(asked, timeout_ms=_TIMEOUT_MS)
        return {tp.partition: at.offset for tp, at in found.items()}

    def committed(self) -> Offsets:
        """Partition -> the offset that the group goes on from; 0 where it has none."""
        with self._connection() as admin:
            offsets = admin.list_group_offsets(self._group)[self._group]
        found = {tp: offsets[tp].offset for tp in self._tps if tp in offsets}
        return {tp.partition: max(found.get(tp, 0), 0) for tp in self._tps}

    def is_done(self, ends: Offsets) -> bool:
        """Whether all before these ends is committed."""
        committed = self.committed()
        return all(committed[partition] >= end for partition, end in ends.items())

    def delete_topic(self, name: str) -> None:
        """Delete a topic; it is gone a little later."""
        with self._connection() as admin:
            admin.delete_topics([name])

    def close(self) -> None:
        """Close the connection."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A client; after an error another one, as it goes on to ask a former coordinator."""
        if self._admin is None:
            self._admin = KafkaAdminClient(
                bootstrap_servers=self._bootstrap.split(","),
                client_id="driftline-chaos",
                request_timeout_ms=_TIMEOUT_MS,
                bootstrap_timeout_ms=_TIMEOUT_MS,
                reconnect_backoff_max_ms=500,
            )
        try:
            yield self._admin
        except BaseException:
            self.close()
            raise


class Watch(threading.Thread):
    """Looks at the commits all the time; `longest_s` of what is under way is kept by its name.

    Time counts while events of a partition wait and none of them is committed, brokers that do not
    answer included. It is an upper bound: time between two looks counts too.
    """

    def __init__(self, commits: Commits) -> None:
        super().__init__(daemon=True)
        self.longest_s: dict[str, float] = {}
        self._commits = commits
        self._under_way = "start"
        self._lock = threading.Lock()
        self._stop_asked = threading.Event()

    def note(self, under_way: str) -> None:
        """What stands still from now on is put down to this."""
        with self._lock:
            self._under_way = under_way

    def stop(self) -> None:
        """Look no more."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(10 * _TIMEOUT_MS / 1000)
        self._commits.close()

    def run(self) -> None:
        known: Offsets = {}
        moved_s: dict[int, float] = {}
        while not self._stop_asked.wait(_INTERVAL_S):
            try:
                committed, ends = self._commits.committed(), self._commits.ends()
            except (KafkaError, OSError):
                committed, ends = known, {}
            now_s = time.monotonic()
            for partition, offset in committed.items():
                is_done = partition in ends and offset >= ends[partition]
                if is_done or offset > known.get(partition, -1):
                    moved_s[partition] = now_s
            known = committed
            self._keep(now_s - min(moved_s.values(), default=now_s))

    def _keep(self, still_s: float) -> None:
        with self._lock:
            before = self.longest_s.get(self._under_way, 0.0)
            self.longest_s[self._under_way] = max(before, still_s)
