"""Send a data set as a producer would: its catalogue as items, its interactions as events.

Original times go into `event_time` only. The records' own timestamps are of the sending: Kafka
deletes by them, and would delete the year 2013 at once.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError
from msgspec import UNSET
from tqdm import tqdm

from export.datasets import Dataset, Interaction, read_dataset
from stream.events import Item, UserEvent, encode
from stream.settings import Settings
from stream.topics import BrokerError

#: Between two looks at the clock while a rate is kept.
_PACE_EVENTS = 16


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What is sent: the interactions from `first` up to `last`, at `rate` a second or at most."""

    path: Path
    data_format: str
    rate: float | None = None
    first: int = 0
    last: int | None = None
    sends_items: bool = True


def replay_data(settings: Settings, plan: ReplayPlan) -> str:
    """Send a data set; returns a line that says what was sent.

    Event ids are made from format and number: what is sent again is the same events, which count
    once. Raises DriftlineError for data or a broker that cannot be used.
    """
    data = read_dataset(plan.path, plan.data_format)
    interactions = data.interactions[plan.first : plan.last]
    producer = _producer(settings)
    undelivered: list[Exception] = []
    begun = time.monotonic()
    try:
        items = _send_items(producer, settings, data, undelivered) if plan.sends_items else 0
        _send_events(producer, settings, plan, interactions, undelivered)
        producer.flush()
    except KafkaError as error:
        undelivered.append(error)
    finally:
        producer.close()
    if undelivered:
        raise BrokerError(
            f"Kafka at {settings.bootstrap} refused {len(undelivered)} records, the first because: "
            f"{undelivered[0]}. Are the topics there (`driftline topics check`)?"
        )
    took = time.monotonic() - begun
    return (
        f"sent {items} items and {len(interactions)} events in {took:.1f} s "
        f"({len(interactions) / max(took, 1e-9):.0f} events/s)"
    )


def event_of(data_format: str, number: int, interaction: Interaction) -> UserEvent:
    """The event of the data set's interaction with that number."""
    name = f"{data_format}/{number}"
    return UserEvent(
        event_id=hashlib.sha256(name.encode()).hexdigest()[:24],
        type=interaction.type,
        event_time=int(interaction.time_s * 1000),
        user_id=interaction.user,
        item_id=interaction.item,
        value=UNSET if interaction.value is None else interaction.value,
    )


def _producer(settings: Settings) -> Any:
    try:
        return KafkaProducer(
            bootstrap_servers=settings.bootstrap,
            bootstrap_timeout_ms=5000,
            acks="all",
            linger_ms=5,
            batch_size=2**17,
        )
    except (KafkaError, ValueError) as error:
        raise BrokerError(f"Kafka at {settings.bootstrap} cannot be used: {error}") from error


def _send_items(
    producer: Any, settings: Settings, data: Dataset, undelivered: list[Exception]
) -> int:
    topic = settings.topic("items")
    for item_id in sorted(data.items):
        about = data.items[item_id]
        item = Item(item_id, 1, title=about.title, categories=list(about.categories))
        future = producer.send(topic, key=item_id.encode(), value=encode(item))
        future.add_errback(undelivered.append)
    return len(data.items)


def _send_events(
    producer: Any,
    settings: Settings,
    plan: ReplayPlan,
    interactions: list[Interaction],
    undelivered: list[Exception],
) -> None:
    topic = settings.topic("user-events")
    begun = time.monotonic()
    progress = tqdm(interactions, unit="event", disable=not sys.stderr.isatty())
    for count, interaction in enumerate(progress):
        if plan.rate and count % _PACE_EVENTS == 0:
            time.sleep(max(0.0, begun + count / plan.rate - time.monotonic()))
        event = event_of(plan.data_format, plan.first + count, interaction)
        future = producer.send(topic, key=interaction.user.encode(), value=encode(event))
        future.add_errback(undelivered.append)
        if undelivered:
            return
