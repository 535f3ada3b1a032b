"""The faults that can be injected, each struck while a worker has a batch under way.

A fault is a function that aims, strikes, and puts right what a machine or a person would put
right: a killed process is started again, a line is healed. It returns whether it struck while a
batch was under way: the struck worker had just done one, and the log held events that were not
committed. Faults at a numbered step strike there by themselves (DRIFTLINE_TEST_CRASH).
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kafka.errors import KafkaError

from stream.chaos import damage
from stream.chaos.brokers import NODE_SESSION_S
from stream.chaos.engine import SESSION_S, Engine, StuckError
from stream.chaos.line import Line
from stream.chaos.traffic import Sender, Unusual
from stream.chaos.workers import WorkerProcess
from stream.topics import state_changelog

STEPS = ("fold", "rank", "send", "changelog", "write", "ack")
#: A crash at a step comes in one of so many batches after the start.
_STEP_BATCHES = 40
_AIM_PATIENCE_S = 30.0
#: Soft limit of a file's size that stands for a disk without space.
_FULL_BYTES = 1
_UNUSUAL_RECORDS = 200
#: In which a worker whose connections are silent is at work again, and how often that is looked at.
_SILENCE_PATIENCE_S = 60.0
_SILENCE_LOOK_S = 2.0
#: How far a worker's clock is ahead after a leap.
_CLOCK_HOURS = (0.9, 7, -5, -100)


@dataclass(slots=True)
class Scene:
    """What a fault may touch. `standing` workers are always there; the companion comes and goes."""

    engine: Engine
    line: Line
    sender: Sender
    standing: list[WorkerProcess]
    companion: WorkerProcess
    rng: random.Random
    notes: list[str] = field(default_factory=list)  # what a fault has to tell, for the report

    def any_worker(self) -> WorkerProcess:
        """One of the standing workers."""
        return self.rng.choice(self.standing)

    def let_go_on(self, worker: WorkerProcess) -> None:
        """Note whether a worker that comes back ends, start it again, send the companion away."""
        code = worker.wait_for_end(SESSION_S)
        self.notes.append("went on" if code is None else f"ended with exit code {code}")
        worker.start_if_ended()
        if self.companion.is_running:
            self.companion.stop()

    def aim(self, worker: WorkerProcess) -> bool:
        """Wait for a moment at which this worker has a batch under way; False: none came."""
        time.sleep(self.rng.uniform(0, 0.5))  # so that the moment is the seed's, not the aim's
        commits = self.engine.commits
        deadline = time.monotonic() + _AIM_PATIENCE_S
        while time.monotonic() < deadline:
            try:
                if not worker.wait_until_at_work(_AIM_PATIENCE_S):
                    return False
                if sum(commits.ends().values()) > sum(commits.committed().values()):
                    return True
            except (KafkaError, OSError):
                time.sleep(0.2)
        return False


Strike = Callable[[Scene], bool]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault."""

    name: str
    about: str
    strike: Strike
    nodes: tuple[int, ...] = (1, 3)  # of the clusters in which it makes sense


def _kill(scene: Scene) -> bool:
    worker = scene.any_worker()
    has_struck = scene.aim(worker)
    worker.kill()
    worker.start()
    return has_struck


def _kill_and_wipe(scene: Scene) -> bool:
    worker = scene.any_worker()
    has_struck = scene.aim(worker)
    worker.kill()
    worker.wipe()
    worker.start()
    return has_struck


def _crash_at(step: str, scene: Scene) -> bool:
    worker = scene.any_worker()
    worker.kill()
    worker.start(crash=f"{step}:{scene.rng.randrange(1, _STEP_BATCHES)}")
    code = worker.wait_for_end(_AIM_PATIENCE_S)
    if code is None:
        worker.kill()
    worker.start()
    return code == -signal.SIGKILL


def _terminate(scene: Scene) -> bool:
    worker = scene.any_worker()
    has_struck = scene.aim(worker)
    code = worker.stop()
    if code:
        scene.notes.append(f"ended with exit code {code}, its log with\n{worker.log_end()}")
    worker.start()
    return has_struck


def _zombie(scene: Scene) -> bool:
    """Stop a worker until others have done its work, then let it go on."""
    worker = scene.any_worker()
    others = [other for other in scene.standing if other is not worker] or [scene.companion]
    if not others[0].is_running:
        others[0].start()
        others[0].wait_until_at_work(_AIM_PATIENCE_S)
    has_struck = scene.aim(worker)
    worker.send_signal(signal.SIGSTOP)
    try:
        scene.engine.supervised(others)
    finally:
        worker.send_signal(signal.SIGCONT)
    scene.let_go_on(worker)
    return has_struck


def _join_and_leave(scene: Scene, leave: Callable[[WorkerProcess], object]) -> bool:
    companion = scene.companion
    companion.start()
    has_struck = scene.aim(companion)
    leave(companion)
    return has_struck


def _take_name(scene: Scene) -> bool:
    """Another worker is started under the name of one that runs, which must end; then in order."""
    worker, twin = scene.any_worker(), scene.companion
    has_struck = scene.aim(worker)
    twin.start("--instance", worker.name)
    code = worker.wait_for_end(_AIM_PATIENCE_S)
    scene.notes.append("went on" if code is None else f"ended with exit code {code}")
    is_at_work = twin.wait_until_at_work(_AIM_PATIENCE_S)
    twin.stop()
    worker.stop()
    worker.start()
    return has_struck and is_at_work and code is not None


def _damaged(harm: Callable[[Path, random.Random], Path], scene: Scene) -> bool:
    """Kill a worker, damage its disk while it is down, start it."""
    worker = scene.any_worker()
    has_struck = scene.aim(worker)
    worker.kill()
    if not damage.table_files(worker.data_dir):  # all rows were in memory: an end in order
        worker.start()
        worker.wait_until_at_work(_AIM_PATIENCE_S)
        worker.stop()
    if not damage.table_files(worker.data_dir):
        worker.start()
        return False
    before = worker.damages_found()
    path = harm(worker.data_dir, scene.rng)
    worker.start()
    scene.engine.supervised(scene.standing)
    worker.wait_until_at_work(_AIM_PATIENCE_S)
    kind = path.name.partition("-")[0] if path.suffix != ".sst" else "*.sst"
    is_found = worker.damages_found() > before
    scene.notes.append(f"{kind}: {'found and dropped' if is_found else 'not read, or not needed'}")
    return has_struck


def _kill_node(scene: Scene) -> bool:
    cluster = scene.engine.cluster
    node = scene.rng.choice(cluster.nodes)
    has_struck = scene.aim(scene.any_worker())
    node.end(signal.SIGKILL)
    time.sleep(scene.rng.uniform(0, 2 * NODE_SESSION_S))
    cluster.start([node])
    return has_struck


def _kill_all_nodes(scene: Scene) -> bool:
    cluster = scene.engine.cluster
    has_struck = scene.aim(scene.any_worker())
    for node in cluster.nodes:
        node.send_signal(signal.SIGKILL)
    for node in cluster.nodes:
        node.end(signal.SIGKILL)
    cluster.start(cluster.nodes)
    return has_struck


def _pause_node(scene: Scene) -> bool:
    """A node that stands still, is put out of the cluster, and wakes up."""
    node = scene.rng.choice(scene.engine.cluster.nodes)
    has_struck = scene.aim(scene.any_worker())
    node.send_signal(signal.SIGSTOP)
    try:
        time.sleep(scene.rng.uniform(0.5, 2.5) * NODE_SESSION_S)
    finally:
        node.send_signal(signal.SIGCONT)
    return has_struck


def _cut_off(scene: Scene, keeps_connections: bool) -> bool:
    """Cut the first worker off, for less or for more than a session, and heal the line."""
    has_struck = scene.aim(scene.standing[0])
    scene.line.cut()
    try:
        time.sleep(scene.rng.choice((0.3, 0.8, 1.5, 2.5)) * SESSION_S)
    finally:
        scene.line.heal(keeps_connections)
    return has_struck


def hold_rows_back(
    engine: Engine, line: Line, others: Sequence[WorkerProcess], arguments: Sequence[str] = ()
) -> bool:
    """Hold up rows that the worker on the line has sent until others have done its work.

    They arrive then, behind the rows of those who have its partitions now. False: it sent none.
    """
    if not line.cut_when_sent(state_changelog(engine.settings), _AIM_PATIENCE_S):
        return False
    try:
        engine.supervised(others, arguments=arguments)
    finally:
        line.heal()
    return True


def _delay_rows(scene: Scene) -> bool:
    worker, *others = scene.standing
    if not others:
        scene.companion.start()
        others = [scene.companion]
    has_struck = scene.aim(worker) and hold_rows_back(scene.engine, scene.line, others)
    scene.let_go_on(worker)
    return has_struck


def _silence_line(scene: Scene) -> bool:
    """The first worker's connections go silent for ever; it has to find out, and come back."""
    worker = scene.standing[0]
    has_struck = scene.aim(worker)
    scene.line.silence()
    deadline = time.monotonic() + _SILENCE_PATIENCE_S
    while not worker.wait_until_at_work(_SILENCE_LOOK_S):
        if time.monotonic() > deadline:
            raise StuckError(f"{worker.name} is not at work again in {_SILENCE_PATIENCE_S:.0f} s")
        scene.engine.supervised(scene.standing)
    return has_struck


def _send_unusual(how: Unusual, scene: Scene) -> bool:
    has_struck = scene.aim(scene.any_worker())
    return scene.sender.send_unusual(how, _UNUSUAL_RECORDS) and has_struck


def _kill_among_wishes(scene: Scene) -> bool:
    """A worker is killed while clicks without a name, merges and deletions are on their way."""
    worker = scene.any_worker()
    has_struck = _send_unusual("wishes", scene) and scene.aim(worker)
    worker.kill()
    worker.start()
    return has_struck


def _leap_clock(scene: Scene) -> bool:
    """A worker's wall clock leaps ahead and back while it works, and is put right.

    Kafka refuses records from more than an hour ahead: there the worker ends, and a supervisor
    starts it again, here with the right clock.
    """
    worker = scene.any_worker()
    worker.stop()
    worker.start(has_own_clock=True)
    has_struck = True
    for hours in (*scene.rng.sample(_CLOCK_HOURS, 2), 0):
        has_struck &= scene.aim(worker)
        worker.leap_clock(hours * 3600)
        scene.engine.supervised(scene.standing)
    worker.stop()
    worker.start()
    return has_struck


def _changelog_made_anew(scene: Scene) -> bool:
    """All workers are killed, the changelog is deleted and made anew; the disks stay."""
    has_struck = scene.aim(scene.any_worker())
    for worker in scene.standing:
        worker.kill()
    scene.engine.make_changelog_anew()
    for worker in scene.standing:
        worker.start()
    return has_struck


def _fill_disk(scene: Scene) -> bool:
    """No file of a worker's grows any more; after a while there is space again."""
    worker = scene.any_worker()
    has_struck = scene.aim(worker)
    worker.limit_files(_FULL_BYTES)
    code = worker.wait_for_end(SESSION_S)
    scene.notes.append("went on" if code is None else f"ended with exit code {code}")
    if code is None:
        worker.limit_files(None)
    worker.start_if_ended()
    return has_struck


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill", "a worker killed at random", _kill),
        *(
            Fault(f"step-{step}", f"a worker killed at its step {step!r}", partial(_crash_at, step))
            for step in STEPS
        ),
        Fault("term", "a worker ended in order and started", _terminate),
        Fault("zombie", "a worker stopped for longer than its session, that wakes up", _zombie),
        Fault(
            "join-term",
            "another worker joins, and leaves in order",
            partial(_join_and_leave, leave=WorkerProcess.stop),
        ),
        Fault(
            "join-kill",
            "another worker joins, and is killed",
            partial(_join_and_leave, leave=WorkerProcess.kill),
        ),
        Fault("same-name", "another worker started under the name of one that runs", _take_name),
        Fault("wipe", "a worker killed, its data directory removed", _kill_and_wipe),
        Fault("bit-flip", "a bit of its rows on disk flipped", partial(_damaged, damage.flip_bit)),
        Fault("truncate", "a file of its database cut short", partial(_damaged, damage.truncate)),
        Fault("remove", "a file of its database removed", partial(_damaged, damage.remove)),
        Fault("broker-kill", "a broker killed and started again", _kill_node),
        Fault("brokers-all", "all brokers killed and started again", _kill_all_nodes, (3,)),
        Fault("broker-pause", "a broker stopped, that wakes up", _pause_node),
        Fault(
            "cut-off",
            "a worker cut off from the brokers; all arrives late",
            partial(_cut_off, keeps_connections=True),
        ),
        Fault(
            "cut-lost",
            "a worker cut off from the brokers; its connections are lost",
            partial(_cut_off, keeps_connections=False),
        ),
        Fault(
            "rows-late",
            "rows that a worker has sent arrive when another one has its partitions",
            _delay_rows,
        ),
        Fault(
            "line-silent",
            "a worker's connections carry nothing any more, and nobody tells it",
            _silence_line,
        ),
        Fault("duplicates", "200 records sent once more", partial(_send_unusual, "again")),
        Fault("disorder", "200 events sent in any order", partial(_send_unusual, "shuffled")),
        Fault(
            "partitioner",
            "200 events laid by another partitioner",
            partial(_send_unusual, "partitioner"),
        ),
        Fault(
            "producer-hours",
            "200 events under a producer's clock that is 7 hours behind",
            partial(_send_unusual, "clock-hours"),
        ),
        Fault(
            "producer-days",
            "200 events under a producer's clock that is 50 hours behind: too late",
            partial(_send_unusual, "clock-days"),
        ),
        Fault(
            "wishes",
            "a worker killed among 200 clicks without a name, merges, deletions, resets",
            _kill_among_wishes,
        ),
        Fault("clock", "a worker's wall clock leaps by hours", _leap_clock),
        Fault("changelog", "the changelog deleted and made anew", _changelog_made_anew),
        Fault("disk-full", "a worker's disk full, and freed", _fill_disk),
    )
}
