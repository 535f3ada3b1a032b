"""What `driftline doctor` thinks of the newest records: merges are no faults."""

from __future__ import annotations

from dataclasses import dataclass

from folding import NOW_MS, control, record

from stream.doctor.records import check_events
from stream.events import MergePart, MergeRequest, encode
from stream.settings import Settings


@dataclass(frozen=True)
class Sent:
    key: bytes
    value: bytes
    timestamp: int = NOW_MS


def test_events_control_events_and_legs_of_merges_are_right_and_anything_else_is_not():
    merge_ids = ("merge-request-1", NOW_MS)
    request = MergeRequest("driftline.merge-request/1", *merge_ids, "guest", "ada", 7)
    part = MergePart("driftline.merge-part/1", *merge_ids, "ada", "guest", 7, "request-1", 3, 0)
    good = [
        Sent(b"ada", record().value),
        Sent(b"ada", control(1, "user_delete").value),
        Sent(b"guest", encode(request)),
        Sent(b"ada", encode(part)),
    ]

    assert check_events(good, Settings()).status == "ok"
    assert check_events([*good, Sent(b"ada", b"click!")], Settings()).status == "fail"
