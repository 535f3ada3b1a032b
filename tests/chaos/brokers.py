"""A simulated broker and a real Kafka behind the same operations, for the contract of both.

Group requests go to Kafka one by one over bare connections: a consumer would join again, heartbeat
and commit when it thinks fit, and the contract is about single requests.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaClient, AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    IllegalGenerationError,
    MemberIdRequired,
    NoError,
    NotCoordinatorError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.group import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    SyncGroupRequest,
)
from aiokafka.structs import ConsumerRecord, RecordMetadata
from faust.types import TP
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from stream.kafka.epochs import KafkaCoordinator
from stream.simulate.broker import NO_PRODUCER, Broker, Entry, Group, Producer
from stream.simulate.faust_parts import BrokerClient, ProducerClient, SimulatedCoordinator
from stream.simulate.network import Link, Weather

PARTITIONS = 3
#: As short as a broker with default settings takes it.
SESSION_S = 6.0
#: Shorter than the session, so that a test tells which of the two has run out.
REBALANCE_S = 3.0
PATIENCE_S = 60.0
POLL_S = 0.05
REPLIES = {
    NoError: "ok",
    RebalanceInProgressError: "rebalance",
    IllegalGenerationError: "illegal_generation",
    UnknownMemberIdError: "unknown_member",
}
#: A broker that has just got its first group answers so for a moment.
NOT_YET = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)


class AnyBroker(Protocol):
    """What both can do. Topic `events` is plain, `rows` is compacted."""

    def now_s(self) -> float: ...

    async def wait(self) -> None:
        """Let a little time pass."""

    async def produce(
        self,
        topic: str,
        partition: int,
        entries: Sequence[Entry],
        timestamp_ms: int,
        producer: Producer = NO_PRODUCER,
    ) -> RecordMetadata:
        """Write one batch; returns its acknowledgement.

        Raises ProducerFenced or OutOfOrderSequenceNumber for one that this producer may not write.
        """

    async def next_epoch(self, name: str, after: tuple[int, int] | None = None) -> tuple[int, int]:
        """Producer id and next epoch of a transactional id.

        Raises EpochTakenError where those that it is to come after are not the newest.
        """

    async def producers_of(self, topic: str, partition: int) -> dict[int, int]:
        """The producer ids that have written to a partition, each with its epoch."""

    async def ends(self, topic: str) -> list[int]: ...

    async def begins(self, topic: str) -> list[int]: ...

    async def read(self, topic: str, partition: int, offset: int) -> list[ConsumerRecord]:
        """From an offset to the end.

        Raises OffsetOutOfRangeError where there is no such offset.
        """

    async def compact(self, topic: str, partition: int, below: int) -> None:
        """Wait until the cleaner has been over the records below an offset.

        The record at that offset must be the first of its segment.
        """

    async def join(self, name: str) -> None:
        """Ask to be a member: the first time as a new one, then by the id it has."""

    async def joined(self, name: str) -> int:
        """The generation a member has come into; -1: it was refused as unknown."""

    async def heartbeat(self, name: str, generation: int) -> str: ...

    async def commit(self, name: str, generation: int, offsets: dict[int, int]) -> str: ...

    async def committed(self) -> dict[int, int]: ...

    async def leave(self, name: str) -> None: ...


async def until(broker: AnyBroker, wanted: object, ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again and again for an answer."""
    deadline_s = broker.now_s() + PATIENCE_S
    while (answer := await ask()) != wanted:
        assert broker.now_s() < deadline_s, f"waited {PATIENCE_S:.0f} s for {wanted!r}: {answer!r}"
        await broker.wait()


class Simulated:
    """The broker of the simulation, whose time is counted here."""

    def __init__(self) -> None:
        self._group = Group(PARTITIONS, SESSION_S, REBALANCE_S)
        self._broker = Broker({"events": PARTITIONS, "rows": PARTITIONS}, self._group)
        link = Link(random.Random(0), Weather(delay_s=1e-6, lost_requests=0, lost_answers=0))
        self._client = BrokerClient(self._broker, link, "reader", max_poll=2)
        self._producer = ProducerClient(self._broker, link, limit=100, timeout_s=PATIENCE_S)
        self._coordinator = SimulatedCoordinator(self._client, self._broker)
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    async def wait(self) -> None:
        self._now_s += POLL_S
        self._group.tick(self._now_s)

    async def produce(
        self,
        topic: str,
        partition: int,
        entries: Sequence[Entry],
        timestamp_ms: int,
        producer: Producer = NO_PRODUCER,
    ) -> RecordMetadata:
        batch = self._producer.create_batch()
        for key, value, headers in entries:
            batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers)
        batch._set_producer_state(*producer)
        return await (await self._producer.send_batch(batch, topic, partition=partition))

    async def next_epoch(self, name: str, after: tuple[int, int] | None = None) -> tuple[int, int]:
        return await self._coordinator.next_epoch(name, after)

    async def producers_of(self, topic: str, partition: int) -> dict[int, int]:
        return await self._coordinator.producers_of(TP(topic, partition))

    async def ends(self, topic: str) -> list[int]:
        return list((await self._client.highwaters(*self._of(topic))).values())

    async def begins(self, topic: str) -> list[int]:
        return list((await self._client.earliest_offsets(*self._of(topic))).values())

    def _of(self, topic: str) -> list[TP]:
        return [TP(topic, partition) for partition in range(PARTITIONS)]

    async def read(self, topic: str, partition: int, offset: int) -> list[ConsumerRecord]:
        log = self._broker.logs[topic, partition]
        found: list[ConsumerRecord] = []
        while records := log.read(offset, 2):
            found += records
            offset = records[-1].offset + 1
        return found

    async def compact(self, topic: str, partition: int, below: int) -> None:
        self._broker.logs[topic, partition].compact(below)

    async def join(self, name: str) -> None:
        self._group.join(name, self._now_s)

    async def joined(self, name: str) -> int:
        async def is_over() -> bool:
            return self._group.joined(name) is not None

        await until(self, True, is_over)
        joined = self._group.joined(name)
        assert joined is not None
        return joined[0]

    async def heartbeat(self, name: str, generation: int) -> str:
        return self._group.heartbeat(name, generation, self._now_s)

    async def commit(self, name: str, generation: int, offsets: dict[int, int]) -> str:
        return self._group.commit(name, generation, offsets, self._now_s)

    async def committed(self) -> dict[int, int]:
        return dict(self._group.committed)

    async def leave(self, name: str) -> None:
        self._group.leave(name, self._now_s)


class RealKafka:
    """Topics and one group of a test on a Kafka broker."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self._bootstrap, self._prefix = bootstrap, prefix
        self._group = f"{prefix}group"
        self._member_ids: dict[str, str] = {}
        self._connections: dict[str, AIOKafkaConnection] = {}
        self._joins: dict[str, asyncio.Task[int]] = {}
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
        self._epochs = KafkaCoordinator(lambda: self._producer.client)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, auto_offset_reset="none", enable_auto_commit=False
        )

    async def start(self) -> None:
        await asyncio.to_thread(self._create_topics)
        await self._producer.start()
        await self._consumer.start()

    async def close(self) -> None:
        for task in self._joins.values():
            task.cancel()
        await asyncio.gather(*self._joins.values(), return_exceptions=True)
        for connection in self._connections.values():
            connection.close()
        await self._consumer.stop()
        await self._producer.stop()

    def _create_topics(self) -> None:
        compacted = {
            "cleanup.policy": "compact",
            "segment.ms": "1000",  # of the records' time: the test says where a segment ends
            "min.cleanable.dirty.ratio": "0.0",
        }
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap)
        admin.create_topics(
            [
                NewTopic(f"{self._prefix}events", PARTITIONS, 1),
                NewTopic(f"{self._prefix}rows", PARTITIONS, 1, topic_configs=compacted),
            ],
            wait_for_metadata=True,
        )
        admin.close()

    # -- logs -------------------------------------------------------------------------------

    def now_s(self) -> float:
        return time.monotonic()

    async def wait(self) -> None:
        await asyncio.sleep(POLL_S)

    def _of(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(self._prefix + topic, partition) for partition in range(PARTITIONS)]

    async def produce(
        self,
        topic: str,
        partition: int,
        entries: Sequence[Entry],
        timestamp_ms: int,
        producer: Producer = NO_PRODUCER,
    ) -> RecordMetadata:
        batch = self._producer.create_batch()
        for key, value, headers in entries:
            batch.append(timestamp=timestamp_ms, key=key, value=value, headers=list(headers))
        batch._set_producer_state(*producer)
        sent = await self._producer.send_batch(batch, self._prefix + topic, partition=partition)
        return await asyncio.wait_for(sent, PATIENCE_S)

    async def next_epoch(self, name: str, after: tuple[int, int] | None = None) -> tuple[int, int]:
        return await self._epochs.next_epoch(self._prefix + name, after)

    async def producers_of(self, topic: str, partition: int) -> dict[int, int]:
        return await self._epochs.producers_of(TP(self._prefix + topic, partition))

    async def ends(self, topic: str) -> list[int]:
        found = await self._consumer.end_offsets(self._of(topic))
        return [found[tp] for tp in self._of(topic)]

    async def begins(self, topic: str) -> list[int]:
        found = await self._consumer.beginning_offsets(self._of(topic))
        return [found[tp] for tp in self._of(topic)]

    async def read(self, topic: str, partition: int, offset: int) -> list[ConsumerRecord]:
        tp = self._of(topic)[partition]
        end = (await self.ends(topic))[partition]
        self._consumer.unsubscribe()
        self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(PATIENCE_S):
            # past the end only a fetch can tell that there is no such offset
            while offset > end or await self._consumer.position(tp) < end:
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    found += records
        return found

    async def compact(self, topic: str, partition: int, below: int) -> None:
        async def has_each_key_once() -> bool:
            keys = [r.key for r in await self.read(topic, partition, 0) if r.offset < below]
            return len(keys) == len(set(keys))

        await until(self, True, has_each_key_once)

    # -- the group --------------------------------------------------------------------------

    async def join(self, name: str) -> None:
        connection = await self._connection(name)
        if name not in self._member_ids:
            given = await self._request(connection, self._join_request(""))
            assert for_code(given.error_code) is MemberIdRequired
            self._member_ids[name] = given.member_id
        self._joins[name] = asyncio.create_task(self._join(connection, self._member_ids[name]))

    def _join_request(self, member_id: str) -> JoinGroupRequest:
        session_ms, rebalance_ms = int(SESSION_S * 1000), int(REBALANCE_S * 1000)
        protocols = [("any", b"")]
        return JoinGroupRequest(
            self._group, session_ms, rebalance_ms, member_id, None, "consumer", protocols
        )

    async def _join(self, connection: AIOKafkaConnection, member_id: str) -> int:
        joined = await self._request(connection, self._join_request(member_id))
        if for_code(joined.error_code) is UnknownMemberIdError:
            return -1
        assert for_code(joined.error_code) is NoError
        generation: int = joined.generation_id
        shares = []
        if joined.leader_id == member_id:
            shares = [(member[0], b"") for member in joined.members]
        synced = await self._request(
            connection, SyncGroupRequest(self._group, generation, member_id, None, shares)
        )
        assert for_code(synced.error_code) is NoError
        return generation

    async def joined(self, name: str) -> int:
        return await asyncio.wait_for(asyncio.shield(self._joins[name]), PATIENCE_S)

    async def heartbeat(self, name: str, generation: int) -> str:
        request = HeartbeatRequest(self._group, generation, self._member_id(name))
        return REPLIES[for_code((await self._ask(request)).error_code)]

    async def commit(self, name: str, generation: int, offsets: dict[int, int]) -> str:
        partitions = [(partition, offset, "") for partition, offset in offsets.items()]
        topics = [(f"{self._prefix}events", partitions)]
        request = OffsetCommitRequest(self._group, generation, self._member_id(name), -1, topics)
        answer = await self._ask(request)
        (code,) = {code for _, partitions in answer.topics for _, code in partitions}
        return REPLIES[for_code(code)]

    async def committed(self) -> dict[int, int]:
        topics = [(f"{self._prefix}events", list(range(PARTITIONS)))]
        answer = await self._ask(OffsetFetchRequest(self._group, topics))
        assert for_code(answer.error_code) is NoError
        ((_, partitions),) = answer.topics
        return {partition: offset for partition, offset, _, _ in partitions if offset != -1}

    async def leave(self, name: str) -> None:
        answer = await self._ask(LeaveGroupRequest(self._group, self._member_id(name)))
        assert for_code(answer.error_code) is NoError

    def _member_id(self, name: str) -> str:
        """A name that never joined is one the broker does not know."""
        return self._member_ids.get(name, name)

    async def _ask(self, request: Any) -> Any:
        """On a connection of its own: one that waits for a rebalance takes no other request."""
        return await self._request(await self._connection(""), request)

    async def _connection(self, name: str) -> AIOKafkaConnection:
        if name not in self._connections:
            host, port = await self._coordinator()
            self._connections[name] = await create_conn(
                host, port, request_timeout_ms=int(PATIENCE_S * 1000)
            )
        return self._connections[name]

    async def _coordinator(self) -> tuple[str, int]:
        client = AIOKafkaClient(bootstrap_servers=self._bootstrap)
        await client.bootstrap()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    node = client.get_random_node()
                    found = await client.send(node, FindCoordinatorRequest(self._group, 0))
                    if for_code(found.error_code) is NoError:
                        return found.host, found.port
                    await self.wait()
        finally:
            await client.close()

    async def _request(self, connection: AIOKafkaConnection, request: Any) -> Any:
        while True:
            answer = await connection.send(request)
            if for_code(getattr(answer, "error_code", 0)) not in NOT_YET:
                return answer
            await self.wait()
