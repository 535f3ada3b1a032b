"""Control runs: without a guard the same faults do harm, and the checker must see it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from stream.chaos.brokers import Cluster
from stream.chaos.engine import Engine, require_exit
from stream.chaos.faults import hold_rows_back
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
#: The guard that is needed where rows come late, and all that can be taken out.
_FENCE: GuardName = "changelog-fence"
CONTROLLED: tuple[GuardName, ...] = (*CRASH_STEPS, _FENCE)
_EVENTS = 1500
_LATE_EVENTS = 200
_CRASHES = 2
#: Rows that come late do harm where the next owner has written newer ones of their users.
_DELAYS = 3
_DELAY_RATE = 600.0
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


def run_late_rows(cluster: Cluster, home: Path, seed: int) -> Control:
    """Hold up rows of one of two workers until the other one has its partitions.

    What they do to the fold is not looked at: that a row is behind a newer one is harm enough.
    """
    broken = ["--break-guard", _FENCE]
    with ExitStack() as stack:
        line = Line(cluster.line_ports)
        stack.callback(line.close)
        engine = Engine(cluster, home / _FENCE, f"control-{_FENCE}-")
        stack.callback(engine.close)
        sender = Sender(cluster.bootstrap, engine.events, seed, _DELAY_RATE)
        stack.callback(sender.stop)
        workers = [engine.worker("worker-1", is_on_line=True), engine.worker("worker-2")]
        for worker in workers:
            worker.start(*broken)
        sender.start()
        delays = stale = 0
        for _ in range(_DELAYS):
            workers[0].wait_until_at_work(_AT_WORK_PATIENCE_S)
            delays += hold_rows_back(engine, line, workers[1:], broken)
            engine.supervised(workers, arguments=broken)
            stale, _ = stale_writes(engine, KafkaLog(engine.settings.bootstrap))
            if stale:
                break
        return Control(_FENCE, "rows-late", delays, sender.acknowledged, 0, 0, stale)


def run_controls(
    cluster: Cluster, home: Path, guards: list[str], seed: int, tell: Callable[[str], None]
) -> list[Control]:
    """A control run for each of these guards."""
    controls = []
    for guard in (guard for guard in CONTROLLED if guard in guards):
        tell(f"control: guard {guard} taken out")
        if guard == _FENCE:
            controls.append(run_late_rows(cluster, home, seed))
        else:
            controls.append(run_control(cluster, home, guard, seed))
    return controls
