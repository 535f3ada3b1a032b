"""What the worker's batch layer asks of Faust and aiokafka, answered by the simulated broker.

The classes under test are the production ones: BatchConsumer with its continuity, BatchStream,
BatchProducer, RowTable, restore. Here is only what stands around and below them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFenced,
)
from aiokafka.structs import RecordMetadata
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP
from faust.utils.tracing import noop_span
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from stream.kafka.batches import BatchOptions
from stream.kafka.consumer import BatchConsumer
from stream.kafka.epochs import EpochTakenError, ProducerEpoch
from stream.kafka.producer import BatchProducer
from stream.kafka.stream import BatchStream
from stream.simulate.broker import NO_PRODUCER, Broker, Entry, Producer
from stream.simulate.network import Link
from stream.simulate.store import SimulatedTable

#: Between two attempts of the producer.
RETRY_S = 0.1
#: An empty fetch waits so long at the broker.
LONG_POLL_S = 0.2


class BrokerClient:
    """In the place of Faust's thread with the aiokafka consumer, and of its fetcher."""

    def __init__(self, broker: Broker, link: Link, name: str, max_poll: int) -> None:
        self._broker, self.link, self.name = broker, link, name
        self._max_poll = max_poll
        self._positions: dict[TP, int] = {}
        self._assigned: set[TP] = set()
        self.coordinator = SimpleNamespace(generation=-1)
        self.is_closed = False

    def _ensure_consumer(self) -> Any:
        return SimpleNamespace(_coordinator=self.coordinator)

    def assign(self, partitions: set[TP]) -> None:
        self._assigned = set(partitions)
        self._positions = {tp: at for tp, at in self._positions.items() if tp in partitions}

    def assignment(self) -> set[TP]:
        return set(self._assigned)

    def highwater(self, tp: TP) -> int:
        return self._broker.logs[tp].end

    async def earliest_offsets(self, *partitions: TP) -> Any:
        return await self._ask(lambda: dict.fromkeys(partitions, 0))

    async def highwaters(self, *partitions: TP) -> Any:
        return await self._ask(lambda: {tp: self._broker.logs[tp].end for tp in partitions})

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        await asyncio.sleep(0.001)
        self._positions.update(partitions)

    async def seek_to_committed(self) -> dict[TP, int]:
        group, topic = self._broker.group, self.source_topic
        mine = sorted(tp for tp in self._assigned if tp.topic == topic)
        found = await self._ask(lambda: {tp: group.committed.get(tp.partition) for tp in mine})
        self._positions.update({tp: at for tp, at in found.items() if at is not None})
        return {tp: at for tp, at in found.items() if at is not None}

    @property
    def source_topic(self) -> str:
        return "user-events"

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """As Faust has it: a commit that the group refuses is no error."""
        numbers = {tp.partition: offset for tp, offset in offsets.items()}
        generation: int = self.coordinator.generation
        group, now = self._broker.group, asyncio.get_running_loop().time
        reply = await self._ask(lambda: group.commit(self.name, generation, numbers, now()))
        return bool(reply == "ok")

    async def getmany(
        self,
        active_partitions: set[TP],
        timeout: float,  # noqa: ASYNC109
    ) -> dict[TP, list[Any]]:
        """Fetch from the positions; whether a seek came meanwhile is the caller's concern."""
        wanted = {tp: at for tp, at in sorted(self._positions.items()) if tp in active_partitions}

        def fetch() -> dict[TP, list[Any]]:
            logs = self._broker.logs
            found = {tp: logs[tp].read(at, self._max_poll) for tp, at in wanted.items()}
            return {tp: records for tp, records in found.items() if records}

        fetched = await self._ask(fetch)
        if not fetched:
            await asyncio.sleep(LONG_POLL_S)
        taken = {}
        for tp, records in fetched.items():
            if self._positions.get(tp) == wanted[tp]:  # aiokafka drops what a seek has overtaken
                self._positions[tp] = records[-1].offset + 1
                taken[tp] = records
        await asyncio.sleep(0.001)  # from the thread to the loop: a seek may still come between
        return taken

    async def _ask(self, act: Callable[[], Any]) -> Any:
        """A request that is made again until there is an answer."""
        while True:
            try:
                return await self.link.call(act)
            except KafkaConnectionError:
                await asyncio.sleep(RETRY_S)


class BatchOnItsWay:
    """Records to send; full after `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.entries: list[Entry] = []
        self.producer: Producer = NO_PRODUCER
        self.timestamp_ms = 0

    def append(
        self, *, timestamp: int, key: bytes | None, value: bytes | None, headers: Any
    ) -> object | None:
        if len(self.entries) >= self._limit:
            return None
        self.entries.append((key, value, tuple(headers)))
        self.timestamp_ms = timestamp
        return self.entries

    def close(self) -> None:
        return

    def _set_producer_state(self, producer_id: int, epoch: int, sequence: int) -> None:
        self.producer = producer_id, epoch, sequence

    def record_count(self) -> int:
        return len(self.entries)


class ProducerClient:
    """In the place of aiokafka's producer: one batch of a partition at a time, tried again."""

    def __init__(self, broker: Broker, link: Link, limit: int, timeout_s: float) -> None:
        self._broker, self._link = broker, link
        self._limit, self._timeout_s = limit, timeout_s
        self._last: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create_batch(self) -> BatchOnItsWay:
        return BatchOnItsWay(self._limit)

    async def send_batch(
        self, batch: BatchOnItsWay, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]:
        delivery: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        where = topic, partition
        task = asyncio.create_task(self._deliver(batch, where, delivery, self._last.get(where)))
        self._last[where] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return delivery

    async def _deliver(
        self,
        batch: BatchOnItsWay,
        where: tuple[str, int],
        delivery: asyncio.Future[RecordMetadata],
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        log = self._broker.logs[where]
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        base = await self._link.call(
                            lambda: log.append(batch.entries, batch.timestamp_ms, batch.producer)
                        )
                        break
                    except KafkaConnectionError:
                        await asyncio.sleep(RETRY_S)
        except (TimeoutError, KafkaError) as error:
            if not delivery.done():
                delivery.set_exception(_as_told(error))
            return
        if not delivery.done():
            kind, begin = 0, 0
            delivery.set_result(RecordMetadata(*where, TP(*where), base, -1, kind, begin))


def _as_told(error: Exception) -> Exception:
    """What aiokafka makes of a refusal."""
    told: Exception = error
    if isinstance(error, TimeoutError):
        told = KafkaTimeoutError()
    elif isinstance(error, InvalidProducerEpoch):
        told = ProducerFenced()
    return told


class SimulatedProducer(BatchProducer):
    """The worker's own producer over a simulated client."""

    def __init__(self, client: ProducerClient, max_request_bytes: int) -> None:
        # Faust's part of the producer is not wanted: it connects
        self.max_request_size = max_request_bytes
        self.epochs: dict[tuple[str, int], ProducerEpoch] = {}
        self.fenced_topics: set[str] = set()
        self._client = client

    def _ensure_producer(self) -> ProducerClient:
        return self._client

    async def flush(self) -> None:
        return


class SimulatedCoordinator:
    """In the place of the requests for producer epochs."""

    def __init__(self, client: BrokerClient, broker: Broker) -> None:
        self._client, self._broker = client, broker

    async def next_epoch(
        self, transactional_id: str, after: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """One that is asked for again, as the answer was lost, is another one but for `after`."""
        try:
            epoch: tuple[int, int] = await self._client._ask(
                lambda: self._broker.next_epoch(transactional_id, after)
            )
        except InvalidProducerEpoch:
            raise EpochTakenError(transactional_id) from None
        return epoch

    async def producers_of(self, tp: TP) -> dict[int, int]:
        known: dict[int, int] = await self._client._ask(self._broker.logs[tp].producers)
        return known


class Recovery:
    """As much of Faust's recovery as `restore` keeps the books of."""

    def __init__(self) -> None:
        self.active_tps: set[TP] = set()
        self.standby_tps: set[TP] = set()
        self.active_offsets: dict[TP, int] = {}
        self.standby_offsets: dict[TP, int] = {}
        self.ends: dict[TP, int] = {}
        self._active_events_received_at: dict[TP, float] = {}
        self.signal_recovery_end = asyncio.Event()
        self.in_recovery = False

    def need_recovery(self) -> bool:
        return any(self.active_offsets[tp] < self.ends[tp] - 1 for tp in self.active_tps)

    def standby_remaining_total(self) -> int:
        return 0


class Tables:
    """Faust's manager of tables, with the worker's one."""

    def __init__(self, table: SimulatedTable) -> None:
        self.recovery = Recovery()
        self._changelogs = {table.changelog_topic_name: table}
        self.standbys_ready = True

    @property
    def changelog_topics(self) -> set[str]:
        return set(self._changelogs)

    def values(self) -> Iterable[SimulatedTable]:
        return self._changelogs.values()

    def on_commit(self, offsets: Mapping[TP, int]) -> None:
        return


class Sensors:
    """Faust's monitor and sensors: nobody looks."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class WorkerApp:
    """Faust's app, as far as consumer and stream ask it."""

    in_transaction = False
    client_only = False
    should_stop = False
    rebalancing = False

    def __init__(self, producer: SimulatedProducer, table: SimulatedTable, source: str) -> None:
        self.producer = producer
        self.tables = Tables(table)
        self.sensors = self.monitor = Sensors()
        self.conf = SimpleNamespace(
            broker_commit_every=None,
            ConsumerScheduler=DefaultSchedulingStrategy,
            broker_commit_interval=0.5,
            broker_commit_livelock_soft_timeout=300.0,
            broker_rebalance_timeout=60.0,
            stream_wait_empty=True,
        )
        self.consumer_generation_id = -1
        self.flow_control = FlowControlEvent(initially_suspended=True)
        self.queue: ThrowableQueue[Any] = ThrowableQueue(
            maxsize=10_000, flow_control=self.flow_control, clear_on_resume=True
        )
        self._source = source
        self._assigned: set[TP] = set()
        self.assignor = SimpleNamespace(assigned_actives=lambda: self._assigned)
        self.consumer: BatchConsumer
        self._attachments = SimpleNamespace(publish_for_tp_offset=_nothing)
        channel = SimpleNamespace(queue=self.queue)
        self.topics = SimpleNamespace(_tp_index=defaultdict(lambda: [channel]))

    @property
    def in_recovery(self) -> bool:
        return self.tables.recovery.in_recovery

    def assigned(self, partitions: set[TP]) -> None:
        self._assigned = partitions

    def _start_span_from_rebalancing(self, name: str) -> Any:
        return noop_span()

    def on_rebalance_return(self) -> None:
        return


async def _nothing(*_: object) -> list[Any]:
    return []


#: What Faust's app does as partitions come and go.
Rebalanced = Callable[..., Awaitable[None]]


class SimulatedConsumer(BatchConsumer):
    """The worker's own consumer over a simulated client."""

    def __init__(
        self,
        app: WorkerApp,
        options: BatchOptions,
        client: BrokerClient,
        revoked: Rebalanced,
        assigned: Rebalanced,
    ) -> None:
        self._client = client
        transport = SimpleNamespace(
            app=app, options=options, create_transaction_manager=lambda **_: None
        )
        super().__init__(
            transport,
            callback=_nothing,
            on_partitions_revoked=revoked,
            on_partitions_assigned=assigned,
            commit_interval=0.5,
        )

    def _new_consumer_thread(self) -> Any:
        return self._client

    def add_dependency(self, service: Any) -> Any:
        return service


class SimulatedStream(BatchStream):
    """The worker's own stream over a queue."""

    def __init__(self, app: WorkerApp) -> None:
        # Faust's part of the stream is not wanted: it subscribes
        self.app = app
        self.channel = SimpleNamespace(queue=app.queue)
        self.concurrency_index = None
        self._is_stopping = False

    @property
    def should_stop(self) -> bool:
        return self._is_stopping

    async def maybe_start(self) -> bool:
        return False

    def _channel_stop_iteration(self, channel: object) -> None:
        return
