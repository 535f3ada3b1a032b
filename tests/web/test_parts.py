"""Items, raw messages, rate limit, host names, order of the past: each within its bounds."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from export.items import ItemIndex
from stream.catalogue import Catalogue
from stream.events import Item, encode
from stream.web.guard import HostRule
from stream.web.items import Items
from stream.web.log_reader import in_time_order
from stream.web.raw_messages import RawMessages
from stream.web.visitors import RateLimit, new_token, visitor_of


@dataclass
class Record:
    timestamp: int
    name: str


def items(**categories: int) -> Items:
    made = Items(Catalogue(ItemIndex()))
    for category, count in categories.items():
        for number in range(count):
            item = Item(
                f"{category}-{number}", 1, title=f"{category} {number}", categories=[category]
            )
            assert made.take(item.item_id.encode(), encode(item))
    return made


def test_the_past_is_read_in_the_order_in_which_it_was_written() -> None:
    events = [Record(1, "event 1"), Record(5, "event 2"), Record(4, "event 3")]
    lists = [Record(2, "list 1"), Record(6, "list 2")]

    names = [record.name for record in in_time_order([events, lists])]

    assert names == ["event 1", "list 1", "event 2", "event 3", "list 2"]


def test_items_of_all_categories_are_offered_in_turn() -> None:
    offered = items(jazz=40, hiking=2, chess=40).offer(12, "", "", seed=3)

    assert len({card.id for card in offered}) == 12
    assert {card.category for card in offered} == {"jazz", "hiking", "chess"}


def test_an_offer_is_narrowed_by_category_and_words() -> None:
    known = items(jazz=40, hiking=40)

    assert {card.category for card in known.offer(12, "jazz", "", 1)} == {"jazz"}
    assert {card.title for card in known.offer(12, "", "KING 1", 1)} >= {"hiking 1", "hiking 10"}
    assert known.offer(12, "chess", "", 1) == []


def test_a_deleted_or_hidden_item_is_not_offered() -> None:
    known = items(jazz=2)
    known.take(b"jazz-0", None)
    hidden = Item("jazz-1", 2, title="hidden", categories=["jazz"], hidden=True)
    known.take(b"jazz-1", encode(hidden))

    assert known.offer(5, "", "", 1) == [] and known.categories() == []


def test_raw_messages_are_kept_within_their_bytes() -> None:
    raw = RawMessages(max_bytes=10_000)
    for number in range(100):
        raw.add_recommendation(f"rec-{number}", json.dumps({"n": number, "x": "y" * 500}).encode())
        raw.add_decision(f"rec-{number}", b'{"d":1}')

    assert raw.pretty("rec-0") is None
    told = json.loads(raw.pretty("rec-99") or b"")
    assert told["recommendation"]["n"] == 99 and told["decision"] == {"d": 1}
    assert sum(raw.pretty(f"rec-{n}") is not None for n in range(100)) < 20


def test_a_visitor_may_burst_and_is_then_held_to_a_rate() -> None:
    limit = RateLimit(per_visitor_s=2, visitor_burst=5, in_all_s=1000, all_burst=1000)

    assert [limit.allows("ada", 10.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [limit.allows("ada", 11.0) for _ in range(3)] == [True, True, False]
    assert limit.allows("bob", 11.0)


def test_all_visitors_together_are_held_to_a_rate_too() -> None:
    limit = RateLimit(per_visitor_s=2, visitor_burst=5, in_all_s=10, all_burst=20)

    assert sum(limit.allows(f"user-{n}", 10.0) for n in range(1000)) == 20
    assert sum(limit.allows(f"user-{n}", 11.0) for n in range(1000)) == 10


def test_a_visitors_public_name_does_not_tell_the_cookie() -> None:
    token = new_token()
    name = visitor_of(token)

    assert name is not None and name.startswith("visitor-") and name[8:] not in token
    assert visitor_of(token) == name and visitor_of(new_token()) != name
    for forged in (None, "", "short", "a" * 65, name, "x" * 30 + "\n"):
        assert visitor_of(forged) is None


@pytest.mark.parametrize(
    ("listens_on", "host", "is_allowed"),
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "localhost:8080", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("127.0.0.1", "evil.example:8080", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "10.1.2.3:8080", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[", False),
        ("0.0.0.0", "10.1.2.3:8080", True),
        ("0.0.0.0", "evil.example", False),
        ("box.example", "box.example:8080", True),
        ("127.0.0.1", "demo.example", True),
    ],
)
def test_the_page_goes_by_its_own_names_only(listens_on: str, host: str, is_allowed: bool) -> None:
    names = ["demo.example"] if host == "demo.example" else []

    assert HostRule(listens_on, names).allows(host) == is_allowed
