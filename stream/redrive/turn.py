"""Let one redriving process work at a time: the member of a consumer group that has dead-letters.

A process that dies leaves its place when its session ends. By then what it had handed to its
sockets has long been written, or never will be: the next one sees all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import CommitFailedError, KafkaError, RebalanceInProgressError
from kafka.structs import OffsetAndMetadata

from export.errors import DriftlineError
from stream.settings import Settings

#: The least that a broker takes by default.
_SESSION_MS = 6_000
_HEARTBEAT_MS = 1_500
#: Between two looks whether the turn is still ours; sending a few hundred records takes less.
_MAX_SILENCE_MS = 600_000
_JOIN_PATIENCE_S = 30.0
#: How long one look for the group's answer is, at the first joining and at all others. kafka-python
#: loses the answer where such a look ends between question and answer, and never asks again: then
#: the group is joined anew, with longer looks.
_LOOKS_MS = (100, 1000)
_JOIN_ANEW_S = 6.0
_BOOTSTRAP_TIMEOUT_MS = 5000


class NotOurTurnError(DriftlineError):
    """Another process redrives."""


class Turn(ConsumerRebalanceListener):  # type: ignore[misc]
    """This process's turn to redrive, within a `with` block.

    Raises NotOurTurnError where another process has it and does not leave within the session
    timeout; `say` is told of the wait. Raises KafkaError where Kafka cannot be used.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._bootstrap = settings.bootstrap
        self._group = f"{settings.prefix}{settings.group}-redrive"
        self._topic = settings.topic("dead-letters")
        self._say = say
        self._has_it = False
        self._is_lost = False
        self._consumer: Any = None

    def __enter__(self) -> Turn:
        self._wait_for_empty_group()
        self._consumer = KafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self._group,
            enable_auto_commit=False,
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            max_poll_interval_ms=_MAX_SILENCE_MS,
            partition_assignment_strategy=[RangePartitionAssignor],
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
        )
        try:
            if not self._wait_for_turn():
                raise self._not_our_turn()
        except BaseException:
            self._consumer.close(autocommit=False)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close(autocommit=False)

    def check(self) -> None:
        """Raise NotOurTurnError where the turn was lost; call it before everything that sends.

        The broker itself says that this process is still a member: one that stood still for longer
        than its session hears so here. A turn once lost does not come back, as another process may
        have sent in between.
        """
        self._is_lost |= not self._is_member()
        self._consumer.poll(timeout_ms=0)
        if self._is_lost or not self._has_it:
            raise self._not_our_turn()

    def on_partitions_revoked(self, revoked: Any) -> None:
        """The group decides anew: whoever had the turn has it no longer."""
        self._is_lost |= self._has_it
        self._has_it = False

    def on_partitions_assigned(self, assigned: Any) -> None:
        """The group has decided. The records themselves are read elsewhere."""
        self._has_it = bool(assigned)
        self._consumer.pause(*assigned)

    def _wait_for_turn(self) -> bool:
        """Whether the broker confirms, in time, that it is our turn.

        One that is lost meanwhile may come back: nothing was read or sent in it.
        """
        deadline = time.monotonic() + _JOIN_PATIENCE_S
        look_ms, then_ms = _LOOKS_MS
        while time.monotonic() < deadline:
            if self._joins_for_turn(min(deadline, time.monotonic() + _JOIN_ANEW_S), look_ms):
                return True
            look_ms = then_ms
            self._consumer.unsubscribe()
        return False

    def _joins_for_turn(self, deadline: float, look_ms: int) -> bool:
        """The same for one joining of the group."""
        self._has_it = False
        # right after its making a topic may be unknown: the group decides again when it is not
        self._consumer.subscribe([self._topic], listener=self)
        while time.monotonic() < deadline:
            self._consumer.poll(timeout_ms=look_ms)
            self._is_lost = False
            if self._has_it and self._is_member() and not self._is_lost:
                return True
        return False

    def _is_member(self) -> bool:
        """Whether the broker says that this process is in the group's newest generation."""
        try:
            self._consumer.commit({TopicPartition(self._topic, 0): OffsetAndMetadata(0, "", -1)})
        except (CommitFailedError, RebalanceInProgressError):
            return False
        return True

    def _not_our_turn(self) -> NotOurTurnError:
        return NotOurTurnError(
            f"wanted to be the only one that redrives, but the group {self._group} has another "
            "member, or this process stood still for too long: start again when no other "
            "redrives; what was sent is put down"
        )

    def _wait_for_empty_group(self) -> None:
        admin = KafkaAdminClient(
            bootstrap_servers=self._bootstrap, bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS
        )
        try:
            deadline = time.monotonic() + 2 * _SESSION_MS / 1000
            is_told = False
            while self._members(admin):
                if time.monotonic() > deadline:
                    raise NotOurTurnError(
                        f"another process redrives (group {self._group}): let it end, or end it; "
                        "what it has sent is put down, nothing is sent twice"
                    )
                if not is_told:
                    self._say("waiting for another redrive to end, or for one that died to be gone")
                    is_told = True
                time.sleep(0.2)
        finally:
            admin.close()

    def _members(self, admin: Any) -> int:
        if self._group not in {found["group_id"] for found in admin.list_groups()}:
            return 0
        try:
            return len(admin.describe_groups([self._group])[self._group].get("members", ()))
        except (KafkaError, KeyError):
            return 0
