"""A worker that its group refuses says so and asks again; where that is in vain it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from batch_harness import PATIENCE_S, Scene, WorkerProcess, wait_until
from kafka import KafkaConsumer
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from stream.kafka.batches import FAILED_EXIT_CODE
from stream.kafka.membership import LONGEST_S, Membership
from stream.kafka.tasks import TaskCancelledError

pytestmark = pytest.mark.broker

Worker = Callable[..., WorkerProcess]


@contextlib.asynccontextmanager
async def member_of(scene: Scene, **options: object) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        scene.events, bootstrap_servers=scene.bootstrap, group_id=scene.group, **options
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        with contextlib.suppress(KafkaError):
            await consumer.stop()


async def test_a_coordination_that_ends_by_itself_ends_the_worker(scene: Scene) -> None:
    async with member_of(scene) as consumer:
        coordinator = consumer._coordinator
        ends: asyncio.Queue[BaseException] = asyncio.Queue()
        Membership(coordinator, ends.put).follow()
        coordinator._do_rejoin_group = None  # as after an upgrade that has another name for it
        coordinator.request_rejoin()
        assert "TypeError" in str(await asyncio.wait_for(ends.get(), PATIENCE_S))


async def test_a_coordination_that_is_cancelled_ends_the_worker_unless_it_closes(
    scene: Scene,
) -> None:
    ends: asyncio.Queue[BaseException] = asyncio.Queue()
    async with member_of(scene) as consumer:
        Membership(consumer._coordinator, ends.put).follow()
    assert ends.empty()

    async with member_of(scene) as consumer:
        Membership(consumer._coordinator, ends.put).follow()
        consumer._coordinator._coordination_task.cancel()
        assert isinstance(await asyncio.wait_for(ends.get(), PATIENCE_S), TaskCancelledError)
        consumer._coordinator._coordination_task = asyncio.create_task(asyncio.sleep(0))


@pytest.mark.parametrize("part", ["fetcher", "metadata"])
def test_a_part_of_the_consumer_that_fails_ends_the_worker(
    scene: Scene, worker: Worker, part: str
) -> None:
    broken = worker(part, broken=part, end_within_s=5).start()
    assert broken.exit_code() in (1, FAILED_EXIT_CODE)  # the other one: in order took too long
    assert broken.told("ready")
    assert "'NoneType' object is not callable" in broken.output


async def test_a_member_that_nobody_polls_stays_in_the_group(scene: Scene) -> None:
    async with member_of(scene, max_poll_interval_ms=500, heartbeat_interval_ms=100) as consumer:
        coordinator = consumer._coordinator
        Membership(coordinator, consumer.stop).follow()
        generation = coordinator.generation
        subscription = consumer._subscription
        await asyncio.to_thread(
            wait_until, lambda: subscription.fetcher_idle_time > 2, "it is idle"
        )
        assert coordinator.generation == generation > 0
        found = await asyncio.to_thread(scene.admin.describe_groups, [scene.group])
        assert len(found[scene.group]["members"]) == 1


@contextlib.contextmanager
def stranger_in(scene: Scene) -> Iterator[None]:
    """A consumer in the workers' group that shares out partitions in a way no worker knows."""
    stranger = KafkaConsumer(
        scene.events,
        bootstrap_servers=scene.bootstrap,
        group_id=scene.group,
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
        enable_auto_commit=False,
        auto_offset_reset="latest",
    )

    def has_joined() -> bool:
        stranger.poll(timeout_ms=100)
        try:
            found = scene.admin.describe_groups([scene.group])[scene.group]
        except kafka_errors.KafkaError:  # a new broker has no coordinator for a moment
            return False
        return found["group_state"] == "Stable" and len(found["members"]) == 1

    wait_until(has_joined, "the group has the stranger")
    yield
    stranger.close()


def test_a_worker_goes_on_when_its_group_refuses_it_no_more(scene: Scene, worker: Worker) -> None:
    scene.send(200)
    with stranger_in(scene):
        refused = worker("refused").start()
        wait_until(lambda: "InconsistentGroupProtocol" in refused.output, "the worker was refused")
        assert not refused.told("ready")

    refused.wait_until_ready()
    scene.wait_until_all_is_done()
    assert scene.rows() == scene.expected()


def test_a_worker_ends_that_its_group_goes_on_refusing(scene: Scene, worker: Worker) -> None:
    with stranger_in(scene):
        refused = worker("refused").start()
        assert refused.exit_code(patience_s=3 * LONGEST_S) == 1
    assert "wanted a place in group" in refused.output
    assert "foreign consumer" in refused.output


def test_of_two_workers_with_one_name_the_older_ends_and_says_why(
    scene: Scene, worker: Worker
) -> None:
    scene.send(200)
    older = worker("older", instance="same").start()
    older.wait_until_ready()
    newer = worker("newer", instance="same").start()

    assert older.exit_code() == 1
    assert "another one took that name" in older.output
    newer.wait_until_ready()
    scene.send(200)
    scene.wait_until_all_is_done()
    assert scene.rows() == scene.expected()
    assert newer.process.poll() is None
