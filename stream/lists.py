"""Make the messages of a refresh: the list for consumers and the record of how it came about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from msgspec import UNSET, Raw

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
    Recommendation,
    ReleaseReference,
    StateReference,
    Trigger,
    encode,
)
from stream.folded_batch import TouchedUser
from stream.ranker import Ranker
from stream.requests import LiveTensors
from stream.row_codec import CODEC_VERSION
from stream.settings import Settings

#: Items of a list that its decision names as candidates.
MAX_CANDIDATES = 100


@dataclass(frozen=True, slots=True)
class Refresh:
    """One due list, before it is put into messages.

    `items` and `candidates` are the JSON of what recommendation and decision hold of it.
    """

    user: TouchedUser
    seq: int
    state_digest: str
    items: bytes
    candidates: bytes


@dataclass(frozen=True)
class RefreshContext:
    """What the lists of one batch have in common."""

    ranker: Ranker
    live: LiveTensors
    catalogue_positions: dict[int, int]
    policy: Policy
    generated_at_ms: int
    catalogue: CatalogueColumns

    @cached_property
    def release(self) -> ReleaseReference:
        """What ranked, for consumers."""
        return ReleaseReference(self.ranker.name, self.ranker.version)

    @cached_property
    def deciding_release(self) -> DecidingRelease:
        """What ranked, for decisions."""
        return DecidingRelease(self.ranker.name, self.ranker.version, self.ranker.sha256)

    @cached_property
    def positions(self) -> Positions:
        """The positions of decisions, encoded: there are as many as partitions."""
        found = Positions(
            {str(p): offset for p, offset in sorted(self.live.positions.items())},
            {str(p): offset for p, offset in sorted(self.catalogue_positions.items())},
        )
        return cast(Positions, Raw(encode(found)))

    @cached_property
    def identity(self) -> tuple[str, str]:
        """What all `rec_id` of the batch are made of, before and after the state's digest."""
        ranker, policy = self.ranker, self.policy
        return (
            f"{ranker.name!r}, {ranker.version!r}, {ranker.sha256!r}",
            f"{sorted(self.live.positions.items())!r}, "
            f"{sorted(self.catalogue_positions.items())!r}, {policy.version!r}, {policy.seed!r}",
        )


def list_policy(settings: Settings) -> Policy:
    """How lists are cut from scores: another version can give another list of the same scores."""
    return Policy(
        f"top-{settings.list_length}/{settings.seen_items}-seen/{settings.popularity_share}", 0
    )


def list_key(user: TouchedUser) -> bytes:
    """The key of a user's list and interests; no two users share one.

    An id with a separator in it gets the long form: it could be another user's key.
    """
    if user.tenant == DEFAULT_TENANT and user.is_known and KEY_SEPARATOR not in user.owner:
        return user.owner.encode()
    kind = "u" if user.is_known else "a"
    return KEY_SEPARATOR.join((user.tenant, kind, user.owner, DEFAULT_SCENARIO)).encode()


def state_digest(user: TouchedUser) -> str:
    """Names the state that a list is ranked from: the row's bytes before the list is entered."""
    return hashlib.blake2b(user.row.encode(), digest_size=8).hexdigest()


def rec_id(refresh: Refresh, context: RefreshContext) -> str:
    """A hash over everything the list was computed from: equal ids mean equal items."""
    user = refresh.user
    release, positions = context.identity
    parts = (
        f"({user.tenant!r}, {user.is_known!r}, {user.owner!r}, {DEFAULT_SCENARIO!r}, "
        f"{refresh.seq!r}, {release}, {refresh.state_digest!r}, {positions}, {user.request_ms!r})"
    )
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


def messages(
    refresh: Refresh, context: RefreshContext, settings: Settings
) -> tuple[Recommendation, Decision | None]:
    """The list as consumers read it, and its full record unless the settings leave it out.

    For encoding: items, candidates and positions stand in them as JSON.
    """
    user = refresh.user
    identity = rec_id(refresh, context)
    trigger = _trigger(user)
    user_id = user.owner if user.is_known else UNSET
    anonymous_id = UNSET if user.is_known else user.owner
    recommendation = Recommendation(
        schema="driftline.recommendation/1",
        rec_id=identity,
        tenant=user.tenant,
        scenario=DEFAULT_SCENARIO,
        seq=refresh.seq,
        generated_at=context.generated_at_ms,
        expires_at=user.request_ms + settings.list_lifetime_ms,
        trigger=trigger,
        release=context.release,
        items=cast(list[RankedItem], Raw(refresh.items)),
        request_time=user.request_ms,
        fallback="none" if context.ranker.version else "trend",
        user_id=user_id,
        anonymous_id=anonymous_id,
    )
    if not settings.decisions:
        return recommendation, None
    row = user.row
    decision = Decision(
        schema="driftline.decision/1",
        rec_id=identity,
        tenant=user.tenant,
        seq=refresh.seq,
        trigger=trigger,
        state=StateReference(
            refresh.state_digest,
            len(row),
            CODEC_VERSION,
            row.newest_ms,
            row.applied_offset,
            row.events_total,
        ),
        release=context.deciding_release,
        policy=context.policy,
        positions=context.positions,
        candidates=cast(list[Candidate], Raw(refresh.candidates)),
        scenario=DEFAULT_SCENARIO,
        generated_at=context.generated_at_ms,
        request_time=user.request_ms,
        user_id=user_id,
        anonymous_id=anonymous_id,
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
