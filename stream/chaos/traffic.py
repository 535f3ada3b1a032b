"""Send events evenly while faults strike: seeded, with all that real producers get wrong."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count, islice
from typing import Literal

from kafka import KafkaProducer
from kafka.errors import KafkaError

Record = tuple[bytes, bytes]

#: What is out of the usual. Of what a producer can get wrong: records sent once more, as after a
#: lost answer; in another order than their events happened; laid by librdkafka's own partitioner;
#: under a clock that has leapt back by hours, or by more than an event may be ahead of its record,
#: which is refused then. Of what users do: clicks without a name, and control events.
Unusual = Literal["again", "shuffled", "partitioner", "clock-hours", "clock-days", "wishes"]

_USERS, _ITEMS = 800, 600
_BEGIN_MS = 1_700_000_000_000
#: Of every ten thousand events so many ...
_LATE, _TWICE, _REFUSED, _WRONG_KEY, _VISITS = 100, 100, 30, 20, 1000
#: What unusual users do, and how often: "guest" is a click without a name.
_WISHES = {
    "guest": 50,
    "user_merge": 25,
    "history_reset": 8,
    "user_delete": 4,
    "user_opt_out": 3,
    "user_opt_in": 4,
    "item_block": 6,
}
_GUESTS = 40
_CHUNKS_PER_S = 20
#: Of so many records that were sent last some are sent again.
_RECENT = 1000
_PATIENCE_S = 20.0
_HOUR_MS = 3_600_000


def records(seed: int) -> Iterator[tuple[int, list[Record]]]:
    """Event numbers from 0 on, each with the records that it is sent as, without end.

    Ratings of users and items by a power law with visits between them; of every hundred about one
    is sent twice, one comes late, and now and then one is refused or lies under a wrong key.
    """
    rng = random.Random(seed)
    users = list(accumulate(1 / rank for rank in range(1, _USERS + 1)))
    items = list(accumulate(1 / rank for rank in range(1, _ITEMS + 1)))
    for number in count():
        (user,) = rng.choices(range(_USERS), cum_weights=users)
        (item,) = rng.choices(range(_ITEMS), cum_weights=items)
        yield number, _sent_as(number, f"u{user}", f"i{item}", rng)


def _sent_as(number: int, user: str, item: str, rng: random.Random) -> list[Record]:
    chance = rng.randrange(10_000)
    late_ms = rng.randrange(10**9)
    fields = {
        "event_id": f"event-{number:09d}",
        "type": "rate",
        "event_time": _BEGIN_MS + number * 100,
        "user_id": user,
        "item_id": item,
        "value": rng.randrange(1, 11),
    }
    bounds = accumulate((_LATE, _TWICE, _REFUSED, _WRONG_KEY, _VISITS))
    late, twice, refused, wrong_key, visits = bounds
    if chance < late:
        fields["event_time"] = _BEGIN_MS + number * 100 - late_ms
    elif wrong_key <= chance < visits:
        fields["type"] = "visit"
    value, key = json.dumps(fields).encode(), user.encode()
    if late <= chance < twice:
        return [(key, value), (key, value)]
    if twice <= chance < refused:
        return [(key, value[:-9])]
    if refused <= chance < wrong_key:
        return [(b"another-user", value)]
    return [(key, value)]


def _wish_for(record: Record, rng: random.Random) -> Record:
    """What stands in the place of an event: a click without a name, or what its user asks for."""
    try:
        fields = json.loads(record[1])
    except ValueError:  # one that is to be refused
        return record
    user, item, guest = fields["user_id"], fields["item_id"], f"guest-{rng.randrange(_GUESTS)}"
    (kind,) = rng.choices(list(_WISHES), list(_WISHES.values()))
    if kind == "guest":
        fields["anonymous_id"] = guest
        del fields["user_id"]
        return guest.encode(), json.dumps(fields).encode()
    control = {
        "schema": "driftline.control/1",
        "event_id": fields["event_id"],
        "type": kind,
        "event_time": fields["event_time"],
        "user_id": user,
    }
    if kind == "user_merge":
        control["from_anonymous_id"] = guest
    elif kind == "item_block":
        control["target"] = item
    return user.encode(), json.dumps(control).encode()


def number_of(value: bytes | None) -> int | None:
    """The number of the event that a record of `records` is, refused ones too; None: another's."""
    _, found, rest = (value or b"").partition(b'"event-')
    return int(rest[:9]) if found else None


@dataclass(frozen=True, slots=True)
class _Way:
    """How records are laid on the topic. None: as the client does."""

    partitions: int | None = None  # of librdkafka's partitioner
    clock_back_ms: int | None = None  # the records' timestamps, from their event times

    def partition_of(self, key: bytes) -> int | None:
        return None if self.partitions is None else zlib.crc32(key) % self.partitions

    def timestamp_of(self, value: bytes) -> int | None:
        number = number_of(value)
        if self.clock_back_ms is None or number is None:
            return None
        return _BEGIN_MS + number * 100 - self.clock_back_ms


_USUAL = _Way()


class Sender(threading.Thread):
    """Sends `rate` events a second until it is stopped; what the broker refuses, again.

    `acknowledged`: all events with a smaller number are in the log.
    """

    def __init__(self, bootstrap: str, topic: str, seed: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.acknowledged = 0
        self._brokers, self._topic, self._rate = bootstrap, topic, rate
        self._source = records(seed)
        self._recent: deque[Record] = deque(maxlen=_RECENT)
        self._rng = random.Random(seed + 1)
        self._wanted: tuple[Unusual, int] | None = None
        self._was_unusual = threading.Event()
        self._stop_asked = threading.Event()
        self._producer = self._new_producer()

    def run(self) -> None:
        size = max(1, round(self._rate / _CHUNKS_PER_S))
        due_s = time.monotonic()
        while not self._stop_asked.is_set():
            self.send_events(size)
            self._send_wanted()
            due_s = max(due_s + size / self._rate, time.monotonic() - 1)
            self._stop_asked.wait(max(0.0, due_s - time.monotonic()))

    def stop(self) -> None:
        """End after what is on its way."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(3 * _PATIENCE_S)
        _close(self._producer)

    def send_events(self, size: int) -> None:
        """Send the next events and wait until the broker has all of them."""
        self._send(size, _USUAL)

    def send_unusual(self, how: Unusual, size: int) -> bool:
        """Send about so many unusual records in between; False: it did not come to it."""
        self._was_unusual.clear()
        self._wanted = how, size
        return self._was_unusual.wait(_PATIENCE_S)

    def _send_wanted(self) -> None:
        if self._wanted is None:
            return
        (how, size), self._wanted = self._wanted, None
        self.lay(how, size)
        self._was_unusual.set()

    def lay(self, how: Unusual, size: int) -> None:
        """Send about so many unusual records, and wait until the broker has all of them."""
        partitions = len(self._producer.partitions_for(self._topic))
        if how == "again":
            self._deliver(self._rng.choices(list(self._recent), k=size), _USUAL)
        elif how == "shuffled":
            self._send(size, _USUAL, self._shuffled)
        elif how == "wishes":
            self._send(size, _USUAL, lambda sent: [_wish_for(record, self._rng) for record in sent])
        elif how == "partitioner":
            self._send(size, _Way(partitions=partitions))
        else:
            self._send(size, _Way(clock_back_ms=(7 if how == "clock-hours" else 50) * _HOUR_MS))

    def _shuffled(self, sent: list[Record]) -> list[Record]:
        return self._rng.sample(sent, len(sent))

    def _send(
        self,
        size: int,
        way: _Way,
        change: Callable[[list[Record]], list[Record]] = lambda sent: sent,
    ) -> None:
        chunk = list(islice(self._source, size))
        sent = change([record for _, of_event in chunk for record in of_event])
        self._deliver(sent, way)
        self._recent.extend(sent)
        self.acknowledged += size

    def _deliver(self, wanted: list[Record], way: _Way) -> None:
        while wanted:
            producer = self._producer
            futures = []
            left: list[Record] = []
            try:
                for key, value in wanted:
                    futures.append(
                        producer.send(
                            self._topic,
                            key=key,
                            value=value,
                            partition=way.partition_of(key),
                            timestamp_ms=way.timestamp_of(value),
                        )
                    )
                producer.flush(_PATIENCE_S)
            except KafkaError:
                left = wanted[len(futures) :]
            for record, future in zip(wanted, futures, strict=False):
                if not future.is_done or future.failed():
                    left.append(record)
            if left:  # of an idempotent producer nothing comes after an error that it keeps
                _close(producer)
                self._producer = self._new_producer()
            wanted = left

    def _new_producer(self) -> KafkaProducer:
        while True:
            try:
                return KafkaProducer(
                    bootstrap_servers=self._brokers.split(","),
                    linger_ms=5,
                    reconnect_backoff_max_ms=500,
                    request_timeout_ms=4000,
                    delivery_timeout_ms=15_000,
                    max_block_ms=10_000,
                    bootstrap_timeout_ms=3000,
                )
            except KafkaError:
                if self._stop_asked.wait(0.5):
                    raise


def _close(producer: KafkaProducer) -> None:
    """Give a producer up, with whatever it could not send."""
    with contextlib.suppress(KafkaError):
        producer.close(timeout=0)
