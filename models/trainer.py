"""Run beside the workers for ever: read the log, train when it is due, announce what came of it.

Reading goes on while a child process trains. Memory is bounded: the newest events, what was known
before the newest of them, and one training at a time.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import DriftlineError
from export.items import ItemIndex
from export.registry import Registry
from models.announce import Announcer
from models.corpus import Corpus, Names, attributes_by_item
from models.examples import ExampleFold, FoldSettings, newest
from models.intake import Intake
from models.job import Order, Result, read_result
from models.log_source import EVENTS, KafkaLog
from models.schedule import Schedule
from models.settings import TrainerSettings

_log = logging.getLogger(__name__)

#: A training waits until no more records than these are still to be read.
_MAX_LAG = 2000
#: Events are folded when a training begins, so that those of all partitions stand in the order of
#: their times; more than these are not kept waiting.
_MAX_BUFFERED = 100_000
#: A log that has grown so much since the last training from nothing is learned anew.
_COLD_AGAIN = 2.0
#: A warm training is given so many older events beside each new one, to draw from.
_OLDER_KEPT = 2
_MIN_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class TrainingProcess:
    """How a training runs, and how many there are."""

    threads: int = 1
    nice: int = 10
    seed: int = 1
    max_releases: int | None = None  # for ever


@dataclass
class _Job:
    """A training that is under way."""

    child: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    reason: str
    events: int  # that it knows of
    is_cold: bool
    begun_s: float


class Trainer:
    """See the module. `run` returns when `stop` is set, or after `max_releases`."""

    def __init__(
        self, settings: TrainerSettings, schedule: Schedule, process: TrainingProcess
    ) -> None:
        self._settings = settings
        self._schedule = schedule
        self._process = process
        self._registry = Registry(Path(settings.registry))
        index = ItemIndex()
        self._index = index
        self._fold = ExampleFold(index, FoldSettings(statistics=settings.statistics))
        self._intake = Intake(settings, index)
        self._source = KafkaLog(settings, self._intake)
        self._announcer = Announcer(settings)
        self._job: _Job | None = None
        self._tried = 0  # events that the last training knew of
        self._learned = 0  # events that the parent knew of
        self._learned_cold = 0
        self._parent: int | None = None
        self._last_begun_s: float | None = None
        self._released = 0

    def run(self, stop: threading.Event) -> None:
        """Read, train, announce."""
        try:
            self._catch_up(stop)
            self._find_parent()
            while not stop.is_set() and self._released != self._process.max_releases:
                self._read(timeout_ms=200)
                self._announcer.send_pending()
                if self._job is not None:
                    self._look_after(self._job)
                else:
                    self._start_if_due()
        finally:
            self._end_child()
            self._source.close()
            self._announcer.close()

    def _catch_up(self, stop: threading.Event) -> None:
        begun_s = time.monotonic()
        while not stop.is_set() and not self._source.is_finished:
            self._read()
        _log.info(
            "read the log",
            extra={"events": self._events, "seconds": round(time.monotonic() - begun_s, 1)},
        )

    def _read(self, timeout_ms: int = 500) -> None:
        self._source.poll(timeout_ms)
        if len(self._intake.buffer) >= _MAX_BUFFERED:
            self._fold_buffer()

    @property
    def _events(self) -> int:
        return self._fold.count + len(self._intake.buffer)

    def _find_parent(self) -> None:
        """Go on from the newest release in the registry if it was learned from this very log."""
        version = self._registry.newest(self._settings.release)
        if version is None:
            return
        try:
            lineage = self._registry.open(self._settings.release, version).manifest.lineage
        except DriftlineError as error:
            _log.warning("cannot go on from a release", extra={"error": str(error)})
            return
        read = self._source.offsets()[self._settings.topic(EVENTS)]
        learned = lineage.offsets.get(self._settings.topic(EVENTS), {})
        is_of_this_log = bool(learned) and all(
            partition in read and end <= read[partition][1]
            for partition, (_, end) in learned.items()
        )
        if not is_of_this_log or not lineage.event_time:
            _log.info("the newest release is of another log", extra={"version": version})
            return
        self._fold_buffer()
        times_ms = self._fold.events.times_ms
        older = int(np.searchsorted(times_ms, lineage.event_time[1], side="right"))
        self._learned = self._tried = self._fold.count - len(times_ms) + older
        self._learned_cold = self._learned
        self._parent = version
        self._last_begun_s = time.monotonic()
        _log.info("going on from a release", extra={"version": version, "events": self._learned})

    def _start_if_due(self) -> None:
        elapsed_ms = None
        if self._last_begun_s is not None:
            elapsed_ms = int((time.monotonic() - self._last_begun_s) * 1000)
        reason = self._schedule.reason(self._events, self._events - self._tried, elapsed_ms)
        if reason is None:
            return
        lag = self._source.lag()
        if lag is None or lag > _MAX_LAG:
            return
        self._fold_buffer()
        self._start(reason)

    def _fold_buffer(self) -> None:
        for _ in self._fold.extend(self._intake.buffer.take()):
            pass
        if forgotten := self._intake.take_forgotten():
            self._fold.forget(forgotten)

    def _start(self, reason: str) -> None:
        is_cold = self._parent is None or self._events >= _COLD_AGAIN * self._learned_cold
        forgotten = self._fold.count - len(self._fold.events)
        new_from = max(self._learned - forgotten, 0)
        folder = tempfile.TemporaryDirectory(prefix="driftline-training-")
        order = Order(
            registry=self._settings.registry,
            name=self._settings.release,
            seed=self._process.seed,
            threads=self._process.threads,
            nice=self._process.nice,
            offsets=self._source.offsets(),
            now_ms=time.time_ns() // 1_000_000,
            parent=None if is_cold else self._parent,
            new_from=0 if is_cold else new_from,
        )
        order.write(Path(folder.name))
        self._corpus(None if is_cold else self._events - self._learned).write(Path(folder.name))
        command = [sys.executable, "-m", "models.job", folder.name]
        child = subprocess.Popen(command, stderr=(Path(folder.name) / "stderr").open("wb"))
        self._job = _Job(child, folder, reason, self._events, is_cold, time.monotonic())
        self._tried = self._events
        self._last_begun_s = time.monotonic()
        _log.info(
            "training",
            extra={"reason": reason, "parent": order.parent, "counts": dict(self._intake.counts)},
        )

    def _corpus(self, new: int | None) -> Corpus:
        """All there is, or for a warm training what it draws from beside `new` events."""
        examples = self._fold.examples()
        if new is not None:
            examples = newest(examples, max((1 + _OLDER_KEPT) * new, _MIN_KEPT))
        ids = self._index.ids
        names = Names(ids, self._intake.buffer.types, attributes_by_item(self._attributes, ids))
        return Corpus(examples, names, self._settings.seen_items == "filter")

    @property
    def _attributes(self) -> Mapping[str, tuple[str, ...]]:
        return self._intake.attributes

    def _look_after(self, job: _Job) -> None:
        if job.child.poll() is None:
            return
        self._job = None
        result = read_result(Path(job.folder.name))
        if result is None:
            _log.error(
                "a training failed; the former release goes on",
                extra={"exit_code": job.child.returncode, "error": _tail(Path(job.folder.name))},
            )
        else:
            self._take(job, result)
        job.folder.cleanup()

    def _take(self, job: _Job, result: Result) -> None:
        """Announce a release, and go on from it if it is live."""
        self._released += 1
        figures = ", ".join(f"{name} {gate.value:+.4f}" for name, gate in result.gates.items())
        reason = f"{job.reason}; {figures}"
        if result.refusals:
            reason = f"{job.reason}; {'; '.join(result.refusals)}"
        else:
            self._parent, self._learned = result.version, job.events
            if job.is_cold:
                self._learned_cold = job.events
        self._announcer.announce(result, reason, time.time_ns() // 1_000_000)
        _log.info(
            "release",
            extra={
                "version": result.version,
                "stage": "rejected" if result.refusals else "live",
                "reason": reason,
                "model_share": result.metrics.get("model_share"),
                "seconds": round(time.monotonic() - job.begun_s, 1),
            },
        )

    def _end_child(self) -> None:
        if self._job is None:
            return
        self._job.child.terminate()
        try:
            self._job.child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._job.child.kill()
            self._job.child.wait()
        self._job.folder.cleanup()


def _tail(folder: Path, limit: int = 2000) -> str:
    try:
        return (folder / "stderr").read_text(errors="replace")[-limit:].strip()
    except OSError:
        return "it left no message"
