"""A real Kafka for the tests: an address that is given, our own node from jars, or a container."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true"]
START_PATIENCE_S = 60
STOP_PATIENCE_S = 20


class NoBrokerError(Exception):
    """No step of the ladder gives a broker; the message says why each one does not."""


class Broker(Protocol):
    """What every test may ask of the broker."""

    @property
    def bootstrap(self) -> str: ...


@dataclass(frozen=True)
class GivenBroker:
    """A broker somebody else runs: it has an address, and is not ours to kill."""

    bootstrap: str


class OwnNode:
    """One Kafka node (KRaft) on 127.0.0.1, run from the jars in `libs`, with its data in `home`.

    Only the process started here is ever signalled. `restart` keeps data and port.
    """

    def __init__(self, libs: Path, home: Path) -> None:
        self._libs = libs
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._port, self._controller_port = _free_ports(2)
        home.mkdir(parents=True, exist_ok=True)
        self._write_properties()
        self._run_to_end(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "kafka.cfg"])

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> OwnNode:
        log_path = self._home / "log.txt"
        with log_path.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                self._command(512, ["kafka.Kafka", "kafka.cfg"]),
                cwd=self._home,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self._wait_until_it_serves(log_path, begin)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End the node in good order, a paused one too."""
        self._signal(signal.SIGTERM)
        self.resume()
        self._wait_until_it_is_gone(STOP_PATIENCE_S)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._wait_until_it_is_gone(STOP_PATIENCE_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _write_properties(self) -> None:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.bootstrap},"
            f"CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": "data",  # relative to the node's folder, where it runs
            "auto.create.topics.enable": "false",
            "default.replication.factor": 1,
            "min.insync.replicas": 1,
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "num.network.threads": 1,
            "num.io.threads": 2,
            "background.threads": 1,
            "num.recovery.threads.per.data.dir": 1,
            "log.cleaner.dedupe.buffer.size": 8388608,
            "log.index.size.max.bytes": 1048576,
            "log.retention.ms": -1,  # tests send records with event times of years ago
        }
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        (self._home / "kafka.cfg").write_text(lines)
        (self._home / "log4j2.yaml").write_text(
            "Configuration:\n"
            "  status: warn\n"
            "  Appenders: {Console: {name: out, PatternLayout: {pattern: '%d %p %c %m%n'}}}\n"
            "  Loggers:\n"
            "    Root: {level: WARN, AppenderRef: {ref: out}}\n"
            "    Logger: {name: kafka.server, level: INFO}\n"
        )

    def _command(self, heap_mb: int, arguments: list[str]) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self._home / 'log4j2.yaml'}"
        return ["java", f"-Xmx{heap_mb}m", *JVM, log4j, "-cp", f"{self._libs}/*", *arguments]

    def _run_to_end(self, arguments: list[str]) -> None:
        done = subprocess.run(
            self._command(128, arguments),
            cwd=self._home,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_PATIENCE_S,
        )
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")

    def _wait_until_it_serves(self, log_path: Path, begin: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_PATIENCE_S
        log = b""
        while self._process.poll() is None and time.monotonic() < deadline:
            log = log_path.read_bytes()[begin:]
            if b"Kafka Server started" in log and _answers(self._port):
                return
            time.sleep(0.05)
        raise RuntimeError(f"Kafka did not start:\n{log[-3000:].decode(errors='replace')}")

    def _wait_until_it_is_gone(self, patience_s: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


@contextlib.contextmanager
def running_broker(home: Path) -> Iterator[Broker]:
    """The first of: DRIFTLINE_TEST_BOOTSTRAP, a node from KAFKA_HOME's jars, a container.

    Raises NoBrokerError, with a reason for each step, when there is none.
    """
    reasons = []
    if address := os.environ.get("DRIFTLINE_TEST_BOOTSTRAP"):
        yield GivenBroker(address)
        return
    reasons.append("DRIFTLINE_TEST_BOOTSTRAP is not set")

    libs = kafka_home() / "libs"
    if not any(libs.glob("kafka_*.jar")):
        reasons.append(f"{libs} holds no Kafka jars (KAFKA_HOME)")
    elif shutil.which("java") is None:
        reasons.append("java was not found (Debian: openjdk-17-jre-headless)")
    else:
        node = OwnNode(libs, home).start()
        try:
            yield node
        finally:
            node.stop()
        return

    if not Path("/var/run/docker.sock").exists() and "DOCKER_HOST" not in os.environ:
        reasons.append("there is no Docker engine")
        raise NoBrokerError("; ".join(reasons))
    from testcontainers.community.kafka import KafkaContainer

    with KafkaContainer().with_kraft() as container:
        yield GivenBroker(container.get_bootstrap_server())


def kafka_home() -> Path:
    """The folder above `libs/`: KAFKA_HOME, else `../shared/kafka` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "kafka"
    return Path(os.environ.get("KAFKA_HOME", beside))


def _free_ports(count: int) -> list[int]:
    """Below the range of outgoing connections: one of those could take a killed node's port."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1_000):
        if _is_free(port):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"found {len(ports)} free ports of {count} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
