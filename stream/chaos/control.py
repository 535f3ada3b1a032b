"""Control runs: without a guard the same crashes do harm, and the checker must see it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from stream.chaos.brokers import Cluster
from stream.chaos.engine import Engine, require_exit
from stream.chaos.report import Control
from stream.chaos.traffic import Sender
from stream.guards import GuardName
from stream.verify.fold import verify_fold

#: Guard -> the step at which a crash needs it.
CRASH_STEPS: dict[GuardName, str] = {
    "replay-skip": "ack",
    "ack-order": "send",
    "watermark": "changelog",
}
_EVENTS = 1500
_CRASHES = 2


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
    return Control(guard, f"step-{step}", _CRASHES, _EVENTS, *sums)


def run_controls(
    cluster: Cluster, home: Path, guards: list[str], seed: int, tell: Callable[[str], None]
) -> list[Control]:
    """A control run for each of these guards."""
    controls = []
    for guard in (guard for guard in CRASH_STEPS if guard in guards):
        tell(f"control: guard {guard} taken out")
        controls.append(run_control(cluster, home, guard, seed))
    return controls
