"""One simulated worker: the production parts on a host that can die, stand still, and be cut off.

What Faust does between them as partitions come and go (pause, revoke, recover, seek, resume) is
done here, in Faust's order.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from stream.agents import BatchProcessor, TableRows
from stream.guards import Guards
from stream.kafka.batches import BatchOptions
from stream.kafka.changelog_fence import ChangelogFence
from stream.kafka.fencing import TICKS_PER_PAUSE, LoopGuard
from stream.kafka.own_rows import postponed_row, source_row
from stream.live import LiveParts
from stream.refresh_control import RefreshControl
from stream.refused import RefusingFolder
from stream.settings import Settings
from stream.simulate.broker import Broker
from stream.simulate.faust_parts import (
    BrokerClient,
    ProducerClient,
    SimulatedConsumer,
    SimulatedCoordinator,
    SimulatedProducer,
    SimulatedStream,
    WorkerApp,
)
from stream.simulate.loop import HOST, Host, VirtualLoop
from stream.simulate.network import Link
from stream.simulate.store import Disk, SimulatedTable
from stream.topics import fenced_beside, state_changelog

#: Records of the statistics read in one go.
_READ_RECORDS = 50
#: Between two renewals of the changelog's fence: some in each run.
_RENEW_S = 7.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all workers of a run share."""

    settings: Settings
    broker: Broker
    rng: random.Random
    guards: Guards
    fingerprint: int
    records_in_request: int
    producer_timeout_s: float
    on_step: Callable[[SimulatedWorker, str], None]


T = TypeVar("T")


def _at_this_time(act: Callable[[float], T], now: Callable[[], float]) -> T:
    """At the time at which the broker does it."""
    return act(now())


class ProcessEndedError(BaseException):
    """The process has ended itself: nothing of it runs any more."""


class SimulatedWorker:
    """A process from its start to its end; a restart is another one on the same disk."""

    def __init__(
        self, around: Surroundings, name: str, disk: Disk, link: Link, loop: VirtualLoop
    ) -> None:
        self.name, self.disk, self.link = name, disk, link
        self.host = Host(name)
        self.ended_because = ""
        self._around, self._loop = around, loop
        self._tasks: list[asyncio.Task[None]] = []
        self._member = 0
        settings = around.settings
        self._changelog = state_changelog(settings)
        self.live = LiveParts(settings, around.guards)
        self.table = SimulatedTable(self._changelog, disk)
        producer = ProducerClient(
            around.broker, link, around.records_in_request, around.producer_timeout_s
        )
        sender = SimulatedProducer(producer, settings.max_request_bytes)
        self.client = BrokerClient(around.broker, link, name, 4 * settings.batch_records)
        self._app = WorkerApp(sender, self.table, settings.topic("user-events"))
        self._refreshes = RefreshControl(
            settings,
            self.table.iter_rows,
            around.fingerprint,
            lambda: self.live.statistics.statistics.events > 0,
            loop.time,
        )
        self._fence = ChangelogFence(
            lambda: sender,
            SimulatedCoordinator(self.client, around.broker),
            lambda: int(loop.time() * 1000),
            fenced_beside(settings),
        )
        self.consumer = self._new_consumer()
        self._app.consumer = self.consumer
        self.guard = LoopGuard(
            settings.session_timeout_s,
            also_check=self.consumer.check_ownership,
            has_partitions=self.consumer.holds_partitions,
            clock=loop.time,
            end=lambda code: self._end(f"fenced itself off ({code})"),
        )
        self._processor = self._new_processor(sender)
        self._recovering: asyncio.Task[None] | None = None

    # -- life and death ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin; everything from here on runs on this worker's host."""
        context = contextvars.copy_context()
        context.run(HOST.set, self.host)
        self._tasks.append(self._loop.create_task(self._run(), context=context))

    def die(self, why: str) -> None:
        """The process is gone, between two steps of its loop."""
        if not self.host.is_dead:
            self.ended_because = why
            self.host.is_dead = True
            self.link.die()
            self.table.data.die()

    def stand_still(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later: its handler runs before anything else."""
        until_s = self._loop.time() + seconds
        self.host.paused_until_s = until_s
        self._loop.call_at(until_s - 1e-6, self._continued, context=contextvars.Context())

    @property
    def is_running(self) -> bool:
        return not self.host.is_dead

    def _continued(self) -> None:
        if self.is_running:
            with contextlib.suppress(ProcessEndedError):
                self.guard._on_continue(0, None)

    def _end(self, why: str) -> None:
        self.die(why)
        raise ProcessEndedError(why)

    async def _run(self) -> None:
        await self._read_statistics()
        self.live.ready.set()
        for task in (
            self._keep_reading(),
            self._fetch(),
            self._commit(),
            self._tick(),
            self._renew(),
            self._work(),
            self._coordinate(),
        ):
            self._spawn(task)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def until_it_fails() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:  # as a crash ends the real one
                self.die(f"{type(error).__name__}: {error}")

        task = self._loop.create_task(until_it_fails())
        self._tasks.append(task)
        return task

    # -- the parts --------------------------------------------------------------------------

    def _new_consumer(self) -> SimulatedConsumer:
        settings = self._around.settings
        refreshes, table = self._refreshes, self.table
        options = BatchOptions(
            frozenset({settings.topic("user-events")}),
            source_watermark=table.source_watermark,
            on_assigned=lambda partitions: refreshes.assigned(
                {partition: table.has_postponed(partition) for partition in partitions}
            ),
            fence=self._fence.take if self._around.guards.changelog_fence else None,
            release=self._fence.release,
            max_slice_records=settings.batch_records,
            end_within_s=None,
        )
        return SimulatedConsumer(
            self._app, options, self.client, self._partitions_revoked, self._partitions_assigned
        )

    def _new_processor(self, producer: SimulatedProducer) -> BatchProcessor:
        around, settings = self._around, self._around.settings
        folder = RefusingFolder(
            settings,
            settings.topic("user-events"),
            settings.partitions,
            around.fingerprint,
            self.live.index.hashes_of,
            around.guards,
        )
        return BatchProcessor(
            settings,
            folder,
            self._refreshes,
            self.table,
            self.live,
            producer.send_records,
            TableRows(lambda _, offset: source_row(offset), postponed_row),
            self.guard.check,
            around.guards,
            lambda step: around.on_step(self, step),
        )

    async def _work(self) -> None:
        settings = self._around.settings
        stream = SimulatedStream(self._app)
        batches = stream.record_batches(
            settings.batch_records,
            settings.batch_wait_ms / 1000,
            self._refreshes.idle_s,
            self._processor,
        )
        async for slices in batches:
            await self._processor.take(slices)

    async def _fetch(self) -> None:
        while True:
            await self.consumer._drain_once()

    async def _commit(self) -> None:
        while True:
            await asyncio.sleep(self._around.settings.commit_interval_s)
            await self.consumer.commit()

    async def _tick(self) -> None:
        while True:
            self.guard._note_that_it_runs()
            await asyncio.sleep(self.guard.max_pause_s / TICKS_PER_PAUSE)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(TimeoutError):
                await self._fence.renew()

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            await self._read_statistics()

    async def _read_statistics(self) -> None:
        """All deltas that are there, as the reader of their topic hands them over."""
        topic = self._around.settings.topic("item-statistics")
        positions = self.live.statistics.positions
        for partition in self._around.broker.partitions_of(topic):
            log = self._around.broker.logs[topic, partition]
            while True:
                at = positions.get(partition, 0)
                records = await self._ask(partial(log.read, at, _READ_RECORDS))
                if not records:
                    break
                self.live._take_deltas(records)

    # -- the group --------------------------------------------------------------------------

    async def _coordinate(self) -> None:
        group, now = self._around.broker.group, self._loop.time
        while True:
            await self._rejoin()
            while True:
                await asyncio.sleep(self._around.settings.heartbeat_interval_s)
                name, generation = self.client.name, self.client.coordinator.generation
                beat = partial(group.heartbeat, name, generation)
                try:
                    reply = await self.link.call(partial(_at_this_time, beat, now))
                except KafkaConnectionError:
                    continue
                if reply in ("unknown_member", "illegal_generation"):
                    self.client.coordinator.generation = -1
                if reply != "ok":
                    break

    async def _rejoin(self) -> None:
        group, now = self._around.broker.group, self._loop.time
        await self.consumer.on_partitions_revoked(self.client.assignment())
        while True:
            if self.client.coordinator.generation == -1:
                self._member += 1
                self.client.name = f"{self.name}-{self._member}"
            name = self.client.name
            await self._ask(partial(_at_this_time, partial(group.join, name), now))
            joined = await self._until_joined(name)
            if joined[0] != -1:
                break
            self.client.coordinator.generation = -1
        generation, numbers = joined
        self.client.coordinator.generation = generation
        self._app.consumer_generation_id = generation
        source = self._around.settings.topic("user-events")
        partitions = {TP(topic, n) for topic in (source, self._changelog) for n in numbers}
        gone = self.client.assignment() - partitions
        self.table.data.revoke(tp.partition for tp in gone)
        self.client.assign(partitions)
        self._app.assigned(partitions)
        await self.consumer.on_partitions_assigned(partitions, generation)

    async def _until_joined(self, name: str) -> tuple[int, tuple[int, ...]]:
        while True:
            joined = await self._ask(partial(self._around.broker.group.joined, name))
            if joined is not None:
                return cast(tuple[int, tuple[int, ...]], joined)
            await asyncio.sleep(0.02)

    async def _partitions_revoked(self, revoked: set[TP]) -> None:
        if self._recovering is not None:
            self._recovering.cancel()
            self._app.tables.recovery.in_recovery = False
        assigned = self.consumer.assignment()
        if assigned:
            self.consumer.stop_flow()
            self._app.flow_control.suspend()
            self.consumer.pause_partitions(assigned)
            self._app.flow_control.clear()
            await self.consumer.wait_empty()

    async def _partitions_assigned(self, assigned: set[TP], generation: int) -> None:
        self.consumer.pause_partitions(assigned)
        self._recovering = self._spawn(self._recover(assigned))

    async def _recover(self, assigned: set[TP]) -> None:
        recovery, consumer = self._app.tables.recovery, self.consumer
        changelogs = {tp for tp in assigned if tp.topic == self._changelog}
        recovery.active_tps = changelogs
        recovery.active_offsets = {}  # the batch layer asks the disk
        recovery.ends = await consumer.highwaters(*sorted(changelogs))
        await consumer.seek_wait({tp: max(at, 0) for tp, at in recovery.active_offsets.items()})
        if recovery.need_recovery():
            recovery.in_recovery = True
            consumer.resume_partitions(changelogs)
            self._app.flow_control.resume()
            consumer.resume_flow()
            await recovery.signal_recovery_end.wait()
            consumer.pause_partitions(changelogs)
            recovery.in_recovery = False
        consumer.resume_partitions(assigned - changelogs)
        await consumer.perform_seek()
        self._app.flow_control.resume()
        consumer.resume_flow()

    async def _ask(self, act: Callable[[], Any]) -> Any:
        while True:
            try:
                return await self.link.call(act)
            except KafkaConnectionError:
                await asyncio.sleep(0.1)
