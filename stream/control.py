"""Do what users ask of the engine in control events, in the order of their clicks.

A user can have the history forgotten, be deleted, opt out and in again, name items, categories
and creators that are not to be listed, and be merged with an anonymous one (stream.merge). Every
wish is a change of the user's row, applied once as any event is: by its source offset, and by its
id in the row's ring. What was counted in the statistics of all users stays counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from export.items import ItemIndex, Rows
from stream.events import ControlEvent, MergePart, MergeRequest, Wish
from stream.history import OPTED_OUT, RowLimits, UserRow, hash64, id_hash
from stream.row_codec import FILTER

#: Filters that a row keeps, the newest; they are a part of its largest size (RowLimits).
MAX_FILTERS = 256
#: The end of a filter without `until`.
_FOR_EVER_MS = 2**63 - 1

_NOT_SUPPORTED = ("user_export",)
GroupName = Literal["category", "creator"]
_ITEM, _CATEGORY, _CREATOR = 1, 2, 3
_FILTERS = {"item_block": _ITEM, "category_mute": _CATEGORY, "creator_block": _CREATOR}
_GROUPS: dict[GroupName, int] = {"category": _CATEGORY, "creator": _CREATOR}

#: Rows of the items that are not to be listed for a user with filters, at a time in ms.
HiddenRows = Callable[[UserRow, int], Rows]


class Groups(Protocol):
    """Knows which items are of a category or a creator."""

    def rows_in(self, group: bytes) -> set[int]:
        """The rows of a group's items; `group` is a `group_key`."""
        ...


def refusal(event: ControlEvent) -> str:
    """Why a well-formed control event is refused; empty where it is not."""
    if event.type in _NOT_SUPPORTED:
        return f"not supported yet: control event {event.type}"
    if event.type in _FILTERS and event.target is UNSET:
        return f"no target: a control event {event.type} names what it is about"
    if event.type == "user_merge" and event.from_anonymous_id is UNSET:
        return "no from_anonymous_id: a control event user_merge names who is merged"
    return ""


def asks_for_list(wish: Wish) -> bool:
    """Whether the user's list is to be made anew: what it may hold has changed."""
    if isinstance(wish, ControlEvent):
        return wish.type == "history_reset" or wish.type in _FILTERS
    return isinstance(wish, MergePart)


def takes_list_away(wish: Wish) -> bool:
    """Whether the user is to have no list after it."""
    if isinstance(wish, ControlEvent):
        return wish.type in ("user_delete", "user_opt_out")
    return isinstance(wish, MergeRequest)


def takes_interests_away(wish: Wish) -> bool:
    """Whether what was told of the user's interests holds no longer."""
    is_reset = isinstance(wish, ControlEvent) and wish.type == "history_reset"
    return is_reset or takes_list_away(wish)


def apply_control(
    row: UserRow, event: ControlEvent, time_ms: int, offset: int, limits: RowLimits
) -> None:
    """Change a row as its user asks, but for its applied offset.

    The caller has seen to it that the event is new: its offset was above that of all that was
    applied before, and its id is not in the ring. `time_ms` is the event's time; a wish is never
    too late, and its id stays in the ring as long as that of an event which comes now.
    """
    filters, silent_until = row.filters, row.silent_until
    if event.type == "user_delete":
        row.forget_user(offset)
    elif event.type == "user_opt_out":
        row.forget_user(OPTED_OUT)
        row.filters = filters
    elif event.type == "user_opt_in":
        row.silent_until = offset if silent_until == OPTED_OUT else silent_until
    elif event.type == "history_reset":
        row.forget_events()
        # what came before asks for nothing any more, as this does
        row.silent_until = max(silent_until, offset - 1)
    elif event.type in _FILTERS:
        until_ms = _FOR_EVER_MS if event.until is UNSET else min(event.until, _FOR_EVER_MS)
        target = hash64(event.target or "")
        row.filters = with_filter(filters, _FILTERS[event.type], target, until_ms, time_ms)
        row.served = b""  # so that the next list is sent, however much it is like the last one
    row.remember(id_hash(event.event_id), max(time_ms, row.newest_ms), limits)


def with_filter(filters: bytes, kind: int, target: bytes, until_ms: int, now_ms: int) -> bytes:
    """These filters and one more, the newest MAX_FILTERS, without those that have ended.

    It stands for an earlier one of the same target; one that has ended by now takes that away.
    """
    kept = [f for f in FILTER.iter_unpack(filters) if f[:2] != (kind, target) and f[2] > now_ms]
    if until_ms > now_ms:
        kept.append((kind, target, until_ms))
    return b"".join(FILTER.pack(*entry) for entry in kept[-MAX_FILTERS:])


@lru_cache(maxsize=65_536)
def group_key(group: GroupName, name: str) -> bytes:
    """By what a filter knows a category or a creator."""
    return bytes([_GROUPS[group]]) + hash64(name)


def hidden_rows(index: ItemIndex, groups: Groups) -> HiddenRows:
    """Tells what is not to be listed for a user, by an item index and the items' groups."""

    def rows_of(row: UserRow, request_ms: int) -> NDArray[np.int64]:
        items: list[bytes] = []
        hidden: set[int] = set()
        for kind, target, until_ms in FILTER.iter_unpack(row.filters):
            if until_ms <= request_ms:
                continue
            if kind == _ITEM:
                items.append(target)
            else:
                hidden |= groups.rows_in(bytes([kind]) + target)
        item_rows = index.rows_of_hashes(np.frombuffer(b"".join(items), dtype="<u8"))
        return np.concatenate([item_rows, np.fromiter(hidden, np.int64, len(hidden))])

    return rows_of
