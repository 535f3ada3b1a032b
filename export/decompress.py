"""Decompress a record batch up to a bound: its compressed size says nothing about what it becomes.

22 kB of zstd can hold 500 MB, its header may lie about it, and a broker takes it. So nothing is
believed: output goes into memory of a fixed size, and ends where that is full.
"""

from __future__ import annotations

import zlib

import cramjam
import numpy as np

from export.errors import DriftlineError

#: The codecs of Kafka's record batches, by the number in a batch's attributes.
CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}

#: Uncompressed, a producer's batch is mostly 16 kB to 1 MB.
MAX_BATCH_BYTES = 16 * 1024**2

#: gzip may be many members one after another; each costs a copy of what comes after it.
_MAX_GZIP_MEMBERS = 100
_GZIP_WINDOW = 31  # 15 bits, and the gzip header
_GZIP_MAGIC = b"\x1f\x8b"
#: What stands before the blocks of snappy as Java's clients write it.
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16


class DecompressionError(DriftlineError):
    """A batch cannot be decompressed, or would become too large."""


class BoundedDecompressor:
    """Decompresses one batch at a time; never holds more than twice `max_bytes` for one."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._scratch: memoryview | None = None

    def decompress(self, codec: int, data: bytes) -> bytes:
        """The decompressed bytes, at most `max_bytes`.

        Raises DecompressionError where they would be more, or `data` is not of that codec.
        """
        name = CODECS.get(codec)
        if name is None:
            raise DecompressionError(f"its codec is number {codec}: known are {CODECS}")
        try:
            if name == "gzip":
                return self._gunzip(data)
            if name == "snappy":
                return self._unsnap(data)
            decompress = cramjam.lz4 if name == "lz4" else cramjam.zstd
            return self._taken(decompress.decompress_into(data, self._output()))
        except (zlib.error, cramjam.DecompressionError, ValueError) as error:
            if "failed to write whole buffer" in str(error):
                raise self._too_large(name, data) from None
            raise DecompressionError(
                f"{len(data):,} bytes of {name} cannot be decompressed: {error}"
            ) from error

    def _gunzip(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        rest, room = data, self.max_bytes
        for _ in range(_MAX_GZIP_MEMBERS):
            member = zlib.decompressobj(_GZIP_WINDOW)
            parts.append(member.decompress(rest, room + 1))
            room -= len(parts[-1])
            if room < 0:
                raise self._too_large("gzip", data)
            if not member.eof:
                raise ValueError("it ends in the middle")
            rest = member.unused_data
            if not rest.startswith(_GZIP_MAGIC):  # Java passes over what comes after the last
                return b"".join(parts)
        raise ValueError(f"it has more than {_MAX_GZIP_MEMBERS} members")

    def _unsnap(self, data: bytes) -> bytes:
        if not data.startswith(_XERIAL_MAGIC):
            return self._taken(self._unsnap_block(data, data, 0))
        view = memoryview(data)
        at, filled = _XERIAL_HEADER_BYTES, 0
        while at < len(data):
            size = int.from_bytes(view[at : at + 4], "big", signed=True)
            at += 4
            if size < 0 or at + size > len(data):
                raise ValueError("a block is longer than what is left")
            filled += self._unsnap_block(data, bytes(view[at : at + size]), filled)
            at += size
        return self._taken(filled)

    def _unsnap_block(self, data: bytes, block: bytes, at: int) -> int:
        """Decompress a block to `at`; its length stands before it and is held to by the decoder."""
        if cramjam.snappy.decompress_raw_len(block) > self.max_bytes - at:
            raise self._too_large("snappy", data)
        return int(cramjam.snappy.decompress_raw_into(block, self._output()[at:]))

    def _output(self) -> memoryview:
        if self._scratch is None:  # numpy's memory costs nothing before it is written to
            self._scratch = np.empty(self.max_bytes, np.uint8).data
        return self._scratch

    def _taken(self, count: int) -> bytes:
        return self._output()[:count].tobytes()

    def _too_large(self, name: str, data: bytes) -> DecompressionError:
        return DecompressionError(
            f"{len(data):,} bytes of {name} become more than the {self.max_bytes:,} bytes that a "
            "batch may have (max_batch_bytes): send smaller batches, or raise it"
        )
