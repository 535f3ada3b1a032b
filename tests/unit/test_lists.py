"""The messages of a refresh: equal ids mean equal inputs, and both messages tell the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.json import decode

from export.items import ItemIndex, item_hash
from stream.catalogue import Catalogue
from stream.events import (
    Candidate,
    Decision,
    Policy,
    RankedItem,
    Reason,
    Recommendation,
    encode,
)
from stream.folded_batch import TouchedUser
from stream.history import HistoryEvent, RowLimits, UserRow, hash32, hash64
from stream.list_texts import (
    SOURCES,
    ListTexts,
    candidates_text,
    items_text,
    score_texts,
    tail_of,
)
from stream.lists import (
    MAX_CANDIDATES,
    Refresh,
    RefreshContext,
    list_key,
    list_policy,
    messages,
    rec_id,
    state_digest,
)
from stream.ranker import StatisticsRanker
from stream.requests import LiveTensors
from stream.schemas import schema
from stream.settings import Settings

NOW_MS = 1_700_000_000_000
ITEMS = [f"item-{number}" for number in range(150)]


def user(**changed: object) -> TouchedUser:
    row = UserRow(7)
    event = HistoryEvent(hash64("e"), item_hash("item-9"), NOW_MS - 5, 41, hash32("click"))
    row.fold(event, RowLimits())
    touched = TouchedUser(
        key=b"default\x1fu\x1fada",
        owner="ada",
        is_known=True,
        tenant="default",
        partition=3,
        row=row,
        is_due=True,
        reason="visit",
        trigger_id="event-0042",
        trigger_offset=42,
        request_ms=NOW_MS,
        coalesced=2,
    )
    return dataclasses.replace(touched, **changed)


REASON = Reason("because_item", [ITEMS[9]])


def refresh(length: int = 5, **changed: object) -> Refresh:
    touched = user()
    items = [
        RankedItem(ITEMS[place], float(score), SOURCES[place % 3], REASON)
        for place, score in enumerate(np.linspace(0.9, 0.1, length, dtype=np.float32))
    ]
    candidates = [Candidate(item.item_id, item.score, 1.0) for item in items]
    whole = Refresh(
        touched,
        seq=8,
        state_digest=state_digest(touched),
        items=encode(items),
        candidates=encode(candidates[:MAX_CANDIDATES]),
    )
    return dataclasses.replace(whole, **changed)


def context(**changed: object) -> RefreshContext:
    whole = RefreshContext(
        StatisticsRanker(0.7),
        LiveTensors(np.zeros((2, 150)), np.ones(150), {0: 11, 1: 12}, NOW_MS),
        {0: 150},
        Policy("top-50", 0),
        NOW_MS + 3,
        Catalogue(ItemIndex()).columns(),
    )
    return dataclasses.replace(whole, **changed)


def read(
    made: Refresh, of: RefreshContext, settings: Settings
) -> tuple[Recommendation, Decision | None]:
    """Both messages as consumers read them, which are written as the encoder writes them."""
    recommendation, decision = messages(made, of, settings)
    first = decode(encode(recommendation), type=Recommendation)
    assert encode(first) == encode(recommendation)
    if decision is None:
        return first, None
    second = decode(encode(decision), type=Decision)
    assert encode(second) == encode(decision)
    return first, second


def ranked_by(**changed: object) -> RefreshContext:
    return context(ranker=dataclasses.replace(StatisticsRanker(0.7), **changed))


OTHER_INPUTS: dict[str, Callable[[], tuple[Refresh, RefreshContext]]] = {
    "tenant": lambda: (refresh(user=user(tenant="shop")), context()),
    "user": lambda: (refresh(user=user(owner="bob")), context()),
    "anonymous": lambda: (refresh(user=user(is_known=False)), context()),
    "request time": lambda: (refresh(user=user(request_ms=NOW_MS + 1)), context()),
    "seq": lambda: (refresh(seq=9), context()),
    "state": lambda: (refresh(state_digest="0123456789abcdef"), context()),
    "release name": lambda: (refresh(), ranked_by(name="other")),
    "release version": lambda: (refresh(), ranked_by(version=1)),
    "release bytes": lambda: (refresh(), ranked_by(sha256="ab")),
    "statistics position": lambda: (
        refresh(),
        context(live=dataclasses.replace(context().live, positions={0: 11, 1: 13})),
    ),
    "catalogue position": lambda: (refresh(), context(catalogue_positions={0: 151})),
    "policy": lambda: (refresh(), context(policy=Policy("top-40", 0))),
    "seed": lambda: (refresh(), context(policy=Policy("top-50", 1))),
}


@pytest.mark.parametrize("name", OTHER_INPUTS)
def test_the_id_of_a_list_changes_with_every_input(name):
    assert rec_id(*OTHER_INPUTS[name]()) != rec_id(refresh(), context())


def test_the_id_of_a_list_is_that_of_earlier_versions_for_the_same_inputs():
    made = refresh(state_digest="0123456789abcdef", user=user(owner='O\'Hara "ü"'))

    assert rec_id(made, context()) == "4e694d74c44fa34b1572c4ffc6ac7b84"


def test_the_id_of_a_list_is_the_same_for_the_same_inputs_whenever_it_is_made():
    later = context(generated_at_ms=NOW_MS + 99)
    reordered = context(live=dataclasses.replace(context().live, positions={1: 12, 0: 11}))

    assert rec_id(refresh(), later) == rec_id(refresh(), context())
    assert rec_id(refresh(), reordered) == rec_id(refresh(), context())


@pytest.mark.parametrize(
    "settings",
    [
        {"list_length": 40},
        {"seen_items": "allow"},
        {"popularity_share": 0.5},
    ],
)
def test_settings_that_change_lists_change_the_policy(settings):
    assert list_policy(Settings(**settings)) != list_policy(Settings())


def test_a_list_and_its_decision_tell_the_same_and_fit_their_schemas():
    recommendation, decision = read(refresh(), context(), Settings())

    assert decision is not None
    for message, name in ((recommendation, "recommendation"), (decision, "decision")):
        jsonschema.validate(json.loads(encode(message)), schema(name))
    for field in ("rec_id", "tenant", "scenario", "seq", "trigger", "user_id", "request_time"):
        assert getattr(recommendation, field) == getattr(decision, field)
    assert [i.item_id for i in recommendation.items] == [c.item_id for c in decision.candidates]
    assert [i.source for i in recommendation.items[:3]] == ["trend", "chain", "sequence"]
    assert [i.reason for i in recommendation.items] == [REASON] * 5


def test_a_list_says_what_it_was_made_for_from_and_until_when():
    recommendation, decision = read(refresh(), context(), Settings(list_lifetime_ms=1000))

    trigger = recommendation.trigger
    assert (trigger.reason, trigger.event_id, trigger.partition) == ("visit", "event-0042", 3)
    assert (trigger.offset, trigger.coalesced) == (42, 2)
    assert recommendation.request_time == NOW_MS
    assert recommendation.expires_at == NOW_MS + 1000
    assert recommendation.generated_at == NOW_MS + 3
    assert decision is not None
    assert (decision.state.applied_offset, decision.state.history_len) == (41, 1)
    assert decision.positions.statistics == {"0": 11, "1": 12}
    assert decision.positions.catalogue == {"0": 150}


def test_without_a_model_a_list_says_that_it_falls_back_to_the_trend():
    plain, _ = read(refresh(), context(), Settings())
    modelled, _ = read(refresh(), ranked_by(version=3), Settings())

    assert (plain.fallback, plain.release.version) == ("trend", 0)
    assert (modelled.fallback, modelled.release.version) == ("none", 3)


def test_a_decision_is_left_out_where_settings_say_so_and_is_bounded():
    _, none = read(refresh(), context(), Settings(decisions=False))
    whole, decision = read(refresh(length=150), context(), Settings())

    assert none is None
    assert decision is not None
    assert (len(whole.items), len(decision.candidates)) == (150, 100)


def test_a_list_names_either_the_user_or_the_anonymous_one():
    known, _ = read(refresh(), context(), Settings())
    anonymous, _ = read(refresh(user=user(is_known=False)), context(), Settings())

    assert (known.user_id, known.anonymous_id) == ("ada", UNSET)
    assert (anonymous.user_id, anonymous.anonymous_id) == (UNSET, "ada")


def test_the_key_of_a_list_is_the_user_and_says_more_where_that_is_not_enough():
    keys = {
        (tenant, is_known): list_key(user(tenant=tenant, is_known=is_known))
        for tenant in ("default", "shop")
        for is_known in (True, False)
    }

    assert keys["default", True] == b"ada"
    assert keys["shop", True] == b"shop\x1fu\x1fada\x1fhome"
    assert len(set(keys.values())) == 4


def test_no_id_of_a_known_user_makes_the_key_of_another_users_list():
    visitor = user(is_known=False)
    twin = user(owner=list_key(visitor).decode())

    assert list_key(twin) != list_key(visitor)


def test_the_state_of_a_list_is_named_by_all_of_the_row():
    touched = user()
    before = state_digest(touched)

    touched.row.seq += 1

    assert state_digest(touched) != before


listed = st.tuples(
    st.text(min_size=1, max_size=20),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(0, 2),
    st.sampled_from([Reason("popular"), Reason("interest", text='"\\\n\u2028'), REASON]),
)


@given(st.lists(listed, min_size=1, max_size=60))
def test_items_made_of_pieces_are_what_the_encoder_writes(entries):
    texts = ListTexts([item for item, *_ in entries], [])
    items = [RankedItem(i, score, SOURCES[source], r) for i, score, source, r in entries]
    candidates = [Candidate(item, score, 1.0) for item, score, *_ in entries]

    heads = texts.heads(list(range(len(entries))))
    scores = score_texts([score for _, score, *_ in entries])
    tails = [tail_of(source, reason) for *_, source, reason in entries]

    assert items_text(heads, scores, tails) == encode(items)
    assert candidates_text(heads, scores) == encode(candidates)
