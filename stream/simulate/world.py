"""Run an engine of simulated workers through events and faults, all drawn from one seed."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

from export.event_types import EventRole
from stream import agents
from stream.guards import ALL_GUARDS, Guards
from stream.history import source_fingerprint
from stream.kafka.wiring import BrokerLimits, faust_settings
from stream.settings import Settings
from stream.simulate.broker import Broker, Group
from stream.simulate.check import check_engine
from stream.simulate.loop import StuckError, VirtualLoop
from stream.simulate.network import Link, Weather
from stream.simulate.store import Disk
from stream.simulate.traffic import PARTITIONS, Traffic
from stream.simulate.worker import SimulatedWorker, Surroundings
from stream.topics import state_changelog
from stream.verify.report import Report

#: Runs in which users without a name come too: one of so many.
GUESTS_EVERY, GUESTS_IN = 7, 4
TOPIC_ID = "simulated"
EPOCH_MS = 1_700_000_000_000
#: After the last event and fault, all must be done within so much virtual time.
PATIENCE_S = 200.0
#: A run that needs more steps of the loop goes round in circles.
MAX_STEPS = 2_000_000
#: What happens to one worker, and what to the engine.
HARMS = ("kill", "wipe", "pause", "cut", "leave")
#: How long a worker is cut off. The long ones outlast its session: what it had sent to its broker
#: before arrives after another worker has its partitions.
CUTS_S = (0.3, 1.0, 3.0, 8.0, 20.0)
FAULTS = (*HARMS, "kill", "cut", "pause", "join", "compact", "lose-tail")
#: Steps of a batch at which a worker is struck; None: whatever it does.
STEPS = (None, "fold", "rank", "send", "changelog", "write", "ack")


@dataclass(slots=True)
class Outcome:
    """What became of one run."""

    seed: int
    holds: bool
    findings: list[str]
    digest: str
    events: int
    virtual_s: float
    faults: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed says."""

    settings: Settings
    weather: Weather
    workers: int
    records_in_request: int
    duration_s: float
    events: int
    faults: list[tuple[float, str, str | None]]


def plan_of(rng: random.Random, clicks_list: bool) -> Plan:
    """Draw the circumstances: how large batches are, how bad the network is, what happens when.

    Where clicks make no list due, batches of clicks go on while those before them are under way.
    """
    duration_s = rng.uniform(10, 30)
    settings = Settings(
        partitions=PARTITIONS,
        registry="/nonexistent",
        model=False,
        session_timeout_s=6.0,
        commit_interval_s=rng.choice([0.1, 0.5, 2.0]),
        batch_records=rng.choice([1, 3, 8, 20]),
        batch_wait_ms=rng.choice([0.0, 1.0, 20.0]),
        max_history=5,
        max_taken=4,
        dedupe_ring=rng.choice([16, 16, 2, 0]),
        max_lateness_ms=4000,
        list_length=3,
        refresh_debounce_ms=rng.choice([0, 0, 500]),
        event_types={} if clicks_list else {"click": EventRole("positive", refreshes=False)},
    )
    weather = Weather(
        rng.choice([0.002, 0.02, 0.1]), rng.choice([0.0, 0.02]), rng.choice([0.0, 0.02])
    )
    faults = sorted(
        (
            (rng.uniform(1, duration_s), rng.choice(FAULTS), rng.choice(STEPS))
            for _ in range(rng.randint(2, 8))
        ),
        key=lambda fault: fault[0],
    )
    return Plan(
        settings,
        weather,
        rng.randint(1, 3),
        rng.choice([2, 5, 1000]),
        duration_s,
        rng.randint(40, 100),
        faults,
    )


class World:
    """The broker, the workers, and who does harm to them."""

    def __init__(self, seed: int, guards: Guards) -> None:
        self.rng = random.Random(seed)
        self.plan = plan_of(self.rng, clicks_list=random.Random(~seed).random() < 0.6)
        settings = self.plan.settings
        self.loop = VirtualLoop(lambda: self.rng.expovariate(1 / 0.01))
        shared = dict.fromkeys(("user-events", "recommendations", "decisions"), PARTITIONS)
        shared |= dict.fromkeys(("item-statistics", "interests"), PARTITIONS)
        shared |= {"dead-letters": 1, "release-log": 1, state_changelog(settings): PARTITIONS}
        limits = BrokerLimits(
            session_timeout_s=settings.session_timeout_s,
            heartbeat_s=settings.heartbeat_interval_s,
            max_request_bytes=settings.max_request_bytes,
        )
        timeout_s = faust_settings(limits).get("producer_request_timeout", 1200.0)
        self.broker = Broker(shared, Group(PARTITIONS, settings.session_timeout_s, 60.0))
        self.around = Surroundings(
            settings,
            self.broker,
            self.rng,
            guards,
            source_fingerprint(TOPIC_ID, PARTITIONS),
            self.plan.records_in_request,
            float(timeout_s),  # type: ignore[arg-type]
            self._reached,
        )
        self._traffic = Traffic(
            self.rng,
            self.broker,
            lambda: EPOCH_MS + int(self.loop.time() * 1000),
            has_guests=seed % GUESTS_EVERY == GUESTS_IN,
        )
        self._keeps_disks = random.Random(f"disks {seed}").random() < 0.5
        self._armed: list[tuple[str, str]] = []
        self.disks = [Disk(self.rng) for _ in range(4)]
        self.workers: dict[int, SimulatedWorker] = {}
        self.ended: list[SimulatedWorker] = []
        self.faults: dict[str, int] = {}

    # -- what happens -----------------------------------------------------------------------

    async def live(self) -> None:
        """Events and faults, then quiet, then a new worker that has only the topics to go by."""
        asyncio.get_running_loop().create_task(self._coordinate())
        for number in range(self.plan.workers):
            self._start(number)
        sending = asyncio.create_task(self._send_events())
        supervising = asyncio.create_task(self._supervise())
        for at_s, fault, step in self.plan.faults:
            await asyncio.sleep(max(at_s - self.loop.time(), 0))
            if step is not None and fault in HARMS:
                self._armed.append((fault, step))
            else:
                self._strike(fault)
        await sending
        self._armed.clear()
        for worker in self.workers.values():
            worker.link.heal()
        await self._until_done()
        supervising.cancel()
        await self._audit()

    async def _audit(self) -> None:
        """All workers end, one with an empty disk takes over, and does a last event of each."""
        for worker in self.workers.values():
            worker.die("the end")
            self.ended.append(worker)
        self.workers.clear()
        self.disks[3].wipe()
        self._start(3)
        self._traffic.send_round(with_visits=bool(self.plan.settings.event_types))
        await self._until_done()
        await asyncio.sleep(1.0)  # the last deltas are read

    async def _until_done(self) -> None:
        """Until all is committed; raises StuckError if that takes too long."""
        deadline_s = self.loop.time() + PATIENCE_S
        while not self._is_done():
            if self.loop.time() > deadline_s:
                raise StuckError(f"after {PATIENCE_S:.0f} s: {self._positions()}")
            await asyncio.sleep(0.5)

    def _is_done(self) -> bool:
        return all(committed == end for committed, end in self._positions().values())

    def _positions(self) -> dict[int, tuple[int, int]]:
        committed = self.broker.group.committed
        return {
            partition: (committed.get(partition, 0), self.broker.logs["user-events", partition].end)
            for partition in range(PARTITIONS)
        }

    async def _coordinate(self) -> None:
        while True:
            self.broker.group.tick(self.loop.time())
            await asyncio.sleep(0.05)

    async def _supervise(self) -> None:
        """Start again what has ended, after a while, as a supervisor does."""
        while True:
            await asyncio.sleep(0.5)
            for number, worker in list(self.workers.items()):
                if not worker.is_running and self.rng.random() < 0.3:
                    self.ended.append(worker)
                    self._start(number)

    def _start(self, number: int) -> None:
        link = Link(self.rng, self.plan.weather)
        name = f"worker{number}-{len(self.ended)}"
        worker = SimulatedWorker(self.around, name, self.disks[number], link, self.loop)
        self.workers[number] = worker
        worker.start()

    def _strike(self, fault: str) -> None:
        """Do one kind of harm to one of the workers that run."""
        running = [number for number, worker in self.workers.items() if worker.is_running]
        if fault == "join":
            absent = [number for number in range(3) if number not in self.workers]
            if absent:
                self._start(absent[0])
                self.faults["join"] = self.faults.get("join", 0) + 1
        elif fault == "compact":
            log = self.broker.logs[state_changelog(self.plan.settings), self.rng.randrange(2)]
            log.compact(self.rng.randint(0, log.end))
            self.faults["compact"] = self.faults.get("compact", 0) + 1
        elif fault == "lose-tail":
            self._lose_tail()
        elif running:
            self._harm(self.workers[self.rng.choice(running)], fault)

    def _reached(self, worker: SimulatedWorker, step: str) -> None:
        """A worker comes to a step: a fault that waits for it strikes now, or a moment later."""
        for fault, at_step in self._armed:
            if at_step == step:
                self._armed.remove((fault, at_step))
                delay_s = self.rng.choice(
                    [0.0, self.rng.expovariate(1 / self.plan.weather.delay_s)]
                )
                self.loop.call_later(
                    delay_s, self._harm, worker, fault, context=contextvars.Context()
                )
                break

    def _lose_tail(self) -> None:
        """The brokers lose the newest changelog rows. All workers die, in some runs the disks too.

        What was on its way to the broker that lost them is lost as well: a row that came after
        them would stand for what is not there.
        """
        for worker in self.workers.values():
            worker.link.cut()
            worker.die("lose-tail")
        for disk in self.disks if not self._keeps_disks else ():
            disk.wipe()
        for partition in range(PARTITIONS):
            log = self.broker.logs[state_changelog(self.plan.settings), partition]
            log.lose_tail(self.rng.randint(0, 10))
        self.faults["lose-tail"] = self.faults.get("lose-tail", 0) + 1

    def _harm(self, worker: SimulatedWorker, fault: str) -> None:
        if not worker.is_running:
            return
        self.faults[fault] = self.faults.get(fault, 0) + 1
        if fault == "pause":
            worker.stand_still(self.rng.choice([0.5, 3.0, 8.0, 15.0]))
        elif fault == "cut":
            worker.link.cut()
            self.loop.call_later(self.rng.choice(CUTS_S), worker.link.heal)
        else:
            worker.die(fault)
            if fault == "wipe":
                worker.disk.wipe()
            elif fault == "leave" and len(self.workers) > 1:
                self.ended.append(worker)
                self.workers = {n: w for n, w in self.workers.items() if w is not worker}

    async def _send_events(self) -> None:
        pause_s = self.plan.duration_s / self.plan.events
        for number in range(self.plan.events):
            if self.rng.random() < 0.8:  # else in one burst with the one before
                await asyncio.sleep(self.rng.expovariate(1 / pause_s))
            self._traffic.send(number)


def simulate(seed: int, guards: Guards = ALL_GUARDS) -> Outcome:
    """One run and its verdict; the same seed gives the same run."""
    world = World(seed, guards)
    findings: list[str] = []
    with _quiet(), _on(world):
        try:
            world.loop.run_until_complete(world.live())
        except StuckError as error:
            findings.append(f"stuck: {error}")
        else:
            findings += told(check_engine(world.around, world.broker, world.workers[3]))
            if "lose-tail" in world.faults:  # with a row its user's seq is lost: lists begin anew
                findings = [found for found in findings if not found.startswith("newest lists")]
        outcome = Outcome(
            seed,
            not findings,
            findings,
            digest_of(world.broker),
            sum(log.end for (name, _), log in world.broker.logs.items() if name == "user-events"),
            world.loop.time(),
            world.faults,
        )
    return outcome


def told(report: Report) -> list[str]:
    """What a report found wrong."""
    return [
        f"{check.name}: {finding}"
        for check in report.checks
        if not check.holds
        for finding in check.told
    ]


def digest_of(broker: Broker) -> str:
    """Equal where two runs wrote the same records in the same order."""
    digest = hashlib.sha256()
    for log in broker.logs.values():
        for record in log.records:
            digest.update(repr((record.offset, record.key, record.value)).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _on(world: World) -> Iterator[None]:
    """The world's loop is the current one, and its time that of the batch function."""
    real = vars(agents)["time"]
    loop = world.loop
    clock = SimpleNamespace(
        time=lambda: EPOCH_MS / 1000 + loop.time(), perf_counter=loop.time, monotonic=loop.time
    )
    vars(agents)["time"] = clock
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda *_: None)
    try:
        yield
    finally:
        vars(agents)["time"] = real
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        asyncio.set_event_loop(None)
        loop.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Workers that end and connections that break are what this is about: they are not told.

    Neither is what coroutines of dead workers raise as they are collected.
    """
    before = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        logging.disable(before[0])
        sys.unraisablehook = before[1]
