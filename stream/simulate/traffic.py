"""What users of a simulated engine do, drawn from the run's seed: clicks, wishes, and mistakes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from stream.partitioner import partitions_of
from stream.simulate.broker import Broker

PARTITIONS = 2
USERS = 8
ITEMS = 10
#: Users without a name: they click, and are merged into users.
GUESTS = 3
#: What users ask for in control events; who has opted out comes back now and then.
WISHES = (
    "history_reset",
    "user_delete",
    "user_opt_out",
    "user_opt_in",
    "user_opt_in",
    "item_block",
)


class Traffic:
    """Appends records to the simulated broker's user-events, good ones and others."""

    def __init__(
        self,
        rng: random.Random,
        broker: Broker,
        now_ms: Callable[[], int],
        has_guests: bool,
    ) -> None:
        self._rng, self._broker, self._now_ms = rng, broker, now_ms
        self._has_guests = has_guests
        self._sent: list[bytes] = []

    def send(self, number: int) -> None:
        """Send what comes next."""
        self._send_of_user(number)
        if self._has_guests:
            self._send_of_guest(number)

    def send_round(self, with_visits: bool) -> None:
        """A click of every user: each has a row that must come out of the changelog.

        Where that makes no list due, a visit as well: of an earlier one, before there was much to
        list, nothing else tells whether there had to be one.
        """
        for number in range(USERS):
            user = f"user-{number}"
            self._append(user, self._event(user, 100_000 + number, "click"))
            if with_visits:
                self._append(user, self._event(user, 200_000 + number, "visit"))
        for number in range(GUESTS if self._has_guests else 0):
            guest = f"guest-{number}"
            self._append(guest, self._event(guest, 300_000 + number, "visit", "anonymous_id"))

    def _send_of_user(self, number: int) -> None:
        draw = self._rng.random()
        user = f"user-{self._rng.randrange(USERS)}"
        if draw < 0.03:
            self._append(user, b"not an event")
            return
        if draw < 0.1 and self._sent:
            value = self._rng.choice(self._sent[-10:])  # a producer's retry
            self._append(json.loads(value)["user_id"], value)
            return
        if draw < 0.16:
            value = self._wish(user, number)
        else:
            value = self._event(user, number, "visit" if draw < 0.36 else "click")
        self._sent.append(value)
        if draw > 0.97:
            self._append(user, value, key="somebody")
        elif draw > 0.94:
            self._append(user, value, elsewhere=True)
        else:
            self._append(user, value)

    def _send_of_guest(self, number: int) -> None:
        """A click of somebody without a name, or who it was."""
        guest, draw = f"guest-{self._rng.randrange(GUESTS)}", self._rng.random()
        if draw < 0.4:
            kind = "visit" if draw < 0.1 else "click"
            self._append(guest, self._event(guest, 10_000 + number, kind, "anonymous_id"))
        elif draw < 0.55:
            user = f"user-{self._rng.randrange(USERS)}"
            body = {
                "schema": "driftline.control/1",
                "event_id": f"control-{10_000 + number}",
                "type": "user_merge",
                "event_time": self._now_ms(),
                "user_id": user,
                "from_anonymous_id": guest,
            }
            self._sent.append(json.dumps(body).encode())
            self._append(user, self._sent[-1])

    def _event(self, user: str, number: int, kind: str, owner: str = "user_id") -> bytes:
        late_ms = self._rng.choice([0, 0, 0, 700, 5000])
        body = {
            "event_id": f"event-{number}",
            "type": kind,
            "event_time": self._now_ms() - late_ms,
            owner: user,
        }
        if kind != "visit":
            body["item_id"] = f"item-{self._rng.randrange(ITEMS)}"
        return json.dumps(body).encode()

    def _wish(self, user: str, number: int) -> bytes:
        """A control event."""
        kind = self._rng.choice(WISHES)
        body = {
            "schema": "driftline.control/1",
            "event_id": f"control-{number}",
            "type": kind,
            "event_time": self._now_ms(),
            "user_id": user,
        }
        if kind == "item_block":
            body["target"] = f"item-{self._rng.randrange(ITEMS)}"
        return json.dumps(body).encode()

    def _append(
        self, user: str, value: bytes, key: str | None = None, elsewhere: bool = False
    ) -> None:
        name = (user if key is None else key).encode()
        partition = int(partitions_of([name], PARTITIONS)[0])
        if elsewhere:
            partition = (partition + 1) % PARTITIONS
        self._broker.logs["user-events", partition].append([(name, value, ())], self._now_ms())
