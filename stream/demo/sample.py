"""Show the engine at work: broker, topics, one worker, users, and their lists as they come.

The worker is the one of production, a process of its own that meets this one on topics only.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from export.errors import DriftlineError
from stream.demo.engine import Say, put_up, since, worker_command
from stream.demo.processes import Child, running, stopped_by_signals
from stream.demo.sample_events import (
    PAST_EVENTS,
    SampleUser,
    click,
    past_events,
    sample_items,
    sample_users,
    visit,
)
from stream.events import Interests, Recommendation, UserEvent, encode
from stream.settings import Settings

#: The worker must have answered by then; a busy machine takes its time to start one.
_WORKER_PATIENCE_S = 90.0
_LIST_PATIENCE_S = 10.0
#: The user whose interest jumps halfway, and to what.
_JUMP = ("ada", "hiking")
_SHOWN_ITEMS = 4


class SampleError(DriftlineError):
    """The worker ended or did not answer."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """`bootstrap`: a Kafka, None for the embedded broker. `clicks` come `pace_s` after another."""

    bootstrap: str | None
    clicks: int
    pace_s: float
    seed: int = 7


def run_sample(plan: SamplePlan, say: Say) -> None:
    """Run the sample to its end, or to Ctrl-C; leaves no process, file or topic behind.

    Raises DriftlineError where broker or worker fail, with the end of the worker's log.
    """
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(stopped_by_signals())
            temporary = tempfile.TemporaryDirectory(prefix="driftline-sample-")
            folder = Path(stack.enter_context(temporary))
            settings = put_up("sample", plan.bootstrap, folder, stack, say)
            worker = stack.enter_context(running(worker_command(settings), folder / "worker.log"))
            client = stack.enter_context(_Client.connected(settings, worker))
            _play(plan, client, say)
            say("that was all: the worker is stopped, its files are removed")
    except KeyboardInterrupt:
        say("stopped: the worker is ended, its files are removed")


class _Client:
    """What an application does: sends events, reads lists and interests."""

    def __init__(self, settings: Settings, worker: Child) -> None:
        self._settings = settings
        self._worker = worker
        self._producer = KafkaProducer(bootstrap_servers=settings.bootstrap, acks="all")
        self._consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap)
        topics = settings.topic("recommendations"), settings.topic("interests")
        partitions = [TopicPartition(t, p) for t in topics for p in range(settings.partitions)]
        self._consumer.assign(partitions)
        self._consumer.seek_to_beginning(*partitions)
        self._lists: deque[Recommendation] = deque()
        self._interests: dict[str, Interests] = {}

    @classmethod
    @contextlib.contextmanager
    def connected(cls, settings: Settings, worker: Child) -> Iterator[_Client]:
        client = cls(settings, worker)
        try:
            yield client
        finally:
            client._producer.close()
            client._consumer.close()

    def send_items(self) -> int:
        """Send the catalogue; returns how many items it has."""
        items = sample_items()
        for item in items:
            self._send("items", item.item_id, item)
        return len(items)

    def send(self, event: UserEvent) -> None:
        """Send one event under the key of its user."""
        self._send("user-events", str(event.owner()), event)

    def flush(self) -> None:
        """Wait until all that was sent has arrived."""
        self._producer.flush()

    def lists(self, patience_s: float) -> Iterator[Recommendation]:
        """Lists as they come; raises SampleError when none came for so long."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if self._worker.poll() is not None:
                raise SampleError(f"the worker ended. Its log:\n{self._worker.log_end()}")
            self._poll(timeout_ms=200)
            while self._lists:
                deadline = time.monotonic() + patience_s
                yield self._lists.popleft()
        raise SampleError(f"no list came for {patience_s:.0f} s. Worker:\n{self._worker.log_end()}")

    def answer(self, event: UserEvent) -> tuple[Recommendation, float]:
        """Send an event; returns its list, and the milliseconds from the one to the other."""
        begun = time.perf_counter()
        self.send(event)
        for found in self.lists(_LIST_PATIENCE_S):
            if found.trigger.event_id == event.event_id:
                break
        return found, (time.perf_counter() - begun) * 1000

    def interests(self, user: str) -> Interests | None:
        """The newest interests of a user; they come right after the list that changed them."""
        self._poll(timeout_ms=500)
        return self._interests.get(user)

    def _send(self, topic: str, key: str, message: msgspec.Struct) -> None:
        name = self._settings.topic(topic)
        self._producer.send(name, key=key.encode(), value=encode(message))

    def _poll(self, timeout_ms: int) -> None:
        """Take in what has come: lists to hand out, and the newest interests of every user."""
        fetched = self._consumer.poll(timeout_ms=timeout_ms)
        for record in (record for records in fetched.values() for record in records):
            if record.topic == self._settings.topic("interests"):
                told = msgspec.json.decode(record.value, type=Interests)
                self._interests[str(told.user_id)] = told
            else:
                self._lists.append(msgspec.json.decode(record.value, type=Recommendation))


def _play(plan: SamplePlan, client: _Client, say: Say) -> None:
    """The users' past at once, then one click after another."""
    rng, users = Random(plan.seed), sample_users()
    begun = time.perf_counter()
    items = client.send_items()
    for event in past_events(users, rng, _now_ms()):
        client.send(event)
    client.flush()
    waited_for = {user.name for user in users}
    for found in client.lists(_WORKER_PATIENCE_S):
        waited_for.discard(str(found.user_id))
        if not waited_for:
            break
    say(
        f"worker   {since(begun)}  has started, read {items} items and {PAST_EVENTS} past clicks, "
        f"and sent lists to all {len(users)} users"
    )
    say("\n  time  user  event           its list after  the list begins with")
    begun = time.perf_counter()
    delays_ms: list[float] = []
    for number in range(plan.clicks):
        if number == plan.clicks // 2:
            _jump(users, say)
        user = users[number % 3]
        time.sleep(max(0.0, begun + number * plan.pace_s - time.perf_counter()))
        delays_ms += _visit_and_click(client, user, PAST_EVENTS + 2 * number, rng, begun, say)
    _summary(client, delays_ms, say)


def _visit_and_click(
    client: _Client, user: SampleUser, number: int, rng: Random, begun: float, say: Say
) -> list[float]:
    """One user opens the application and takes an item; returns the delays of both lists."""
    delays_ms = []
    for event in (visit(user, number, _now_ms()), click(user, number + 1, _now_ms(), rng)):
        found, delay_ms = client.answer(event)
        what = "visit" if event.type == "visit" else f"click {event.item_id}"
        listed = ", ".join(item.item_id for item in found.items[:_SHOWN_ITEMS])
        after = time.perf_counter() - begun
        say(f"{after:5.1f} s  {user.name:<4}  {what:<19} {delay_ms:5.1f} ms  {listed}")
        delays_ms.append(delay_ms)
    return delays_ms


def _jump(users: list[SampleUser], say: Say) -> None:
    name, category = _JUMP
    user = next(user for user in users if user.name == name)
    say(f"--- {name} has had enough of {user.favourite}: from now on it is {category}")
    user.favourite = category


def _summary(client: _Client, delays_ms: list[float], say: Say) -> None:
    ordered = sorted(delays_ms)
    middle, slow = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    say(
        f"\n{len(ordered)} lists, from the sending of the event to the reading of its list: "
        f"half within {middle:.1f} ms, 95 % within {slow:.1f} ms"
    )
    told = client.interests(_JUMP[0])
    if told is not None:
        now = ", ".join(f"{i.label} {i.weight:.2f} ({i.trend})" for i in told.now[:3])
        coming = ", ".join(f"{i.label} {i.probability:.2f}" for i in told.next[:3])
        say(f"{_JUMP[0]}'s interests: now {now}; next {coming}")


def _now_ms() -> int:
    return int(time.time() * 1000)
