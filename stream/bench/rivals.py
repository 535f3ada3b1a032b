"""Measure what others make of the same topic: Quix Streams and stock Faust, beside raw loop and
worker.

Per event they read and write a user's row of as many bytes as a worker's, with a changelog, and
send as many bytes as a worker's deltas. Their rows say how many events they were written for, and
afterwards each user's newest row in the changelog must say so many as were sent; a wrong state
voids the figure. Raw loop and worker go through the same topic in the same run. Stock Faust is so
slow that it gets fewer events of the same kind, on a topic of its own.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec
import numpy as np
from kafka.admin import KafkaAdminClient, NewTopic
from msgspec import Struct
from numpy.typing import NDArray

from stream.bench.raw_loop import DELTA_BYTES, count_in, row_of
from stream.bench.state import Turn, run_contestant
from stream.bench.topics import BenchTopicsError, bench_topics, fill, for_run, read_topic
from stream.bench.watched import RunFailedError, run_until_committed
from stream.bench.workload import Workload, user_id
from stream.settings import Settings

#: From here on rows do not grow any more.
_LARGEST_COUNT = 2100
#: A rival that is slower than this has come to a stop.
_SLOWEST_EVENTS_PER_S = 100
_START_S = 60.0
_WARM_UP_SHARE = 0.02
_INSTALL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Rival:
    """A contestant that is run as a file by an interpreter."""

    name: str
    python: str
    file: str
    changelog: str  # what the name of its changelog has at its beginning, or in it


class RivalRun(Struct, frozen=True):
    """One run; `wrong` says what is wrong with the state: then the figures count for nothing."""

    contestant: str
    round: int
    events: int
    events_per_s: float
    cpu_us_per_event: float
    wrong: list[str]


class RivalsReport(Struct, frozen=True):
    """All runs."""

    users: int
    partitions: int
    batch: int
    left_out: list[str]
    load_before: float
    load_after: float
    runs: list[RivalRun]

    @property
    def holds(self) -> bool:
        """Whether the state was right after every run."""
        return not any(run.wrong for run in self.runs)

    def as_table(self) -> str:
        """A line for each contestant: medians of the rounds."""
        lines = [
            f"{self.users:,} users, {self.partitions} partitions, batches of {self.batch} where "
            f"there are any; load {self.load_before:.1f} before, {self.load_after:.1f} after",
            f"{'path':<12} {'events':>9} {'events/s':>9} {'CPU us/ev':>9} {'of ours':>8}  state",
        ]
        speeds = {
            name: median(run.events_per_s for run in self.runs if run.contestant == name)
            for name in dict.fromkeys(run.contestant for run in self.runs)
        }
        for name, speed in speeds.items():
            mine = [run for run in self.runs if run.contestant == name]
            wrong = [text for run in mine for text in run.wrong]
            cpu_us = median(run.cpu_us_per_event for run in mine)
            lines.append(
                f"{name:<12} {mine[0].events:>9,} {speed:>9,.0f} {cpu_us:>9.1f} "
                f"{speed / speeds['driftline']:>8.3f}  "
                f"{'WRONG: ' + '; '.join(wrong) if wrong else 'right'}"
            )
        return "\n".join([*lines, *self.left_out])


@dataclass(frozen=True, slots=True)
class RivalsPlan:
    """What is measured; the slowest gets `faust_events` instead of the workload's."""

    workload: Workload
    faust_events: int
    batch: int
    rounds: int
    partitions: int
    quix_python: str | None  # an interpreter whose environment has quixstreams


def bench_rivals(bootstrap: str, plan: RivalsPlan) -> RivalsReport:
    """Fill topics, let all go through them in turn, delete everything again.

    Raises DriftlineError for a broker that cannot be used, or a run that fails.
    """
    load_before = os.getloadavg()[0]
    left_out = []
    fast = []
    if plan.quix_python is None:
        left_out.append("Quix Streams is left out: --quix PYTHON or --quix install takes it in")
    else:
        fast.append(_rival("quix", plan.quix_python, "changelog__"))
    runs: list[RivalRun] = []
    with bench_topics(bootstrap, plan.partitions) as settings:
        asyncio.run(fill(settings, plan.workload))
        for number in range(plan.rounds):
            for contestant in ("raw", "driftline"):
                ours = run_contestant(settings, plan.workload, Turn(contestant, plan.batch, number))
                speed = ours.events_per_s, ours.cpu_us_per_event
                events = plan.workload.events
                runs.append(RivalRun(contestant, number, events, *speed, ours.wrong))
            runs.extend(_run(settings, plan.workload, rival, number) for rival in fast)
    with bench_topics(bootstrap, plan.partitions) as settings:
        first = replace(plan.workload, events=min(plan.faust_events, plan.workload.events))
        asyncio.run(fill(settings, first))
        faust = _rival("faust", sys.executable, "-rows-changelog")
        runs.extend(_run(settings, first, faust, number) for number in range(plan.rounds))
    return RivalsReport(
        len(np.unique(plan.workload.user_numbers())),
        plan.partitions,
        plan.batch,
        left_out,
        load_before,
        os.getloadavg()[0],
        runs,
    )


def installed_quix(folder: Path) -> str:
    """An interpreter with quixstreams in a new environment below a folder.

    Raises RunFailedError where it cannot be installed.
    """
    click.echo(f"quixstreams is installed into {folder}", err=True)
    python = folder / "quix" / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(folder / "quix")],
        [str(python), "-m", "pip", "install", "-q", "quixstreams"],
    ):
        done = subprocess.run(command, capture_output=True, timeout=_INSTALL_TIMEOUT_S)
        if done.returncode:
            raise RunFailedError(
                f"wanted quixstreams installed, but {' '.join(command[1:])} ended with "
                f"{done.returncode}: {done.stderr.decode(errors='replace')[-500:]}"
            )
    return str(python)


def _rival(name: str, python: str, changelog: str) -> Rival:
    return Rival(name, python, str(Path(__file__).parent / f"rival_{name}.py"), changelog)


def _run(engine: Settings, workload: Workload, rival: Rival, number: int) -> RivalRun:
    settings = for_run(engine, f"{rival.name}-{number}")
    outputs = settings.topic(f"outputs-{rival.name}-{number}")
    _create_outputs(settings, outputs)
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        plan = Path(folder) / "plan.json"
        plan.write_bytes(msgspec.json.encode(_plan(settings, workload, outputs, folder)))
        cpu = run_until_committed(
            [rival.python, rival.file, str(plan)],
            settings,
            workload.events,
            _START_S + workload.events / _SLOWEST_EVENTS_PER_S,
            f"{rival.name}, round {number + 1}",
        )
    arrivals_ms = asyncio.run(_arrivals(settings, outputs))
    wrong = list(_errors(asyncio.run(_newest(settings, rival)), workload.user_numbers()))
    if len(arrivals_ms) < workload.events:
        wrong.append(f"wanted {workload.events} outputs, got {len(arrivals_ms)}")
    timed, begin_ms, end_ms = _timed(arrivals_ms)
    return RivalRun(
        rival.name,
        number,
        workload.events,
        timed / max(end_ms - begin_ms, 1) * 1000,
        cpu.between(begin_ms / 1000, end_ms / 1000) / max(timed, 1) * 1e6,
        wrong,
    )


def _plan(settings: Settings, workload: Workload, outputs: str, folder: str) -> dict[str, Any]:
    young = min(workload.events_within(settings.max_lateness_ms / 1000) / workload.events, 1.0)
    return {
        "bootstrap": settings.bootstrap,
        "events": settings.topic("user-events"),
        "outputs": outputs,
        "group": settings.prefix + settings.group,
        "partitions": settings.partitions,
        "data_dir": str(Path(folder) / "data"),
        "commit_interval_s": settings.commit_interval_s,
        "output_bytes": DELTA_BYTES,
        # a user's ids in the ring are taken to be his part of all that are young at the end
        "row_bytes": [
            len(row_of(count, max(round(count * young), 1))) for count in range(_LARGEST_COUNT)
        ],
    }


def _create_outputs(settings: Settings, name: str) -> None:
    """A topic whose records have the time at which the broker got them: when a rival did its work
    is then not for the rival to say."""
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap)
    try:
        configs = {"message.timestamp.type": "LogAppendTime"}
        admin.create_topics([NewTopic(name, settings.partitions, 1, topic_configs=configs)])
    finally:
        admin.close()


async def _arrivals(settings: Settings, topic: str) -> list[int]:
    """When each output arrived, in ms, in order."""
    return sorted([record.timestamp async for record in read_topic(settings, topic)])


def _timed(arrivals_ms: list[int]) -> tuple[int, int, int]:
    """(events, begin in ms, end in ms) of a run without its warm-up."""
    first = int(len(arrivals_ms) * _WARM_UP_SHARE)
    if not arrivals_ms:
        return 0, 0, 0
    return len(arrivals_ms) - first - 1, arrivals_ms[first], arrivals_ms[-1]


async def _newest(settings: Settings, rival: Rival) -> dict[str, int]:
    """User -> events that his newest row in the rival's changelog stands for."""
    newest: dict[str, int] = {}
    async for record in read_topic(settings, _changelog(settings, rival)):
        user = record.key.partition(b"|")[0].decode()
        if record.value and user.startswith(user_id(0)[:-1]):
            newest[user] = count_in(record.value)
    return newest


def _changelog(settings: Settings, rival: Rival) -> str:
    """The rival's own changelog, which it made itself."""
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap)
    try:
        names = [str(topic["name"]) for topic in admin.describe_topics()]
    finally:
        admin.close()
    group = settings.prefix + settings.group
    found = [name for name in names if group in name and rival.changelog in name]
    if len(found) != 1:
        raise BenchTopicsError(f"wanted one changelog of {rival.name}, got {sorted(found)}")
    return found[0]


def _errors(newest: dict[str, int], users: NDArray[np.int64]) -> Iterator[str]:
    """What is wrong with the counts in the rows after events of these [N] users."""
    numbers, wanted = np.unique(users, return_counts=True)
    if len(newest) != len(numbers):
        yield f"wanted rows of {len(numbers)} users, got {len(newest)}"
    wrong = sum(
        newest.get(user_id(number)) != count
        for number, count in zip(numbers.tolist(), wanted.tolist(), strict=True)
    )
    if wrong:
        yield f"{wrong} of {len(numbers)} users have another number of events than were sent"
