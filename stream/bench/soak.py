"""Load for an hour with a fault a minute: memory stays flat, lists come, the state is right.

On a Kafka of the run's own. Two workers serve: `victim` is struck, `steady` never is, and its
resident memory is what must stay flat, with all the rebalances that the faults bring it. Brokers
are not struck: one that is away for longer than a session ends every worker. The load is open loop,
LOAD_PERCENT of what `steady` keeps up with alone, as it must while the other is down, or of what
both do if that is less, as where they share the cores with sender, reader and broker. A minute's
load ends with the minute; then its last lists are waited for, and whether what was struck is at
work again.

In the end the engine is judged as `driftline chaos` does: every row, delta and list against a fold
of the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from msgspec import Struct

from export.release import Release
from stream.bench.open_loop import Load, OpenLoop
from stream.chaos.brokers import Cluster, find_libs
from stream.chaos.engine import SESSION_S, Engine, StuckError
from stream.chaos.faults import FAULTS, Fault, Scene
from stream.chaos.judge import judge
from stream.chaos.line import Line
from stream.chaos.traffic import Sender
from stream.chaos.workers import WorkerError, WorkerProcess
from stream.demo.processes import stopped_by_signals
from stream.release_stages import announce

LOAD_PERCENT = 70.0
#: Of what a worker, its network and its disk go through; each in turn.
SOAK_FAULTS = (
    "kill",
    "term",
    "zombie",
    "cut-lost",
    "wipe",
    "step-send",
    "join-kill",
    "bit-flip",
    "step-write",
    "disk-full",
)
#: All lists come, as nobody would know why one did not; of ten items, as all are kept for the
#: checker. What grows with the events of a user or an item, up to a bound, reaches it in the first
#: minutes: after that, whatever grows is a leak.
_SETTINGS = {
    "list_length": 10,
    "postpone_after_ms": 10**9,
    "snapshot_interval_s": 60.0,
    "max_pairs": 1_000_000,
    "max_history": 20,
    "max_taken": 20,
    "dedupe_ring": 32,
    "block_cache_bytes": 8 * 2**20,
}
#: Memory of the worker that is never struck may grow by so much.
GROWTH_MB_PER_HOUR = 30.0
#: Memory and late lists are judged in a soak of so many minutes or more, with faults so far apart:
#: in a shorter one caches fill, and an outage is most of the time.
JUDGED_MINUTES, JUDGED_EVERY_S = 30.0, 60.0
_SETTLING_SHARE = 0.2
#: A list that comes later than this counts as late.
ON_TIME_MS = 1000.0
#: A fault may make those lists late that become due in an outage of a session and a start, and in
#: the time in which what has come meanwhile is worked off beside what goes on coming.
_OUTAGE_S = SESSION_S + 3.0
LATE_PERCENT = round(100 * _OUTAGE_S / (1 - LOAD_PERCENT / 100) / JUDGED_EVERY_S)
_WARM_UP_EVENTS, _BURST_EVENTS = 2000, 4000
_FIRST_STRIKE_SHARE, _LAST_STRIKE_SHARE = 0.1, 0.5
_MB = 1e6


class SoakMinute(Struct, frozen=True):
    """One load, and what struck while it was sent."""

    fault: str
    has_struck: bool
    begin_s: float  # since the begin of the soak
    events: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late: int  # lists that came later than ON_TIME_MS
    unanswered: int


class SoakReport(Struct, frozen=True):
    """The whole soak. `wrong` says why it does not hold."""

    release: str
    users: int
    items: int
    maximum_per_s: float
    events_per_s: float
    minutes: list[SoakMinute]
    rss_at_s: list[float]
    rss_mb: list[float]
    growth_mb_per_hour: float
    is_judged: bool  # whether memory and late lists are
    checked_users: int
    checked_lists: int
    load_before: float
    load_after: float
    wrong: list[str]

    @property
    def holds(self) -> bool:
        """Whether lists came, memory stayed flat, and the state was right."""
        return not self.wrong

    @property
    def late_percent(self) -> float:
        """Lists that came late."""
        events = sum(minute.events for minute in self.minutes)
        return 100 * sum(minute.late for minute in self.minutes) / max(events, 1)

    def as_table(self) -> str:
        """A line for each minute, then what all of it came to."""
        struck = sum(minute.has_struck for minute in self.minutes)
        lines = [
            f"release {self.release}, {self.items:,} items, {self.users:,} users; "
            f"{self.events_per_s:,.0f} events/s, {LOAD_PERCENT:.0f} % of the maximum; load "
            f"{self.load_before:.1f} before, {self.load_after:.1f} after",
            f"{'min':>4} {'fault':<14} {'events':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} "
            f"{'late':>6} {'no list':>8}",
        ]
        for number, minute in enumerate(self.minutes, start=1):
            lines.append(
                f"{number:>4} {minute.fault + ('' if minute.has_struck else ' (idle)'):<14} "
                f"{minute.events:>8,} {minute.p50_ms:>8.1f} {minute.p99_ms:>8.0f} "
                f"{minute.max_ms:>8.0f} {minute.late:>6,} {minute.unanswered:>8,}"
            )
        judged = "" if self.is_judged else ", not judged in a short soak"
        lines += [
            f"{struck} faults struck; {self.late_percent:.1f} % of the lists came later than "
            f"{ON_TIME_MS / 1000:g} s (bound {LATE_PERCENT:g} %{judged})",
            f"memory of the worker that is not struck {self.rss_mb[-1]:,.0f} MB at the end, "
            f"{max(self.rss_mb):,.0f} MB at most, grows by {self.growth_mb_per_hour:+,.0f} MB an "
            f"hour (bound {GROWTH_MB_PER_HOUR:g}{judged})",
            f"{self.checked_users:,} users and {self.checked_lists:,} lists checked against the "
            "log: " + ("WRONG: " + "; ".join(self.wrong) if self.wrong else "right"),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """What is done for how long; `every_s` is the time from one fault to the next."""

    minutes: float = 60.0
    every_s: float = 60.0
    faults: tuple[str, ...] = SOAK_FAULTS
    users: int = 20_000
    items: int = 12_000
    seed: int = 1
    kafka_home: Path | None = None


@dataclass(slots=True)
class _Kept:
    """What was seen while the soak went on."""

    begun_s: float = field(default_factory=time.monotonic)
    rss_at_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    minutes: list[SoakMinute] = field(default_factory=list)
    maximum_per_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def look(self, worker: WorkerProcess) -> None:
        """Take a sample of a worker's resident memory."""
        self.rss_at_s.append(time.monotonic() - self.begun_s)
        self.rss_mb.append(worker.rss_bytes() / _MB)


def bench_soak(release: Release, plan: SoakPlan, tell: Callable[[str], None]) -> SoakReport:
    """Do the whole soak; `tell` gets a line for each fault. All processes are ended at the end.

    Raises DriftlineError where Kafka cannot be started, or the engine does not get on.
    """
    load_before = os.getloadavg()[0]
    faults = [FAULTS[name] for name in plan.faults]
    libs = find_libs(plan.kafka_home)
    items = [*release.items[: plan.items]]
    items += [f"new-{number}" for number in range(plan.items - len(items))]
    kept = _Kept()
    # sender and reader try again while a broker is away, and would log every try
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with stopped_by_signals(), ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="driftline-soak-")))
        scene, steady = _started(release, plan, libs, home, stack)
        tell(f"a worker in {home} is at work")
        uvloop.run(_soak(plan, faults, scene, steady, items, kept, tell))
        tell("the load ends; the workers come to rest")
        scene.engine.wait_until_at_rest([steady, *scene.standing])
        for worker in scene.engine.workers:
            if worker.is_running:
                worker.stop()
        verdict = judge(scene.engine, 0)
    growth = _growth(kept)
    is_judged = plan.minutes >= JUDGED_MINUTES and plan.every_s >= JUDGED_EVERY_S
    wrong = [*kept.wrong, *(verdict.findings if not verdict.holds else [])]
    if is_judged and growth > GROWTH_MB_PER_HOUR:
        wrong.append(f"memory grows by {growth:.0f} MB an hour")
    report = SoakReport(
        f"{release.name}/{release.version}",
        plan.users,
        plan.items,
        kept.maximum_per_s,
        kept.maximum_per_s * LOAD_PERCENT / 100,
        kept.minutes,
        kept.rss_at_s,
        kept.rss_mb,
        growth,
        is_judged,
        verdict.users,
        verdict.lists,
        load_before,
        os.getloadavg()[0],
        wrong,
    )
    if is_judged and report.late_percent > LATE_PERCENT:
        wrong.append(f"{report.late_percent:.0f} % of the lists came late")
    return report


def _started(
    release: Release, plan: SoakPlan, libs: Path, home: Path, stack: ExitStack
) -> tuple[Scene, WorkerProcess]:
    """Brokers and an engine with one worker at work, and the scene of the faults."""
    cluster = Cluster(libs, home / "kafka", 1)
    stack.callback(cluster.close)
    cluster.start(cluster.nodes)
    line = Line(cluster.line_ports)
    stack.callback(line.close)
    engine = Engine(
        cluster,
        home / "engine",
        "soak-",
        {"release": release.name, **_SETTINGS},
    )
    stack.callback(engine.close)
    registry = Path(engine.settings.registry)
    (registry / release.name).mkdir(parents=True)
    (registry / release.name / str(release.version)).symlink_to(release.path.resolve())
    announce(engine.settings, release, "a benchmark")
    steady = engine.worker("steady")
    victim, companion = engine.worker("victim", is_on_line=True), engine.worker("companion")
    sender = Sender(cluster.bootstrap, engine.events, plan.seed, 1.0)
    stack.callback(sender.stop)
    steady.start()
    sender.send_events(1)
    engine.supervised([steady])
    return Scene(engine, line, sender, [victim], companion, random.Random(plan.seed)), steady


async def _soak(
    plan: SoakPlan,
    faults: list[Fault],
    scene: Scene,
    steady: WorkerProcess,
    items: list[str],
    kept: _Kept,
    tell: Callable[[str], None],
) -> None:
    async with OpenLoop(scene.engine.settings) as loop:
        maxima: list[float] = []
        for name in ("one worker", "two workers"):
            if maxima:
                scene.standing[0].start()
                await asyncio.to_thread(scene.engine.supervised, scene.standing)
            warm_up = Load.burst(f"warm up {name}", _WARM_UP_EVENTS, plan.users, items, plan.seed)
            kept.wrong += (await loop.run(warm_up)).wrong()
            maximum, wrong = await loop.maximum(name, _BURST_EVENTS, plan.users, items, plan.seed)
            kept.wrong += wrong
            tell(f"{name} can {maximum:,.0f} events/s")
            maxima.append(maximum)
        kept.maximum_per_s = min(maxima)
        rate = kept.maximum_per_s * LOAD_PERCENT / 100
        tell(f"{rate:,.0f} events/s are sent")
        kept.begun_s = time.monotonic()
        number = 0
        while time.monotonic() - kept.begun_s < plan.minutes * 60:
            if not steady.is_running:
                kept.wrong.append(f"the worker that is not struck has ended:\n{steady.log_end()}")
                return
            fault = faults[number % len(faults)]
            load = Load.poisson(
                f"soak-{number}", rate, plan.every_s, plan.users, items, plan.seed + number
            )
            kept.minutes.append(await _minute(plan, fault, scene, steady, loop, load, kept))
            tell(f"{fault.name:<14} p99 {kept.minutes[-1].p99_ms:,.0f} ms")
            number += 1


async def _minute(
    plan: SoakPlan,
    fault: Fault,
    scene: Scene,
    steady: WorkerProcess,
    loop: OpenLoop,
    load: Load,
    kept: _Kept,
) -> SoakMinute:
    """One load with a fault in it."""
    begin_s = time.monotonic() - kept.begun_s
    share = scene.rng.uniform(_FIRST_STRIKE_SHARE, _LAST_STRIKE_SHARE)

    def strike() -> bool:
        time.sleep(share * plan.every_s)
        try:
            has_struck = fault.strike(scene)
            scene.engine.supervised(scene.standing)
        except (StuckError, WorkerError) as error:
            kept.wrong.append(f"after {fault.name}: {error}")
            return False
        return has_struck

    striking = asyncio.create_task(asyncio.to_thread(strike))
    answers = await loop.run(load, lambda _: kept.look(steady))
    has_struck = await striking
    kept.wrong += [f"{fault.name}: {text}" for text in answers.wrong()]
    latency_ms: Any = np.asarray(answers.latency_ms)
    return SoakMinute(
        fault.name,
        has_struck,
        begin_s,
        len(load.at_s),
        answers.percentile_ms(50),
        answers.percentile_ms(99),
        answers.percentile_ms(100),
        int((latency_ms > ON_TIME_MS).sum()),
        answers.unanswered,
    )


def _growth(kept: _Kept) -> float:
    """The slope of memory in MB an hour after the first part."""
    at_s, rss = np.asarray(kept.rss_at_s), np.asarray(kept.rss_mb)
    settled = at_s >= _SETTLING_SHARE * at_s[-1]
    return float(np.polyfit(at_s[settled], rss[settled], 1)[0] * 3600)
