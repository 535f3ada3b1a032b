"""Measure the state path on a real broker, alternating with raw loops that do nothing else.

All read the same topic, and write and send as many bytes (see stream.bench.raw_loop): one loop on
aiokafka, and one on confluent-kafka where that is installed. A third one, `outputs`, takes part
where that is asked for: the loop on aiokafka, with a record for each event in place of deltas. The
worker is the real one, as a process of its own, with refreshes switched off: it decodes, folds,
knows duplicates, counts statistics and keeps the order of guarantee.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import get_args

import msgspec
from msgspec import Struct

from export.event_types import EventRole
from stream.bench.raw_loop import RawPlan
from stream.bench.state_check import Contestant, read_changelog, read_deltas, state_errors
from stream.bench.topics import bench_topics, fill, for_run, make_anew, written_by
from stream.bench.watched import driftline_command, run_until_committed
from stream.bench.worker_process import worker_config
from stream.bench.workload import Workload
from stream.history import source_fingerprint
from stream.settings import Settings
from stream.topics import check_topics, state_changelog

#: A run that is slower than this has come to a stop.
_SLOWEST_EVENTS_PER_S = 500
_START_S = 60.0


class StateRun(Struct, frozen=True):
    """One run of one contestant. `wrong` says what is wrong with the state; such a run counts for
    nothing."""

    contestant: Contestant
    batch: int
    round: int
    events_per_s: float
    cpu_us_per_event: float
    events_per_write: float
    changelog_bytes_per_event: float
    delta_bytes_per_event: float
    wrong: list[str]


class StateReport(Struct, frozen=True):
    """All runs of a benchmark of the state path."""

    events: int
    users: int
    seed: int
    partitions: int
    hottest_share: float
    load_before: float
    load_after: float
    runs: list[StateRun]

    @property
    def holds(self) -> bool:
        """Whether the state was right after every run."""
        return not any(run.wrong for run in self.runs)

    def ratios(
        self, batch: int, value: Callable[[StateRun], float], yardstick: Contestant = "raw"
    ) -> list[float]:
        """Driftline's value as part of another's, one a round; that one must have taken part."""
        found = {(run.contestant, run.round): value(run) for run in self.runs if run.batch == batch}
        rounds = sorted({number for _, number in found})
        return [found["driftline", number] / found[yardstick, number] for number in rounds]

    def as_table(self) -> str:
        """Medians of each contestant, and the ratios of each round."""
        lines = [
            f"{self.events:,} events, {self.users:,} users with events (the most active has "
            f"{self.hottest_share:.0%}), {self.partitions} partitions; "
            f"load {self.load_before:.1f} before, {self.load_after:.1f} after",
            f"{'batch':>6} {'path':<10} {'events/s':>9} {'CPU us/ev':>9} {'ev/write':>9} "
            f"{'changelog B/ev':>14} {'deltas B/ev':>11}  state",
        ]
        taking_part = {run.contestant for run in self.runs}
        for batch in sorted({run.batch for run in self.runs}):
            for contestant in get_args(Contestant):
                if contestant in taking_part:
                    lines.append(self._line(batch, contestant))
            lines.append(f"{batch:>6} {self._spreads(batch, 'raw')}")
            if "outputs" in taking_part:
                lines.append(f"{batch:>6} {self._spreads(batch, 'outputs')}, beside outputs")
        return "\n".join(lines)

    def _spreads(self, batch: int, yardstick: Contestant) -> str:
        speed = self.ratios(batch, lambda run: run.events_per_s, yardstick)
        cpu = self.ratios(batch, lambda run: run.cpu_us_per_event, yardstick)
        return f"ratio of events/s {_spread(speed)}; of CPU {_spread(cpu)}"

    def _line(self, batch: int, contestant: Contestant) -> str:
        runs = [r for r in self.runs if r.batch == batch and r.contestant == contestant]
        wrong = [text for run in runs for text in run.wrong]
        return (
            f"{batch:>6} {contestant:<10} {median(r.events_per_s for r in runs):>9,.0f} "
            f"{median(r.cpu_us_per_event for r in runs):>9.2f} "
            f"{median(r.events_per_write for r in runs):>9.0f} "
            f"{median(r.changelog_bytes_per_event for r in runs):>14.0f} "
            f"{median(r.delta_bytes_per_event for r in runs):>11.0f}  "
            f"{'WRONG: ' + '; '.join(wrong) if wrong else 'right'}"
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, and how; `outputs` sends a record of `output_bytes` for each event."""

    contestant: Contestant
    batch: int
    round: int
    output_bytes: int = 0


def bench_state(
    bootstrap: str,
    workload: Workload,
    batches: list[int],
    rounds: int,
    partitions: int,
    output_bytes: int = 0,
) -> StateReport:
    """Fill a topic, let the contestants go through it in turn, delete everything again.

    With `output_bytes`, a raw loop that sends a record of that size for each event is among them.

    Raises DriftlineError for a broker or a data set that cannot be used, or a run that fails.
    """
    load_before = os.getloadavg()[0]
    runs = []
    with bench_topics(bootstrap, partitions) as settings:
        asyncio.run(fill(settings, workload))
        for number in range(rounds):
            for batch in batches:
                for contestant in _contestants(output_bytes):
                    turn = Turn(contestant, batch, number, output_bytes)
                    runs.append(run_contestant(settings, workload, turn))
    events_of_users = Counter(workload.user_numbers().tolist())
    return StateReport(
        workload.events,
        len(events_of_users),
        workload.seed,
        partitions,
        max(events_of_users.values()) / workload.events,
        load_before,
        os.getloadavg()[0],
        runs,
    )


def run_contestant(engine: Settings, workload: Workload, turn: Turn) -> StateRun:
    """One run of one contestant over the events that an engine's topic holds."""
    contestant = turn.contestant
    settings = for_run(engine, f"{contestant}-{turn.batch}-{turn.round}")
    make_anew(settings, written_by(settings))
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        home = Path(folder)
        command = (
            _worker_command(settings, workload, turn.batch, home)
            if contestant == "driftline"
            else _raw_command(settings, workload, turn, home)
        )
        cpu = run_until_committed(
            command,
            settings,
            workload.events,
            _START_S + workload.events / _SLOWEST_EVENTS_PER_S,
            f"{contestant}, batches of {turn.batch}, round {turn.round + 1}",
        )
        log = asyncio.run(read_changelog(settings))
        delta_bytes, delta_events = asyncio.run(read_deltas(settings, contestant))
        source = source_fingerprint(check_topics(settings), settings.partitions)
        data = home / "data"
        wrong = list(state_errors(log, workload.user_numbers(), data, contestant, source))
    if contestant == "driftline" and delta_events != workload.events:
        wrong.append(f"wanted deltas of {workload.events} events, got {delta_events}")
    timed, begin_ms, end_ms = log.timed()
    took_s = max(end_ms - begin_ms, 1) / 1000
    return StateRun(
        contestant,
        turn.batch,
        turn.round,
        timed / took_s,
        cpu.between(begin_ms / 1000, end_ms / 1000) / max(timed, 1) * 1e6,
        workload.events / max(log.writes, 1),
        log.bytes / workload.events,
        delta_bytes / workload.events,
        wrong,
    )


def _contestants(output_bytes: int) -> list[Contestant]:
    """Those that can run here, in the order of their turns."""
    left_out = set() if find_spec("confluent_kafka") else {"confluent"}
    if not output_bytes:
        left_out.add("outputs")
    return [contestant for contestant in get_args(Contestant) if contestant not in left_out]


def _raw_command(settings: Settings, workload: Workload, turn: Turn, home: Path) -> list[str]:
    (home / "data").mkdir()
    plan = RawPlan(
        settings.bootstrap,
        settings.topic("user-events"),
        state_changelog(settings),
        settings.topic("item-statistics"),
        settings.prefix + settings.group,
        str(home / "data"),
        turn.batch,
        settings.commit_interval_s,
        settings.max_request_bytes,
        round(workload.events_within(settings.max_lateness_ms / 1000) / settings.partitions),
        turn.output_bytes if turn.contestant == "outputs" else 0,
    )
    is_confluent = turn.contestant == "confluent"
    module = "stream.bench.raw_confluent" if is_confluent else "stream.bench.raw_loop"
    return [sys.executable, "-m", module, msgspec.json.encode(plan).decode()]


def state_settings(settings: Settings, workload: Workload, batch: int, home: Path) -> Settings:
    """Settings of a worker that folds this workload and makes no list; its files are in `home`."""
    roles = {kind: EventRole("positive", refreshes=False) for kind in workload.event_types()}
    return msgspec.structs.replace(
        settings,
        data_dir=str(home / "data"),
        registry=str(home / "registry"),
        model=False,
        batch_records=batch,
        event_types=roles,
    )


def _worker_command(settings: Settings, workload: Workload, batch: int, home: Path) -> list[str]:
    config = home / "worker.toml"
    worker_config(state_settings(settings, workload, batch, home), config)
    return driftline_command("worker", "--config", str(config))


def _spread(ratios: list[float]) -> str:
    each = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{median(ratios):.2f} ({each})"
