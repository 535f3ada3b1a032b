"""The batch layer on a real Kafka, its workers as processes that fail, stop, pause and die."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Callable

import faust
import pytest
from batch_harness import WorkerProcess, wait_until
from batch_worker import PARTITIONS
from kafka import TopicPartition

from stream.kafka.batches import FAILED_EXIT_CODE, BatchOptions, RecordBatch
from stream.kafka.fencing import FENCED_EXIT_CODE
from stream.kafka.wiring import faust_settings, install

pytestmark = pytest.mark.broker

Worker = Callable[..., WorkerProcess]


def test_every_event_is_folded_once_and_in_order_and_the_stop_is_clean(scene, worker):
    scene.send(3_000)

    process = worker().start()
    scene.wait_until_all_is_done()
    scene.send(500)
    scene.wait_until_all_is_done()

    assert process.end() == 0
    assert scene.rows() == scene.expected()
    assert process.told("gap") == []


def test_a_batch_whose_body_raised_is_not_committed_and_is_read_again_after_the_restart(
    scene, worker
):
    scene.send(1_000)
    process = worker(instance="one").start()
    scene.wait_until_all_is_done()
    done_before = scene.committed()
    process.end()
    scene.send(1)

    code = process.start(fail_on="1000").exit_code()

    assert code not in (0, FAILED_EXIT_CODE), "it should end by itself, and not with success"
    assert scene.committed() == done_before
    assert "told to fail on 1000" in process.output

    process.start()
    scene.wait_until_all_is_done()
    assert scene.rows() == scene.expected()


@pytest.mark.parametrize("disk", ["kept", "wiped"])
def test_a_killed_worker_loses_nothing_and_applies_nothing_twice(scene, worker, disk):
    scene.send(4_000)
    process = worker(instance="one").start()
    process.wait_for("batch")
    process.end(signal.SIGKILL)
    if disk == "wiped":
        shutil.rmtree(process.data)
    process.start()
    scene.wait_until_all_is_done()
    process.end(signal.SIGKILL)
    if disk == "wiped":
        shutil.rmtree(process.data)
    starts = len(process.told("ready"))

    process.start()
    restored = process.wait_until_ready(beyond=starts)["watermarks"]

    ends = scene.ends(scene.events)
    assert restored == {str(partition): end - 1 for partition, end in ends.items()}
    assert process.end() == 0
    assert scene.rows() == scene.expected()
    assert process.told("gap") == []


def test_a_damaged_database_is_set_aside_and_built_again(scene, worker):
    scene.send(2_000)
    process = worker(instance="one").start()
    scene.wait_until_all_is_done()
    process.end()
    databases = sorted(process.data.rglob("rows-*.db"))
    assert len(databases) == PARTITIONS
    (databases[0] / "CURRENT").write_bytes(b"nonsense")
    for manifest in databases[1].glob("MANIFEST-*"):
        manifest.unlink()

    process.start()
    scene.send(500)
    scene.wait_until_all_is_done()

    assert process.end() == 0
    assert scene.rows() == scene.expected()
    for damaged in databases[:2]:
        assert damaged.with_name(f"{damaged.name}.damaged").exists()
    assert not databases[2].with_name(f"{databases[2].name}.damaged").exists()


def test_rows_that_the_changelog_has_lost_are_not_gone_on_with(scene, worker):
    scene.send(2_000)
    both = [worker(name, standbys=1).start() for name in ("first", "second")]
    for process in both:
        process.wait_until_ready(PARTITIONS // 2)
    scene.send(1_000)
    scene.wait_until_all_is_done()
    for process in both:
        process.end()

    scene.lose_changelog_tail(30)
    for process in both:
        process.start()
    scene.send(500)
    scene.wait_until_all_is_done()

    for process in both:
        assert process.end() == 0
    assert scene.rows() == scene.expected()
    assert "no copy of its changelog" in both[0].output + both[1].output


def test_partitions_are_given_back_after_the_batch_in_work_and_nothing_is_done_twice(
    scene, worker, tmp_path
):
    hold = tmp_path / "hold"
    scene.send(200)
    first = worker("first", hold_file=str(hold)).start()
    scene.wait_until_all_is_done()
    hold.touch()
    scene.send(4_000)
    first.wait_for("held")

    second = worker("second").start()
    second.wait_for("start")
    wait_until(lambda: "Revoking previously assigned" in first.output, "first must give back")
    hold.unlink()
    second.wait_until_ready(PARTITIONS // 2)
    scene.wait_until_all_is_done()

    assert scene.rows() == scene.expected()
    done_twice = set(offsets_of(first)) & set(offsets_of(second))
    assert done_twice == set()
    given_away = set(second.told("ready")[-1]["partitions"])
    after = [b for b in first.told("batch") if b["at"] > second.told("ready")[-1]["at"]]
    assert given_away.isdisjoint(partition for b in after for partition, _ in b["offsets"])

    scene.send(400)
    assert second.end() == 0
    first.wait_until_ready(PARTITIONS)
    scene.wait_until_all_is_done()
    assert scene.rows() == scene.expected()


def offsets_of(process: WorkerProcess) -> list[tuple[int, int]]:
    return [tuple(at) for line in process.told("batch") for at in line["offsets"]]


def test_a_worker_that_was_paused_beyond_its_session_ends_without_writing(scene, worker, tmp_path):
    hold = tmp_path / "hold"
    scene.send(200)
    paused = worker("paused", hold_file=str(hold), session_s=3.0).start()
    scene.wait_until_all_is_done()
    hold.touch()
    scene.send(400)
    paused.wait_for("held")

    paused.send_signal(signal.SIGSTOP)
    heir = worker("heir", session_s=3.0).start()
    heir.wait_until_ready(PARTITIONS)
    scene.wait_until_all_is_done()
    hold.unlink()
    changelog_before = scene.ends(scene.changelog)
    paused.send_signal(signal.SIGCONT)

    assert paused.exit_code() == FENCED_EXIT_CODE
    assert scene.ends(scene.changelog) == changelog_before
    assert scene.rows() == scene.expected()


def test_records_that_retention_took_are_reported_and_reading_goes_on(scene, worker):
    scene.send(1_000)
    process = worker(instance="one").start()
    scene.wait_until_all_is_done()
    process.end()
    ends = scene.ends(scene.events)
    scene.send(1_000)
    lost_up_to = ends[0] + 30
    scene.admin.delete_records({TopicPartition(scene.events, 0): lost_up_to})

    process.start()
    scene.wait_until_all_is_done()

    process.wait_for("gap", p=0, want=ends[0], got=lost_up_to)
    assert len(process.told("gap")) == 1
    assert process.end() == 0


def test_a_source_shorter_than_the_state_stops_the_start(scene, worker):
    scene.send(400)
    process = worker(instance="one").start()
    scene.wait_until_all_is_done()
    process.end()
    scene.make_anew(scene.events)

    code = process.start().exit_code()

    assert code not in (0, FAILED_EXIT_CODE)
    assert "truncated or made anew" in process.output


def test_a_changelog_with_other_partitions_than_the_source_stops_the_start(scene, worker):
    scene.make_anew(scene.changelog, PARTITIONS // 2)

    process = worker().start()

    assert process.exit_code() not in (0, FAILED_EXIT_CODE)
    assert "both topics need the same number of partitions" in process.output


async def test_slices_of_an_older_generation_are_dropped(scene, tmp_path):
    scene.send(200)
    seen: list[RecordBatch] = []
    app = faust.App(
        scene.group, broker=f"kafka://{scene.bootstrap}", datadir=tmp_path, **faust_settings()
    )
    install(app, BatchOptions(frozenset({scene.events}), end_within_s=None))

    async def look(stream: faust.Stream) -> None:
        async for batches in stream.record_batches(max_records=100, within_s=0.01):
            seen.extend(batches)

    app.agent(app.topic(scene.events, key_type=bytes, value_type=bytes), name="look")(look)
    app.finalize()
    await app.start()
    await wait_until_true(lambda: sum(len(batch.records) for batch in seen) == 200)

    (current, *_) = seen
    stale = RecordBatch(current.tp, current.records, current.generation_id - 1)
    queue = app.consumer._queue_of(current.tp)
    for batch in (stale, current, stale):
        queue.force_put_nowait(batch)
    await wait_until_true(queue.empty)
    await wait_until_true(lambda: seen[-1] is current)
    await app.stop()

    assert stale not in seen


async def wait_until_true(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_a_crash_whose_shutdown_hangs_is_ended_in_time(scene, worker):
    scene.send(10)

    process = worker(fail_on="3", end_within_s=0.0).start()

    assert process.exit_code() == FAILED_EXIT_CODE
