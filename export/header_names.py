"""Header names that are no UTF-8: Kafka takes any bytes, the parsers of its clients do not."""

from __future__ import annotations


def mend_names(records: bytearray, at: int, count: int) -> None:
    """Put a question mark for each byte above 127 of such names, so that they can be read.

    `records`: those of a batch of format 2, not compressed; `count` of them, the first one at `at`.
    Nothing else changes. Raises IndexError where they are cut off.
    https://kafka.apache.org/documentation/#record
    """
    for _ in range(count):
        length, at = _varint(records, at)
        end = at + length
        at += 1  # attributes
        for _ in range(2):  # differences of time and offset
            _, at = _varint(records, at)
        for _ in range(2):  # key and value
            at = _after_bytes(records, at)
        headers, at = _varint(records, at)
        for _ in range(headers):
            begin = _varint(records, at)[1]
            at = _after_bytes(records, at)
            records[begin:at] = _readable(records[begin:at])
            at = _after_bytes(records, at)
        at = end


def _readable(name: bytearray) -> bytes:
    try:
        name.decode()
    except UnicodeDecodeError:
        return bytes(byte if byte < 128 else ord("?") for byte in name)
    return bytes(name)


def _after_bytes(records: bytearray, at: int) -> int:
    size, at = _varint(records, at)
    return at + max(size, 0)


def _varint(records: bytearray, at: int) -> tuple[int, int]:
    """(number, where it ends): seven bits a byte, the lowest first, the sign in the last bit."""
    bits = shift = 0
    while True:
        byte = records[at]
        at += 1
        bits |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (bits >> 1) ^ -(bits & 1), at
        shift += 7
