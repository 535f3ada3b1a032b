"""Step 1 of a batch: which records are events that count here, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from stream.dead_letters import DeadLetter
from stream.decoding import CONTROL, Decoded, EventDecoder, Kind, Record, kinds_of
from stream.event_columns import AcceptedEvents, PartitionEvents
from stream.events import WISHES, UserEvent, Wish
from stream.folded_batch import FoldedBatch
from stream.history import key_beginning
from stream.rekeyed import Misrouted
from stream.row_codec import LATEST_MS
from stream.settings import Settings


class Acceptor:
    """Decodes the records of one `user-events` topic, and takes the events that count."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._kinds = kinds_of(settings)
        self._counting = {name: kind for name, kind in self._kinds.items() if kind.counts}
        self._decoder = EventDecoder(settings, self._kinds)
        self._topic = topic

    def accept(
        self, partition: int, records: Sequence[Record], batch: FoldedBatch
    ) -> PartitionEvents:
        """The events of a partition's records; puts down why there are none of some of them."""
        decoded = self._decoder.decode_all(records)
        for record, reason in decoded.refused:
            batch.dead_letters.append(self._letter(reason, partition, record))
        return self._all_of(decoded, partition) or self._some_of(decoded, partition, batch)

    def _all_of(self, decoded: Decoded, partition: int) -> PartitionEvents | None:
        """The events where they are known users' of one tenant, count and lie under their keys.

        None where that does not hold for all of them; then each is looked at.
        """
        events: list[UserEvent] = decoded.events  # type: ignore[assignment]  # with times, see below
        if decoded.times_ms is None or decoded.said_ms is None or not events:
            return None
        keys: list[bytes] = [record.key for record in decoded.records]  # type: ignore[misc]
        tenants = {event.tenant for event in events}
        types = [event.type for event in events]
        if len(tenants) > 1 or not self._counting.keys() >= set(types):
            return None
        if not _are_alike([event.user_id for event in events], keys):
            return None
        accepted = AcceptedEvents(
            decoded.records,
            decoded.events,
            list(map(self._counting.__getitem__, types)),
            _offsets(decoded.records),
            decoded.times_ms,
            decoded.said_ms,
            has_wishes=False,
        )
        return PartitionEvents(partition, accepted, keys, key_beginning(tenants.pop(), True))

    def _some_of(self, decoded: Decoded, partition: int, batch: FoldedBatch) -> PartitionEvents:
        """The events that count here; of the others is put down what they are."""
        records: list[Record] = []
        events: list[UserEvent | Wish] = []
        kinds: list[Kind] = []
        keys: list[bytes] = []
        for record, event in zip(decoded.records, decoded.events, strict=True):
            is_known = event.user_id is not UNSET
            owner = event.user_id if is_known else event.anonymous_id  # type: ignore[union-attr]
            key = owner.encode()  # type: ignore[union-attr]  # one without either is refused
            kind = self._kind_of(event)
            if record.key != key:
                batch.misrouted.append(misrouted(key, record, partition))
            elif kind is None:
                name = event.type  # type: ignore[union-attr]  # wishes have a kind
                batch.count("ignored" if name in self._kinds else "unknown_type", 1)
            else:
                records.append(record)
                events.append(event)
                kinds.append(kind)
                keys.append(key_beginning(event.tenant, is_known) + key)
        said_ms = [min(event.event_time, LATEST_MS) for event in events]
        times_ms = [
            min(event.event_time, record.timestamp)
            for event, record in zip(events, records, strict=True)
        ]
        accepted = AcceptedEvents(
            records,
            events,
            kinds,
            _offsets(records),
            np.array(times_ms, dtype=np.int64),
            np.array(said_ms, dtype=np.int64),
            has_wishes=CONTROL in kinds,
        )
        return PartitionEvents(partition, accepted, keys, b"")

    def _kind_of(self, event: UserEvent | Wish) -> Kind | None:
        """What an event does; None: nothing."""
        return CONTROL if isinstance(event, WISHES) else self._counting.get(event.type)

    def _letter(self, reason: str, partition: int, record: Record) -> DeadLetter:
        return DeadLetter(reason, self._topic, partition, record.offset, record.key, record.value)


def misrouted(owner: bytes, record: Record, partition: int) -> Misrouted:
    """A record that is to be sent on, under its user's key."""
    return Misrouted(owner, record.value or b"", partition, record.offset, record.timestamp)


def _are_alike(owners: Sequence[str | UnsetType], keys: list[bytes]) -> bool:
    """Whether each owner is what its key says; all are compared as one text, a line each."""
    try:
        lines = "\n".join(owners).encode()  # type: ignore[arg-type]  # with another, it raises
    except TypeError:  # an owner is UNSET
        return False
    return lines == b"\n".join(keys) and lines.count(b"\n") == len(keys) - 1


def _offsets(records: Sequence[Record]) -> NDArray[np.int64]:
    return np.array([record.offset for record in records], dtype=np.int64)
