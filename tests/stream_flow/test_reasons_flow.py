"""After a click the list says so: what usually follows the clicked item names it."""

from __future__ import annotations

import json
from typing import Any

from engine import Engine, event, wait_until


def newest_list(engine: Engine, user: str) -> dict[str, Any] | None:
    found = [r.value for r in engine.read("recommendations") if r.key == user.encode()]
    return json.loads(found[-1]) if found else None


def test_the_list_after_a_click_names_the_clicked_item(engine: Engine) -> None:
    pairs = [(f"first-{n}", f"second-{n}") for n in range(4)]
    past = [
        (f"user-{n}".encode(), event(f"user-{n}", 10 * n + place, "click", item_id=item))
        for n in range(40)
        for place, item in enumerate(pairs[n % 4])
    ]
    engine.send(past)
    engine.worker().start()
    engine.wait_until_all_is_done()

    engine.send([(b"ada", event("ada", 500, "click", item_id="first-2"))])
    made = wait_until(lambda: newest_list(engine, "ada"), engine.logs)

    reasons = {item["item_id"]: item["reason"] for item in made["items"]}
    assert reasons["second-2"] == {"code": "because_item", "items": ["first-2"]}
    others = [reason for item, reason in reasons.items() if item != "second-2"]
    assert others and all(reason == {"code": "popular"} for reason in others)


def test_what_is_trending_is_popular(engine: Engine) -> None:
    clicks = [event(f"user-{n}", n, "click", item_id=f"item-{n % 3}") for n in range(9)]
    engine.send((f"user-{n}".encode(), click) for n, click in enumerate(clicks))
    engine.worker().start()
    engine.wait_until_all_is_done()

    found = wait_until(lambda: engine.read("trending"), engine.logs)

    items = json.loads(found[-1].value)["items"]
    assert {item["reason"]["code"] for item in items} == {"popular"}
