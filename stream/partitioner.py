"""Say on which partition keys lie: murmur2, as Java, kafka-python and aiokafka have it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kafka.partitioner import murmur2
from numpy.typing import NDArray

_SEED = 0x9747B28C
_M = np.uint32(0x5BD1E995)
_13, _15, _24 = np.uint32(13), np.uint32(15), np.uint32(24)
_POSITIVE = 0x7FFFFFFF
#: From so many keys on, columns are faster than one key after another.
_MANY = 24


def partitions_of(keys: Sequence[bytes], partitions: int) -> list[int]:
    """The partition of each of these keys, in their order."""
    if len(keys) < _MANY:
        return [(murmur2(key) & _POSITIVE) % partitions for key in keys]
    return [(value & _POSITIVE) % partitions for value in murmur2_many(keys).tolist()]


def murmur2_many(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """[N] the 32-bit MurmurHash2 (Austin Appleby) of each key, with Kafka's seed, unsigned."""
    sizes = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    width = int(sizes.max()) // 4 + 1
    padded = b"".join([key.ljust(4 * width, b"\0") for key in keys])
    words = np.frombuffer(padded, dtype="<u4").reshape(len(keys), width)
    hashes: NDArray[np.uint32] = np.uint32(_SEED) ^ sizes.astype(np.uint32)
    for at in range(width - 1):
        k: NDArray[np.uint32] = words[:, at] * _M
        k = (k ^ (k >> _24)) * _M
        hashes = np.where(sizes >= 4 * (at + 1), (hashes * _M) ^ k, hashes)
    last = words[np.arange(len(keys)), sizes // 4]  # the bytes after the last whole word
    hashes = np.where(sizes % 4 > 0, (hashes ^ last) * _M, hashes)
    hashes = (hashes ^ (hashes >> _13)) * _M
    return hashes ^ (hashes >> _15)
