"""Keep the newest lists and their decisions as they lay on the topics, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

#: Bytes of raw messages that are kept; the oldest list goes first.
MAX_BYTES = 48 * 2**20


@dataclass(slots=True)
class _Pair:
    recommendation: bytes = b""
    decision: bytes = b""

    def size(self) -> int:
        return len(self.recommendation) + len(self.decision)


class RawMessages:
    """Recommendation and decision by `rec_id`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._pairs: OrderedDict[str, _Pair] = OrderedDict()

    def add_recommendation(self, rec_id: str, value: bytes) -> None:
        """Keep a list as it lay on the topic."""
        pair = self._pair(rec_id)
        self._bytes += len(value) - len(pair.recommendation)
        pair.recommendation = value
        self._forget()

    def add_decision(self, rec_id: str, value: bytes) -> None:
        """Keep a decision as it lay on the topic."""
        pair = self._pair(rec_id)
        self._bytes += len(value) - len(pair.decision)
        pair.decision = value
        self._forget()

    def pretty(self, rec_id: str) -> bytes | None:
        """Both as indented JSON, null where one is not kept; None: neither is."""
        pair = self._pairs.get(rec_id)
        if pair is None:
            return None
        told = b'{"recommendation":%s,"decision":%s}' % (
            pair.recommendation or b"null",
            pair.decision or b"null",
        )
        return msgspec.json.format(told, indent=2)

    def _pair(self, rec_id: str) -> _Pair:
        pair = self._pairs.get(rec_id)
        if pair is None:
            pair = self._pairs[rec_id] = _Pair()
        return pair

    def _forget(self) -> None:
        while self._bytes > self._max_bytes and len(self._pairs) > 1:
            _, oldest = self._pairs.popitem(last=False)
            self._bytes -= oldest.size()
