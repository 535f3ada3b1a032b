"""Send clicks and visits at a fixed rate, whatever the answers do, and time each one's list.

A sender that waits for a slow answer sends less while the engine is slow, and so hides how slow it
was (coordinated omission). Here the times of sending are drawn beforehand, and latency counts from
the time at which an event should have been sent until a consumer has the list that answers it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec import Struct
from numpy.typing import NDArray

from stream.bench.watched import RunFailedError
from stream.bench.workload import partition_of, user_id
from stream.events import UserEvent, encode
from stream.settings import Settings

#: Events that should have been sent by now go out together; closer than this they are one send.
_TICK_S = 0.0005
_DRAIN_TIMEOUT_S = 60.0
#: At most so many events are handed to the producer at once, when all are to go out immediately.
_BURST = 500


class _Trigger(Struct):
    event_id: str
    coalesced: int


class _List(Struct):
    user_id: str
    trigger: _Trigger


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: `at_s` are the seconds from the begin, `users` and `items` who and what.

    Every second event is a visit. `name` sets its event ids apart from those of other loads.
    """

    name: str
    at_s: NDArray[np.float64]  # [N], ascending
    users: NDArray[np.int64]  # [N]
    items: Sequence[str]  # [N]

    @staticmethod
    def poisson(
        name: str, rate: float, seconds: float, users: int, items: Sequence[str], seed: int
    ) -> Load:
        """Events that come independently of each other, `rate` a second; anybody is next."""
        rng = np.random.default_rng(seed)
        gaps = rng.exponential(1 / rate, max(int(rate * seconds), 1))
        drawn = rng.integers(0, len(items), len(gaps))
        who = rng.integers(0, users, len(gaps))
        return Load(name, np.cumsum(gaps), who, [items[i] for i in drawn.tolist()])

    @staticmethod
    def burst(
        name: str,
        events: int,
        users: int,
        items: Sequence[str],
        seed: int,
        rate: float = math.inf,
    ) -> Load:
        """Events of different users, all due at once, or evenly at `rate` a second."""
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(items), events)
        who = rng.permutation(users)[:events]
        at_s = np.arange(len(who)) / rate
        return Load(name, at_s, who, [items[i] for i in drawn[: len(who)].tolist()])


@dataclass(slots=True)
class Answers:
    """What became of a load. Times are time.monotonic()."""

    begun_s: float = 0.0
    latency_ms: list[float] = field(default_factory=list)  # of each event, as lists came
    list_s: list[float] = field(default_factory=list)  # when each list was there
    sent_late_ms: list[float] = field(default_factory=list)  # the sender's own fault
    sent_s: float = math.inf  # when the last event was handed to the producer
    unanswered: int = 0
    mismatched: int = 0  # lists whose trigger is no event that was sent

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many percent of the events stay below."""
        return float(np.percentile(self.latency_ms, percent)) if self.latency_ms else float("nan")

    def wrong(self) -> list[str]:
        """Why the figures count for nothing; empty where they count."""
        found = []
        if self.unanswered:
            found.append(f"{self.unanswered} events have no list")
        if self.mismatched:
            found.append(f"{self.mismatched} lists name an event that was not sent")
        return found


class Unanswered:
    """The events of a load that wait for a list."""

    def __init__(self) -> None:
        self.left = 0
        self._waiting: dict[str, deque[tuple[str, float]]] = defaultdict(deque)  # by user
        #: Of this load and of the one before: event id -> how many events the list of this trigger
        #: says that it answers; 1 of those that were no trigger.
        self._answered: dict[str, int] = {}
        self._answered_before: dict[str, int] = {}

    def begin(self, events: int) -> None:
        """A load of so many events comes next."""
        self.left = events
        self._waiting.clear()
        self._answered_before, self._answered = self._answered, {}

    def sent(self, user: str, event_id: str, due_s: float) -> None:
        """An event is sent that was due at this time; a user's in the order of the log."""
        self._waiting[user].append((event_id, due_s))

    def take(self, found: _List, now_s: float, answers: Answers) -> None:
        """Enter a list: it answers its user's events up to its trigger, and as many as it says.

        A list whose trigger was answered before is there again after a crash. It may answer more
        than it did then, as more events were read together with its trigger. Which ones, it does
        not say: after a crash the next events of its user can count as answered before they are.
        """
        trigger, coalesced = found.trigger.event_id, found.trigger.coalesced
        waiting = self._waiting.get(found.user_id, deque())
        is_before_trigger = trigger in [name for name, _ in waiting]
        count, left, known = 0, self.left, None
        if not is_before_trigger:
            known = self._answered.get(trigger, self._answered_before.get(trigger))
            if known is None:
                answers.mismatched += 1
                return
            count = known
        while waiting and (is_before_trigger or count < coalesced):
            name, due_s = waiting.popleft()
            is_before_trigger &= name != trigger
            count += 1
            self._answered[name] = 1
            answers.latency_ms.append((now_s - due_s) * 1e3)
            self.left -= 1
        if self.left < left:
            answers.list_s.append(now_s)
        self._answered[trigger] = max(coalesced, known or 1)


class OpenLoop:
    """A producer of events and a consumer of lists, for one load after another."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._events = settings.topic("user-events")
        self._lists = settings.topic("recommendations")
        self._producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap, acks="all")
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.bootstrap, group_id=None, enable_auto_commit=False
        )
        self._decode = msgspec.json.Decoder(_List).decode
        self._unanswered = Unanswered()

    async def __aenter__(self) -> OpenLoop:
        await self._producer.start()
        await self._consumer.start()
        tps = [TopicPartition(self._lists, number) for number in range(self._settings.partitions)]
        self._consumer.assign(tps)
        await self._consumer.seek_to_end(*tps)
        for tp in tps:  # the position is known, so that nothing sent from now on is missed
            await self._consumer.position(tp)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._producer.stop()

    async def maximum(
        self, name: str, events: int, users: int, items: Sequence[str], seed: int
    ) -> tuple[float, list[str]]:
        """(events a second that the engine keeps up with while they are sent, what was wrong).

        A burst comes first, and is worked off while nobody sends: faster than the engine is with a
        sender beside it. Twice as many events at the burst's rate are more than it keeps up with.
        Where that is sent before half of it is answered, all its lists count.
        """
        burst = await self.run(Load.burst(f"{name}-burst", events, users, items, seed))
        flood = Load.burst(f"{name}-flood", 2 * events, users, items, seed + 1, list_rate(burst))
        answers = await self.run(flood)
        is_long = np.median(answers.list_s) <= answers.sent_s
        rate = list_rate(answers, answers.sent_s if is_long else math.inf)
        return rate, [*burst.wrong(), *answers.wrong()]

    async def run(
        self, load: Load, while_running: Callable[[float], None] | None = None
    ) -> Answers:
        """Send a load and wait for its lists, for a minute after the last event was sent.

        `while_running` is called about twice a second with the seconds since the begin.
        """
        answers = Answers()
        self._unanswered.begin(len(load.at_s))
        values = self._encoded(load)
        answers.begun_s = time.monotonic()
        listening = asyncio.create_task(self._listen(answers))
        watching = asyncio.create_task(_every_half_second(answers.begun_s, while_running))
        try:
            await self._send(load, values, answers)
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await listening
        except TimeoutError:
            pass
        finally:
            listening.cancel()
            watching.cancel()
            await asyncio.gather(listening, watching, return_exceptions=True)
        answers.unanswered = self._unanswered.left
        return answers

    def _encoded(self, load: Load) -> list[tuple[str, str, bytes, bytes, int]]:
        """(user, event id, key, value, partition) of each event; the clock costs nothing later."""
        begin_ms = int(time.time() * 1000)
        rows = []
        for number, (at_s, who, item) in enumerate(
            zip(load.at_s.tolist(), load.users.tolist(), load.items, strict=True)
        ):
            user, event_id = user_id(who), f"{load.name}-{number:08d}"
            event_ms = begin_ms + int(at_s * 1000)
            event = (
                UserEvent(event_id, "visit", event_ms, user_id=user)
                if number % 2
                else UserEvent(event_id, "click", event_ms, user_id=user, item_id=item)
            )
            key = user.encode()
            place = partition_of(key, self._settings.partitions)
            rows.append((user, event_id, key, encode(event), place))
        return rows

    async def _send(
        self, load: Load, values: list[tuple[str, str, bytes, bytes, int]], answers: Answers
    ) -> None:
        due = (load.at_s + answers.begun_s).tolist()
        at, sent = 0, []
        while at < len(due):
            now_s = time.monotonic()
            end = at
            while end < len(due) and due[end] <= now_s + _TICK_S and end - at < _BURST:
                user, event_id, key, value, partition = values[end]
                self._unanswered.sent(user, event_id, due[end])
                sent.append(
                    await self._producer.send(
                        self._events, key=key, value=value, partition=partition
                    )
                )
                answers.sent_late_ms.append(max(now_s - due[end], 0.0) * 1e3)
                end += 1
            at = end
            if at < len(due):
                await asyncio.sleep(max(due[at] - time.monotonic(), 0))
        answers.sent_s = time.monotonic()
        await asyncio.gather(*sent)

    async def _listen(self, answers: Answers) -> None:
        while self._unanswered.left:
            fetched = await self._consumer.getmany(timeout_ms=200)
            now_s = time.monotonic()
            for records in fetched.values():
                for record in records:
                    if record.value is not None:
                        self._unanswered.take(self._decode(record.value), now_s, answers)


async def _every_half_second(begun_s: float, call: Callable[[float], None] | None) -> None:
    while call is not None:
        call(time.monotonic() - begun_s)
        await asyncio.sleep(0.5)


def list_rate(answers: Answers, until_s: float = math.inf) -> float:
    """Lists a second of a burst, after the first tenth of those that were there by `until_s`.

    The first ones wait for the first fetch, and come before there is a full batch. Where all came
    at once, the time since the begin counts. Raises RunFailedError where none came.
    """
    at: Any = np.sort(np.asarray(answers.list_s))
    at = at[at <= until_s]
    if not len(at):
        raise RunFailedError("wanted lists to tell a rate from, got none")
    first = len(at) // 10
    if at[-1] == at[first]:
        return float(len(at) / max(at[-1] - answers.begun_s, 1e-3))
    return float((len(at) - 1 - first) / (at[-1] - at[first]))
