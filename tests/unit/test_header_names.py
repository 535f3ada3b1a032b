"""Names of headers may be any bytes: what cannot be read is told with question marks."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record import memory_records
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from stream.kafka.header_names import mend_header_names

TP = TopicPartition("events", 0)
NAMES = st.binary(max_size=8)
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=4)), max_size=3)

READ = """
import sys
from kafka.record.memory_records import MemoryRecords
from export.kafka_batches import bound_batches

bound_batches()
batch = MemoryRecords(sys.stdin.buffer.read()).next_batch()
assert batch.validate_crc()
print([(record.offset, record.value, record.headers) for record in batch])
"""


def batch(base: int, headers_of: list[list[tuple[bytes, bytes | None]]]) -> bytes:
    """Records with these headers; names are put in as bytes behind the builder's back."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10**6)
    stand_ins = {}
    for delta, headers in enumerate(headers_of):
        named = []
        for name, value in headers:
            stand_in = f"{len(stand_ins):0{len(name)}d}"[-len(name) :] if name else ""
            stand_ins[len(stand_ins)] = name
            named.append((stand_in, value))
        builder.append(delta, 1000 + delta, b"key", b"value", named)
    data = bytearray(builder.build())
    _put_names(data, list(stand_ins.values()))
    data[:8] = struct.pack(">q", base)
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4)
    return bytes(data)


def _put_names(data: bytearray, names: list[bytes]) -> None:
    """Overwrite the names in their order; all numbers here are one byte long, but for lengths."""
    at = 61
    for _ in range(int.from_bytes(data[57:61])):
        at += 1 if data[at] < 0x80 else 2
        at += 1  # attributes
        for _ in range(2):  # time and offset
            at += 1 if data[at] < 0x80 else 2
        at += 1 + len(b"key") + 1 + len(b"value")
        headers = data[at] >> 1
        at += 1
        for _ in range(headers):
            name = names.pop(0)
            at += 1
            data[at : at + len(name)] = name
            at += len(name)
            size = -1 if data[at] == 1 else data[at] >> 1
            at += 1 + max(size, 0)


def told(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte < 128 else "?" for byte in name)


def read(data: bytes, begin: int, most: int | None) -> list[tuple[int, bytes, tuple]]:
    """As a fetch hands it out, at most so many records at a time."""
    state = SimpleNamespace(position=begin, paused=False)
    state.consumed_to = lambda position: setattr(state, "position", position)
    records = fetcher.PartitionRecords(
        TP, fetcher.MemoryRecords(data), None, begin, None, None, True, 0
    )
    assignment = SimpleNamespace(active=True, state_value=lambda tp: state)
    result = fetcher.FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)
    found = []
    while result.has_more():
        found += [(r.offset, r.value, r.headers) for r in result.getall(most)]
    return found


@pytest.fixture(scope="module", autouse=True)
def _mended():
    stock = fetcher.MemoryRecords
    mend_header_names()
    yield
    fetcher.MemoryRecords = stock


@given(
    st.lists(st.lists(HEADERS, min_size=1, max_size=5), min_size=1, max_size=3),
    st.integers(0, 3),
    st.none() | st.integers(1, 3),
)
def test_all_records_are_read_whatever_their_header_names_are(batches, begin, most):
    data, wanted, base = b"", [], 0
    for headers_of in batches:
        data += batch(base, headers_of)
        for headers in headers_of:
            names = tuple((told(name), value) for name, value in headers)
            wanted.append((base, b"value", names))
            base += 1

    begin %= len(batches[0])  # an answer begins with the batch that holds the offset
    assert read(data, begin, most) == wanted[begin:]


def test_without_it_such_a_name_stops_the_partition(monkeypatch: pytest.MonkeyPatch):
    data = batch(0, [[], [(b"caf\xe9", b"v")], []])
    assert [offset for offset, *_ in read(data, 0, None)] == [0, 1, 2]
    monkeypatch.setattr(fetcher, "MemoryRecords", memory_records.MemoryRecords)

    with pytest.raises(UnicodeDecodeError):
        read(data, 0, None)


def test_a_flipped_bit_beside_such_a_name_is_found():
    data = bytearray(batch(0, [[(b"caf\xe9", b"v")]]))
    data[-1] ^= 1

    with pytest.raises(fetcher.Errors.CorruptRecordException):
        read(bytes(data), 0, None)


def test_kafka_python_reads_them_too():
    data = batch(7, [[(b"plain", b"1")], [(b"caf\xe9", None), ("café".encode(), b"2")], []])

    done = subprocess.run([sys.executable, "-c", READ], input=data, capture_output=True, check=True)

    assert ast.literal_eval(done.stdout.decode()) == [
        (7, b"value", [("plain", b"1")]),
        (8, b"value", [("caf?", None), ("café", b"2")]),
        (9, b"value", []),
    ]
