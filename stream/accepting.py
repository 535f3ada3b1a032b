"""Step 1 of a batch: which records are events that count here, and what becomes of the others."""

from __future__ import annotations

from msgspec import UNSET

from stream.dead_letters import DeadLetter
from stream.decoding import CONTROL, Decoded, EventDecoder, Kind, Record, kinds_of
from stream.event_columns import AcceptedEvents
from stream.events import WISHES, UserEvent, Wish
from stream.folded_batch import FoldedBatch, Slice
from stream.history import key_beginning
from stream.rekeyed import Misrouted
from stream.settings import Settings


class Acceptor:
    """Decodes the records of one `user-events` topic, and takes the events that count."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._kinds = kinds_of(settings)
        self._counting = {name: kind for name, kind in self._kinds.items() if kind.counts}
        self._decoder = EventDecoder(settings, self._kinds)
        self._topic = topic

    def accept(self, piece: Slice, accepted: AcceptedEvents, batch: FoldedBatch) -> None:
        """Put in the events of a slice, after putting down why there are none of some records."""
        decoded = self._decoder.decode_all(piece.records)
        for record, reason in decoded.refused:
            batch.dead_letters.append(self._letter(reason, piece.tp.partition, record))
        records, events = decoded.records, decoded.events
        kinds = self._kinds_of(events)
        owners = [
            (event.anonymous_id if event.user_id is UNSET else event.user_id).encode()  # type: ignore[union-attr]
            for event in events  # one without either is refused
        ]
        if None in kinds or owners != [record.key for record in records]:
            left = self._leave_out(decoded, owners, kinds, piece.tp.partition, batch)
            records, events = left.records, left.events
            kinds = self._kinds_of(events)
        accepted.records += records
        accepted.events += events
        accepted.kinds += kinds  # type: ignore[arg-type]  # all have one now
        accepted.offsets += [record.offset for record in records]
        accepted.times_ms += [
            event.event_time if event.event_time < record.timestamp else record.timestamp
            for event, record in zip(events, records, strict=True)
        ]
        accepted.row_keys += [
            key_beginning(event.tenant, event.user_id is not UNSET) + (record.key or b"")
            for event, record in zip(events, records, strict=True)
        ]

    def _kinds_of(self, events: list[UserEvent | Wish]) -> list[Kind | None]:
        """What each event does; None: nothing."""
        get = self._counting.get
        return [CONTROL if isinstance(event, WISHES) else get(event.type) for event in events]

    def _leave_out(
        self,
        decoded: Decoded,
        owners: list[bytes],
        kinds: list[Kind | None],
        partition: int,
        batch: FoldedBatch,
    ) -> Decoded:
        """The events that count here; of the others is put down what they are."""
        left = Decoded()
        for record, event, owner, kind in zip(
            decoded.records, decoded.events, owners, kinds, strict=True
        ):
            if record.key != owner:
                batch.misrouted.append(misrouted(owner, record, partition))
            elif kind is None:
                name = event.type  # type: ignore[union-attr]  # wishes have a kind
                batch.count("ignored" if name in self._kinds else "unknown_type", 1)
            else:
                left.records.append(record)
                left.events.append(event)
        return left

    def _letter(self, reason: str, partition: int, record: Record) -> DeadLetter:
        return DeadLetter(reason, self._topic, partition, record.offset, record.key, record.value)


def misrouted(owner: bytes, record: Record, partition: int) -> Misrouted:
    """A record that is to be sent on, under its user's key."""
    return Misrouted(owner, record.value or b"", partition, record.offset)
