"""Measure what a user takes on disk and in the changelog, and whether a worker's memory stays flat.

The load is open loop at 70 % of the measured maximum. Growth is the slope of a line through the
samples after the first fifth, in which caches and pools fill.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from msgspec import Struct

from export.release import Release
from stream.bench.open_loop import Load, OpenLoop
from stream.bench.state_check import read_changelog
from stream.bench.whole_engine import World, state_errors, whole_engine, world_of
from stream.bench.worker_process import WorkerProcess, running_worker
from stream.settings import Settings

LOAD_PERCENT = 70.0
_SETTLING_SHARE = 0.2
_MB = 1e6


class MemoryReport(Struct, frozen=True):
    """Bytes of a user, and the worker's resident memory over the soak."""

    users: int
    items: int
    events: int
    events_per_s: float
    minutes: float
    disk_bytes_per_user: float
    row_bytes_per_user: float  # newest row of each user in the changelog, key and value
    changelog_bytes_per_user: float  # all rows that were written, before compaction
    settled_mb: float
    end_mb: float
    peak_mb: float
    growth_mb_per_hour: float
    load_before: float
    load_after: float
    wrong: list[str]

    @property
    def holds(self) -> bool:
        """Whether every event got its list, and the state was right."""
        return not self.wrong

    def as_table(self) -> str:
        """A few lines."""
        return "\n".join(
            [
                f"{self.users:,} users, {self.items:,} items; {self.events:,} events at "
                f"{self.events_per_s:,.0f}/s ({LOAD_PERCENT:.0f} % of the maximum) in "
                f"{self.minutes:g} min; load {self.load_before:.1f} before, "
                f"{self.load_after:.1f} after",
                f"a user takes {self.disk_bytes_per_user:,.0f} B in RocksDB, "
                f"{self.row_bytes_per_user:,.0f} B in a compacted changelog "
                f"({self.changelog_bytes_per_user:,.0f} B before compaction)",
                f"worker's memory {self.settled_mb:,.0f} MB after a fifth of the time, "
                f"{self.end_mb:,.0f} MB at the end, {self.peak_mb:,.0f} MB at most; grows by "
                f"{self.growth_mb_per_hour:+,.0f} MB an hour",
                "WRONG: " + "; ".join(self.wrong) if self.wrong else "state right",
            ]
        )


@dataclass(frozen=True, slots=True)
class _Soak:
    """Samples of resident memory, and what was sent meanwhile."""

    at_s: list[float]
    rss_bytes: list[int]
    events: int
    events_per_s: float
    wrong: list[str]


def bench_memory(
    bootstrap: str, release: Release, users: int, items: int, partitions: int, minutes: float
) -> MemoryReport:
    """One worker under load for so many minutes.

    Raises DriftlineError for a broker or a release that cannot be used, or a worker that ends.
    """
    load_before = os.getloadavg()[0]
    world = world_of(release, users, items)
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        home = Path(folder)
        with whole_engine(bootstrap, partitions, release, world, home) as settings:
            with running_worker(settings, home / "worker") as worker:
                worker.wait_ready()
                soak = uvloop.run(_soak(settings, world, worker, minutes))
                worker.stop()
            log = asyncio.run(read_changelog(settings))
            wrong = [*soak.wrong, *state_errors(settings, [home / "data"])]
            disk_bytes = _bytes_under(home / "data")
    at_s, rss = np.asarray(soak.at_s), np.asarray(soak.rss_bytes) / _MB
    settled = at_s >= _SETTLING_SHARE * at_s[-1]
    return MemoryReport(
        len(log.rows),
        len(world.items),
        soak.events,
        soak.events_per_s,
        minutes,
        disk_bytes / len(log.rows),
        sum(len(key) + len(row) for key, row in log.rows.items()) / len(log.rows),
        log.bytes / len(log.rows),
        float(rss[settled][0]),
        float(rss[-1]),
        float(rss.max()),
        float(np.polyfit(at_s[settled], rss[settled], 1)[0] * 3600),
        load_before,
        os.getloadavg()[0],
        wrong,
    )


async def _soak(settings: Settings, world: World, worker: WorkerProcess, minutes: float) -> _Soak:
    at_s: list[float] = []
    rss_bytes: list[int] = []

    def look(since_s: float) -> None:
        at_s.append(since_s)
        rss_bytes.append(worker.rss_bytes())

    async with OpenLoop(settings) as loop:
        maximum, wrong = await loop.maximum("maximum", 4000, world.users, world.items, seed=1)
        rate = maximum * LOAD_PERCENT / 100
        load = Load.poisson("soak", rate, minutes * 60, world.users, world.items, seed=2)
        wrong += (await loop.run(load, look)).wrong()
        worker.require_alive()
    return _Soak(at_s, rss_bytes, len(load.at_s), rate, wrong)


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
