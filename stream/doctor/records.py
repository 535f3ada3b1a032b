"""Look at the newest records of user-events: where they lie, what they hold, how old they are."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from stream.doctor.findings import Finding, Status
from stream.events import (
    decode_control_event,
    decode_merge_part,
    decode_merge_request,
    decode_user_event,
)
from stream.partitioner import partitions_of
from stream.settings import Settings

#: A worker sends misplaced records again, so a few (of a mistake, by hand) do no harm.
_FEW = 0.01
#: Clocks on NTP are closer than that.
_CLOCK_MS = 2_000
_CLOCK_FAILS_MS = 60_000
#: Milliseconds are above it from March 1973 on, seconds are below it for three thousand years.
_LEAST_MS = 100_000_000_000
NOTHING = "user-events holds no records yet"


def check_partitioner(records: Sequence[Any], partitions: int) -> Finding:
    """Records lie where murmur2 of their key says."""
    if not records:
        return Finding("partitioner", "ok", NOTHING)
    keyed = [record for record in records if record.key is not None]
    wanted = partitions_of([record.key for record in keyed], partitions) if keyed else []
    away = sum(r.partition != p for r, p in zip(keyed, wanted, strict=True))
    without = len(records) - len(keyed)
    if not away and not without:
        return Finding("partitioner", "ok", f"the newest {len(records):,} records lie as they must")
    said = (
        f"of the newest {len(records):,} records {away:,} lie on another partition than murmur2 "
        f"of their key says, {without:,} have no key"
    )
    status: Status = "warn" if away + without <= _FEW * len(records) else "fail"
    advice = (
        "set partitioner=murmur2_random in producers on librdkafka (confluent), and the user as "
        "key in all; the worker sends what lies wrong to its place, and refuses what has no key"
    )
    return Finding("partitioner", status, said, advice)


def check_events(records: Sequence[Any], settings: Settings) -> Finding:
    """Records are events of the user they are keyed by, with times in milliseconds."""
    if not records:
        return Finding("events", "ok", NOTHING)
    wrong = Counter(why for record in records if (why := _fault(record, settings)))
    if not wrong:
        return Finding("events", "ok", f"the newest {len(records):,} records are events")
    count = sum(wrong.values())
    (why, times), *_ = wrong.most_common(1)
    said = f"{count:,} of the newest {len(records):,} records; {times:,} times: {why}"
    status: Status = "warn" if count <= _FEW * len(records) else "fail"
    return Finding("events", status, said, "see the producer, and the topic dead-letters")


def _fault(record: Any, settings: Settings) -> str:
    """What is wrong with a record, "" for nothing."""
    if not record.value:
        return "no value"
    try:
        event = decode_user_event(record.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return "" if _is_wish(record.value) else str(error)
    if event.event_time < _LEAST_MS:
        return "event_time is before 1973: it must be in milliseconds, not seconds"
    if event.event_time > record.timestamp + settings.max_future_ms:
        return "event_time lies further ahead of its record than `max_future_ms`"
    owner = event.owner()
    if owner is None:
        return "neither user_id nor anonymous_id"
    return "" if record.key == owner.encode() else "the key is not the user"


def _is_wish(value: bytes) -> bool:
    """Whether it is a control event, or a record by which workers merge users."""
    for decode in (decode_control_event, decode_merge_request, decode_merge_part):
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            decode(value)
            return True
    return False


def check_clock(records: Sequence[Any], now_ms: int) -> Finding:
    """No record was made later than now by this machine's clock.

    That is all that can be seen without writing: a clock of this machine that is ahead looks like
    a topic on which nothing happens.
    """
    if not records:
        return Finding("clock", "ok", "no record to compare this machine's clock with")
    ahead_ms = max(record.timestamp for record in records) - now_ms
    if ahead_ms <= _CLOCK_MS:
        said = f"no record is ahead of this machine's clock, the newest is {_ago(-ahead_ms)} old"
        return Finding("clock", "ok", said)
    said = f"the newest record is {ahead_ms / 1000:,.1f} s ahead of this machine's clock"
    status: Status = "fail" if ahead_ms > _CLOCK_FAILS_MS else "warn"
    return Finding("clock", status, said, "set the clocks by NTP, here and where producers run")


def _ago(age_ms: int) -> str:
    seconds = max(age_ms, 0) / 1000
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.1f} s"
