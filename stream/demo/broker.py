"""Run an embedded broker: noida-db, one small process that speaks Kafka's protocol.

For trying things out. It never notices that a member of a group was killed and keeps its data in
one file: what must be exact and stay runs on Apache Kafka.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from export.errors import DriftlineError
from stream.demo.processes import log_end, running

_START_PATIENCE_S = 20.0


class EmbeddedBrokerError(DriftlineError):
    """The embedded broker is not installed or does not start."""


@contextlib.contextmanager
def embedded_broker(folder: Path) -> Iterator[str]:
    """The address of a broker that lives as long as the block, with its data in `folder`.

    Raises EmbeddedBrokerError where it is not installed or does not serve.
    """
    program, port = _program(), _free_port()
    address = f"127.0.0.1:{port}"
    log = folder / "broker.log"
    where = ["--kafka-port", str(port), "--data-dir", str(folder / "broker")]
    with running([str(program), "start", "--only", "kafka", *where], log) as process:
        _wait_until_it_serves(process, port, log)
        yield address


def _program() -> Path:
    spec = importlib.util.find_spec("noida_db")
    if spec is None or spec.origin is None:
        raise EmbeddedBrokerError(
            "wanted the embedded broker, but the package noida-db is not installed: install "
            "driftline[cpu,demo], or name a Kafka of yours with --bootstrap HOST:PORT"
        )
    program = Path(spec.origin).with_name("noida-db")
    program.chmod(program.stat().st_mode | 0o111)
    return program


def _wait_until_it_serves(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise EmbeddedBrokerError(
        f"the embedded broker does not serve on port {port}; name a Kafka of yours with "
        f"--bootstrap HOST:PORT. It wrote:\n{log_end(log)}"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
