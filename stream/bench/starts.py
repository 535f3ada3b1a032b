"""Measure how a worker comes up: empty, on the disk it had, on a wiped disk, and as a stand-in.

Seen from outside: the time from the start of the process until its metrics say that it is ready,
or until lists come again. What is recovered from the changelog is compared with it row by row.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from export.event_types import EventRole
from stream.bench.state_check import Changelog, read_changelog, state_errors
from stream.bench.topics import bench_topics, fill, for_run
from stream.bench.watched import driftline_command, run_until_committed
from stream.bench.worker_process import running_worker, worker_config
from stream.bench.workload import Workload
from stream.history import source_fingerprint
from stream.settings import Settings
from stream.topics import check_topics, create_topics

#: Making the state goes at least as fast, or has come to a stop.
_SLOWEST_EVENTS_PER_S = 500
_START_S = 60.0
_READY_TIMEOUT_S = 600.0


class StartReport(Struct, frozen=True):
    """Seconds from the start of the process until it is ready, and of CPU meanwhile, a round each.

    The CPU says what a start would take on cores of its own.
    """

    partitions: int
    load_before: float
    load_after: float
    empty_s: list[float]
    empty_cpu_s: list[float]

    @property
    def holds(self) -> bool:
        """A worker that is ready on nothing has no state to be wrong."""
        return True

    def as_table(self) -> str:
        """One line."""
        return (
            f"ready on an empty state in {_each(self.empty_s)}, "
            f"{median(self.empty_cpu_s):.2f} s of CPU, {self.partitions} partitions; load "
            f"{self.load_before:.1f} before, {self.load_after:.1f} after"
        )


class RecoveryReport(Struct, frozen=True):
    """A state of `users` rows behind a changelog of `records`, and how long it takes to be there.

    Recovery takes what a start on a wiped disk takes longer than one on the disk that was kept.
    """

    events: int
    users: int
    records: int
    megabytes: float
    kept_s: list[float]
    wiped_s: list[float]
    load_before: float
    load_after: float
    wrong: list[str]

    @property
    def holds(self) -> bool:
        """Whether every recovered row is that of the changelog."""
        return not self.wrong

    @property
    def recovery_s(self) -> float:
        """Seconds that the changelog adds to a start; of the fastest, as others only slow it.

        Not a number where the noise is larger: then there is no figure.
        """
        added_s = min(self.wiped_s) - min(self.kept_s)
        return added_s if added_s > 0 else float("nan")

    @property
    def records_per_s(self) -> float:
        """Changelog records a second."""
        return self.records / self.recovery_s

    def as_table(self) -> str:
        """A few lines."""
        return "\n".join(
            [
                f"{self.events:,} events, {self.users:,} users; changelog {self.records:,} rows, "
                f"{self.megabytes:,.0f} MB; load {self.load_before:.1f} before, "
                f"{self.load_after:.1f} after",
                f"ready with the disk kept  {_each(self.kept_s)}",
                f"ready with a wiped disk   {_each(self.wiped_s)}",
                f"recovery {self.recovery_s:.2f} s: {self.records_per_s:,.0f} rows/s, "
                f"{self.megabytes / self.recovery_s:,.0f} MB/s",
                "WRONG: " + "; ".join(self.wrong) if self.wrong else "state right after each",
            ]
        )


def bench_start(bootstrap: str, partitions: int, rounds: int) -> StartReport:
    """Start workers on nothing, each in a group of its own, one after the other."""
    load_before = os.getloadavg()[0]
    took_s, cpu_s = [], []
    with bench_topics(bootstrap, partitions) as engine, _folder() as home:
        settings = msgspec.structs.replace(
            engine, model=False, data_dir=str(home / "data"), registry=str(home / "registry")
        )
        for number in range(rounds):
            alone = for_run(settings, f"round-{number}")
            create_topics(alone)
            with running_worker(alone, home / alone.group) as worker:
                took_s.append(worker.wait_ready())
                worker.cpu.take(worker.pid)
                cpu_s.append(worker.cpu.used_s[-1])
                worker.stop()
    return StartReport(partitions, load_before, os.getloadavg()[0], took_s, cpu_s)


def bench_recovery(
    bootstrap: str, workload: Workload, partitions: int, rounds: int
) -> RecoveryReport:
    """Let a worker fold a workload, then start it again with its disk and without, in turn."""
    load_before = os.getloadavg()[0]
    kept_s: list[float] = []
    wiped_s: list[float] = []
    wrong: list[str] = []
    with bench_topics(bootstrap, partitions) as engine, _folder() as home:
        data = home / "data"
        settings = msgspec.structs.replace(
            engine,
            model=False,
            data_dir=str(data),
            registry=str(home / "registry"),
            event_types={
                kind: EventRole("positive", refreshes=False) for kind in workload.event_types()
            },
        )
        log = _make_state(settings, workload, home)
        source = source_fingerprint(check_topics(settings), partitions)
        numbers = workload.user_numbers()
        for number in range(rounds):
            kept_s.append(_ready_s(settings, home / f"kept-{number}"))
            wrong += state_errors(log, numbers, data, "driftline", source)
            shutil.rmtree(data)
            wiped_s.append(_ready_s(settings, home / f"wiped-{number}"))
            wrong += state_errors(log, numbers, data, "driftline", source)
    return RecoveryReport(
        workload.events,
        len(log.rows),
        log.records,
        log.bytes / 1e6,
        kept_s,
        wiped_s,
        load_before,
        os.getloadavg()[0],
        wrong,
    )


def _make_state(settings: Settings, workload: Workload, home: Path) -> Changelog:
    """Send the workload and have it folded; what the changelog then holds."""
    asyncio.run(fill(settings, workload))
    config = home / "worker.toml"
    worker_config(msgspec.structs.replace(settings, batch_records=1024), config)
    run_until_committed(
        driftline_command("worker", "--config", str(config)),
        settings,
        workload.events,
        _START_S + workload.events / _SLOWEST_EVENTS_PER_S,
        "making the state",
    )
    return asyncio.run(read_changelog(settings))


def _ready_s(settings: Settings, home: Path) -> float:
    with running_worker(settings, home) as worker:
        took_s = worker.wait_ready(_READY_TIMEOUT_S)
        worker.stop()
    return took_s


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as name:
        yield Path(name)


def _each(seconds: list[float]) -> str:
    each = " ".join(f"{took:.2f}" for took in seconds)
    return f"{median(seconds):.2f} s ({each})"
