"""Run a process and watch, from outside, what it costs and how far its group has committed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from tqdm import tqdm

from export.errors import DriftlineError
from export.settings import ENVIRONMENT_PREFIX
from stream.bench.topics import quiet
from stream.settings import Settings

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_SAMPLE_S = 0.02
_SAMPLES_PER_LOOK = 10
_END_TIMEOUT_S = 60.0


class RunFailedError(DriftlineError):
    """A process of a benchmark did not do its work."""


@dataclass(slots=True)
class CpuSamples:
    """How much CPU a process had used, user and system together, at points in time."""

    at_s: list[float] = field(default_factory=list)
    used_s: list[float] = field(default_factory=list)

    def take(self, pid: int) -> None:
        """Look now."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.at_s.append(time.time())
        self.used_s.append((int(fields[11]) + int(fields[12])) * _TICK_S)

    def between(self, begin_s: float, end_s: float) -> float:
        """Seconds of CPU from one point in time to another."""
        begin, end = np.interp([begin_s, end_s], self.at_s, self.used_s)
        return float(end - begin)


def run_until_committed(
    command: list[str], settings: Settings, events: int, timeout_s: float, title: str
) -> CpuSamples:
    """Start a process, wait until its group has committed so many events, and end it.

    Raises RunFailedError with the end of its log if it ends before that, takes longer than the
    timeout, or does not end in good order.
    """
    samples = CpuSamples()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=plain_environment())

        def look() -> None:
            if process.poll() is not None:
                raise RunFailedError(f"ended by itself with exit code {process.returncode}")
            samples.take(process.pid)

        try:
            wait_until_committed(settings, events, timeout_s, title, look)
            process.terminate()
            code = process.wait(_END_TIMEOUT_S)
            if code:
                raise RunFailedError(f"wanted an end in good order, got exit code {code}")
        except (RunFailedError, subprocess.TimeoutExpired) as error:
            log.seek(max(log.seek(0, os.SEEK_END) - 4000, 0))
            text = log.read().decode(errors="replace")
            raise RunFailedError(f"{title}: {error}; the end of its log:\n{text}") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return samples


def wait_until_committed(
    settings: Settings, events: int, timeout_s: float, title: str, look: Callable[[], None]
) -> None:
    """Wait until the group has committed so many events; `look` is called again and again.

    Raises RunFailedError if that takes longer than the timeout or the broker does not say, and
    whatever `look` raises.
    """
    deadline = time.monotonic() + timeout_s
    group = settings.prefix + settings.group
    reader = KafkaConsumer(
        bootstrap_servers=settings.bootstrap, group_id=group, enable_auto_commit=False
    )
    topic = settings.topic("user-events")
    tps = [TopicPartition(topic, partition) for partition in range(settings.partitions)]
    try:
        with tqdm(total=events, unit="event", desc=title, disable=quiet()) as bar:
            committed = 0
            while committed < events:
                for _ in range(_SAMPLES_PER_LOOK):
                    look()
                    time.sleep(_SAMPLE_S)
                if time.monotonic() > deadline:
                    raise RunFailedError(
                        f"{committed} of {events} events were done in {timeout_s:.0f} s"
                    )
                before, committed = committed, sum(reader.committed(tp) or 0 for tp in tps)
                bar.update(committed - before)
            look()
    except KafkaError as error:
        raise RunFailedError(f"nobody says what is committed: {error}") from None
    finally:
        reader.close()


def driftline_command(*arguments: str) -> list[str]:
    """The command `driftline` of this environment."""
    return [sys.executable, "-c", "from stream.cli import main; main()", *arguments]


def plain_environment() -> dict[str, str]:
    """This process's variables without settings: those of a benchmark are its own."""
    return {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
