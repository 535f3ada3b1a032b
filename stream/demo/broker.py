"""Run an embedded broker: noida-db, one small process that speaks Kafka's protocol.

For trying things out. It never notices that a member of a group was killed and keeps its data in
one file: what must be exact and stay runs on Apache Kafka.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from export.errors import DriftlineError
from stream.demo.processes import Child, running

_START_PATIENCE_S = 20.0
#: Somebody else may take a free port before the broker does: another one is tried.
_ATTEMPTS = 3


class EmbeddedBrokerError(DriftlineError):
    """The embedded broker is not installed or does not start."""


@contextlib.contextmanager
def embedded_broker(folder: Path) -> Iterator[str]:
    """The address of a broker that lives as long as the block, with its data in `folder`.

    Raises EmbeddedBrokerError where it is not installed or does not serve.
    """
    program = _program()
    with contextlib.ExitStack() as stack:
        for _ in range(_ATTEMPTS):
            port = free_port()
            where = ["--kafka-port", str(port), "--data-dir", str(folder / "broker")]
            command = [str(program), "start", "--only", "kafka", *where]
            child = stack.enter_context(running(command, folder / "broker.log"))
            if _serves(child, port):
                break
        else:
            raise EmbeddedBrokerError(
                "the embedded broker does not serve; name a Kafka of yours with "
                f"--bootstrap HOST:PORT. It wrote:\n{child.log_end()}"
            )
        yield f"127.0.0.1:{port}"


def free_port(wanted: int = 0) -> int:
    """A port of 127.0.0.1 that nobody listens on: the wanted one if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def _serves(child: Child, port: int) -> bool:
    """Whether it listens on its port, and has not ended because somebody else does."""
    deadline = time.monotonic() + _START_PATIENCE_S
    while child.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(0.1)  # one that could not bind the port has ended by then
                return child.poll() is None
        time.sleep(0.05)
    return False
