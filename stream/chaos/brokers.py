"""Run Kafka nodes of a run's own on 127.0.0.1: they are there to be killed, stopped and restarted.

Every node has a second listener, `CUT`. Whoever connects to it is told to come back through a
port that the run itself listens on, so that this way can be cut off (stream.chaos.line).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import DriftlineError

CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
#: Nodes that are gone for so long are out, and their partitions get other leaders.
NODE_SESSION_S = 3.0
_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true")
_LOG4J = """Configuration:
  status: warn
  Appenders: {Console: {name: out, PatternLayout: {pattern: "%d %p %c %m%n"}}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: out}}
    Logger: {name: kafka.server, level: INFO}
"""
_START_PATIENCE_S = 90.0
_STOP_PATIENCE_S = 20.0


class NoKafkaError(DriftlineError):
    """There is no Kafka to start nodes of."""


class NodeError(DriftlineError):
    """A node does not start."""


def find_libs(home: Path | None) -> Path:
    """The folder of Kafka's jars: of `home`, else of KAFKA_HOME, else of ../shared/kafka.

    Raises NoKafkaError where it holds none, or where there is no Java to run them.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "kafka"
    chosen = home or Path(os.environ.get("KAFKA_HOME") or beside)
    libs = (chosen / "libs").absolute()
    if not any(libs.glob("kafka_*.jar")):
        raise NoKafkaError(
            f"wanted Kafka's jars in {libs}, got none: this verb starts and kills brokers of its "
            "own. Unpack Apache Kafka, and name its folder with --kafka-home or KAFKA_HOME"
        )
    if shutil.which("java") is None:
        raise NoKafkaError(
            "wanted Java to run Kafka with, got none on the PATH; install Java 17 or newer "
            "(Debian: openjdk-17-jre-headless)"
        )
    return libs


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Where a node listens, and where those who come through the line connect."""

    plain: int
    controller: int
    cut: int
    line: int


class Node:
    """One Kafka node with its data in `home`; only the process started here is signalled."""

    def __init__(self, libs: Path, home: Path, ports: NodePorts, heap_mb: int) -> None:
        self.ports = ports
        self._libs, self._home, self._heap_mb = libs, home, heap_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    def format(self, properties: dict[str, object]) -> None:
        """Write the node's settings and make its empty data folder."""
        self._home.mkdir(parents=True)
        lines = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self._home / "kafka.cfg").write_text(lines)
        (self._home / "log4j2.yaml").write_text(_LOG4J)
        tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "kafka.cfg"]
        done = subprocess.run(
            self._command(128, tool), cwd=self._home, capture_output=True, text=True
        )
        if done.returncode:
            raise NodeError(f"Kafka's storage tool failed: {(done.stdout + done.stderr)[-1500:]}")

    def launch(self) -> None:
        """Start the process; `wait` tells when it serves."""
        with self._log.open("ab") as log:
            self._log_begin = log.tell()
            self._process = subprocess.Popen(
                self._command(self._heap_mb, ["kafka.Kafka", "kafka.cfg"]),
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until the node serves. Raises NodeError with the end of its log."""
        deadline = time.monotonic() + _START_PATIENCE_S
        log = b""
        while self._process and self._process.poll() is None and time.monotonic() < deadline:
            log = self._log.read_bytes()[self._log_begin :]
            if b"Kafka Server started" in log and _answers(self.ports.plain):
                return
            time.sleep(0.1)
        raise NodeError(f"a Kafka node did not start:\n{log[-2000:].decode(errors='replace')}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if the node runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """End it by this signal, a stopped one too; it is gone then."""
        if self._process is None:
            return
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def _log(self) -> Path:
        return self._home / "log.txt"

    def _command(self, heap_mb: int, arguments: list[str]) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self._home / 'log4j2.yaml'}"
        return ["java", f"-Xmx{heap_mb}m", *_JVM, log4j, "-cp", f"{self._libs}/*", *arguments]


class Cluster:
    """Nodes of one cluster: one, or three with three copies of everything and two in sync."""

    def __init__(self, libs: Path, home: Path, count: int) -> None:
        ports = free_ports(4 * count)
        heap_mb = 512 if count == 1 else 320
        self.nodes = [
            Node(libs, home / f"node-{i + 1}", NodePorts(*ports[4 * i : 4 * i + 4]), heap_mb)
            for i in range(count)
        ]
        voters = ",".join(
            f"{number}@127.0.0.1:{node.ports.controller}"
            for number, node in enumerate(self.nodes, start=1)
        )
        for number, node in enumerate(self.nodes, start=1):
            node.format(_properties(number, node.ports, voters, count))

    @property
    def bootstrap(self) -> str:
        """The nodes' addresses, direct."""
        return ",".join(f"127.0.0.1:{node.ports.plain}" for node in self.nodes)

    @property
    def line_bootstrap(self) -> str:
        """The nodes' addresses through the line."""
        return ",".join(f"127.0.0.1:{node.ports.line}" for node in self.nodes)

    @property
    def line_ports(self) -> dict[int, int]:
        """Port that the line listens on -> port that it leads to."""
        return {node.ports.line: node.ports.cut for node in self.nodes}

    @property
    def copies(self) -> int:
        """Replicas of a topic."""
        return min(len(self.nodes), 3)

    def start(self, nodes: Sequence[Node]) -> None:
        """Start these nodes at once, and wait until all of them serve."""
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait()

    def close(self) -> None:
        """End all nodes at once: their data goes with the run's folder."""
        for node in self.nodes:
            node.send_signal(signal.SIGKILL)
        for node in self.nodes:
            node.end(signal.SIGKILL)


def _properties(number: int, ports: NodePorts, voters: str, count: int) -> dict[str, object]:
    copies, in_sync = (3, 2) if count >= 3 else (1, 1)
    plain, here = f"PLAINTEXT://127.0.0.1:{ports.plain}", "127.0.0.1"
    return {
        "process.roles": "broker,controller",
        "node.id": number,
        "controller.quorum.voters": voters,
        "listeners": f"{plain},CUT://{here}:{ports.cut},CONTROLLER://{here}:{ports.controller}",
        "advertised.listeners": f"{plain},CUT://{here}:{ports.line}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CUT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": "data",  # relative to the node's folder, where it runs
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "num.network.threads": 1,
        "num.io.threads": 2,
        "background.threads": 1,
        "num.recovery.threads.per.data.dir": 1,
        "log.cleaner.dedupe.buffer.size": 8388608,
        "log.index.size.max.bytes": 1048576,
        "log.retention.ms": -1,  # the log is read from its beginning at the end of a run
        "controller.quorum.election.timeout.ms": 500,
        "broker.session.timeout.ms": int(NODE_SESSION_S * 1000),
        "broker.heartbeat.interval.ms": 500,
    }


def free_ports(count: int) -> list[int]:
    """Below the range of outgoing connections: one of those could take a killed node's port."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 2_000):
        if len(ports) == count:
            break
        if _is_free(port):
            ports.append(port)
    return ports


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
