"""Control runs: without a guard the same faults do harm, and the checker must see it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from stream.chaos.brokers import Cluster
from stream.chaos.engine import SESSION_S, Engine, require_exit
from stream.chaos.judge import stale_writes
from stream.chaos.line import Line
from stream.chaos.report import Control
from stream.chaos.traffic import Sender
from stream.guards import GuardName
from stream.verify.fold import verify_fold
from stream.verify.topics import KafkaLog

#: Guard -> the step at which a crash needs it; `lateness` is needed by events that come too late.
CRASH_STEPS: dict[GuardName, str] = {
    "replay-skip": "ack",
    "ack-order": "send",
    "watermark": "changelog",
    "lateness": "ack",
}
#: The guard that a worker needs which is cut off, and all that can be taken out.
_CUT_OFF: GuardName = "changelog-fence"
CONTROLLED: tuple[GuardName, ...] = (*CRASH_STEPS, _CUT_OFF)
_EVENTS = 1500
_LATE_EVENTS = 200
_CRASHES = 2
#: A cut does harm only where it comes while rows are on their way: up to so many are tried.
_CUTS = 15
_CUT_RATE = 600.0
_AT_WORK_PATIENCE_S = 30.0


def run_control(cluster: Cluster, home: Path, guard: GuardName, seed: int) -> Control:
    """Crash a worker that lacks a guard, twice, and count what the checker finds.

    All events are there before it starts, so that each batch has many of them.
    """
    engine = Engine(cluster, home / guard, f"control-{guard}-")
    sender = Sender(cluster.bootstrap, engine.events, seed, rate=1.0)
    worker = engine.worker("worker-1")
    broken = ["--break-guard", guard]
    step = CRASH_STEPS[guard]
    try:
        sender.send_events(_EVENTS)
        if guard == "lateness":
            sender.lay("clock-days", _LATE_EVENTS)
        for _ in range(_CRASHES):
            worker.start(*broken, crash=f"{step}:2")
            require_exit(worker, -signal.SIGKILL)
        worker.start(*broken)
        engine.wait_until_at_rest([worker])
        worker.stop()
        report = verify_fold(engine.settings, [worker.data_dir])
    finally:
        sender.stop()
        engine.close()
    sums = (sum(getattr(c, kind) for c in report.checks) for kind in ("lost", "twice", "wrong"))
    return Control(guard, f"step-{step}", _CRASHES, sender.acknowledged, *sums)


def run_cut_off(cluster: Cluster, home: Path, seed: int) -> Control:
    """Cut one of two workers off for longer than its session, until rows of it arrive too late.

    What they do to the fold is not looked at: that a row is behind a newer one is harm enough.
    """
    broken = ["--break-guard", _CUT_OFF]
    with ExitStack() as stack:
        line = Line(cluster.line_ports)
        stack.callback(line.close)
        engine = Engine(cluster, home / _CUT_OFF, f"control-{_CUT_OFF}-")
        stack.callback(engine.close)
        sender = Sender(cluster.bootstrap, engine.events, seed, _CUT_RATE)
        stack.callback(sender.stop)
        workers = [engine.worker("worker-1", is_on_line=True), engine.worker("worker-2")]
        for worker in workers:
            worker.start(*broken)
        sender.start()
        cuts = stale = 0
        while cuts < _CUTS and not stale:
            cuts += 1
            workers[0].wait_until_at_work(_AT_WORK_PATIENCE_S)
            line.cut()
            time.sleep(2 * SESSION_S)
            line.heal()
            engine.supervised(workers, arguments=broken)
            stale, _ = stale_writes(engine, KafkaLog(engine.settings.bootstrap))
        return Control(_CUT_OFF, "cut-off", cuts, sender.acknowledged, 0, 0, stale)


def run_controls(
    cluster: Cluster, home: Path, guards: list[str], seed: int, tell: Callable[[str], None]
) -> list[Control]:
    """A control run for each of these guards."""
    controls = []
    for guard in (guard for guard in CONTROLLED if guard in guards):
        tell(f"control: guard {guard} taken out")
        if guard == _CUT_OFF:
            controls.append(run_cut_off(cluster, home, seed))
        else:
            controls.append(run_control(cluster, home, guard, seed))
    return controls
