"""Rows restored from a changelog are its fold, however its records are cut into slices."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path

import faust
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.kafka.table import RowTable
from stream.kafka.wiring import faust_settings

rows = st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | st.binary(max_size=3))


def record_at(offset: int, key: bytes, value: bytes | None) -> ConsumerRecord:
    return ConsumerRecord("changelog", 0, offset, 0, 0, key, value, None, -1, -1, ())


@settings(max_examples=40, deadline=None)
@given(st.lists(rows, min_size=1, max_size=12), st.sets(st.integers(1, 11)))
def test_restored_slices_leave_the_newest_row_of_each_key_and_the_last_offset(log, cuts):
    records = [record_at(offset, *row) for offset, row in enumerate(log)]
    edges = [0, *sorted(cut for cut in cuts if cut < len(records)), len(records)]

    with tempfile.TemporaryDirectory() as folder:
        table: RowTable = faust.App("restored", datadir=folder, **faust_settings()).Table(
            "rows", partitions=1
        )
        Path(table.app.conf.tabledir).mkdir(parents=True, exist_ok=True)
        try:
            for begin, end in itertools.pairwise(edges):
                table.restore(0, records[begin:end])
            restored = dict(table.iter_rows(0))
            offset = table.persisted_offset(TP(table.changelog_topic_name, 0))
        finally:
            asyncio.run(table.data.stop())

    wanted = {key: value for key, value in dict(log).items() if value is not None}
    assert restored == wanted
    assert offset == len(records) - 1
