"""Keep account of what was sent again, so that nothing is sent twice, whatever dies when.

Two marks enclose every sending on `redrive-log`: "sending" names the refused records and how far
the topics went before, "sent" says that all of them are there. Where the second is missing, the
records are looked for from there on, by the header `redriven-from`: a record and its header are
written as one, so what is there was sent, and what is not there was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct, field

from export.errors import DriftlineError
from stream.settings import Settings
from stream.topics import TopicSpec


class RedriveLogError(DriftlineError):
    """A record of redrive-log cannot be read: what was sent again is not known."""


class Mark(Struct, frozen=True):
    """On `redrive-log`, under its id: one sending."""

    schema: Literal["driftline.redrive/1"]
    id: str
    stage: Literal["sending", "sent"]
    at: int  # milliseconds since 1970, UTC
    origins: list[str]  # topic/partition/offset of the refused records
    ends: dict[str, dict[str, int]] = field(default_factory=dict)  # topic -> partition -> end


class Ledger:
    """What all marks say together."""

    def __init__(self) -> None:
        self.sent: set[str] = set()  # origins
        self.broken_off: dict[str, Mark] = {}  # sendings without an end, by id

    def take(self, value: bytes | None) -> None:
        """Take in the next record of redrive-log. Raises RedriveLogError if it is no mark."""
        try:
            mark = msgspec.json.decode(value or b"null", type=Mark)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RedriveLogError(
                f"wanted a mark on redrive-log, got {(value or b'')[:80]!r} ({error}): without all "
                "marks records could be sent twice. See who wrote it; a newer driftline may read it"
            ) from error
        if mark.stage == "sending":
            self.broken_off[mark.id] = mark
        else:
            self.broken_off.pop(mark.id, None)
            self.sent.update(mark.origins)


def origins_sent(mark: Mark, found: set[str], begins: Mapping[str, Mapping[int, int]]) -> list[str]:
    """Which records of a sending that broke off count as sent: those that were found.

    `begins` are the oldest offsets of the topics. Where a topic has forgotten something that came
    after the sending began, nobody can tell, and all count: once at most.
    """
    forgotten = any(
        begins.get(topic, {}).get(int(partition), end) > end
        for topic, ends in mark.ends.items()
        for partition, end in ends.items()
    )
    return [origin for origin in mark.origins if forgotten or origin in found]


def redrive_log(settings: Settings) -> TopicSpec:
    """The topic of the marks: one partition for one order, kept for ever."""
    configs = {"cleanup.policy": "delete", "retention.ms": "-1"}
    return TopicSpec(settings.topic("redrive-log"), 1, configs)
