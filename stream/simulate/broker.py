"""A broker in memory: logs of partitions, compaction, and a consumer group with generations.

What it does is what real Kafka does, as far as a worker can tell; tests/chaos holds both to the
same contract. It knows no time of its own: delays and losses are the network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from aiokafka.errors import InvalidProducerEpoch, OffsetOutOfRangeError, OutOfOrderSequenceNumber
from aiokafka.structs import ConsumerRecord, TopicPartition

Headers = Sequence[tuple[str, bytes]]
Entry = tuple[bytes | None, bytes | None, Headers]
#: Topic and partition.
Where = tuple[str, int]
Reply = Literal["ok", "rebalance", "illegal_generation", "unknown_member"]
#: Producer id, epoch and first sequence number of a batch.
Producer = tuple[int, int, int]
NO_PRODUCER: Producer = (-1, -1, -1)
#: Batches of a producer that a partition knows again.
_REMEMBERED = 5


@dataclass(frozen=True, slots=True)
class ProducedBatch:
    """What a partition remembers of a batch: who wrote it, and its offsets."""

    producer_id: int
    epoch: int
    sequence: int
    base: int
    count: int


class PartitionLog:
    """Records by offset; compaction leaves holes and never moves an offset."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.records: list[ConsumerRecord] = []
        self.end = 0
        self._cleaned = 0
        self._batches: dict[int, list[ProducedBatch]] = {}

    def append(
        self, entries: Sequence[Entry], timestamp_ms: int, producer: Producer = NO_PRODUCER
    ) -> int:
        """Write records; returns the first one's offset.

        A producer's batch that is here is not written again. Raises InvalidProducerEpoch where its
        id has written here under a later epoch, OutOfOrderSequenceNumber where a batch is missing
        before it.
        """
        base = self.end
        if producer[0] >= 0:
            written = self._written(producer, len(entries))
            if written is not None:
                return written.base
            batch = ProducedBatch(*producer, base, len(entries))
            self._batches.setdefault(producer[0], []).append(batch)
        for key, value, headers in entries:
            self.records.append(
                ConsumerRecord(
                    self.topic,
                    self.partition,
                    self.end,
                    timestamp_ms,
                    0,
                    key,
                    value,
                    None,
                    -1 if key is None else len(key),
                    -1 if value is None else len(value),
                    tuple(headers),
                )
            )
            self.end += 1
        return base

    def _written(self, producer: Producer, count: int) -> ProducedBatch | None:
        """The same batch, if it is here; raises what a batch is refused with."""
        producer_id, epoch, sequence = producer
        before = self._batches.get(producer_id)
        if not before:
            return None
        last = before[-1]
        if epoch < last.epoch:
            raise InvalidProducerEpoch
        if epoch > last.epoch:
            if sequence:
                raise OutOfOrderSequenceNumber
            return None
        for batch in before[-_REMEMBERED:]:
            if (epoch, sequence, count) == (batch.epoch, batch.sequence, batch.count):
                return batch
        if sequence != last.sequence + last.count:
            raise OutOfOrderSequenceNumber
        return None

    def producers(self) -> dict[int, int]:
        """The epoch of each producer id that has written here."""
        return {producer_id: batches[-1].epoch for producer_id, batches in self._batches.items()}

    def read(self, offset: int, count: int) -> list[ConsumerRecord]:
        """Up to `count` records from this offset, or the next one there is, on.

        Raises OffsetOutOfRangeError where the log ends before this offset.
        """
        if offset > self.end:
            raise OffsetOutOfRangeError({TopicPartition(self.topic, self.partition): offset})
        low, high = 0, len(self.records)
        while low < high:
            middle = (low + high) // 2
            if self.records[middle].offset < offset:
                low = middle + 1
            else:
                high = middle
        return self.records[low : low + count]

    def lose_tail(self, count: int) -> None:
        """Lose the newest records, as where a leader is elected that did not have them.

        What is compacted stays: the cleaner takes old segments only.
        """
        self.end = max(self.end - count, self._cleaned, 0)
        self.records = [record for record in self.records if record.offset < self.end]
        for producer_id, batches in list(self._batches.items()):
            self._batches[producer_id] = [b for b in batches if b.base + b.count <= self.end]
            if not self._batches[producer_id]:
                del self._batches[producer_id]

    def compact(self, below: int) -> None:
        """Of the records below an offset, keep the last of each key."""
        newest = {record.key: record.offset for record in self.records if record.offset < below}
        self._cleaned = max(below, self._cleaned)
        self.records = [
            record
            for record in self.records
            if record.offset >= below or newest[record.key] == record.offset
        ]


@dataclass(slots=True)
class Member:
    """One member of the group, as its coordinator knows it."""

    last_seen_s: float
    has_joined: bool = False
    assigned: tuple[int, ...] = ()


@dataclass(slots=True)
class Group:
    """The coordinator's part of a consumer group whose members share the partitions of one topic.

    A member that is not heard of for a session is out; one that does not join again within the
    rebalance timeout too. Who is out comes back under another name only. Offsets are taken from
    members of the current generation alone; while there is no member, from those of none.
    """

    partitions: int
    session_timeout_s: float
    rebalance_timeout_s: float
    generation: int = 0
    is_rebalancing: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)
    _rebalance_began_s: float = 0.0

    def join(self, name: str, now_s: float) -> None:
        """A member comes, or comes again: a rebalance is under way, or begins.

        Of the members of a stable group only the first, their leader, begins one by coming again:
        the others get what they have.
        """
        if name in self._gone:
            return
        is_settled = not self.is_rebalancing and name in list(self.members)[1:]
        member = self.members.setdefault(name, Member(now_s))
        member.last_seen_s = now_s
        if not is_settled:
            self._begin(now_s)
            member.has_joined = True

    def joined(self, name: str) -> tuple[int, tuple[int, ...]] | None:
        """Generation and partitions of a member, once the rebalance is over; None: wait.

        Who is out gets nothing, in generation -1.
        """
        member = self.members.get(name)
        if member is None:
            return -1, ()
        return None if self.is_rebalancing else (self.generation, member.assigned)

    def heartbeat(self, name: str, generation: int, now_s: float) -> Reply:
        """A sign of life."""
        reply = self._judge(name, generation)
        if reply == "ok":
            self.members[name].last_seen_s = now_s
            if self.is_rebalancing:
                reply = "rebalance"
        return reply

    def commit(self, name: str, generation: int, offsets: dict[int, int], now_s: float) -> Reply:
        """Keep offsets, a sign of life too.

        Before a rebalance is over, those of the generation that ends count.
        """
        if generation < 0 and not self.members:
            reply: Reply = "ok"
        else:
            reply = self._judge(name, generation)
        if reply == "ok":
            self.committed.update(offsets)
            if name in self.members:
                self.members[name].last_seen_s = now_s
        return reply

    def leave(self, name: str, now_s: float) -> None:
        """A member goes."""
        if self.members.pop(name, None) is not None:
            self._gone.add(name)
            self._begin(now_s)
            if not self.members:
                self._end(now_s)

    def tick(self, now_s: float) -> None:
        """Let time pass: throw out who is silent, end the rebalance when all are there."""
        silent = [
            name
            for name, member in self.members.items()
            if not member.has_joined and now_s - member.last_seen_s > self.session_timeout_s
        ]
        late = self.is_rebalancing and now_s - self._rebalance_began_s > self.rebalance_timeout_s
        if late:
            silent += [name for name, member in self.members.items() if not member.has_joined]
        for name in silent:
            self.leave(name, now_s)
        if self.is_rebalancing and all(member.has_joined for member in self.members.values()):
            self._end(now_s)

    def _judge(self, name: str, generation: int) -> Reply:
        if name not in self.members:
            return "unknown_member"
        return "ok" if generation == self.generation else "illegal_generation"

    def _begin(self, now_s: float) -> None:
        if not self.is_rebalancing:
            self.is_rebalancing = True
            self._rebalance_began_s = now_s
            for member in self.members.values():
                member.has_joined = False

    def _end(self, now_s: float) -> None:
        """A new generation; members keep what they have as far as shares are equal."""
        self.is_rebalancing = False
        self.generation += 1
        names = sorted(self.members)
        if not names:
            return
        share = -(-self.partitions // len(names))
        free = set(range(self.partitions))
        kept: dict[str, list[int]] = {}
        for name in names:
            kept[name] = [p for p in self.members[name].assigned if p in free][:share]
            free -= set(kept[name])
        for partition in sorted(free):
            kept[min(names, key=lambda name: (len(kept[name]), name))].append(partition)
        for name in names:
            member = self.members[name]
            member.assigned = tuple(sorted(kept[name]))
            member.has_joined, member.last_seen_s = False, now_s


class Broker:
    """All topics, the group of the workers, and the coordinator of producer epochs."""

    def __init__(self, topics: dict[str, int], group: Group) -> None:
        self.group = group
        self.logs: dict[Where, PartitionLog] = {
            (topic, partition): PartitionLog(topic, partition)
            for topic, partitions in topics.items()
            for partition in range(partitions)
        }
        self._epochs: dict[str, tuple[int, int]] = {}
        self._followed: dict[str, int] = {}  # the epoch that the newest one was to follow

    def next_epoch(
        self, transactional_id: str, after: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """The producer id of a transactional id, and the epoch after its last.

        Raises InvalidProducerEpoch if that is not the one that is to be followed, and was not: an
        answer may have been lost.
        """
        producer_id, epoch = self._epochs.get(transactional_id, (len(self._epochs), -1))
        if after is not None and after != (producer_id, epoch):
            if after == (producer_id, self._followed.get(transactional_id)):
                return producer_id, epoch
            raise InvalidProducerEpoch
        self._followed.pop(transactional_id, None)
        if after is not None:
            self._followed[transactional_id] = epoch
        self._epochs[transactional_id] = producer_id, epoch + 1
        return producer_id, epoch + 1

    def partitions_of(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions."""
        return [partition for name, partition in self.logs if name == topic]

    def all_records(self, topic: str) -> list[ConsumerRecord]:
        """Everything on a topic, partition after partition."""
        return [r for (name, _), log in self.logs.items() if name == topic for r in log.records]
