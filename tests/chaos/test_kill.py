"""Workers die without warning; afterwards everything is as an independent fold of the log says."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Sequence

import pytest
from engine import Engine, Worker, event, wait_until
from scenes import Record, interactions, records

DAY_MS = 86_400_000
SENT_PER_S = 1500
STEPS = ("fold", "rank", "send", "changelog", "write", "ack")


class Sender(threading.Thread):
    """Sends records evenly, and of those for after the next kill none before it."""

    def __init__(self, engine: Engine, sent: list[Record], kills: int) -> None:
        super().__init__(daemon=True)
        self.kills_done = 0
        self._engine, self._records, self._kills = engine, sent, kills

    def run(self) -> None:
        share = len(self._records) // (self._kills + 1) + 1
        for begin in range(0, len(self._records), share):
            wait_until(
                lambda begin=begin: self.kills_done * share >= begin, "workers are killed", 120
            )
            for start in range(begin, begin + share, 100):
                self._engine.send(self._records[start : min(start + 100, begin + share)])
                time.sleep(100 / SENT_PER_S)


def kill_at_random(engine: Engine, worker: Worker, rng: random.Random, is_wiped: bool) -> None:
    """Kill a worker at some moment, most often while it works, and start it again."""
    if rng.random() < 0.8:
        before = engine.written()
        wait_until(
            lambda: engine.written() > before or engine.is_all_committed(),
            lambda: f"work is done;\n{engine.logs()}",
        )
    time.sleep(rng.uniform(0, 1.5))
    worker.kill()
    if is_wiped:
        shutil.rmtree(worker.data_dir, ignore_errors=True)
    worker.start()


def assert_exact(engine: Engine, *workers: Worker) -> dict:
    """Nothing lost, nothing twice, nothing wrong; the checks have looked at something."""
    engine.wait_until_all_is_done(120)
    engine.wait_for_snapshot()
    for worker in workers:
        worker.stop()
    code, report = engine.verify_fold(*workers)
    assert code == 0, json.dumps(report, indent=1)
    for name in ("rows in the changelog", "rows on disk", "deltas", "newest lists"):
        assert report["checks"][name]["checked"] > 0, report
    assert report["checks"]["counts of the snapshot"]["checked"] > 0, report
    return report


def start_with_items(engine: Engine, *arguments: str) -> Worker:
    """A worker that knows some items, so that whoever comes from now on must get a list."""
    before_all = interactions(1, seed=0)[0][2] - 120 * DAY_MS
    engine.send(
        (b"first", event("first", n, item_id=f"item-{n}", event_time=before_all)) for n in range(3)
    )
    worker = engine.worker().start(*arguments)
    engine.wait_until_all_is_done()
    return worker


def run_kills(engine: Engine, *, count: int, seed: int, wiped: list[bool]) -> dict:
    """Kill a worker so many times while events come, and wipe its disk where that is wanted."""
    rng = random.Random(seed)
    worker = start_with_items(engine)
    sender = Sender(engine, list(records(count, seed)), len(wiped))
    sender.start()
    for is_wiped in wiped:
        kill_at_random(engine, worker, rng, is_wiped)
        sender.kills_done += 1
    sender.join()
    return assert_exact(engine, worker)


def test_kills_lose_nothing_and_apply_nothing_twice_whether_the_disk_is_kept_or_wiped(
    engine: Engine,
) -> None:
    report = run_kills(engine, count=6000, seed=7, wiped=[False, True, False])

    assert report["checks"]["deltas"]["checked"] >= 5900


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("disk", ["kept", "wiped"])
def test_ten_kills_while_40000_events_pass(engine: Engine, disk: str, seed: int) -> None:
    begun = time.monotonic()

    report = run_kills(engine, count=40_000, seed=seed, wiped=[disk == "wiped"] * 10)

    print(f"\n10 kills, disk {disk}, seed {seed}: {time.monotonic() - begun:.0f} s")
    for name, check in report["checks"].items():
        print(f"  {name}: {check['checked']} {check['unit']}; {'; '.join(check['notes'])}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_two_workers_that_die_in_turn_lose_nothing_and_apply_nothing_twice(
    engine: Engine, seed: int
) -> None:
    rng = random.Random(seed)
    workers = [start_with_items(engine), engine.worker("second").start()]
    sender = Sender(engine, list(records(20_000, seed)), kills=6)
    sender.start()

    for number in range(6):
        kill_at_random(engine, workers[number % 2], rng, is_wiped=False)
        sender.kills_done += 1
    sender.join()

    assert_exact(engine, *workers)


@pytest.mark.parametrize("disk", ["kept", pytest.param("wiped", marks=pytest.mark.slow)])
def test_crashes_at_every_step_lose_nothing_and_apply_nothing_twice(
    engine: Engine, disk: str
) -> None:
    crash_at(engine, STEPS, is_wiped=disk == "wiped")

    assert_exact(engine, engine.workers[0])


def crash_at(engine: Engine, steps: Sequence[str], *arguments: str, is_wiped: bool = False) -> None:
    """A worker that crashes at a step of its second batch, is started, crashes at the next one.

    All events are there before it starts, so that each batch has many of them.
    """
    worker = start_with_items(engine, *arguments)
    engine.wait_for_snapshot()
    worker.kill()
    engine.send(records(600 * len(steps), seed=3))
    for step in steps:
        worker.start(*arguments, crash=f"{step}:2")
        assert worker.wait_for_end() == -signal.SIGKILL, worker.log()
        if is_wiped:
            shutil.rmtree(worker.data_dir)
    worker.start(*arguments)


@pytest.mark.parametrize(
    ("guard", "step", "check", "finding"),
    [
        ("replay-skip", "ack", "rows in the changelog", "twice"),
        ("ack-order", "send", "deltas", "lost"),
        ("watermark", "changelog", "counts of the snapshot", "twice"),
    ],
)
def test_without_a_guard_the_same_crash_is_found_out(
    engine: Engine, guard: str, step: str, check: str, finding: str
) -> None:
    crash_at(engine, [step, step], "--break-guard", guard)
    engine.wait_until_all_is_done()
    engine.wait_for_snapshot()
    engine.workers[0].stop()

    code, report = engine.verify_fold(engine.workers[0])

    assert code == 1
    assert report["checks"][check][finding] > 0, report


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["ack-order", "watermark"])
def test_without_a_crash_these_guards_are_not_needed(engine: Engine, guard: str) -> None:
    engine.worker().start("--break-guard", guard)
    engine.send(records(500, seed=4))

    assert_exact(engine, engine.workers[0])
