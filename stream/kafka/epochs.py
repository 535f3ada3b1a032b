"""Asks Kafka for producer epochs, and sends batches under one: older ones are refused from then on.

A transactional id stands for one producer after another. Whoever asks its coordinator for it gets
the same producer id and the next epoch. Of a producer id that has written to a partition under an
epoch, the partition's leader takes nothing of an older one (INVALID_PRODUCER_EPOCH). Both hold for
batches outside of transactions too, and none is ever begun here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaProducer, errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError, for_code
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.transaction import InitProducerIdRequest
from faust.types import TP

from export.errors import DriftlineError
from stream.kafka.connections import ANSWER_S
from stream.kafka.describe_producers import DescribeProducersRequest
from stream.kafka.init_producer_id import NextEpochRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The largest epoch that a batch can carry. No coordinator gives it: before it, it takes another
#: producer id. A producer id that has written under it is closed for ever.
LAST_EPOCH = 2**15 - 1

#: Producer id and epoch of a batch that has none.
NO_PRODUCER = (-1, -1)

#: Longest wait for all attempts, and between two of them.
PATIENCE_S = 60.0
RETRY_S = 0.1

#: Sequence numbers go on with 0 after this, as Kafka's do.
_LAST_SEQUENCE = 2**31 - 1
#: A request must name one; without transactions it means nothing.
_TRANSACTION_TIMEOUT_MS = 60_000
#: A coordinator that moves, loads, or still makes its topic answers so; a new attempt helps.
_PASSING = (
    errors.CoordinatorNotAvailableError,
    errors.NotCoordinatorError,
    errors.CoordinatorLoadInProgressError,
    errors.ConcurrentTransactions,
    errors.NodeNotReadyError,
    errors.StaleMetadata,
)


class NoEpochError(DriftlineError):
    """The broker gives no producer epoch."""


class EpochsUnknownError(DriftlineError):
    """The broker does not know transactional ids."""


class EpochTakenError(DriftlineError):
    """Somebody else has taken an epoch after the one that is to be followed."""


class ProducerEpoch:
    """A producer id with an epoch, and the next sequence number in one partition.

    Batches go out in the order of their numbers. `before` is the epoch that this one follows in
    the same partition: its batches that wait for the queue still go first.
    """

    def __init__(self, producer_id: int, epoch: int, before: ProducerEpoch | None = None) -> None:
        self.producer_id, self.epoch = producer_id, epoch
        self._sequence = 0
        self._order: asyncio.Lock = before._order if before is not None else asyncio.Lock()

    async def send(
        self, producer: AIOKafkaProducer, batch: BatchBuilder, topic: str, partition: int
    ) -> asyncio.Future[Any]:
        """Put a closed batch in the queue of its partition."""
        async with self._order:
            batch._set_producer_state(self.producer_id, self.epoch, self._sequence)
            if self.producer_id >= 0:
                self._sequence = (self._sequence + batch.record_count()) & _LAST_SEQUENCE
            sent: asyncio.Future[Any] = await producer.send_batch(batch, topic, partition=partition)
            return sent


class Coordinator(Protocol):
    """Gives out producer epochs."""

    async def next_epoch(
        self, transactional_id: str, after: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """The producer id of a transactional id, and an epoch above all that it had.

        An epoch of 0 belongs to a new producer id: the former one was forgotten, or its epochs are
        used up. `after`: the producer id and epoch that must still be the newest. Raises
        EpochTakenError where they are not, NoEpochError, or EpochsUnknownError for a broker that
        cannot do it.
        """
        ...

    async def producers_of(self, tp: TP) -> dict[int, int]:
        """The producer ids that a partition's leader remembers, each with its epoch.

        Empty for a broker that does not tell.
        """
        ...


class KafkaCoordinator:
    """Asks Kafka. `client` is called when it is needed: that of a producer, once it is started."""

    def __init__(self, client: Callable[[], AIOKafkaClient]) -> None:
        self._client = client

    async def next_epoch(
        self, transactional_id: str, after: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """See Coordinator."""
        try:
            return await self._until_answered(lambda: self._ask_for_epoch(transactional_id, after))
        except (errors.InvalidProducerEpoch, errors.ProducerFenced):
            raise EpochTakenError(f"{transactional_id!r} has an epoch after {after}") from None
        except errors.TransactionalIdAuthorizationFailed:
            raise NoEpochError(
                f"wanted a producer epoch of {transactional_id!r}, and may not have it: allow "
                "this user Write and Describe on transactional ids that begin with the prefix and "
                "the group's name"
            ) from None

    async def _ask_for_epoch(
        self, transactional_id: str, after: tuple[int, int] | None
    ) -> tuple[int, int]:
        client = self._client()
        node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
        request: Any = InitProducerIdRequest(transactional_id, _TRANSACTION_TIMEOUT_MS)
        if after is not None:
            request = NextEpochRequest(transactional_id, _TRANSACTION_TIMEOUT_MS, *after)
        answer = await self._send(node, request, ConnectionGroup.COORDINATION)
        _raise_for(answer.error_code)
        return answer.producer_id, answer.producer_epoch

    async def producers_of(self, tp: TP) -> dict[int, int]:
        """See Coordinator."""
        try:
            return await self._until_answered(lambda: self._ask_for_producers(tp))
        except EpochsUnknownError as error:
            logger.info("Former producer ids of %s cannot be closed: %s", tp, error)
            return {}

    async def _ask_for_producers(self, tp: TP) -> dict[int, int]:
        client = self._client()
        await client._wait_on_metadata(tp.topic)
        node = client.cluster.leader_for_partition(tp)
        if node is None or node == -1:
            raise errors.LeaderNotAvailableError
        answer = await self._send(node, DescribeProducersRequest(tp), ConnectionGroup.DEFAULT)
        ((_, ((_, code, _, producers, _),), _),) = answer.topics
        _raise_for(code)
        return {producer[0]: producer[1] for producer in producers}

    async def _until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        problem = "no answer"
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        return await ask()
                    except KafkaError as error:
                        if not (error.retriable or isinstance(error, _PASSING)):
                            raise
                        if repr(error) != problem:
                            problem = repr(error)
                            logger.info("Waits for the coordinator of epochs: %s", problem)
                        await self._client().force_metadata_update()
                        await asyncio.sleep(RETRY_S)
        except TimeoutError:
            raise NoEpochError(
                f"wanted the epochs of producers from Kafka, got no answer in {PATIENCE_S:.0f} s: "
                f"{problem}. Its transaction coordinator must be there: the coordinator's topic "
                "needs as many nodes as the broker's transaction.state.log.replication.factor says"
            ) from None

    async def _send(self, node: int, request: Any, group: ConnectionGroup) -> Any:
        """An answer in time; else its connection is closed, and the next attempt opens another."""
        client = self._client()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await client.send(node, request, group=group)
        except TimeoutError:
            if (node, group) in client._conns:
                client._conns[node, group].close(reason=CloseReason.CONNECTION_TIMEOUT)
            raise errors.RequestTimedOutError from None
        except (errors.IncompatibleBrokerVersion, NotImplementedError) as error:
            raise EpochsUnknownError(f"this broker has no {type(request).__name__}") from error


def _raise_for(code: int) -> None:
    if code:
        raise for_code(code)()
