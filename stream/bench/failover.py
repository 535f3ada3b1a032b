"""Measure a fail-over: of two workers with warm standbys one is killed while events come.

How long it took is the longest that any event waited for its list, open loop: the first events of
the dead worker's partitions wait until the other one has been given them.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import msgspec
import uvloop
from msgspec import Struct

from export.release import Release
from stream.bench.open_loop import Answers, Load, OpenLoop
from stream.bench.whole_engine import World, state_errors, whole_engine, world_of
from stream.bench.worker_process import WorkerProcess, running_worker
from stream.settings import Settings

#: Goal: a session timeout, after which the group gives the partitions away, and so much more.
ALLOWED_BEYOND_SESSION_S = 2.0
_LEAD_S = 5.0
_EVENTS_PER_S = 40.0
_PARTITIONS = 8


class FailoverReport(Struct, frozen=True):
    """Longest waits of an event, in seconds, one a round."""

    session_timeout_s: float
    users: int
    load_before: float
    load_after: float
    outage_s: list[float]
    wrong: list[str]

    @property
    def holds(self) -> bool:
        """Whether every event got its list, and the state was right."""
        return not self.wrong

    def as_table(self) -> str:
        """One line and what is wrong."""
        each = " ".join(f"{took:.2f}" for took in self.outage_s)
        return (
            f"one of two workers killed, standby warm, session timeout "
            f"{self.session_timeout_s:g} s: longest wait for a list {max(self.outage_s):.2f} s "
            f"({each}); load {self.load_before:.1f} before, {self.load_after:.1f} after; "
            f"{'WRONG: ' + '; '.join(self.wrong) if self.wrong else 'state right after each'}"
        )


def bench_failover(
    bootstrap: str, release: Release, users: int, session_timeout_s: float, rounds: int
) -> FailoverReport:
    """Kill one of two workers, in a new engine each round, and wait until all lists are there."""
    load_before = os.getloadavg()[0]
    world = world_of(release, users, len(release.items))
    outage_s, wrong = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
            home = Path(folder)
            with whole_engine(bootstrap, _PARTITIONS, release, world, home) as engine:
                settings = msgspec.structs.replace(
                    engine, standby_replicas=1, session_timeout_s=session_timeout_s
                )
                answers = _kill_one(settings, world, home)
                outage_s.append(answers.percentile_ms(100) / 1000)
                data = [home / "first" / "data", home / "second" / "data"]
                wrong += [*answers.wrong(), *state_errors(settings, data)]
    return FailoverReport(
        session_timeout_s, users, load_before, os.getloadavg()[0], outage_s, wrong
    )


def _kill_one(settings: Settings, world: World, home: Path) -> Answers:
    with (
        running_worker(_own(settings, home / "first"), home / "first") as first,
        running_worker(_own(settings, home / "second"), home / "second") as second,
    ):
        first.wait_ready()
        second.wait_ready()
        answers: Answers = uvloop.run(_load(settings, world, first))
        second.stop()
    return answers


async def _load(settings: Settings, world: World, victim: WorkerProcess) -> Answers:
    seconds = _LEAD_S + settings.session_timeout_s + 2 * ALLOWED_BEYOND_SESSION_S
    load = Load.poisson("failover", _EVENTS_PER_S, seconds, world.users, world.items, seed=3)
    async with OpenLoop(settings) as loop:
        await loop.run(Load.burst("warm-up", 200, world.users, world.items, seed=0))
        kill = threading.Timer(_LEAD_S, victim.kill)
        kill.start()
        try:
            return await loop.run(load)
        finally:
            kill.cancel()
            kill.join()


def _own(settings: Settings, home: Path) -> Settings:
    return msgspec.structs.replace(settings, data_dir=str(home / "data"))
