"""Keep what was refused: the bytes as they came, why, and where they lay."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Bytes of a refused value that are kept: a larger one is cut, and its size stands in a header.
MAX_KEPT_BYTES = 65_536
#: Characters of a reason that are kept: some errors repeat what they are about.
MAX_REASON = 1_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One refused record."""

    reason: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    value_bytes: int | None = None  # of the whole value, where `value` is cut

    def cut(self) -> DeadLetter:
        """The same without the bytes that are not kept, for one that has to wait."""
        size = len(self.value or b"") if self.value_bytes is None else self.value_bytes
        return replace(
            self,
            reason=self.reason[:MAX_REASON],
            key=self.kept_key(),
            value=self.kept_value(),
            value_bytes=size,
        )

    def headers(self) -> list[tuple[str, bytes]]:
        """The record's headers on dead-letters; its key and value are those that were refused."""
        size = len(self.value or b"") if self.value_bytes is None else self.value_bytes
        return [
            ("reason", self.reason[:MAX_REASON].encode()),
            ("topic", self.topic.encode()),
            ("partition", str(self.partition).encode()),
            ("offset", str(self.offset).encode()),
            ("bytes", str(size).encode()),
        ]

    def kept_key(self) -> bytes | None:
        """The key, cut to MAX_KEPT_BYTES: a longer one is no id, and may fill a whole request."""
        return None if self.key is None else self.key[:MAX_KEPT_BYTES]

    def kept_value(self) -> bytes | None:
        """The value, cut to MAX_KEPT_BYTES."""
        return None if self.value is None else self.value[:MAX_KEPT_BYTES]
