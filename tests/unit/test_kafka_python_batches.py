"""kafka-python opens what a worker opens: every codec, up to a bound."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

LIMIT = 100_000

READ = f"""
import sys
from kafka.record.memory_records import MemoryRecords
from export.kafka_batches import bound_batches

bound_batches({LIMIT})
batches = MemoryRecords(sys.stdin.buffer.read())
while (batch := batches.next_batch()) is not None:
    assert batch.validate_crc()
    for record in batch:
        print(record.offset, record.key, len(record.value) if record.value else record.value)
    print("next", batch.next_offset)
"""


def batch(base: int, values: list[bytes], codec: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 10**9)
    for delta, value in enumerate(values):
        builder.append(delta, 0, b"k", value, [])
    return struct.pack(">q", base) + bytes(builder.build()[8:])


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_every_codec_is_read_and_a_batch_that_becomes_too_large_is_one_empty_record(codec: int):
    bomb = batch(2, [bytes(LIMIT)] * 200, codec or 1)
    data = batch(0, [b"a", b"bc"], codec) + bomb + batch(202, [b"def"], codec)

    done = subprocess.run([sys.executable, "-c", READ], input=data, capture_output=True, check=True)

    assert done.stdout.decode().splitlines() == [
        "0 b'k' 1",
        "1 b'k' 2",
        "next 2",
        "201 None None",
        "next 202",
        "202 b'k' 3",
        "next 203",
    ]
