"""The trainer's rules: what it takes from the log, when it trains, how it is set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.event_types import EventRole
from export.items import ItemIndex
from export.settings import SettingsError
from models.event_log import EventBuffer, user_hash
from models.examples import ExampleFold
from models.intake import Intake
from models.schedule import Schedule, ScheduleError, parse_duration
from models.sequences import BatchMaker, item_features
from models.settings import TrainerSettings, load_trainer_settings

NOW_MS = 1_700_000_000_000


@dataclass
class Message:
    value: bytes | None
    key: bytes | None = b"ann"
    timestamp: int = NOW_MS


def event(**fields: object) -> Message:
    body = {
        "event_id": "event-0001",
        "type": "rate",
        "user_id": "ann",
        "item_id": "x",
        "event_time": NOW_MS - 1000,
    } | fields
    return Message(msgspec.json.encode({k: v for k, v in body.items() if v is not None}))


def intake(**settings: object) -> Intake:
    return Intake(TrainerSettings(**settings), ItemIndex())


def test_positive_and_negative_events_are_taken_and_visits_are_not() -> None:
    taking = intake(event_types={"share": EventRole("positive", 2.0)})

    for number, kind in enumerate(("rate", "dislike", "share", "visit", "impression", "unheard")):
        taking.take_event(event(type=kind, event_id=f"event-{number:04d}"))

    columns = taking.buffer.take()
    assert columns.weights.tolist() == [16, 0, 32]
    assert [taking.buffer.types[row] for row in columns.types] == ["rate", "dislike", "share"]
    assert taking.counts["ignored"] == 3


def test_an_event_that_comes_too_late_for_the_workers_is_learned_from_in_its_place() -> None:
    taking = intake()
    weeks_ago_ms = NOW_MS - 30 * 86_400_000

    taking.take_event(event())
    taking.take_event(event(event_id="event-0002", item_id="y", event_time=weeks_ago_ms))

    assert taking.buffer.take().times_ms.tolist() == [weeks_ago_ms, NOW_MS - 1000]
    assert taking.counts["taken"] == 2


def test_an_event_that_was_sent_twice_counts_once() -> None:
    taking = intake()

    for _ in range(3):
        taking.take_event(event())

    assert len(taking.buffer) == 1


def control(kind: str, number: int, **fields: object) -> Message:
    schema, event_id = "driftline.control/1", f"control-{number:04d}"
    return event(schema=schema, type=kind, event_id=event_id, item_id=None, **fields)


def learned(*records: Message) -> tuple[list[str], list[str], ExampleFold]:
    """Items that can be predicted, items that stand in histories, and the fold."""
    taking = intake()
    fold = ExampleFold(taking.buffer.index)
    for record in records:
        taking.take_event(record)
    list(fold.extend(taking.buffer.take()))
    fold.forget(taking.take_forgotten())
    events, ids = fold.events, taking.buffer.index.ids
    targets = [ids[row] for row in events.items[events.weights > 0]]
    maker = BatchMaker(fold.examples(), item_features(ids, {}, {}, {}), True)
    histories, _ = maker._history(np.flatnonzero(events.weights > 0), 50)
    return targets, [ids[events.items[n]] for n in histories.ravel() if n >= 0], fold


def rated(*numbers: int, **fields: object) -> list[Message]:
    return [
        event(event_id=f"event-{n:04d}", item_id=f"i{n}", event_time=NOW_MS - 9999 + n, **fields)
        for n in numbers
    ]


@pytest.mark.parametrize("kind", ["user_delete", "history_reset", "user_opt_out"])
def test_what_a_user_did_before_being_forgotten_is_not_learned_from(kind: str) -> None:
    again = [] if kind != "user_opt_out" else [control("user_opt_in", 2)]

    targets, histories, fold = learned(
        *rated(1, 2), control(kind, 1), *again, *rated(3, 4), control(kind, 1)
    )

    assert targets == ["i3", "i4"]
    assert histories == ["i3"]
    assert (fold.statistics.popularity()[0] > 0).all(), "what was counted stays counted"


def test_other_users_and_controls_that_forget_nothing_are_learned_as_before() -> None:
    targets, histories, _ = learned(
        *rated(1, 2),
        control("user_delete", 1, tenant="shop"),
        control("item_block", 2, target="i1"),
        Message(control("user_delete", 3).value, key=b"bob"),
        control("user_delete", 4, event_time=NOW_MS + 2 * 86_400_000),
    )

    assert (targets, histories) == (["i1", "i2"], ["i1"])


def by_guest(*numbers: int) -> list[Message]:
    clicks = rated(*numbers, user_id=None, anonymous_id="guest")
    return [Message(click.value, key=b"guest") for click in clicks]


def leg(schema: str, key: bytes, **fields: object) -> Message:
    about = {"event_id": f"{schema}-0001", "event_time": NOW_MS, "asked_offset": 1} | fields
    return Message(msgspec.json.encode(about | {"schema": f"driftline.{schema}/1"}), key=key)


def test_merged_users_are_learned_from_as_two_and_forgotten_together() -> None:
    request = leg("merge-request", b"guest", anonymous_id="guest", into_user_id="ann")
    part = leg(
        *("merge-part", b"ann"),
        **{"user_id": "ann", "from_anonymous_id": "guest", "part": 0},
        **{"request_id": "merge-request-0001", "request_offset": 3},
    )
    merged = [*rated(1, 2), *by_guest(3, 4), request, request, part, *by_guest(5, 6)]

    targets, histories, _ = learned(*merged)
    left, left_histories, _ = learned(*merged, control("user_delete", 1))

    assert targets == [f"i{n}" for n in range(1, 7)]
    assert histories == ["i1", "i3", "i5"], "the guest has started anew"
    assert (left, left_histories) == (["i5", "i6"], ["i5"])


def test_who_has_opted_out_is_not_learned_from_until_opting_in() -> None:
    targets, _, fold = learned(
        control("user_opt_out", 1), *rated(1), control("user_opt_in", 2), *rated(2)
    )

    assert targets == ["i2"]
    assert fold.count == 1


@pytest.mark.parametrize(
    "record",
    [
        Message(None),
        Message(b"\xff\xfe"),
        Message(b"[" * 5000),
        Message(b"{}"),
        Message(event().value, key=None),
        Message(event().value, key=b"bob"),
        event(item_id=None),
        event(event_time=NOW_MS + 2 * 86_400_000),
        event(query="x" * 70_000),
    ],
)
def test_what_a_worker_refuses_is_refused(record: Message) -> None:
    taking = intake()

    taking.take_event(record)

    assert len(taking.buffer) == 0
    assert taking.counts["refused"] == 1


def test_an_event_from_a_little_ahead_happens_when_its_record_was_made() -> None:
    taking = intake()

    taking.take_event(event(event_time=NOW_MS + 5000))

    assert taking.buffer.take().times_ms.tolist() == [NOW_MS]


def test_the_highest_version_of_an_item_stays() -> None:
    taking = intake()
    for version, category in ((2, "new"), (1, "old")):
        body = {"item_id": "x", "version": version, "categories": [category]}
        taking.take_item(Message(msgspec.json.encode(body), key=b"x"))

    assert taking.attributes["x"] == ("category:new",)
    taking.take_item(Message(None, key=b"x"))
    assert "x" not in taking.attributes


@given(st.lists(st.integers(0, 50), max_size=40))
def test_columns_come_in_event_time_order(times_ms: list[int]) -> None:
    buffer = EventBuffer(ItemIndex())
    for number, time_ms in enumerate(times_ms):
        buffer.append("ann", f"i{number}", "click", time_ms)

    columns = buffer.take()

    wanted = sorted(range(len(times_ms)), key=lambda n: times_ms[n])
    assert [int(buffer.index.ids[row][1:]) for row in columns.items] == wanted
    assert len(buffer.take()) == 0


@given(st.text())
def test_a_users_number_fits_a_column(owner: str) -> None:
    assert np.array([user_hash(owner)], dtype=np.int64)[0] == user_hash(owner)


def test_training_is_due_after_so_many_new_events() -> None:
    schedule = Schedule(every_events=100, min_events=50)

    assert schedule.reason(49, 49, None) is None
    assert schedule.reason(50, 50, None) == "first training, 50 events"
    assert schedule.reason(149, 99, 10**9) is None
    assert schedule.reason(150, 100, 1) == "100 new events"


def test_training_is_due_after_so_much_time_with_something_new() -> None:
    schedule = Schedule(every_ms=60_000, min_events=1)

    assert schedule.reason(10, 0, 10**9) is None
    assert schedule.reason(10, 1, 59_999) is None
    assert schedule.reason(10, 1, 60_000) == "60 s since the last training, 1 new events"


def test_a_schedule_is_either_by_events_or_by_time() -> None:
    with pytest.raises(ScheduleError):
        Schedule()
    with pytest.raises(ScheduleError):
        Schedule(every_events=1, every_ms=1)


@pytest.mark.parametrize(("text", "ms"), [("90s", 90_000), ("15m", 900_000), ("1h", 3_600_000)])
def test_durations_carry_their_unit(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "1", "h", "0s", "1.5h", "-1h", "1 week"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="wanted a duration"):
        parse_duration(text)


def test_trainer_settings_come_from_file_variables_and_options(tmp_path: Path) -> None:
    path = tmp_path / "driftline.toml"
    path.write_text('prefix = "file-"\nbatch_records = 64\nregistry = "models"\n')
    environment = {"DRIFTLINE_PREFIX": "variable-", "DRIFTLINE_BOOTSTRAP": "kafka:1"}

    settings = load_trainer_settings(path, {"bootstrap": "here:2", "release": None}, environment)

    assert (settings.prefix, settings.registry) == ("variable-", "models")
    assert (settings.bootstrap, settings.release) == ("here:2", "driftline")


def test_impossible_trainer_settings_are_named_all_at_once() -> None:
    environment = {"DRIFTLINE_SEEN_ITEMS": "maybe", "DRIFTLINE_NEIGHBOURS": "many"}

    with pytest.raises(SettingsError) as error:
        load_trainer_settings(None, {}, environment)

    assert "DRIFTLINE_SEEN_ITEMS" in str(error.value)
    assert "DRIFTLINE_NEIGHBOURS" in str(error.value)
