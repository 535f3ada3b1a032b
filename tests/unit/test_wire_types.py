"""The messages are what their published schemas say, and hold what consumers rely on."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.events import (
    Item,
    MergeRequest,
    UserEvent,
    decode_item,
    decode_user_event,
    encode,
)
from stream.schemas import MESSAGES, schema, schema_text, write_schemas

CHECKED_IN = Path(__file__).parents[2] / "deploy" / "schemas"

#: Fields that others send or read: (required, optional). None may go or change its need.
CONTRACT = {
    "event": (
        "event_id type event_time",
        "schema user_id anonymous_id session_id item_id items sent_time value portion rec query "
        "scenario context tenant consent source",
    ),
    "control": (
        "schema event_id type event_time user_id",
        "tenant from_anonymous_id target until request_id",
    ),
    "item": (
        "item_id version",
        "schema tenant title text categories tags creator_id price available hidden publish_time "
        "expire_time embedding media groups attributes",
    ),
    "recommendation": (
        "schema rec_id tenant scenario seq generated_at expires_at trigger release items",
        "user_id anonymous_id request_time fallback",
    ),
    "trending": ("schema scenario request_time expires_at items", "tenant"),
    "interests": ("schema tenant request_time now next", "user_id anonymous_id seq drift"),
    "decision": (
        "schema rec_id tenant seq trigger state release policy positions candidates",
        "user_id anonymous_id scenario generated_at request_time timing_ms",
    ),
    "manifest": (
        "schema name version created_at files opset precision inputs catalogue lineage gates",
        "",
    ),
}
#: The same for the parts of a message.
PARTS = {
    ("recommendation", "Trigger"): ("reason", "event_id partition offset coalesced"),
    ("recommendation", "ReleaseReference"): ("name version", "arm"),
    ("recommendation", "RankedItem"): ("item_id score", "source reason"),
    ("decision", "StateReference"): (
        "digest history_len",
        "codec last_event_time applied_offset events_total",
    ),
    ("decision", "DecidingRelease"): ("name version sha256", "arm experiment"),
    ("decision", "Policy"): ("version seed", ""),
    ("decision", "Positions"): ("statistics catalogue", ""),
    ("decision", "Candidate"): ("item_id score", "propensity"),
    ("interests", "InterestNow"): ("label weight trend", ""),
    ("interests", "InterestNext"): ("label probability", ""),
    ("event", "ListedItem"): ("item_id", "position visible_ms quantity price"),
    ("event", "RecommendationReference"): ("rec_id", "position"),
    ("item", "Embedding"): ("space vector", ""),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_schema_that_is_checked_in_is_the_one_the_types_give(name):
    wanted = (CHECKED_IN / f"{name}.v1.json").read_text()

    assert schema_text(name) == wanted, "run `driftline schemas --write deploy/schemas`"


def test_no_schema_is_checked_in_that_no_message_has(tmp_path):
    write_schemas(tmp_path)

    assert {p.name for p in CHECKED_IN.iterdir()} == {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_schema_is_json_schema_of_the_draft_it_names(name):
    document = schema(name)

    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(document)


@pytest.mark.parametrize("name", CONTRACT)
def test_every_field_that_others_rely_on_is_there_and_as_needed_as_before(name):
    required, optional = (set(names.split()) for names in CONTRACT[name])
    document = schema(name)

    assert set(document["required"]) == required
    assert required | optional <= set(document["properties"])


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_every_part_of_a_message_has_the_fields_that_others_rely_on(name, part):
    required, optional = (set(names.split()) for names in PARTS[name, part])
    definition = schema(name)["$defs"][part]

    assert set(definition.get("required", [])) == required
    assert required | optional <= set(definition["properties"])


texts = st.text(max_size=6)
anything = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | texts | st.lists(texts)
events = st.fixed_dictionaries(
    {
        "event_id": st.just("event-0001") | st.text(max_size=70) | anything,
        "type": st.sampled_from(["click", "Click", "a" * 65, "9", "click\n"]) | anything,
        "event_time": st.integers(0, 2**62) | anything,
    },
    optional={
        "user_id": st.just("ada") | anything,
        "anonymous_id": st.just("device") | anything,
        "item_id": st.just("item") | anything,
        "value": st.floats(allow_nan=False, allow_infinity=False) | anything,
        "portion": st.floats(-1, 2) | anything,
        "tenant": st.sampled_from(["shop", "-", ""]) | anything,
        "scenario": st.sampled_from(["home", "Home"]) | anything,
        "consent": st.sampled_from(["full", "some"]) | anything,
        "items": st.lists(st.fixed_dictionaries({"item_id": texts})) | anything,
        "context": st.dictionaries(texts, texts | st.integers(0, 9)) | anything,
        "rec": st.fixed_dictionaries({"rec_id": texts}, optional={"position": st.integers(-1, 3)}),
        "unknown": anything,
    },
)


@given(events)
def test_the_worker_takes_exactly_the_events_that_the_schema_allows(event):
    """Ids of producers who validate and decisions of the worker must not differ."""
    validator = jsonschema.Draft202012Validator(schema("event"))
    allowed = validator.is_valid(event)

    try:
        taken = decode_user_event(json.dumps(event).encode()).owner() is not None
    except msgspec.ValidationError:
        taken = False

    assert taken == allowed


def test_a_message_keeps_what_it_held_when_it_is_encoded_and_decoded():
    event = UserEvent("event-0001", "click", 17, user_id="ada", item_id="é", value=0.5)
    item = Item("é", 3, title="A title", categories=["jazz"], attributes={"year": 1959})

    assert decode_user_event(encode(event)) == event
    assert decode_item(encode(item)) == item


def test_fields_that_nobody_set_are_not_on_the_wire():
    event = json.loads(encode(UserEvent("event-0001", "click", 17, user_id="ada")))

    assert set(event) == {"event_id", "type", "event_time", "user_id", "tenant"}


def test_a_field_of_a_newer_producer_is_passed_over():
    data = encode(UserEvent("event-0001", "click", 17, user_id="ada"))
    newer = data[:-1] + b',"mood":{"good":true}}'

    assert decode_user_event(newer) == decode_user_event(data)


@pytest.mark.parametrize(
    ("known", "anonymous", "owner"),
    [
        ("ada", None, "ada"),
        ("ada", "device", "ada"),
        (None, "device", "device"),
        (None, None, None),
    ],
)
def test_the_owner_of_an_event_is_the_user_else_the_anonymous_one(known, anonymous, owner):
    ids = {"user_id": known, "anonymous_id": anonymous}

    event = UserEvent("event-0001", "click", 17, **{k: v for k, v in ids.items() if v})

    assert event.owner() == owner


@pytest.mark.parametrize(
    ("digits", "is_taken"), [("9223372036854775807", True), ("1" * 4000, False)]
)
def test_an_offset_in_a_leg_of_a_merge_is_one_that_a_partition_can_have(digits, is_taken):
    leg = (
        b'{"schema":"driftline.merge-request/1","event_id":"event-01","event_time":1,'
        b'"anonymous_id":"a","into_user_id":"u","asked_offset":%s}' % digits.encode()
    )
    try:
        found = msgspec.json.decode(leg, type=MergeRequest).asked_offset
    except msgspec.MsgspecError:
        found = None

    assert found == (int(digits) if is_taken else None)
