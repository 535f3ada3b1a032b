"""The messages on the wire: what producers send and what consumers read.

JSON, decoded and checked by msgspec. The JSON Schemas in `deploy/schemas` are generated from these
types (`driftline schemas`). Unknown fields are passed over, so that a newer producer never stops
an older worker.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Id = Annotated[str, Meta(min_length=1, max_length=256)]
EventId = Annotated[str, Meta(min_length=8, max_length=64)]
EventType = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,63}(?!\\n)$")]
Tenant = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,31}(?!\\n)$")]
Scenario = Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,31}(?!\\n)$")]
Milliseconds = Annotated[int, Meta(ge=0, description="milliseconds since 1970, UTC")]
Count = Annotated[int, Meta(ge=0)]
Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
#: A history keeps values as 32-bit floats; a larger one cannot be kept.
_FLOAT32_MAX = 3.4028234663852886e38
Float32 = Annotated[float, Meta(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)]

DEFAULT_TENANT = "default"
DEFAULT_SCENARIO = "home"
#: Joins tenant, kind, id and scenario in the key of a list that is not the default one.
KEY_SEPARATOR = "\x1f"


class ListedItem(Struct, frozen=True):
    """One of several items of an event: seen in an impression, bought in a basket."""

    item_id: Id
    position: Count | UnsetType = UNSET
    visible_ms: Count | UnsetType = UNSET
    quantity: float | UnsetType = UNSET
    price: float | UnsetType = UNSET


class RecommendationReference(Struct, frozen=True):
    """The recommendation that led to an event."""

    rec_id: Annotated[str, Meta(max_length=64)]
    position: Count | UnsetType = UNSET


class UserEvent(Struct, frozen=True, gc=False):
    """User event, on user-events. Kafka key = user_id, or anonymous_id where there is no user_id.

    A well-formed but unknown type is accepted, counted and has the role `ignored`.
    """

    event_id: EventId
    type: EventType
    event_time: Milliseconds
    user_id: Id | UnsetType = UNSET
    anonymous_id: Id | UnsetType = UNSET
    item_id: Id | UnsetType = UNSET
    tenant: Tenant = DEFAULT_TENANT
    schema: Literal["driftline.event/1"] | UnsetType = UNSET
    session_id: Annotated[str, Meta(max_length=128)] | UnsetType = UNSET
    items: Annotated[list[ListedItem], Meta(max_length=200)] | UnsetType = UNSET
    sent_time: Milliseconds | UnsetType = UNSET
    value: Float32 | UnsetType = UNSET
    portion: Share | UnsetType = UNSET
    rec: RecommendationReference | UnsetType = UNSET
    query: Annotated[str, Meta(max_length=1024)] | UnsetType = UNSET
    scenario: Scenario | UnsetType = UNSET
    context: Annotated[dict[str, str | float | bool | None], Meta(max_length=32)] | UnsetType = (
        UNSET
    )
    consent: Literal["full", "session", "none"] | UnsetType = UNSET
    source: Annotated[str, Meta(max_length=128)] | UnsetType = UNSET

    def owner(self) -> str | None:
        """The id whose events these are: the record's key. None breaks the contract."""
        if self.user_id is not UNSET:
            return self.user_id
        return None if self.anonymous_id is UNSET else self.anonymous_id


class UncheckedUserEvent(UserEvent, frozen=True, gc=False):
    """A user event whose names are still to be checked: their patterns cost more than all the rest.

    Never an end in itself: `stream.decoding` takes it where the same names were checked before.
    """

    type: str
    tenant: str = DEFAULT_TENANT
    scenario: str | UnsetType = UNSET


class ControlEvent(Struct, frozen=True):
    """Control event, on user-events, keyed like the user's events: ordered with them."""

    schema: Literal["driftline.control/1"]
    event_id: EventId
    type: Literal[
        "user_delete",
        "user_export",
        "user_merge",
        "user_opt_out",
        "user_opt_in",
        "item_block",
        "creator_block",
        "category_mute",
        "history_reset",
    ]
    event_time: Milliseconds
    user_id: Id
    tenant: Tenant = DEFAULT_TENANT
    from_anonymous_id: Id | UnsetType = UNSET
    target: Id | UnsetType = UNSET
    until: Milliseconds | UnsetType = UNSET
    request_id: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class MergeRequest(Struct, frozen=True):
    """From worker to worker, on user-events: an anonymous user is to be merged into a known one.

    Key = anonymous_id. Sent for a control event `user_merge`; producers send none.
    """

    schema: Literal["driftline.merge-request/1"]
    event_id: EventId  # follows from `user_merge` and its offset
    event_time: Milliseconds
    anonymous_id: Id
    into_user_id: Id
    asked_offset: Offset  # of `user_merge`, on the known user's partition
    tenant: Tenant = DEFAULT_TENANT
    user_id: ClassVar[UnsetType] = UNSET


class MergePart(Struct, frozen=True):
    """From worker to worker, on user-events: what an anonymous user hands over, or a part of it.

    Key = user_id. The columns are those of a row (stream.row_codec); producers send none.
    """

    schema: Literal["driftline.merge-part/1"]
    event_id: EventId  # follows from the request, its offset, and the part
    event_time: Milliseconds
    user_id: Id
    from_anonymous_id: Id
    asked_offset: Offset
    request_id: EventId
    request_offset: Offset  # on the anonymous user's partition
    part: Count  # from 0 on
    tenant: Tenant = DEFAULT_TENANT
    events: bytes = b""  # 40 bytes each, oldest first
    taken: bytes = b""  # 8 bytes each
    ids: bytes = b""  # 16 bytes each


#: What is folded beside a user's events, in the order of the log.
Wish = ControlEvent | MergeRequest | MergePart
WISHES = (ControlEvent, MergeRequest, MergePart)


class Embedding(Struct, frozen=True):
    """A vector of an item that was computed elsewhere, and the space it lies in."""

    space: str
    vector: Annotated[list[float], Meta(max_length=4096)]


class Item(Struct, frozen=True):
    """Catalogue item, on items (key = item_id; null value = delete)."""

    item_id: Id
    version: int  # the highest version wins, whatever the order of arrival
    schema: Literal["driftline.item/1"] | UnsetType = UNSET
    tenant: Tenant = DEFAULT_TENANT
    title: Annotated[str, Meta(max_length=1000)] | UnsetType = UNSET
    text: Annotated[str, Meta(max_length=20000)] | UnsetType = UNSET
    categories: (
        Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=32)] | UnsetType
    ) = UNSET
    tags: (
        Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=128)] | UnsetType
    ) = UNSET
    creator_id: Id | UnsetType = UNSET
    price: float | UnsetType = UNSET
    available: bool | UnsetType = UNSET
    hidden: bool | UnsetType = UNSET
    publish_time: Milliseconds | UnsetType = UNSET
    expire_time: Milliseconds | UnsetType = UNSET
    embedding: Embedding | UnsetType = UNSET
    media: dict[str, msgspec.Raw] | UnsetType = UNSET
    groups: dict[str, str] | UnsetType = UNSET
    attributes: dict[str, str | float | bool | list[msgspec.Raw] | None] | UnsetType = UNSET


Source = Literal["sequence", "chain", "trend", "content", "cf", "promotion", "explore", "external"]


class Reason(Struct, frozen=True):
    """Why an item stands in a list."""

    code: (
        Literal[
            "because_item",
            "interest",
            "popular",
            "new_item",
            "explore",
            "promotion",
            "similar_users",
        ]
        | UnsetType
    ) = UNSET
    items: Annotated[list[Id], Meta(max_length=3)] | UnsetType = UNSET
    text: str | UnsetType = UNSET


class RankedItem(Struct, frozen=True):
    """One place of a list."""

    item_id: Id
    score: float
    source: Source | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET


class Trigger(Struct, frozen=True):
    """What made a list due; of several events of one batch the visit, else the newest."""

    reason: Literal["event", "visit", "release", "catalogue", "ttl", "request", "backfill"]
    event_id: str | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    coalesced: Annotated[int, Meta(ge=1)] | UnsetType = UNSET


class ReleaseReference(Struct, frozen=True):
    """The release that ranked; version 0 is the live statistics without a model."""

    name: str
    version: Count
    arm: str | UnsetType = UNSET


class Recommendation(Struct, frozen=True):
    """A user's refreshed list, on recommendations: lean, what a consumer needs.

    The rest is in decisions under the same rec_id. Key = user_id of a known user of the default
    tenant and scenario; otherwise tenant, kind (u or a), id and scenario joined with U+001F. The
    partition is always that of the user's events. A consumer keeps, per key, the record with the
    highest seq; of equal seq the later one. A null value: there is no list for this user any more.
    """

    schema: Literal["driftline.recommendation/1"]
    rec_id: Annotated[str, Meta(max_length=64)]
    tenant: Tenant
    scenario: str
    seq: Annotated[int, Meta(ge=1)]
    generated_at: Milliseconds
    expires_at: Milliseconds
    trigger: Trigger
    release: ReleaseReference
    items: Annotated[list[RankedItem], Meta(max_length=200)]
    user_id: Id | UnsetType = UNSET
    anonymous_id: Id | UnsetType = UNSET
    request_time: Milliseconds | UnsetType = UNSET
    fallback: Literal["none", "trend", "content", "last_good"] | UnsetType = UNSET


class Trending(Struct, frozen=True):
    """The list for users without one, on trending (key = scenario, compacted)."""

    schema: Literal["driftline.trending/1"]
    scenario: str
    request_time: Milliseconds
    expires_at: Milliseconds
    items: Annotated[list[RankedItem], Meta(max_length=200)]
    tenant: Tenant = DEFAULT_TENANT


Trend = Literal["new", "rising", "steady", "falling"]


class InterestNow(Struct, frozen=True):
    """A category's decayed part of a history."""

    label: str
    weight: Share
    trend: Trend


class InterestNext(Struct, frozen=True):
    """The probability that the next event is of a category."""

    label: str
    probability: Share


class Drift(Struct, frozen=True):
    """How far a user's interests have moved."""

    score: float | UnsetType = UNSET
    alarm: bool | UnsetType = UNSET


class Interests(Struct, frozen=True):
    """A user's interests now and next, on interests (key as on recommendations, compacted)."""

    schema: Literal["driftline.interests/1"]
    tenant: Tenant
    request_time: Milliseconds
    now: Annotated[list[InterestNow], Meta(max_length=16)]
    next: Annotated[list[InterestNext], Meta(max_length=16)]
    user_id: Id | UnsetType = UNSET
    anonymous_id: Id | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    drift: Drift | UnsetType = UNSET


class StateReference(Struct, frozen=True):
    """The state that a list was ranked from."""

    digest: str
    history_len: int
    codec: int | UnsetType = UNSET
    last_event_time: Milliseconds | UnsetType = UNSET
    applied_offset: int | UnsetType = UNSET
    events_total: int | UnsetType = UNSET


class DecidingRelease(Struct, frozen=True):
    """The release of a decision, with what identifies its bytes."""

    name: str
    version: int
    sha256: str
    arm: str | UnsetType = UNSET
    experiment: str | UnsetType = UNSET


class Policy(Struct, frozen=True):
    """How a list is made of scores."""

    version: str
    seed: int


class Positions(Struct, frozen=True):
    """What live statistics and catalogue had been applied."""

    statistics: dict[str, int]  # source partition -> last offset applied
    catalogue: dict[str, int]  # items partition -> next offset


class Candidate(Struct, frozen=True):
    """An item that was ranked."""

    item_id: Id
    score: float
    propensity: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET


class Decision(Struct, frozen=True):
    """The full record of one refresh, on decisions: enough to compute it again."""

    schema: Literal["driftline.decision/1"]
    rec_id: str
    tenant: Tenant
    seq: int
    trigger: Trigger
    state: StateReference
    release: DecidingRelease
    policy: Policy
    positions: Positions
    candidates: Annotated[list[Candidate], Meta(max_length=100)]
    user_id: Id | UnsetType = UNSET
    anonymous_id: Id | UnsetType = UNSET
    scenario: str | UnsetType = UNSET
    generated_at: Milliseconds | UnsetType = UNSET
    request_time: Milliseconds | UnsetType = UNSET
    timing_ms: dict[str, float] | UnsetType = UNSET


class ReleaseStage(Struct, frozen=True):
    """A release and the stage it has reached, on model-releases (key = name/version, compacted)."""

    schema: Literal["driftline.model-release/1"]
    name: str
    version: Annotated[int, Meta(ge=1)]
    stage: Literal["candidate", "shadow", "canary", "live", "retired", "rejected"]
    sha256: str
    path: str
    at: Milliseconds
    reason: str | UnsetType = UNSET


decode_user_event = msgspec.json.Decoder(UserEvent).decode
decode_unchecked_user_event = msgspec.json.Decoder(UncheckedUserEvent).decode
decode_unchecked_user_events = msgspec.json.Decoder(UncheckedUserEvent).decode_lines
decode_control_event = msgspec.json.Decoder(ControlEvent).decode
decode_merge_request = msgspec.json.Decoder(MergeRequest).decode
decode_merge_part = msgspec.json.Decoder(MergePart).decode
decode_item = msgspec.json.Decoder(Item).decode
decode_release_stage = msgspec.json.Decoder(ReleaseStage).decode
encode = msgspec.json.Encoder().encode
