"""Send refused records again to where they were refused, each once, so that they are judged anew.

For every few hundred records, in this order:
1. see that it is this process's turn;
2. put down on redrive-log which records are about to be sent, and how far the topics go;
3. send them, under the keys they must have, with the header `redriven-from`; wait until the broker
   has acknowledged all of them;
4. put down on redrive-log that they are sent.

A process that dies leaves a sending without an end. The next one reads on from where the topics
were in step 2, finds what was sent by its header, puts that down, and sends only the rest.
Event times stay as they are; the records' timestamps are of the redriving.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from stream.redrive.account import Account, Plan, plan_of
from stream.redrive.letters import REDRIVEN_FROM, Letter, LetterFilter, right_key
from stream.redrive.marks import Ledger, Mark, redrive_log
from stream.redrive.turn import Turn
from stream.topics import BrokerError, create_topic

#: Records between two marks: at most 32 MiB of values, and names that fit into one mark.
SENDING_RECORDS = 500
_TIMEOUT_S = 60
_BOOTSTRAP_TIMEOUT_MS = 5000


def redrive(
    account: Account,
    wanted: LetterFilter,
    limit: int | None,
    say: Callable[[str], None],
    on_step: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Send again what `wanted` means and was not sent before; returns what was sent.

    `on_step` is called before each step, for tests that end the process there. Raises BrokerError
    or NotOurTurnError; what was sent until then is put down, or found by the next call.
    """
    settings = account.settings
    log = redrive_log(settings)
    create_topic(settings, log)
    try:
        with Turn(settings, say) as turn, _Producer(account) as producer:
            ledger = account.ledger()
            _end_broken_off(account, ledger, producer, say)
            plan = plan_of(account.letters(wanted), ledger, limit)
            records = account.records(plan.letters)
            while sending := list(islice(records, SENDING_RECORDS)):
                turn.check()  # 1.
                producer.send(sending, on_step)  # 2. 3. 4.
            return plan
    except KafkaError as error:
        raise BrokerError(
            f"Kafka at {settings.bootstrap} refused: {error!r}. What was sent is found again: "
            "start the redrive once more when Kafka is well"
        ) from error


def _end_broken_off(
    account: Account, ledger: Ledger, producer: _Producer, say: Callable[[str], None]
) -> None:
    """Find and put down what earlier redrives have sent that died before they could."""
    for mark in list(ledger.broken_off.values()):
        origins = account.sent_of(mark)
        producer.put_down(msgspec.structs.replace(mark, stage="sent", origins=origins, ends={}))
        ledger.sent.update(origins)
        say(
            f"an earlier redrive broke off: {len(origins)} of its {len(mark.origins)} records "
            "count as sent"
        )


class _Producer:
    """Sends records and marks, within a `with` block."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._mark_topic = redrive_log(account.settings).name
        self._kafka: Any = None

    def __enter__(self) -> _Producer:
        self._kafka = KafkaProducer(
            bootstrap_servers=self._account.settings.bootstrap,
            bootstrap_timeout_ms=_BOOTSTRAP_TIMEOUT_MS,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._kafka.close(timeout=_TIMEOUT_S)

    def put_down(self, mark: Mark) -> None:
        """Write a mark and wait until it is there."""
        key, value = mark.id.encode(), msgspec.json.encode(mark)
        self._kafka.send(self._mark_topic, key=key, value=value).get(_TIMEOUT_S)

    def send(self, sending: list[tuple[Letter, Any]], on_step: Callable[[str], None]) -> None:
        """Steps 2 to 4."""
        on_step("begin")
        mark = Mark(
            "driftline.redrive/1",
            uuid.uuid4().hex,
            "sending",
            int(time.time() * 1000),
            [letter.origin for letter, _ in sending],
            dict(self._ends({letter.topic for letter, _ in sending})),
        )
        self.put_down(mark)  # 2.
        deliveries = []
        for letter, record in sending:  # 3.
            on_step("send")
            key = right_key(letter.topic, record.key, record.value, self._account.settings)
            headers = [(REDRIVEN_FROM, letter.origin.encode())]
            deliveries.append(self._kafka.send(letter.topic, record.value, key, headers))
        for delivery in deliveries:
            delivery.get(_TIMEOUT_S)
        on_step("end")
        self.put_down(msgspec.structs.replace(mark, stage="sent", ends={}))  # 4.

    def _ends(self, topics: set[str]) -> Iterator[tuple[str, dict[str, int]]]:
        for topic in topics:
            ends = self._account.log.ends(topic)
            yield topic, {str(partition): end for partition, end in ends.items()}
