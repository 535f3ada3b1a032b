"""Tell which events of a batch came before from another offset: rows of the partition say so.

Copies of records that were sent on name their original, and the partition keeps how far those of
each other partition are folded. Legs of merges are sent under the same id as often as it takes, and
the partition keeps for ever where each was folded first.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from stream.event_columns import EventColumns, Span
from stream.events import MergePart, MergeRequest
from stream.folded_batch import FoldedBatch, ReadRows
from stream.merge import folded_at, leg_key, leg_row
from stream.rekeyed import Originals, copies_key, folded_up_to


def tell_copies(
    columns: EventColumns,
    foreign: AbstractSet[int],
    originals: Originals,
    read_rows: ReadRows,
    batch: FoldedBatch,
) -> None:
    """Put down which copies came before, and how far copies come with these.

    `foreign` are the numbers of users whose events count on another partition.
    """
    if not any([record.headers for record in columns.all.records]):
        return
    for span in columns.spans:
        copies = [
            (record.offset, original)
            for record, user in zip(
                columns.all.records[span.events], columns.users[span.events].tolist(), strict=True
            )
            if record.headers and user not in foreign and (original := originals.of(record))
        ]
        if copies:
            _tell_copies(span, copies, read_rows, batch)


def _tell_copies(
    span: Span,
    copies: list[tuple[int, tuple[int, int]]],
    read_rows: ReadRows,
    batch: FoldedBatch,
) -> None:
    """Of copies' offsets, with partition and offset of their originals."""
    partition = span.partition
    sources = sorted({source for _, (source, _) in copies})
    kept = read_rows(partition, [copies_key(source) for source in sources])
    known = {source: folded_up_to(row) for source, row in zip(sources, kept, strict=True)}
    again = batch.repetitions.setdefault(partition, set())
    for offset, (source, original_offset) in copies:
        if original_offset <= known[source]:
            again.add(offset)
        else:
            known[source] = original_offset
    batch.copies[partition] = known


def tell_legs(
    columns: EventColumns, foreign: AbstractSet[int], read_rows: ReadRows, batch: FoldedBatch
) -> None:
    """Put down which legs of merges came before, and where the others come first."""
    if not columns.all.has_wishes:
        return
    for span in columns.spans:
        legs = [
            (offset, leg_key(columns.row_keys[user], event.event_id))
            for event, offset, user in zip(
                columns.all.events[span.events],
                columns.all.offsets[span.events].tolist(),
                columns.users[span.events].tolist(),
                strict=True,
            )
            if isinstance(event, MergeRequest | MergePart) and user not in foreign
        ]
        if legs:
            _tell_legs(span, legs, read_rows, batch)


def _tell_legs(
    span: Span, legs: list[tuple[int, bytes]], read_rows: ReadRows, batch: FoldedBatch
) -> None:
    """Of legs' offsets, with the keys of their rows."""
    partition = span.partition
    keys = [key for _, key in legs]
    kept = read_rows(partition, keys)
    known = {key: folded_at(row) for key, row in zip(keys, kept, strict=True)}
    again = batch.repetitions.setdefault(partition, set())
    for offset, key in legs:
        first = known[key]
        if first is None:
            known[key] = offset
            batch.legs.setdefault(partition, []).append(leg_row(key, offset))
        elif first != offset:
            again.add(offset)
