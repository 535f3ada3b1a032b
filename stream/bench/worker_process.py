"""A worker as a process of its own, seen from outside: when it is ready, what it costs, its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stream.bench.watched import CpuSamples, RunFailedError, driftline_command, plain_environment
from stream.settings import Settings

_READY = b"\ndriftline_ready 1.0"
#: Each look costs the worker half a millisecond.
_LOOK_S = 0.02
_END_TIMEOUT_S = 60.0
_LOG_END_BYTES = 4000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


_STEP_SECONDS = re.compile(r'^driftline_batch_seconds_sum{step="(\w+)"} (\S+)$', re.MULTILINE)
_STEP_COUNT = re.compile(r"^driftline_batch_seconds_count{\S+} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BatchSteps:
    """How many batches a worker has done, and the seconds that each step took of all of them."""

    batches: float
    seconds: dict[str, float]

    def mean_ms_since(self, before: BatchSteps) -> dict[str, float]:
        """Milliseconds of each step for a batch, of those done since."""
        count = max(self.batches - before.batches, 1)
        return {
            step: (total - before.seconds.get(step, 0.0)) / count * 1e3
            for step, total in self.seconds.items()
        }


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def worker_config(settings: Settings, path: Path) -> None:
    """Write the settings that are not the default into a TOML file for a worker."""
    plain = Settings()
    values = {
        name: getattr(settings, name)
        for name in Settings.__struct_fields__
        if name != "event_types" and getattr(settings, name) != getattr(plain, name)
    }
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in values.items()]
    for kind, role in settings.event_types.items():
        lines.append(f"[event_types.{kind}]")
        lines += [
            f"{name} = {msgspec.json.encode(getattr(role, name)).decode()}"
            for name in role.__struct_fields__
        ]
    path.write_text("\n".join(lines) + "\n")


class WorkerProcess:
    """A worker that was started just now, with files in `home`: its settings and its log.

    `started_s` is the time.monotonic() of its start.
    """

    def __init__(self, settings: Settings, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.settings = msgspec.structs.replace(
            settings, metrics_port=settings.metrics_port or free_port()
        )
        self.cpu = CpuSamples()
        self._log = home / "worker.log"
        config = home / "worker.toml"
        worker_config(self.settings, config)
        with self._log.open("wb") as log:
            self.started_s = time.monotonic()
            self._process = subprocess.Popen(
                driftline_command("worker", "--config", str(config)),
                stdout=log,
                stderr=log,
                env=plain_environment(),
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = 120.0) -> float:
        """Wait until it has its partitions and their state; seconds from its start until then.

        Raises RunFailedError, with the end of its log, if it ends or takes longer.
        """
        while not self.is_ready():
            self.require_alive()
            if time.monotonic() - self.started_s > timeout_s:
                raise RunFailedError(f"not ready after {timeout_s:.0f} s.{self._told()}")
            time.sleep(_LOOK_S)
        return time.monotonic() - self.started_s

    def is_ready(self) -> bool:
        """Whether it has its partitions and their state now."""
        return _says_ready(f"http://127.0.0.1:{self.settings.metrics_port}/metrics")

    def require_alive(self) -> None:
        """Raise RunFailedError with the end of its log if it has ended."""
        if self._process.poll() is not None:
            code = self._process.returncode
            raise RunFailedError(f"a worker ended by itself with exit code {code}.{self._told()}")

    def rss_bytes(self) -> int:
        """Memory that it has now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def batch_steps(self) -> BatchSteps:
        """What its batches have taken since its start."""
        url = f"http://127.0.0.1:{self.settings.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
        seconds = {step: float(total) for step, total in _STEP_SECONDS.findall(text)}
        counts = [float(count) for count in _STEP_COUNT.findall(text)]
        return BatchSteps(max(counts, default=0.0), seconds)

    def kill(self) -> None:
        """End it without warning."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in good order; RunFailedError if it does not."""
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise RunFailedError(
                f"a worker has not ended {_END_TIMEOUT_S:.0f} s after SIGTERM.{self._told()}"
            ) from error
        if code:
            raise RunFailedError(
                f"wanted an end in good order, got exit code {code}.{self._told()}"
            )

    def close(self) -> None:
        """See that it is gone."""
        if self._process.poll() is None:
            self.kill()

    def _told(self) -> str:
        text = self._log.read_bytes()[-_LOG_END_BYTES:].decode(errors="replace")
        return f" The end of its log:\n{text}"


@contextmanager
def running_worker(settings: Settings, home: Path) -> Iterator[WorkerProcess]:
    """A worker that is gone at the end, in good order or not."""
    worker = WorkerProcess(settings, home)
    try:
        yield worker
    finally:
        worker.close()


def _says_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return _READY in answer.read()
    except (urllib.error.URLError, OSError):
        return False
