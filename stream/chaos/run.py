"""A run of faults: brokers, workers and a sender up, faults in, everything at rest, a verdict.

1. Brokers, topics and workers of the run's own start, in a folder of its own.
2. Events are sent evenly, and faults are injected in an order drawn from the seed. After each the
   engine must have done all that was in the log; a fault that struck while no batch was under way
   does not count, and comes again.
3. Sending ends, the workers come to rest and are stopped.
4. The independent checker compares everything with the log.
5. Control runs with a guard taken out, where it must find errors.

All processes are ended at the end, whatever happens, and no others.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.errors import DriftlineError
from stream.chaos.brokers import Cluster, find_libs
from stream.chaos.control import CONTROLLED, run_controls
from stream.chaos.engine import Engine, StuckError
from stream.chaos.faults import FAULTS, Fault, Scene
from stream.chaos.judge import judge
from stream.chaos.line import Line
from stream.chaos.report import ChaosReport, Injected
from stream.chaos.traffic import Sender
from stream.chaos.watch import Commits, Watch
from stream.chaos.workers import WorkerError
from stream.demo.processes import stopped_by_signals

#: Known items, so that whoever comes later must get a list.
_FIRST_EVENTS = 50
#: A kind that struck idle workers so often for each wanted strike is given up.
_TRIES = 3


class UnknownNameError(DriftlineError):
    """There is no fault or guard of this name."""


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What to inject, into what. `folder` is kept; None: a temporary one that is not.

    After `minutes` no other fault is injected: what has struck by then is judged.
    """

    faults: str = "all"  # or names with commas
    guards: str = "all"  # of the control runs; or "none", or names with commas
    nodes: int = 1
    workers: int = 2
    each: int = 20
    minutes: float | None = None
    rate: float = 300.0
    seed: int = 1
    kafka_home: Path | None = None
    folder: Path | None = None


def run_chaos(plan: ChaosPlan, tell: Callable[[str], None]) -> ChaosReport:
    """Do the whole run; `tell` gets a line for each fault.

    Raises DriftlineError where names are unknown or Kafka cannot be started.
    """
    faults = [FAULTS[name] for name in _chosen(plan.faults, FAULTS, "fault")]
    guards = _chosen(plan.guards, CONTROLLED, "guard")
    libs = find_libs(plan.kafka_home)
    report = ChaosReport(plan.seed, plan.nodes, plan.workers, plan.rate)
    begun = time.monotonic()
    with stopped_by_signals(), _home(plan.folder) as home, ExitStack() as stack:
        cluster = Cluster(libs, home / "kafka", plan.nodes)
        stack.callback(cluster.close)
        tell(f"{plan.nodes} node(s) of Kafka start in {home}")
        cluster.start(cluster.nodes)
        _run_faults(plan, faults, cluster, home, report, tell)
        report.seconds = time.monotonic() - begun
        tell(report.as_table())  # it took long: whatever becomes of the controls
        report.controls = run_controls(cluster, home, guards, plan.seed, tell)
    report.seconds = time.monotonic() - begun
    return report


def _run_faults(
    plan: ChaosPlan,
    faults: list[Fault],
    cluster: Cluster,
    home: Path,
    report: ChaosReport,
    tell: Callable[[str], None],
) -> None:
    with ExitStack() as stack:
        line = Line(cluster.line_ports)
        stack.callback(line.close)
        engine = Engine(cluster, home / "engine", "chaos-")
        stack.callback(engine.close)
        sender = Sender(cluster.bootstrap, engine.events, plan.seed, plan.rate)
        stack.callback(sender.stop)
        standing = [
            engine.worker(f"worker-{number}", is_on_line=number == 1)
            for number in range(1, plan.workers + 1)
        ]
        rng = random.Random(plan.seed)
        scene = Scene(engine, line, sender, standing, engine.worker("companion"), rng)
        sender.send_events(_FIRST_EVENTS)
        for worker in standing:
            worker.start()
        engine.supervised(standing)
        watch = Watch(
            Commits(
                cluster.bootstrap,
                engine.settings.prefix + engine.settings.group,
                engine.events,
                engine.settings.partitions,
            )
        )
        stack.callback(watch.stop)
        sender.start()
        watch.start()
        report.faults = _inject_all(plan, faults, scene, watch, report, tell)
        tell("sending ends; the workers come to rest")
        sender.stop()
        _come_to_rest(scene, report)
        watch.stop()
        for worker in engine.workers:
            report.unexpected_ends += Counter(str(code) for code in worker.unexpected_ends)
        tell(f"{sender.acknowledged:,} events are compared with what became of them")
        report.verdict = judge(engine, sender.acknowledged)


def _inject_all(
    plan: ChaosPlan,
    faults: list[Fault],
    scene: Scene,
    watch: Watch,
    report: ChaosReport,
    tell: Callable[[str], None],
) -> list[Injected]:
    """Until enough of each kind has struck, in the seed's order."""
    injected = {fault.name: Injected(fault.name, fault.about, plan.each) for fault in faults}
    queue = []
    for fault in faults:
        if plan.nodes not in fault.nodes:
            injected[fault.name].skipped = f"it is for {fault.nodes[0]} nodes"
        else:
            queue += [fault] * plan.each
    scene.rng.shuffle(queue)
    deadline = time.monotonic() + (math.inf if plan.minutes is None else 60 * plan.minutes)
    while queue and not report.stuck and time.monotonic() < deadline:
        fault = queue.pop(0)
        counts = injected[fault.name]
        has_struck = _inject(fault, scene, watch, report, tell)
        counts.struck += has_struck
        counts.missed += not has_struck
        counts.notes += Counter(scene.notes)
        scene.notes.clear()
        if not has_struck and counts.missed < _TRIES * plan.each:
            queue.append(fault)
        tell(f"{fault.name:<16}{'struck' if has_struck else 'missed'}; {len(queue)} to come")
    for name, counts in injected.items():
        counts.longest_s = watch.longest_s.get(name, 0.0)
    return list(injected.values())


def _inject(
    fault: Fault, scene: Scene, watch: Watch, report: ChaosReport, tell: Callable[[str], None]
) -> bool:
    """Strike once, and wait until all that was in the log is done."""
    watch.note(fault.name)
    try:
        has_struck = fault.strike(scene)
        scene.engine.supervised(scene.standing)
        if not scene.sender.is_alive():
            raise StuckError("the sender ended by itself; its error is above")
    except (StuckError, WorkerError) as error:
        report.stuck = f"after {fault.name}: {error}"
        tell(f"STUCK: {report.stuck}")
        return False
    except Exception as error:  # what has struck by now is judged in any case
        report.stuck = f"{fault.name} could not be done: {error!r}"
        tell(f"STUCK: {report.stuck}\n{traceback.format_exc()}")
        return False
    return has_struck


def _come_to_rest(scene: Scene, report: ChaosReport) -> None:
    try:
        scene.engine.wait_until_at_rest(scene.standing)
        for worker in scene.engine.workers:
            if worker.is_running:
                worker.stop()
    except (StuckError, WorkerError) as error:
        report.stuck = report.stuck or f"at the end: {error}"
        for worker in scene.engine.workers:
            worker.kill()


def chosen_faults(names: str) -> list[str]:
    """The names in a list with commas, or all. Raises UnknownNameError."""
    return _chosen(names, FAULTS, "fault")


def _chosen(names: str, known: Iterable[str], what: str) -> list[str]:
    """The names in a list with commas; "all" of them, or "none". Raises UnknownNameError."""
    if names in ("all", "none"):
        return list(known) if names == "all" else []
    chosen = names.split(",")
    if unknown := sorted(set(chosen).difference(known)):
        raise UnknownNameError(
            f"wanted names of {what}s with commas between, got {', '.join(unknown)}; "
            f"there are all, {', '.join(known)}"
        )
    return [name for name in known if name in chosen]


@contextmanager
def _home(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="driftline-chaos-") as path:
            yield Path(path)
        return
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise DriftlineError(
            f"wanted a new folder for the run, got {folder}, which is there"
        ) from error
    yield folder.absolute()
