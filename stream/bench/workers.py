"""Measure the state path of one worker and of several that share the partitions.

All start on a topic that is full. The clock starts when all of them are ready, and so have their
partitions; what was folded before is not counted. What a rebalance costs is `bench failover`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from stream.bench.state import state_settings
from stream.bench.state_check import Changelog, read_changelog, row_errors
from stream.bench.topics import bench_topics, fill, for_run, make_anew, written_by
from stream.bench.watched import RunFailedError, wait_until_committed
from stream.bench.worker_process import WorkerProcess, running_worker
from stream.bench.workload import Workload
from stream.history import source_fingerprint
from stream.settings import Settings
from stream.topics import check_topics

#: A run that is slower than this has come to a stop.
_SLOWEST_EVENTS_PER_S = 500
_START_S = 120.0
_LOOK_S = 0.1


class WorkersRun(Struct, frozen=True):
    """One run of so many workers together. `wrong` says what is wrong with the state; such a run
    counts for nothing."""

    workers: int
    events_timed: int
    events_per_s: float
    cpu_us_per_event: float
    wrong: list[str]


class WorkersReport(Struct, frozen=True):
    """All runs of a benchmark of several workers."""

    events: int
    users: int
    partitions: int
    batch: int
    cores: int
    load_before: float
    load_after: float
    runs: list[WorkersRun]

    @property
    def holds(self) -> bool:
        """Whether the state was right after every run."""
        return not any(run.wrong for run in self.runs)

    def as_table(self) -> str:
        """A line for each number of workers."""
        lines = [
            f"{self.events:,} events of {self.users:,} users, {self.partitions} partitions, "
            f"batches of {self.batch}, {self.cores} cores; load {self.load_before:.1f} before, "
            f"{self.load_after:.1f} after",
            f"{'workers':>7} {'events timed':>12} {'events/s':>9} {'CPU us/ev':>9}  state",
        ]
        lines += [
            f"{run.workers:>7} {run.events_timed:>12,} {run.events_per_s:>9,.0f} "
            f"{run.cpu_us_per_event:>9.2f}  "
            f"{'WRONG: ' + '; '.join(run.wrong) if run.wrong else 'right'}"
            for run in self.runs
        ]
        return "\n".join(lines)


def bench_workers(
    bootstrap: str, workload: Workload, counts: Sequence[int], batch: int, partitions: int
) -> WorkersReport:
    """Fill a topic, let each number of workers go through it, delete everything again.

    Raises DriftlineError for a broker that cannot be used, or a run that fails.
    """
    load_before = os.getloadavg()[0]
    with bench_topics(bootstrap, partitions) as settings:
        asyncio.run(fill(settings, workload))
        runs = [
            _run(for_run(settings, f"workers-{turn}"), workload, count, batch)
            for turn, count in enumerate(counts)
        ]
    return WorkersReport(
        workload.events,
        len(set(workload.user_numbers().tolist())),
        partitions,
        batch,
        os.cpu_count() or 1,
        load_before,
        os.getloadavg()[0],
        runs,
    )


def _run(settings: Settings, workload: Workload, count: int, batch: int) -> WorkersRun:
    make_anew(settings, written_by(settings))
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder, ExitStack() as stack:
        homes = [Path(folder) / f"worker-{number}" for number in range(count)]
        workers = [
            stack.enter_context(
                running_worker(state_settings(settings, workload, batch, home), home)
            )
            for home in homes
        ]
        begin_s = _all_ready_s(workers)
        patience_s = _START_S + workload.events / _SLOWEST_EVENTS_PER_S
        wait_until_committed(
            settings, workload.events, patience_s, f"{count} workers", lambda: _look(workers)
        )
        for worker in workers:
            worker.stop()
    log = asyncio.run(read_changelog(settings))
    source = source_fingerprint(check_topics(settings), settings.partitions)
    wrong = list(row_errors(log, workload.user_numbers(), "driftline", source))
    timed, end_s = _done_since(log, begin_s)
    if not timed:
        wrong.append("all was done before all workers were ready: send more events")
    cpu_s = sum(worker.cpu.between(begin_s, end_s) for worker in workers)
    took_s = max(end_s - begin_s, 1e-3)
    return WorkersRun(count, timed, timed / took_s, cpu_s / max(timed, 1) * 1e6, wrong)


def _all_ready_s(workers: Sequence[WorkerProcess]) -> float:
    """The time.time() at which all were ready at once."""
    deadline_s = time.monotonic() + _START_S
    while not all(worker.is_ready() for worker in workers):
        for worker in workers:
            worker.require_alive()
        if time.monotonic() > deadline_s:
            raise RunFailedError(f"{len(workers)} workers were not ready in {_START_S:.0f} s")
        time.sleep(_LOOK_S)
    _look(workers)
    return time.time()


def _look(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        worker.require_alive()
        worker.cpu.take(worker.pid)


def _done_since(log: Changelog, begin_s: float) -> tuple[int, float]:
    """Events of the batches since then, and the time of the last one."""
    since = [(ms / 1e3, events) for ms, events in log.progress if ms / 1e3 > begin_s]
    return sum(events for _, events in since), max((at_s for at_s, _ in since), default=begin_s)
