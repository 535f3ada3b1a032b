"""Keep a demo going: users act at a steady rate, lists are read, processes that die come back."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator

import msgspec
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from export.errors import DriftlineError
from stream.demo.engine import Say, since
from stream.demo.players import Message, Player
from stream.demo.processes import Child
from stream.events import Recommendation, UserEvent, encode
from stream.settings import Settings

#: The worker must have answered by then; a busy machine takes its time to start one.
_FIRST_LIST_PATIENCE_S = 120.0
#: How long to sleep between two looks at the topics: the embedded broker answers at once even
#: where there is nothing, so that waiting for news there would keep a core busy.
_LOOK_S = 0.02
#: A process that dies is started again after this, so that the page has time to say that nothing
#: answers; one that dies at once, again and again, is not.
_RESTART_AFTER_S = 4.0
_HASTY_S, _HASTY_DEATHS = 10.0, 3
_STATUS_EVERY_S = 30.0
#: Between two visits while the first list has not come yet.
_FIRST_ACTS_S = 1.0
#: Delays of the newest lists, for the line that says how fast they are.
_DELAYS = 500
#: Events without a list that are remembered: those of one batch of a user share one.
_UNANSWERED = 1000


class ShowError(DriftlineError):
    """The worker or the page does not stay alive, or no list comes."""


class Show:
    """Sends what a player's users do, and reads the lists that answer it."""

    def __init__(
        self, settings: Settings, producer: KafkaProducer, player: Player, worker: Child, say: Say
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._player = player
        self._worker = worker
        self._say = say
        self._consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap)
        topic = settings.topic("recommendations")
        partitions = [TopicPartition(topic, p) for p in range(settings.partitions)]
        self._consumer.assign(partitions)
        self._consumer.seek_to_beginning(*partitions)
        self._lists: dict[str, Recommendation] = {}
        self._sent: dict[str, float] = {}  # event id -> when, of events without a list yet
        self._delays_ms: deque[float] = deque(maxlen=_DELAYS)
        self._rng = np.random.default_rng()
        self._acts = self._answers = 0

    @classmethod
    @contextlib.contextmanager
    def connected(
        cls, settings: Settings, producer: KafkaProducer, player: Player, worker: Child, say: Say
    ) -> Iterator[Show]:
        """A show for the length of the block."""
        show = cls(settings, producer, player, worker, say)
        try:
            yield show
        finally:
            show._consumer.close()

    def send_past(self) -> None:
        """The catalogue and all that was done before the demo."""
        begun = time.perf_counter()
        counts = {"items": 0, "user-events": 0}
        for message in self._player.past():
            self._send(message)
            counts[message[0]] += 1
        self._producer.flush()
        self._say(
            f"past     {since(begun)}  {counts['items']} items and {counts['user-events']} clicks "
            "of the past sent"
        )

    def wait_for_first_list(self) -> None:
        """Users act until the first of their lists is there; raises ShowError if none comes."""
        begun = act_at = time.perf_counter()
        while not self._answers:
            if self._worker.poll() is not None:
                raise ShowError(f"the worker ended. Its log:\n{self._worker.log_end()}")
            if time.perf_counter() - begun > _FIRST_LIST_PATIENCE_S:
                raise ShowError(f"no list came. The worker's log:\n{self._worker.log_end()}")
            # not once alone: an engine that has counted nothing yet has nothing to list
            if time.perf_counter() >= act_at:
                self._act()
                act_at = time.perf_counter() + _FIRST_ACTS_S
            self._look()
            time.sleep(_LOOK_S)
        self._say(
            f"worker   {since(begun)}  more, until it had taken in the past and sent the first list"
        )

    def go_on(self, rate: float, others: list[Child]) -> None:
        """Users act `rate` times a second, at random moments, for ever."""
        keepers = [_Keeper("worker", self._worker, self._say)]
        keepers += [_Keeper("page", child, self._say) for child in others]
        begun = time.perf_counter()
        act_at, status_at = begun, begun + _STATUS_EVERY_S
        while True:
            now = time.perf_counter()
            if now >= act_at:
                self._act()
                act_at = max(act_at + self._rng.exponential(1 / rate), now - 1.0)
            newest_ms = self._look()
            for keeper in keepers:
                keeper.look_after(now)
            if (away_s := keepers[0].came_back(now, newest_ms)) is not None:
                self._say(f"the worker is back: lists go on, {away_s:.1f} s after it had died")
            if now >= status_at:
                status_at += _STATUS_EVERY_S
                self._say(self._status(now - begun))
            time.sleep(min(_LOOK_S, max(0.0, act_at - time.perf_counter())))

    def _act(self) -> None:
        """What one user does next, and what is new in the catalogue."""
        now_ms = time.time_ns() // 1_000_000
        messages = self._player.act(now_ms, self._lists)
        for message in [*self._player.news(now_ms), *messages]:
            self._send(message)
        for _, _, value in messages:
            if isinstance(value, UserEvent):
                self._acts += 1
                self._sent[value.event_id] = time.perf_counter()
        while len(self._sent) > _UNANSWERED:
            del self._sent[next(iter(self._sent))]

    def _look(self) -> int:
        """Take in the lists that have come; when the newest of them was made, in milliseconds."""
        newest_ms = 0
        for records in self._consumer.poll(timeout_ms=0).values():
            for record in (record for record in records if record.value is not None):
                found = msgspec.json.decode(record.value, type=Recommendation)
                self._lists[str(found.user_id)] = found
                newest_ms = max(newest_ms, found.generated_at)
                sent = self._sent.pop(str(found.trigger.event_id), None)
                if sent is not None:
                    self._answers += 1
                    self._delays_ms.append((time.perf_counter() - sent) * 1000)
        return newest_ms

    def _send(self, message: Message) -> None:
        topic, key, value = message
        self._producer.send(self._settings.topic(topic), key=key.encode(), value=encode(value))

    def _status(self, after_s: float) -> str:
        said = f"{after_s:6.0f} s  {self._acts} visits and clicks, {self._answers} lists"
        if self._delays_ms:
            said += f", of the newest half within {statistics.median(self._delays_ms):.0f} ms"
        return said


class _Keeper:
    """Starts a process again that has died, and tells of it."""

    def __init__(self, name: str, child: Child, say: Say) -> None:
        self._name = name
        self._child = child
        self._say = say
        self._died_at: float | None = None
        self._restart_at: float | None = None
        self._started_at = time.perf_counter()
        self._started_ms = 0
        self._hasty = 0

    def look_after(self, now: float) -> None:
        """Start it again a moment after it has died; raises ShowError if it does nothing else."""
        if self._restart_at is not None:
            if now >= self._restart_at:
                self._restart_at = None
                self._started_at = now
                self._started_ms = time.time_ns() // 1_000_000
                self._child.start()
                self._say(f"the {self._name} is started again, as process {self._child.pid}")
            return
        code = self._child.poll()
        if code is None:
            return
        self._hasty = self._hasty + 1 if now - self._started_at < _HASTY_S else 0
        if self._hasty >= _HASTY_DEATHS:
            raise ShowError(
                f"the {self._name} ends again and again, at last with {code}. Its log:\n"
                f"{self._child.log_end()}"
            )
        self._died_at = now if self._died_at is None else self._died_at
        self._restart_at = now + _RESTART_AFTER_S
        how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
        self._say(f"the {self._name} has died ({how})")

    def came_back(self, now: float, newest_ms: int) -> float | None:
        """Seconds since its death, once, when something made after its new start has come."""
        if self._died_at is None or self._restart_at is not None or newest_ms < self._started_ms:
            return None
        away_s, self._died_at = now - self._died_at, None
        return away_s
