"""Run a worker as a process: check what it needs, put it together, serve until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

import uvloop
from mode import Worker
from prometheus_client import start_http_server

from export.errors import DriftlineError
from stream import metrics
from stream.app import build_worker
from stream.guards import Guards
from stream.kafka.marks import FOREIGN_EXIT_CODE, ForeignStateError
from stream.logs import set_up_logging
from stream.origin import refuse
from stream.ranker import available_providers
from stream.settings import Settings
from stream.topics import find_topics

logger = logging.getLogger(__name__)

#: Objects made and not yet freed before Python looks for cycles, and how many such looks until one
#: at older ones. A batch makes thousands of objects, none of them in a cycle: at Python's 700 the
#: looking took a seventh of the CPU of an event.
_GC_THRESHOLDS = (20_000, 20, 100)


class DataDirError(DriftlineError):
    """The data directory cannot be written."""


class MetricsPortError(DriftlineError):
    """The metrics cannot be served at this port."""


def run_worker(settings: Settings, guards: Guards) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises DriftlineError, before anything is started, where device, topics, broker, data directory
    or the port of the metrics are not as they must be.
    """
    set_up_logging(settings.log_level)
    available_providers(settings.device)
    found = find_topics(settings)
    _make_data_dir(Path(settings.data_dir))
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        parts = build_worker(settings, found, guards)
    except ForeignStateError as error:
        refuse(error)
        return FOREIGN_EXIT_CODE
    parts.app.finalize()
    _collect_garbage_rarely()
    if settings.metrics_port:
        watchdog = parts.watchdog
        metrics.observe_progress(lambda: watchdog.is_ready, lambda: sum(watchdog.lag.values()))
        _serve_metrics(settings.metrics_port)
    logger.info("worker starts: %s at %s", settings.prefix + settings.group, settings.bootstrap)
    worker = Worker(
        *parts.services(),
        loop=loop,
        loglevel=settings.log_level,
        override_logging=False,
        daemon=True,
    )
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        if isinstance(reason := worker.crash_reason, ForeignStateError):
            refuse(reason)
            return FOREIGN_EXIT_CODE
        if isinstance(reason, DriftlineError):
            logger.critical("The worker ends: %s", reason)
        return int(end.code or 0) if not isinstance(end.code, str) else 1
    return 0


def _serve_metrics(port: int) -> None:
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise MetricsPortError(
            f"wanted to serve metrics at 127.0.0.1:{port}, got: {error.strerror}; set "
            "`metrics_port` (--metrics-port) to a free port, another one for each worker"
        ) from error


def _collect_garbage_rarely() -> None:
    """Leave out of all later looks for cycles what is there now: it stays until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _make_data_dir(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataDirError(
            f"wanted a data directory to write to, got {path}: {error.strerror}; "
            "set `data_dir` (--data-dir) to a folder of this user"
        ) from error
