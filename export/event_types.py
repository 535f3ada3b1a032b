"""What events of a type do; the same for the workers that fold them and the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Role = Literal["positive", "negative", "visit", "impression", "ignored"]


class EventRole(Struct, frozen=True, forbid_unknown_fields=True):
    """What an event of a type does.

    positive: enters history and statistics. negative: enters the history only. visit: the user is
    here, wants a list. impression, ignored: counted, nothing else.
    """

    role: Role
    #: What it adds to the statistics; kept as whole sixteenths.
    weight: Annotated[float, Meta(ge=0, le=16)] = 1.0
    #: Whether the user's list is due after it.
    refreshes: bool = True


#: The types that most producers send; settings add to them and override them.
DEFAULT_EVENT_TYPES: dict[str, EventRole] = {
    "visit": EventRole("visit", 0.0),
    "click": EventRole("positive"),
    "view": EventRole("positive"),
    "watch": EventRole("positive"),
    "read": EventRole("positive"),
    "like": EventRole("positive"),
    "rate": EventRole("positive"),
    "cart": EventRole("positive"),
    "purchase": EventRole("positive"),
    "dislike": EventRole("negative", 0.0),
    "impression": EventRole("impression", 0.0, False),
}
