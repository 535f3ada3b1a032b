"""What the demo's users send: a catalogue and a past, then visits, clicks and the truth."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from export.datasets import DatasetError
from stream.demo.catalogue import CATEGORIES, ESTABLISHED, demo_items
from stream.demo.players import TRUTH_TOPIC, Crowd, CrowdSettings, DataPlayer, DemoTruth
from stream.events import (
    Item,
    RankedItem,
    Recommendation,
    ReleaseReference,
    Trigger,
    UserEvent,
    decode_item,
    decode_user_event,
    encode,
)

NOW_MS = 1_767_225_600_000


def listed(user: str, items: list[str]) -> Recommendation:
    return Recommendation(
        "driftline.recommendation/1",
        f"rec-{user}",
        "default",
        "home",
        seq=1,
        generated_at=NOW_MS,
        expires_at=NOW_MS + 1,
        trigger=Trigger("visit"),
        release=ReleaseReference("driftline", 1),
        items=[RankedItem(item, 1.0) for item in items],
        user_id=user,
    )


def test_the_past_is_the_catalogue_of_today_and_then_clicks_in_the_order_of_time() -> None:
    past = list(Crowd(CrowdSettings(10, 500), NOW_MS).past())

    items, events = past[: len(CATEGORIES) * ESTABLISHED], past[len(CATEGORIES) * ESTABLISHED :]
    assert all(topic == "items" and decode_item(encode(value)) for topic, _, value in items)
    clicks = [decode_user_event(encode(value)) for _, _, value in events]
    assert len(clicks) == 500 == len({click.event_id for click in clicks})
    times = [click.event_time for click in clicks]
    assert times == sorted(times) and times[-1] < NOW_MS
    assert all(key == click.user_id for (_, key, _), click in zip(events, clicks, strict=True))


def test_users_visit_then_click_and_their_truth_comes_with_it() -> None:
    crowd = Crowd(CrowdSettings(10, 0), NOW_MS)
    kinds: Counter[str] = Counter()
    last: dict[str, str] = {}
    for second in range(400):
        (_, user, event), *truth = crowd.act(NOW_MS + 1000 * second, {})
        assert isinstance(event, UserEvent)
        assert event.type == "visit" or user in last
        last[user] = event.type
        kinds[event.type] += 1
        for topic, key, told in truth:
            assert (topic, key) == (TRUTH_TOPIC, user)
            assert isinstance(told, DemoTruth) and told.user_id == user
            assert 0.8 < sum(interest.weight for interest in told.now) < 1.01
            assert {interest.label for interest in told.now} <= set(CATEGORIES)

    assert 0.2 < kinds["visit"] / 400 < 0.4


def test_a_jump_is_told_with_its_moment_and_the_clicks_since() -> None:
    crowd = Crowd(CrowdSettings(1, 0), NOW_MS)
    told: list[tuple[int, DemoTruth, str]] = []
    for second in range(600):
        at_ms = NOW_MS + 1000 * second
        (_, _, event), *truth = crowd.act(at_ms, {})
        assert isinstance(event, UserEvent)
        told += [(at_ms, t, event.type) for _, _, t in truth if isinstance(t, DemoTruth)]

    jumped = [(at_ms, t) for at_ms, t, kind in told if t.jump and kind == "click"]
    first_ms, first = next((at_ms, t) for at_ms, t in jumped if t.jump and t.jump.event == 1)
    assert first.jump is not None and first.jump.event_time == first_ms
    assert first.now[0].label == first.jump.label
    assert crowd.jumps == sum(t.jump.event == 1 for _, t in jumped if t.jump)


def test_a_click_in_a_list_names_the_list_and_the_place_and_others_do_not() -> None:
    crowd = Crowd(CrowdSettings(20, 0, seed=3), NOW_MS)
    shown = [item.item_id for item in demo_items()][::9]
    lists = {f"u-{n}": listed(f"u-{n}", shown) for n in range(2000)}
    from_list = organic = 0
    for second in range(600):
        (_, user, event), *_ = crowd.act(NOW_MS + 1000 * second, lists)
        assert isinstance(event, UserEvent)
        if event.type != "click":
            continue
        if event.rec:
            from_list += 1
            assert event.rec.rec_id == f"rec-{user}"
            assert shown[event.rec.position or 0] == event.item_id
        else:
            organic += 1

    assert from_list > 10 and organic > 10


def test_items_that_appear_later_are_told_once() -> None:
    crowd = Crowd(CrowdSettings(1, 0), NOW_MS)

    first = crowd.news(NOW_MS + 100_000)
    second = crowd.news(NOW_MS + 100_000)
    rest = crowd.news(NOW_MS + 86_400_000)

    assert len(first) == 2 and second == [] and len(rest) == 70
    assert all(isinstance(i, Item) and i.publish_time > NOW_MS for _, _, i in first + rest)  # type: ignore[operator]


def data(folder: Path) -> Path:
    path = folder / "events.jsonl"
    rows = [
        {"user": f"u{n % 3}", "item": f"i{n}", "time": 1_300_000_000 + 60 * n, "title": f"Item {n}"}
        for n in range(10)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_data_set_has_its_past_moved_to_now_and_a_visit_before_each_later_event(tmp_path) -> None:
    player = DataPlayer("jsonl", data(tmp_path), 6, NOW_MS)

    past = [value for topic, _, value in player.past() if topic == "user-events"]
    live = [value for step in range(9) for _, _, value in player.act(NOW_MS + step, {})]

    times = [event.event_time for event in past if isinstance(event, UserEvent)]
    assert times == [NOW_MS - 60_000 * n for n in range(5, -1, -1)]
    assert [e.type for e in live if isinstance(e, UserEvent)] == ["visit", "click"] * 4
    assert [e.item_id for e in live[1::2] if isinstance(e, UserEvent)] == ["i6", "i7", "i8", "i9"]
    assert [e.event_time for e in live if isinstance(e, UserEvent)] == [
        NOW_MS + n for n in range(8)
    ]


def test_data_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        DataPlayer("movietweetings", tmp_path / "nowhere", 6, NOW_MS)
