"""Send events evenly while faults strike: seeded, with all that real producers get wrong."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import accumulate, count, islice

from kafka import KafkaProducer
from kafka.errors import KafkaError

Record = tuple[bytes, bytes]

_USERS, _ITEMS = 800, 600
_BEGIN_MS = 1_700_000_000_000
#: Of every ten thousand events so many ...
_LATE, _TWICE, _REFUSED, _WRONG_KEY, _VISITS = 100, 100, 30, 20, 1000
_CHUNKS_PER_S = 20
#: How many of the records sent last `send_again` chooses from.
_RECENT = 1000
_PATIENCE_S = 20.0


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


def number_of(value: bytes | None) -> int | None:
    """The number of the event that a record of `records` is, refused ones too."""
    head, _, rest = (value or b"").partition(b'"event-')
    return int(rest[:9]) if head else None


class Sender(threading.Thread):
    """Sends `rate` events a second until it is stopped; what the broker refuses, again.

    `acknowledged`: all events with a smaller number are in the log.
    """

    def __init__(self, bootstrap: str, topic: str, seed: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.acknowledged = 0
        self.sent_again = 0
        self._brokers, self._topic, self._rate = bootstrap, topic, rate
        self._source = records(seed)
        self._recent: deque[Record] = deque(maxlen=_RECENT)
        self._rng = random.Random(seed + 1)
        self._wanted_again = 0
        self._stop_asked = threading.Event()
        self._producer = self._new_producer()

    def run(self) -> None:
        size = max(1, round(self._rate / _CHUNKS_PER_S))
        due_s = time.monotonic()
        while not self._stop_asked.is_set():
            self.send_events(size)
            self._send_again()
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
        chunk = list(islice(self._source, size))
        sent = [record for _, of_event in chunk for record in of_event]
        self._deliver(sent)
        self._recent.extend(sent)
        self.acknowledged += size

    def send_again(self, size: int) -> None:
        """Have some of the newest records sent twice, as by a producer that has lost an answer."""
        self._wanted_again = size

    def _send_again(self) -> None:
        size, self._wanted_again = self._wanted_again, 0
        if size:
            self._deliver(self._rng.choices(list(self._recent), k=size))
            self.sent_again += size

    def _deliver(self, wanted: list[Record]) -> None:
        while wanted:
            producer = self._producer
            futures = []
            left: list[Record] = []
            try:
                for key, value in wanted:
                    futures.append(producer.send(self._topic, key=key, value=value))
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
