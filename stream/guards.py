"""Name the guards of exactness, so that a check can take one out and must then fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

GuardName = Literal["replay-skip", "ack-order", "watermark", "lateness", "changelog-fence"]


@dataclass(frozen=True, slots=True)
class Guards:
    """Which guards stand. In production all of them do."""

    #: An event at or below a row's applied offset, or in its ring, is not folded again.
    replay_skip: bool = True
    #: Rows go to changelog and disk only after all results were acknowledged.
    ack_order: bool = True
    #: Deltas at or below a partition's watermark are not counted again.
    watermark: bool = True
    #: An event too far behind its user's newest one, whose id the ring may have dropped, is not
    #: folded.
    lateness: bool = True
    #: Whoever has a changelog partition keeps former owners from writing to it.
    changelog_fence: bool = True

    def without(self, name: GuardName | None) -> Guards:
        """These guards less one."""
        return self if name is None else replace(self, **{name.replace("-", "_"): False})


ALL_GUARDS = Guards()
