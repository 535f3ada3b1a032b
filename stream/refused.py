"""Say of a dead letter that stands for a whole refused batch which batch that was, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stream import metrics
from stream.dead_letters import DeadLetter
from stream.folded_batch import FoldedBatch, ReadRows, Slice
from stream.kafka.bounded import refusal_in
from stream.state import Folder


class RefusingFolder(Folder):
    """A folder whose dead letters tell of refused batches: one letter for each."""

    def fold(self, slices: Iterable[Slice], read_rows: ReadRows) -> FoldedBatch:
        batch = super().fold(slices, read_rows)
        if batch.dead_letters:
            batch.dead_letters = [explained(letter) for letter in batch.dead_letters]
        return batch


def explained(letter: DeadLetter) -> DeadLetter:
    """The letter; for a refused batch with offsets, reason and size of that, and counted."""
    refusal = refusal_in(letter.value)
    if refusal is None:
        return letter
    metrics.REFUSED_BATCHES.labels(letter.topic).inc()
    reason = f"the batch of offsets {refusal.first} to {refusal.last}: {refusal.reason}"
    return replace(letter, reason=reason, value=None, value_bytes=refusal.compressed_bytes)
