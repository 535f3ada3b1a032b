"""Of a changelog partition one worker is the writer: what a former owner sends late is refused."""

from __future__ import annotations

import contextlib
import json

import pytest
from aiokafka.errors import OutOfOrderSequenceNumber
from batch_harness import Scene, WorkerProcess, new_topics, running_producer, values_of
from faust.types import TP

from stream.chaos.line import Line
from stream.kafka.changelog_fence import ChangelogFence
from stream.kafka.epochs import EpochsUnknownError, KafkaCoordinator, ProducerEpoch
from stream.kafka.producer import BatchProducer, ChangelogFencedError

# -- one worker is cut off, another takes over ---------------------------------------------------


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "the same without the fence"])
def test_rows_that_a_cut_off_worker_sent_do_not_come_behind_those_of_the_next_owner(
    cluster, prefix, tmp_path, fenced
):
    with contextlib.ExitStack() as stack:
        line = Line(cluster.line_ports)
        stack.callback(line.close)
        scene = Scene(cluster.bootstrap, prefix)
        stack.callback(scene.close)
        far = Scene.__new__(Scene)  # the same topics, through the line
        far.bootstrap, far.prefix = cluster.line_bootstrap, prefix
        hold = tmp_path / "hold"
        cut_off = WorkerProcess(
            far, tmp_path, "cut-off", hold_file=str(hold), session_s=4.0, fenced=fenced
        )
        heir = WorkerProcess(scene, tmp_path, "heir", session_s=4.0, fenced=fenced)
        stack.callback(cut_off.clean_up)
        stack.callback(heir.clean_up)
        scene.send(200)
        cut_off.start().wait_until_ready()
        scene.wait_until_all_is_done()
        hold.touch()
        scene.send(200)
        cut_off.wait_for("held")

        line.cut()
        heir.start().wait_until_ready()
        scene.wait_until_all_is_done()
        scene.send(200)
        scene.wait_until_all_is_done()
        hold.unlink()
        cut_off.wait_for("sent")
        before = user_rows(scene)
        line.heal()
        code = cut_off.exit_code()

        assert code != 0
        assert bool(stale_rows(scene)) != fenced
        if fenced:
            assert "ChangelogFencedError" in cut_off.output
            assert user_rows(scene) == before
            assert scene.rows() == scene.expected()


def stale_rows(scene: Scene) -> list[tuple[bytes, int]]:
    """Rows behind a newer one of their user."""
    newest: dict[bytes, int] = {}
    stale = []
    for key, value in user_rows(scene):
        last = json.loads(value)["last"]
        if last < newest.get(key, -1):
            stale.append((key, last))
        newest[key] = max(last, newest.get(key, -1))
    return stale


def user_rows(scene: Scene) -> list[tuple[bytes, bytes]]:
    """All rows of users in the changelog, in each partition's order."""
    found = sorted(scene.changelog_records(), key=lambda r: (r.partition, r.offset))
    return [(r.key, r.value) for r in found if not r.key.startswith(b"\x00")]


# -- the fence alone -----------------------------------------------------------------------------


def fence_over(producer: BatchProducer, id_suffix: str = "", beside: tuple[str, ...] = ()):
    """A fence; another suffix stands for a coordinator that has forgotten the id."""
    coordinator = KafkaCoordinator(lambda: producer._ensure_producer().client)

    class Coordinator:
        producers_of = staticmethod(coordinator.producers_of)

        async def next_epoch(
            self, transactional_id: str, after: tuple[int, int] | None = None
        ) -> tuple[int, int]:
            return await coordinator.next_epoch(transactional_id + id_suffix, after)

    return ChangelogFence(lambda: producer, Coordinator(), lambda: 0, beside)


@pytest.fixture
def changelog(kafka, prefix) -> TP:
    """A partition that is written to by two workers."""
    new_topics(kafka.bootstrap, f"{prefix}changelog", f"{prefix}lists", partitions=2)
    return TP(f"{prefix}changelog", 1)


async def send(producer: BatchProducer, tp: TP, *values: bytes) -> list[int]:
    """Rows under one key; returns the offsets of the first and the last."""
    rows = [(b"user", value) for value in values]
    deliveries = await producer.send_records(*tp, records=rows, timestamp_ms=0)
    done = [await delivery for delivery in deliveries]
    return [done[0][0], done[-1][0] + done[-1][1] - 1]


async def test_who_has_had_the_partition_before_is_refused(kafka, changelog):
    async with (
        running_producer(kafka.bootstrap) as former,
        running_producer(kafka.bootstrap) as next_one,
    ):
        assert await fence_over(former).take([changelog]) == {changelog: 0}
        assert await send(former, changelog, b"old", b"rows") == [1, 2]

        assert await fence_over(next_one).take([changelog]) == {changelog: 3}
        with pytest.raises(ChangelogFencedError):
            await send(former, changelog, b"late")
        assert await send(next_one, changelog, b"new") == [4, 4]

    assert values_of(kafka.bootstrap, changelog) == [b"old", b"rows", b"new"]


async def test_lists_of_a_former_owner_are_refused_once_the_next_one_has_sent_some(
    kafka, changelog
):
    lists = TP(changelog.topic.replace("changelog", "lists"), 1)
    async with (
        running_producer(kafka.bootstrap) as former,
        running_producer(kafka.bootstrap) as next_one,
    ):
        await fence_over(former, beside=(lists.topic,)).take([changelog])
        await send(former, lists, b"seq 1")
        await fence_over(next_one, beside=(lists.topic,)).take([changelog])
        await send(former, lists, b"seq 2")
        await send(next_one, lists, b"seq 3")

        with pytest.raises(ChangelogFencedError):
            await send(former, lists, b"seq 2, late")

    assert values_of(kafka.bootstrap, lists) == [b"seq 1", b"seq 2", b"seq 3"]


async def test_a_renewal_lets_the_owner_go_on_and_a_former_one_not_come_back(kafka, changelog):
    async with (
        running_producer(kafka.bootstrap) as former,
        running_producer(kafka.bootstrap) as owner,
    ):
        await fence_over(former).take([changelog])
        fence = fence_over(owner)
        await fence.take([changelog])
        await send(owner, changelog, b"1", b"2")
        on_its_way = await owner.send_records(*changelog, [(b"user", b"3")], timestamp_ms=0)
        await fence.renew()
        await send(owner, changelog, b"4")

        assert len([await delivery for delivery in on_its_way]) == 1
        with pytest.raises(ChangelogFencedError):
            await send(former, changelog, b"late")

    assert values_of(kafka.bootstrap, changelog) == [b"1", b"2", b"3", b"4"]


async def test_who_has_lost_the_partition_does_not_get_it_back_by_a_renewal(
    kafka, changelog, caplog
):
    async with (
        running_producer(kafka.bootstrap) as former,
        running_producer(kafka.bootstrap) as owner,
    ):
        fence = fence_over(former)
        await fence.take([changelog])
        await fence_over(owner).take([changelog])
        await send(owner, changelog, b"1")

        await fence.renew()

        with pytest.raises(ChangelogFencedError):
            await send(former, changelog, b"late")
        await send(owner, changelog, b"2")

    assert values_of(kafka.bootstrap, changelog) == [b"1", b"2"]
    assert "is not renewed" in caplog.text


async def test_what_is_released_is_neither_renewed_nor_written_to(kafka, changelog):
    async with running_producer(kafka.bootstrap) as producer:
        fence = fence_over(producer)
        await fence.take([changelog])

        fence.release([changelog, TP("another", 1)])
        await fence.renew()

        with pytest.raises(ChangelogFencedError):
            await send(producer, changelog, b"row")
        async with running_producer(kafka.bootstrap) as next_one:
            assert await fence_over(next_one).take([changelog]) == {changelog: 1}


async def test_under_a_new_producer_id_the_former_one_is_closed(kafka, changelog):
    async with (
        running_producer(kafka.bootstrap) as former,
        running_producer(kafka.bootstrap) as next_one,
    ):
        await fence_over(former).take([changelog])
        await send(former, changelog, b"old")

        await fence_over(next_one, id_suffix="-forgotten").take([changelog])

        with pytest.raises(ChangelogFencedError):
            await send(former, changelog, b"late")
        await send(next_one, changelog, b"new")

    assert values_of(kafka.bootstrap, changelog) == [b"old", b"new"]


async def test_rows_that_the_broker_has_lost_are_missed_at_the_next_one(kafka, changelog):
    async with running_producer(kafka.bootstrap) as producer:
        await fence_over(producer).take([changelog])
        epoch = producer.epochs[changelog]
        epoch._sequence += 1  # as if a row had been taken that the broker does not have

        with pytest.raises(OutOfOrderSequenceNumber):
            await send(producer, changelog, b"behind a gap")

    assert values_of(kafka.bootstrap, changelog) == []


async def test_sequence_numbers_begin_anew_after_their_last(kafka, changelog):
    async with running_producer(kafka.bootstrap) as producer:
        await fence_over(producer).take([changelog])
        here, there = (ProducerEpoch(7_000_000, 0) for _ in range(2))
        here._sequence = there._sequence = 2**31 - 3
        producer.epochs[changelog] = here

        await send(producer, changelog, b"1", b"2", b"3", b"4", b"5")
        await send(producer, changelog, b"6")

        assert here._sequence == 3
    assert len(values_of(kafka.bootstrap, changelog)) == 6


async def test_a_broker_without_epochs_is_written_to_unfenced_and_the_log_says_so(
    kafka, changelog, caplog
):
    class Coordinator:
        async def next_epoch(
            self, transactional_id: str, after: tuple[int, int] | None = None
        ) -> tuple[int, int]:
            raise EpochsUnknownError("this broker has no InitProducerIdRequest")

    async with running_producer(kafka.bootstrap) as producer:
        fence = ChangelogFence(lambda: producer, Coordinator(), lambda: 0)

        assert await fence.take([changelog]) == {}
        await fence.take([changelog])
        await fence.renew()
        assert await send(producer, changelog, b"row") == [0, 0]

    # others warn of the topic, whose name has "unfenced" in it
    (warning,) = [r for r in caplog.records if r.name == ChangelogFence.__module__]
    assert "Apache Kafka" in warning.getMessage()
