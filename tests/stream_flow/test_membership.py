"""Workers come and go: who has which partitions, and what a change of them costs."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_harness import Scene, WorkerProcess, wait_until
from batch_worker import PARTITIONS, SESSION_S
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

pytestmark = pytest.mark.broker

#: A session that outlasts a restart on a crowded machine.
RESTART_S = 30.0
#: What the machine may take beyond the session; `driftline bench failover` measures how long it is.
SLACK_S = 8.0

Worker = Callable[..., WorkerProcess]


class GroupWatch(threading.Thread):
    """Looks at the group all the time: states that it was in, and assignments by member."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(daemon=True)
        self.states: set[str] = set()
        self.assignments: dict[str, set[bytes]] = {}
        self.looks = 0
        self._group = scene.group
        self._admin = KafkaAdminClient(bootstrap_servers=scene.bootstrap)
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(0.02):
            with contextlib.suppress(KafkaError):
                self._look()

    def _look(self) -> None:
        found = self._admin.describe_groups([self._group])[self._group]
        self.states.add(found["group_state"])
        for member in found["members"]:
            name = member["group_instance_id"] or member["member_id"]
            self.assignments.setdefault(name, set()).add(repr(member["member_assignment"]).encode())
        self.looks += 1

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()
        self._admin.close()


def two_workers(scene: Scene, worker: Worker, **wishes: object) -> list[WorkerProcess]:
    """Two that share the partitions and have done some work; `instance` True: with their names."""
    is_static = wishes.pop("instance", False)
    both = [
        worker(name, **(wishes | {"instance": name if is_static else ""}))
        for name in ("first", "second")
    ]
    scene.send(1_000)
    for process in both:
        process.start()
    for process in both:
        process.wait_until_ready(PARTITIONS // 2)
    scene.send(500)
    scene.wait_until_all_is_done()
    return both


@pytest.mark.parametrize("is_static", [True, False], ids=["with-instance", "without"])
def test_a_rolling_restart_moves_partitions_only_where_workers_have_no_instance(
    scene: Scene, worker: Worker, is_static: bool
) -> None:
    both = two_workers(scene, worker, instance=is_static, session_s=RESTART_S)
    had = {process: process.told("ready")[-1] for process in both}
    starts = {process: len(process.told("ready")) for process in both}
    watch = GroupWatch(scene)
    watch.start()

    for process in both:
        assert process.end() == 0
        scene.send(300)
        process.start()
        process.wait_until_ready(PARTITIONS // 2, beyond=starts[process])
        scene.wait_until_all_is_done()
    watch.stop()

    assert scene.rows() == scene.expected()
    assert watch.looks > 20
    moved = watch.states - {"Stable"}
    first, second = both
    if is_static:
        assert moved == set()
        assert [len(seen) for seen in watch.assignments.values()] == [1, 1]
        for process in both:
            now = process.told("ready")[starts[process] :]
            assert [line["partitions"] for line in now] == [had[process]["partitions"]], now
        newest = {process.told("ready")[-1]["generation"] for process in both}
        assert newest == {had[first]["generation"]} == {had[second]["generation"]}
    else:
        assert moved
        assert first.told("ready")[-1]["generation"] > had[first]["generation"]


def test_an_assignment_that_is_revoked_while_it_is_sought_is_never_worked_on(
    scene: Scene, worker: Worker, tmp_path: Path
) -> None:
    seek_hold, batch_hold = tmp_path / "seek", tmp_path / "batch"
    first = worker("first", session_s=RESTART_S, seek_hold_file=str(seek_hold))
    second = worker("second", session_s=RESTART_S, hold_file=str(batch_hold))
    third, fourth = (worker(name, session_s=RESTART_S) for name in ("third", "fourth"))
    for process in (first, second):
        process.start()
    for process in (first, second):
        process.wait_until_ready(PARTITIONS // 2)

    seek_hold.touch()
    before = len(second.told("assigned"))
    third.start()
    first.wait_for("seeking")
    generation = third.wait_for("assigned")["generation"]
    second.wait_for("assigned", beyond=before)
    batch_hold.touch()
    scene.send(500)
    second.wait_for("held")
    before = len(first.told("revoked"))
    fourth.start()
    first.wait_for("revoked", beyond=before)
    seek_hold.unlink()  # the others wait for the second
    scene.send(500)
    batch_hold.unlink()
    fourth.wait_for("assigned")
    scene.wait_until_all_is_done()

    assert scene.rows() == scene.expected()
    assert generation not in [line["generation"] for line in first.told("assigned")]


def test_a_worker_with_an_instance_may_come_back_on_another_host(
    scene: Scene, worker: Worker
) -> None:
    process = worker("first", instance="first", session_s=RESTART_S)
    process.start(settings={"web_host": "here.test"}).wait_until_ready()
    assert process.end() == 0

    process.start(settings={"web_host": "elsewhere.test"}).wait_until_ready(beyond=1)
    scene.send(200)
    scene.wait_until_all_is_done()
    assert scene.rows() == scene.expected()


@pytest.mark.parametrize("standbys", [1, 0], ids=["standby", "no-standby"])
def test_of_a_killed_worker_a_standby_takes_over_without_reading_the_changelog_anew(
    scene: Scene, worker: Worker, standbys: int
) -> None:
    survivor, dead = two_workers(scene, worker, standbys=standbys)
    partitions = set(dead.told("ready")[-1]["partitions"])
    ends = {p: end for p, end in scene.ends(scene.changelog).items() if p in partitions}
    if standbys:
        wait_until(
            lambda: ends.items() <= restored_up_to(survivor).items(), "the standby has all rows"
        )
    before, ready_before = len(survivor.told("restored")), len(survivor.told("ready"))

    begun = time.monotonic()
    dead.end(signal.SIGKILL)  # and nobody starts it again
    survivor.wait_until_ready(PARTITIONS, beyond=ready_before)
    took_s = time.monotonic() - begun
    scene.send(500)
    scene.wait_until_all_is_done()

    assert scene.rows() == scene.expected()
    assert took_s < SESSION_S + SLACK_S
    restored = restored_rows(survivor, before, partitions)
    assert restored == 0 if standbys else restored > 0


def test_partitions_that_come_right_after_a_recovery_are_recovered_as_well(
    scene: Scene, worker: Worker
) -> None:
    first, second = two_workers(scene, worker)
    assert first.end() == 0
    shutil.rmtree(first.data)
    started = len(first.told("ready"))

    first.start().wait_until_ready(PARTITIONS // 2, beyond=started)
    assert second.end() == 0
    ready = first.wait_until_ready(PARTITIONS, beyond=started)

    marks = {int(partition): mark for partition, mark in ready["watermarks"].items()}
    assert marks == {p: end - 1 for p, end in scene.ends(scene.events).items()}


def restored_rows(process: WorkerProcess, beyond: int, partitions: set[int]) -> int:
    """Changelog rows of these partitions that a worker has applied."""
    told = process.told("restored")[beyond:]
    return sum(line["rows"] for line in told if line["p"] in partitions)


def restored_up_to(process: WorkerProcess) -> dict[int, int]:
    """Partition -> the changelog offset after the last row that a worker has applied."""
    return {line["p"]: line["last"] + 1 for line in process.told("restored")}
