"""Which refused records can be sent again, under which key, and that each is sent once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.dead_letters import MAX_KEPT_BYTES, DeadLetter
from stream.redrive.account import Plan, plan_of
from stream.redrive.letters import Letter, LetterFilter, letter_of, right_key
from stream.redrive.marks import Ledger, Mark, RedriveLogError, origins_sent
from stream.redrive.report import SinceError, count_reasons, plan_text, record_text, since_ms
from stream.settings import Settings

SETTINGS = Settings(prefix="shop-")
EVENTS, ITEMS = SETTINGS.topic("user-events"), SETTINGS.topic("items")
HOUR_MS = 3_600_000


@dataclass
class Record:
    """A record of dead-letters, as a client gives it."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    partition: int = 0
    offset: int = 0
    timestamp: int = 1_000


def refused(
    reason: str = "not JSON",
    topic: str = EVENTS,
    key: bytes | None = b"ada",
    value: bytes | None = b"{}",
    whole_bytes: int | None = None,
    offset: int = 17,
) -> Record:
    """A dead letter as a worker writes it."""
    letter = DeadLetter(reason, topic, 3, offset, key, value, whole_bytes)
    return Record(letter.kept_key(), letter.kept_value(), letter.headers(), offset=offset)


def letter(record: Record) -> Letter:
    found = letter_of(record, SETTINGS)
    assert found is not None
    return found


def test_a_letter_tells_where_the_record_was_refused_and_why():
    found = letter(refused("no key"))

    assert (found.reason, found.origin, found.position) == ("no key", f"{EVENTS}/3/17", "0:17")
    assert found.obstacle == ""


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (refused(value=b"x" * (MAX_KEPT_BYTES + 1)), "65,536 bytes of its value"),
        (refused("the batch of offsets 3 to 9: too large", value=None, whole_bytes=99), "batch"),
        (refused("not supported yet: control event user_delete"), "control event"),
        (refused(value=b'{"schema": "driftline.control/1", "user_id": "ada"}'), "control event"),
        (refused("no value", value=None), "no value"),
        (refused("no key", key=None, value=b"rubbish"), "no key"),
        (refused(key=b"k" * (MAX_KEPT_BYTES + 1)), "key"),
        (refused(topic="another-user-events"), "none of this engine's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_sent_again_says_why(record: Record, why: str):
    assert why in letter(record).obstacle


@pytest.mark.parametrize(
    "headers", [[], [("reason", b"x")], [("topic", b"t"), ("partition", b"x"), ("offset", b"1")]]
)
def test_a_record_that_no_worker_wrote_is_no_letter(headers: list[tuple[str, bytes]]):
    record = Record(b"k", b"v", headers)

    assert letter_of(record, SETTINGS) is None
    assert "is no dead letter" in record_text(record, SETTINGS)


@pytest.mark.parametrize(
    ("topic", "value", "key"),
    [
        (EVENTS, {"user_id": "bob", "anonymous_id": "x"}, b"bob"),
        (EVENTS, {"anonymous_id": "x", "event_time": "soon"}, b"x"),
        (EVENTS, {"user_id": 7}, b"ada"),
        (EVENTS, {}, b"ada"),
        (ITEMS, {"item_id": "lamp"}, b"lamp"),
        (ITEMS, {}, b"ada"),
    ],
)
def test_the_right_key_is_what_the_value_tells_else_the_old_one(topic, value, key):
    assert right_key(topic, b"ada", json.dumps(value).encode(), SETTINGS) == key


@pytest.mark.parametrize("value", [b"", b"\xff", b"[" * 100_000, b'{"user_id": "\\ud800"}'])
def test_a_value_that_cannot_be_read_keeps_its_key(value: bytes):
    assert right_key(EVENTS, b"ada", value, SETTINGS) == b"ada"


def test_a_filter_takes_a_part_of_the_reason_in_any_case_a_topic_and_an_age():
    found = letter(refused("No Key: the key is the user"))

    assert LetterFilter("no key", EVENTS, 1_000).takes(found)
    assert not LetterFilter("no value").takes(found)
    assert not LetterFilter(topic=ITEMS).takes(found)
    assert not LetterFilter(since_ms=1_001).takes(found)


def test_since_is_an_age_or_a_time():
    assert since_ms("2h", 10 * HOUR_MS) == 8 * HOUR_MS
    assert since_ms("1970-01-01T02:00", 0) == 2 * HOUR_MS
    assert since_ms("1970-01-01T02:00+01:00", 0) == HOUR_MS
    assert since_ms("9999d", 5) == since_ms(None, 5) == 0
    with pytest.raises(SinceError, match="90m"):
        since_ms("yesterday", 0)


def test_numbers_do_not_tell_reasons_apart():
    letters = [letter(refused(f"{n} bytes: at most 9 are taken", offset=n)) for n in range(5)]
    ledger = Ledger()
    ledger.sent = {letters[0].origin, letters[1].origin}

    (count,) = count_reasons(letters, ledger)

    assert (count.reason, count.letters, count.sent_again) == ("# bytes: at most # are taken", 5, 2)


def mark(stage: str, origins: list[str], **ends: dict[str, int]) -> bytes:
    return json.dumps(
        {
            "schema": "driftline.redrive/1",
            "id": "run",
            "stage": stage,
            "at": 1,
            "origins": origins,
            "ends": ends,
        }
    ).encode()


def test_a_plan_leaves_out_what_was_sent_and_what_cannot_be_and_keeps_to_the_limit():
    ledger = Ledger()
    letters = [letter(refused(offset=n)) for n in range(5)]
    cannot = letter(refused(value=None, offset=9))
    ledger.take(mark("sent", [letters[0].origin]))

    plan = plan_of(iter([*letters, cannot]), ledger, limit=2)

    assert plan.letters == letters[1:3]
    assert (plan.sent_before, dict(plan.obstacles)) == (1, {"has no value": 1})
    assert "would send 2 records to shop-user-events" in plan_text(plan, "would send")
    assert "nothing" in plan_text(Plan([], 0, plan.obstacles), "sent")


@pytest.mark.parametrize("value", [None, b"", b"{}", b'{"schema": "driftline.redrive/2"}'])
def test_what_is_no_mark_stops_a_redrive(value: bytes | None):
    with pytest.raises(RedriveLogError, match="twice"):
        Ledger().take(value)


def test_where_the_log_has_forgotten_what_came_since_all_count_as_sent():
    ledger = Ledger()
    ledger.take(mark("sending", ["a", "b"], t={"0": 5}))
    (broken,) = ledger.broken_off.values()

    assert origins_sent(broken, {"a"}, {"t": {0: 5}}) == ["a"]
    assert origins_sent(broken, {"a"}, {"t": {0: 6}}) == ["a", "b"]


@given(
    count=st.integers(1, 12),
    size=st.integers(1, 5),
    crashes=st.lists(st.integers(0, 20), max_size=8),
)
def test_whenever_it_dies_each_record_is_sent_once(count: int, size: int, crashes: list[int]):
    origins = [f"t/0/{n}" for n in range(count)]
    marks: list[bytes] = []
    topic: list[str] = []

    for steps in [*crashes, 10_000]:
        left = iter(range(steps))  # each write takes one; without any left the process is dead

        def write(log: list, record: object, left=left) -> bool:
            if next(left, None) is None:
                return False
            log.append(record)
            return True

        run(origins, size, marks, topic, write)

    assert sorted(topic) == sorted(origins)


def run(origins: list[str], size: int, marks: list[bytes], topic: list[str], write) -> None:
    """The order of stream.redrive.redrive on lists; ends where a write does."""
    ledger = Ledger()
    for value in marks:
        ledger.take(value)
    for broken in list(ledger.broken_off.values()):
        found = set(topic[broken.ends["t"]["0"] :])
        sent = origins_sent(broken, found, {"t": {0: 0}})
        if not write(marks, of(broken, "sent", sent)):
            return
        ledger.sent.update(sent)
    rest = [origin for origin in origins if origin not in ledger.sent]
    for begin in range(0, len(rest), size):
        sending = rest[begin : begin + size]
        of_run = Mark("driftline.redrive/1", f"{len(marks)}", "sending", 1, sending)
        if not write(marks, of(of_run, "sending", sending, len(topic))):
            return
        if not all(write(topic, origin) for origin in sending):
            return
        if not write(marks, of(of_run, "sent", sending)):
            return


def of(mark: Mark, stage: str, origins: list[str], end: int = 0) -> bytes:
    fields = {"schema": mark.schema, "id": mark.id, "stage": stage, "at": 1, "origins": origins}
    return json.dumps(fields | {"ends": {"t": {"0": end}}}).encode()
