"""`driftline verify parity` agrees with a worker's lists, and sees when they are others."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

from engine import Engine, driftline, event, wait_until
from streams import QUICK, corpus_of, made_up_events

from export.registry import Registry
from export.release import Release
from models.corpus import Corpus, Names, attributes_by_item
from models.pipeline import Trained, train_cold
from models.publish import Origin, publish


def category_of(item: str) -> str:
    return f"kind-{int(item[1:]) % 6}"


def release_with_half_a_say(engine: Engine, events: list[tuple[str, str, int]]) -> Release:
    """A model trained on events, whose part in a list is one half whatever it is worth."""
    corpus = corpus_of(events, filters_seen=True)
    items = corpus.names.item_ids
    named = {item: [f"category:{category_of(item)}"] for item in items}
    attributes = attributes_by_item(named, items)
    corpus = replace(corpus, names=Names(items, corpus.names.event_types, attributes))
    trained = with_share(train_cold(corpus, QUICK), 0.5)
    return published(engine, trained, corpus)


def with_share(trained: Trained, share: float) -> Trained:
    model = copy.deepcopy(trained.model)
    model.model_share.fill_(share)
    return replace(trained, model=model)


def published(engine: Engine, trained: Trained, corpus: Corpus) -> Release:
    origin = Origin({"user-events": {"0": (0, len(corpus.examples))}}, None, 1_700_000_000_000)
    return publish(trained, corpus, QUICK, origin, Registry(engine.registry), "driftline").release


def send(engine: Engine, events: list[tuple[str, str, int]], first: int) -> None:
    """Clicks, and a visit after every tenth; some at a time, so that lists have many positions."""
    records = []
    for number, (user, item, time_ms) in enumerate(events, start=first):
        click = event(user, number, "click", item_id=item, event_time=time_ms)
        records.append((user.encode(), click))
        if number % 10 == 0:
            visit = event(user, number + 500_000, "visit", event_time=time_ms + 5000)
            records.append((user.encode(), visit))
    for begin in range(0, len(records), 20):
        engine.send(records[begin : begin + 20])


def announce(engine: Engine, release: Release) -> None:
    stage = {
        "schema": "driftline.model-release/1",
        "name": release.name,
        "version": release.version,
        "stage": "live",
        "sha256": release.sha256,
        "path": f"{release.name}/{release.version}",
        "at": 1_700_000_000_000,
    }
    key = f"{release.name}/{release.version}".encode()
    topic = engine.topic("model-releases")
    engine.producer.send(topic, key=key, value=json.dumps(stage).encode()).get(30)


def test_lists_of_live_statistics_and_of_a_release_are_those_of_plain_python_and_torch(
    engine: Engine,
) -> None:
    events = made_up_events(1200)
    for item in sorted({item for _, item, _ in events}):
        value = {"item_id": item, "version": 1, "categories": [category_of(item)]}
        body = json.dumps(value).encode()
        engine.producer.send(engine.topic("items"), key=item.encode(), value=body)
    engine.producer.flush()
    release = release_with_half_a_say(engine, events[:800])
    worker = engine.worker().start()
    send(engine, events[:800], first=0)
    engine.wait_until_all_is_done()
    announce(engine, release)
    wait_until(lambda: "ranks from now on" in worker.log(), engine.logs)
    send(engine, events[800:], first=800)
    engine.wait_until_all_is_done()
    parity = ["verify", "parity", *engine.options, "--json", "--samples"]

    done = driftline(*parity, 400, patience_s=300)
    other = driftline(*parity, 50, patience_s=300, DRIFTLINE_CHAIN_HALF_LIFE_MS="3600000")

    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["lists"] >= 60  # of many events of a user at once comes one
    assert report["by_release"]["driftline/1"] > 20
    assert report["by_release"]["live-statistics/0"] > 20
    assert report["largest_difference"] < 1e-5
    assert other.returncode == 1
    assert json.loads(other.stdout)["differing"] > 0
