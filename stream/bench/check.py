"""Hold the benchmarks against their bounds: one table of what is wanted, and what came.

Ratios are within one run and mean the same everywhere; times depend on the machine and on what
else it does, so each report names the load.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from msgspec import Struct

from export.release import Release
from stream.bench.failover import ALLOWED_BEYOND_SESSION_S, bench_failover
from stream.bench.latency import LatencyPlan, bench_latency
from stream.bench.rank import bench_rank
from stream.bench.starts import bench_recovery, bench_start
from stream.bench.state import bench_state
from stream.bench.workload import Workload
from stream.settings import Settings


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure of a benchmark and what it must be at least, or at most."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        """Whether a measured value is within; what is not a number never is."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def as_text(self) -> str:
        """The bound for people."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


STATE_1024 = Bound("state path, part of the raw loop's events/s, batches of 1,024", at_least=0.9)
STATE_256 = Bound("state path, part of the raw loop's events/s, batches of 256", at_least=0.8)
RANK_64 = Bound("ranking, part of ONNX Runtime's own rate, 64 users a call", at_least=0.8)
P50_MS = Bound("event to list at 50 % of the maximum, p50 ms", at_most=15)
P99_MS = Bound("event to list at 50 % of the maximum, p99 ms", at_most=50)
START_S = Bound("ready on an empty state, s", at_most=3)
RECOVERY = Bound("recovery from the changelog, rows/s", at_least=100_000)
FAILOVER_S = Bound(
    "fail-over with a standby, s beyond the session timeout", at_most=ALLOWED_BEYOND_SESSION_S
)


class Finding(Struct, frozen=True):
    """A figure beside its bound; `wrong` says why it counts for nothing."""

    figure: str
    value: float
    bound: str
    is_met: bool
    wrong: list[str]


class CheckReport(Struct, frozen=True):
    """All figures."""

    is_short: bool
    load_before: float
    load_after: float
    findings: list[Finding]

    @property
    def holds(self) -> bool:
        """Whether every bound is met by a figure that counts."""
        return all(finding.is_met and not finding.wrong for finding in self.findings)

    def as_table(self) -> str:
        """A line for each figure."""
        lines = [
            f"{'short form' if self.is_short else 'long form'}; load {self.load_before:.1f} "
            f"before, {self.load_after:.1f} after"
        ]
        for found in self.findings:
            verdict = "ok    " if found.is_met and not found.wrong else "MISSED"
            wrong = f"  WRONG: {'; '.join(found.wrong)}" if found.wrong else ""
            lines.append(
                f"{verdict} {found.value:>12,.2f}  {found.bound:<11} {found.figure}{wrong}"
            )
        return "\n".join(lines)


def check_bounds(bootstrap: str, release: Release, is_short: bool) -> CheckReport:
    """Run every benchmark that has a bound. `is_short`: minutes instead of half an hour.

    Raises DriftlineError for a broker or a release that cannot be used, or a run that fails.
    """
    load_before = os.getloadavg()[0]
    findings = [
        *_state(bootstrap, is_short),
        *_rank(release),
        *_latency(bootstrap, release, is_short),
        *_starts(bootstrap, is_short),
        *_failover(bootstrap, release, is_short),
    ]
    return CheckReport(is_short, load_before, os.getloadavg()[0], findings)


def _state(bootstrap: str, is_short: bool) -> Iterator[Finding]:
    workload = Workload(100_000 if is_short else 1_000_000)
    report = bench_state(bootstrap, workload, [256, 1024], 1 if is_short else 3, 8)
    for batch, bound in ((256, STATE_256), (1024, STATE_1024)):
        wrong = [text for run in report.runs if run.batch == batch for text in run.wrong]
        ratios = report.ratios(batch, lambda run: run.events_per_s)
        yield _finding(bound, median(ratios), wrong)


def _rank(release: Release) -> Iterator[Finding]:
    report = bench_rank(release, Settings(), 2000, 12_000)
    yield _finding(RANK_64, next(run.ratio for run in report.runs if run.batch == 64), [])


def _latency(bootstrap: str, release: Release, is_short: bool) -> Iterator[Finding]:
    plan = LatencyPlan([50.0], [1.0], 5.0 if is_short else 60.0, 20_000, 12_000, 8)
    (run,) = bench_latency(bootstrap, release, plan).runs
    yield _finding(P50_MS, run.p50_ms, run.wrong)
    yield _finding(P99_MS, run.p99_ms, run.wrong)


def _starts(bootstrap: str, is_short: bool) -> Iterator[Finding]:
    rounds = 1 if is_short else 3
    yield _finding(START_S, median(bench_start(bootstrap, 8, rounds).empty_s), [])
    workload = Workload(200_000 if is_short else 1_000_000, 200_000)
    report = bench_recovery(bootstrap, workload, 8, rounds)
    yield _finding(RECOVERY, report.records_per_s, report.wrong)


def _failover(bootstrap: str, release: Release, is_short: bool) -> Iterator[Finding]:
    report = bench_failover(bootstrap, release, 2000, 6.0, 1 if is_short else 3)
    beyond_s = max(report.outage_s) - report.session_timeout_s
    yield _finding(FAILOVER_S, beyond_s, report.wrong)


def _finding(bound: Bound, value: float, wrong: list[str]) -> Finding:
    return Finding(bound.figure, value, bound.as_text(), bound.is_met(value), wrong)
