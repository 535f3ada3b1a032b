"""Knows which offset of each source partition must come next, and notices when it does not.

Slices reach us through another thread, past seeks and rebalances: the same records may come twice,
or late. Records may also be gone for good, taken by retention. The two look alike at first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiokafka.structs import ConsumerRecord
from faust.types import TP

from stream.kafka.batches import OnGap
from stream.kafka.bounded import refusal_in

logger = logging.getLogger(__name__)


class Continuity:
    """The next offset to deliver of each partition, and what was missing or came again.

    Counters: `gaps_total`, `records_lost_total`, `records_repeated_total`.
    """

    def __init__(self, on_gap: OnGap | None) -> None:
        self.gaps_total = 0
        self.records_lost_total = 0
        self.records_repeated_total = 0
        self._on_gap = on_gap
        self._next_offset: dict[TP, int] = {}
        self._suspected: dict[TP, tuple[int, int]] = {}

    def next_offset(self, tp: TP) -> int | None:
        """None: where reading starts is not decided yet."""
        return self._next_offset.get(tp)

    def start(self, tp: TP, offset: int) -> None:
        self._next_offset[tp] = offset
        self._suspected.pop(tp, None)

    def forget(self, tp: TP) -> None:
        self._next_offset.pop(tp, None)
        self._suspected.pop(tp, None)

    def delivered(self, tp: TP, last_offset: int) -> None:
        self._next_offset[tp] = last_offset + 1

    def admit(self, tp: TP, records: Sequence[ConsumerRecord]) -> Sequence[ConsumerRecord]:
        """The records of a fetched slice to deliver now; none = read again from `next_offset`.

        Repeated ones are left out. The offsets of a batch that was refused are not missing: the
        record that stands for it says which they are. A slice that begins too late is believed only
        when the next one, after reading again, begins at the same offset. What is missing then is
        counted, logged and told to `on_gap`, whose exceptions come out here.
        """
        expected = self._next_offset.get(tp)
        if expected is None:
            return ()
        if records[0].offset < expected:
            fetched = len(records)
            records = [record for record in records if record.offset >= expected]
            self.records_repeated_total += fetched - len(records)
        if not records or self._is_first_suspicion(tp, expected, _begin(records[0], expected)):
            return ()
        if records[-1].offset - expected + 1 != len(records):
            for record in records:
                if (begin := _begin(record, expected)) > expected:
                    self._report(tp, expected, begin)
                expected = record.offset + 1
        return records

    def _is_first_suspicion(self, tp: TP, expected: int, got: int) -> bool:
        if got > expected and self._suspected.get(tp) != (expected, got):
            self._suspected[tp] = expected, got
            return True
        self._suspected.pop(tp, None)
        return False

    def _report(self, tp: TP, expected: int, got: int) -> None:
        self.gaps_total += 1
        self.records_lost_total += got - expected
        logger.error(
            "Records are missing in %s: expected offset %d, got %d. Retention took them, or the "
            "topic is compacted, which it must not be",
            tp,
            expected,
            got,
        )
        if self._on_gap is not None:
            self._on_gap(tp, expected, got)


def _begin(record: ConsumerRecord, expected: int) -> int:
    """The first offset that this record accounts for."""
    offset: int = record.offset
    if offset > expected and (refusal := refusal_in(record.value)) is not None:
        return min(max(refusal.first, expected), offset)
    return offset
