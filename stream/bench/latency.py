"""Measure the way of an event to its list: first how many a second there can be, then how long.

One worker with a release, real Kafka, the whole path: state, ranking, publishing. The maximum is
what it keeps up with while more is sent. Loads are shares of it, sent open loop (see open_loop).
Each batch wait gets a worker of its own on the same state, and the state is verified after each.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop
from msgspec import Struct

from export.release import Release
from stream.bench.open_loop import Load, OpenLoop
from stream.bench.whole_engine import World, state_errors, whole_engine, world_of
from stream.bench.worker_process import WorkerProcess, running_worker
from stream.settings import Settings

#: Lists before the clock starts: first batches are slow, and nobody's latency.
_WARM_UP_EVENTS = 200


class LatencyRun(Struct, frozen=True):
    """One load at one batch wait. `wrong`: why the figures count for nothing."""

    wait_ms: float
    load_percent: float
    events_per_s: float
    events: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    cpu_ms_per_event: float
    sent_late_p99_ms: float  # the benchmark's own share
    events_per_batch: float
    batch_ms: dict[str, float]  # of each step of a batch, in the mean
    wrong: list[str]


class LatencyReport(Struct, frozen=True):
    """All loads at all batch waits; `max_events_per_s` has the measured maximum of each wait."""

    release: str
    items: int
    users: int
    partitions: int
    load_before: float
    load_after: float
    max_events_per_s: dict[float, float]
    runs: list[LatencyRun]

    @property
    def holds(self) -> bool:
        """Whether state and answers were right in every run."""
        return not any(run.wrong for run in self.runs)

    def as_table(self) -> str:
        """A line for each load."""
        lines = [
            f"release {self.release}, {self.items:,} items, {self.users:,} users, "
            f"{self.partitions} partitions; load {self.load_before:.1f} before, "
            f"{self.load_after:.1f} after",
            f"{'wait ms':>8} {'load':>5} {'events/s':>9} {'p50 ms':>8} {'p99 ms':>8} "
            f"{'p99.9 ms':>9} {'max ms':>8} {'CPU ms/ev':>9} {'sent late p99':>13} {'ev/batch':>8} "
            " state; ms of a batch",
        ]
        for run in self.runs:
            steps = ", ".join(f"{step} {ms:.1f}" for step, ms in run.batch_ms.items())
            lines.append(
                f"{run.wait_ms:>8g} {run.load_percent:>4.0f}% {run.events_per_s:>9,.0f} "
                f"{run.p50_ms:>8.1f} {run.p99_ms:>8.1f} {run.p999_ms:>9.1f} {run.max_ms:>8.1f} "
                f"{run.cpu_ms_per_event:>9.2f} {run.sent_late_p99_ms:>13.1f} "
                f"{run.events_per_batch:>8.1f}  "
                f"{'WRONG: ' + '; '.join(run.wrong) if run.wrong else 'right'}; {steps}"
            )
        for wait_ms, rate in self.max_events_per_s.items():
            lines.append(f"{wait_ms:>8g}  max {rate:>9,.0f} events/s, each with its list")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """What is measured: loads in percent of the maximum, batch waits, and for how long each."""

    loads: list[float]
    wait_ms: list[float]
    seconds: float
    users: int
    items: int
    partitions: int
    burst: int = 4000


def bench_latency(bootstrap: str, release: Release, plan: LatencyPlan) -> LatencyReport:
    """Make an engine, send every load at every wait, delete everything again.

    Raises DriftlineError for a broker or a release that cannot be used, or a run that fails.
    """
    load_before = os.getloadavg()[0]
    world = world_of(release, plan.users, plan.items)
    runs: list[LatencyRun] = []
    maxima: dict[float, float] = {}
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        home = Path(folder)
        with whole_engine(bootstrap, plan.partitions, release, world, home) as engine:
            for wait_ms in plan.wait_ms:
                settings = msgspec.structs.replace(engine, batch_wait_ms=wait_ms)
                with running_worker(settings, home / f"wait-{wait_ms}") as worker:
                    worker.wait_ready()
                    maximum, measured = uvloop.run(_loads(settings, worker, world, plan))
                    worker.stop()
                wrong = state_errors(settings, [home / "data"])
                maxima[wait_ms] = maximum
                runs += [msgspec.structs.replace(r, wrong=[*r.wrong, *wrong]) for r in measured]
    return LatencyReport(
        f"{release.name}/{release.version}",
        len(world.items),
        plan.users,
        plan.partitions,
        load_before,
        os.getloadavg()[0],
        maxima,
        runs,
    )


async def _loads(
    settings: Settings, worker: WorkerProcess, world: World, plan: LatencyPlan
) -> tuple[float, list[LatencyRun]]:
    """(events a second at most, a run of each load)."""
    name = f"wait{settings.batch_wait_ms}"
    async with OpenLoop(settings) as loop:
        await loop.run(
            Load.burst(f"{name}-warm-up", _WARM_UP_EVENTS, plan.users, world.items, seed=0)
        )
        maximum, wrong = await loop.maximum(name, plan.burst, plan.users, world.items, seed=1)
        runs = []
        for percent in plan.loads:
            rate = maximum * percent / 100
            load = Load.poisson(
                f"{name}-{percent:g}", rate, plan.seconds, plan.users, world.items, seed=2
            )
            runs.append(await _run(loop, load, worker, settings, percent, wrong))
            await asyncio.sleep(0)
        return maximum, runs


async def _run(
    loop: OpenLoop,
    load: Load,
    worker: WorkerProcess,
    settings: Settings,
    percent: float,
    wrong_before: list[str],
) -> LatencyRun:
    worker.cpu.take(worker.pid)
    before = worker.batch_steps()
    begun_s = time.time()
    answers = await loop.run(load)
    worker.require_alive()
    worker.cpu.take(worker.pid)
    after = worker.batch_steps()
    late = sorted(answers.sent_late_ms)
    return LatencyRun(
        settings.batch_wait_ms,
        percent,
        len(load.at_s) / float(load.at_s[-1]),
        len(load.at_s),
        answers.percentile_ms(50),
        answers.percentile_ms(99),
        answers.percentile_ms(99.9),
        answers.percentile_ms(100),
        worker.cpu.between(begun_s, time.time()) / len(load.at_s) * 1e3,
        late[int(0.99 * (len(late) - 1))],
        len(load.at_s) / max(after.batches - before.batches, 1),
        after.mean_ms_since(before),
        [*wrong_before, *answers.wrong()],
    )
