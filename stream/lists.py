"""Make the messages of a refresh: the list for consumers and the record of how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from export.items import Rows
from stream.catalogue import CatalogueColumns
from stream.events import (
    DEFAULT_SCENARIO,
    DEFAULT_TENANT,
    KEY_SEPARATOR,
    Candidate,
    DecidingRelease,
    Decision,
    Policy,
    Positions,
    RankedItem,
    Reason,
    Recommendation,
    ReleaseReference,
    Source,
    StateReference,
    Trigger,
)
from stream.ranker import Ranker
from stream.requests import LiveTensors
from stream.row_codec import CODEC_VERSION
from stream.settings import Settings
from stream.state import TouchedUser

_SOURCES: tuple[Source, Source, Source] = ("trend", "chain", "sequence")


@dataclass(frozen=True, slots=True)
class Refresh:
    """One due list, before it is put into messages. Scores stand in descending order."""

    user: TouchedUser
    rows: Rows  # [k]
    scores: NDArray[np.float32]  # [k]
    sources: NDArray[np.int64]  # [k] which part gave most of the score
    seq: int
    state_digest: str
    reasons: Sequence[Reason]  # [k]


@dataclass(frozen=True, slots=True)
class RefreshContext:
    """What the lists of one batch have in common."""

    ranker: Ranker
    live: LiveTensors
    catalogue_positions: dict[int, int]
    policy: Policy
    generated_at_ms: int
    item_ids: list[str]
    catalogue: CatalogueColumns


def list_policy(settings: Settings) -> Policy:
    """How lists are cut from scores: another version can give another list of the same scores."""
    return Policy(
        f"top-{settings.list_length}/{settings.seen_items}-seen/{settings.popularity_share}", 0
    )


def list_key(user: TouchedUser) -> bytes:
    """The key of a user's list and interests; a known and an anonymous user never share one."""
    if user.tenant == DEFAULT_TENANT and user.is_known:
        return user.owner.encode()
    kind = "u" if user.is_known else "a"
    return KEY_SEPARATOR.join((user.tenant, kind, user.owner, DEFAULT_SCENARIO)).encode()


def state_digest(user: TouchedUser) -> str:
    """Names the state that a list is ranked from: the row's bytes before the list is entered."""
    return hashlib.blake2b(user.row.encode(), digest_size=8).hexdigest()


def rec_id(refresh: Refresh, context: RefreshContext) -> str:
    """A hash over everything the list was computed from: equal ids mean equal items."""
    user = refresh.user
    parts = (
        user.tenant,
        user.is_known,
        user.owner,
        DEFAULT_SCENARIO,
        refresh.seq,
        context.ranker.name,
        context.ranker.version,
        context.ranker.sha256,
        refresh.state_digest,
        sorted(context.live.positions.items()),
        sorted(context.catalogue_positions.items()),
        context.policy.version,
        context.policy.seed,
        user.request_ms,
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def messages(
    refresh: Refresh, context: RefreshContext, settings: Settings
) -> tuple[Recommendation, Decision | None]:
    """The list as consumers read it, and its full record unless the settings leave it out."""
    user, ranker = refresh.user, context.ranker
    identity = rec_id(refresh, context)
    ids = [context.item_ids[row] for row in refresh.rows.tolist()]
    scores = refresh.scores.tolist()
    trigger = _trigger(user)
    recommendation = Recommendation(
        schema="driftline.recommendation/1",
        rec_id=identity,
        tenant=user.tenant,
        scenario=DEFAULT_SCENARIO,
        seq=refresh.seq,
        generated_at=context.generated_at_ms,
        expires_at=user.request_ms + settings.list_lifetime_ms,
        trigger=trigger,
        release=ReleaseReference(ranker.name, ranker.version),
        items=[
            RankedItem(item, score, _SOURCES[source], reason)
            for item, score, source, reason in zip(
                ids, scores, refresh.sources.tolist(), refresh.reasons, strict=True
            )
        ],
        request_time=user.request_ms,
        fallback="none" if ranker.version else "trend",
        user_id=user.owner if user.is_known else UNSET,
        anonymous_id=UNSET if user.is_known else user.owner,
    )
    if not settings.decisions:
        return recommendation, None
    decision = Decision(
        schema="driftline.decision/1",
        rec_id=identity,
        tenant=user.tenant,
        seq=refresh.seq,
        trigger=trigger,
        state=StateReference(
            refresh.state_digest,
            len(user.row),
            CODEC_VERSION,
            user.row.newest_ms,
            user.row.applied_offset,
            user.row.events_total,
        ),
        release=DecidingRelease(ranker.name, ranker.version, ranker.sha256),
        policy=context.policy,
        positions=Positions(
            {str(p): offset for p, offset in sorted(context.live.positions.items())},
            {str(p): offset for p, offset in sorted(context.catalogue_positions.items())},
        ),
        candidates=[
            Candidate(item, score, 1.0) for item, score in zip(ids[:100], scores, strict=False)
        ],
        scenario=DEFAULT_SCENARIO,
        generated_at=context.generated_at_ms,
        request_time=user.request_ms,
        user_id=user.owner if user.is_known else UNSET,
        anonymous_id=UNSET if user.is_known else user.owner,
    )
    return recommendation, decision


def _trigger(user: TouchedUser) -> Trigger:
    if user.trigger_offset < 0:  # a postponed list of which the row tells nothing more
        return Trigger(user.reason, partition=user.partition)
    return Trigger(
        user.reason, user.trigger_id, user.partition, user.trigger_offset, user.coalesced
    )


def cloud_event_headers(recommendation: Recommendation) -> list[tuple[str, bytes]]:
    """The list's attributes as CloudEvents 1.0 headers, in Kafka's binary mode."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", recommendation.rec_id.encode()),
        ("ce_type", recommendation.schema.encode()),
        ("ce_source", f"driftline/{recommendation.tenant}/{recommendation.scenario}".encode()),
        ("content-type", b"application/json"),
    ]
