"""See that every due list was sent, for a state that contains what made it due, and that nothing
is left on the topics of users who are to have no list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stream.verify.deltas import DeltaTopic
from stream.verify.report import Check
from stream.verify.rows import StoredRow
from stream.verify.users import ExpectedState, ExpectedUser, hash8

_REC_ID = re.compile(rb'"rec_id":"([^"]*)"')
_MAX_SERVED = 20

User = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class SentList:
    """The newest list of a user."""

    rec_id: str
    seq: int
    items: tuple[str, ...]
    reason: str
    trigger_offset: int


@dataclass(slots=True)
class SentLists:
    """The newest list of every user who has one, and where a seq fell."""

    newest: dict[User, SentList]
    seq_falls: list[str]
    records: int = 0
    highest: dict[User, int] = field(default_factory=dict)  # seq ever, of lists taken away as well
    taken_away: set[User] = field(default_factory=set)  # after their newest list
    never_any: set[bytes] = field(default_factory=set)  # keys: taken away before there was a list
    _user_of: dict[tuple[int, bytes], User] = field(default_factory=dict)  # partition, key

    @classmethod
    def of(cls, records: Iterable[Any]) -> SentLists:
        """Of all records of recommendations."""
        lists = cls({}, [])
        for record in records:
            where = (record.partition, record.key)
            if record.value is not None:
                lists.records += 1
                lists._user_of[where] = lists._take(json.loads(record.value))
            elif (user := lists._user_of.get(where)) is not None:
                lists.newest.pop(user, None)
                lists.taken_away.add(user)
            else:
                lists.never_any.add(record.key)
        return lists

    def _take(self, message: dict[str, Any]) -> User:
        user, seq = _owner(message), message["seq"]
        before = self.highest.get(user, 0)
        if seq < before:
            self.seq_falls.append(f"seq of user {user} falls from {before} to {seq}")
            return user
        self.highest[user] = seq
        self.taken_away.discard(user)
        trigger = message["trigger"]
        self.newest[user] = SentList(
            message["rec_id"],
            seq,
            tuple(item["item_id"] for item in message["items"]),
            trigger["reason"],
            trigger.get("offset", -1),
        )
        return user


def _owner(message: dict[str, Any]) -> User:
    known = "user_id" in message
    owner = message["user_id"] if known else message["anonymous_id"]
    return message["tenant"], "u" if known else "a", owner


def applied_offsets(decisions: Iterable[Any], lists: SentLists) -> dict[str, int]:
    """rec_id -> how far the source was applied when the list was ranked, for the newest lists."""
    wanted = {sent.rec_id for sent in lists.newest.values()}
    found: dict[str, int] = {}
    for record in decisions:
        match = _REC_ID.search(record.value or b"")
        if match and (rec_id := match.group(1).decode()) in wanted:
            found[rec_id] = json.loads(record.value)["state"]["applied_offset"]
    return found


def check_lists(
    lists: SentLists,
    applied: Mapping[str, int],
    expected: ExpectedState,
    rows: Mapping[User, StoredRow],
    topic: DeltaTopic,
    floors: Mapping[int, int] | None = None,
) -> Check:
    """Every user with a due event has a list that was ranked with it; rows know their last list.

    `floors`: partition -> the seq above which lists go on, as its state was lost and built again:
    a row that had none since then stands there, and knows nothing of a list from before.
    """
    check = Check("newest lists", "due users")
    for fall in lists.seq_falls:
        check.miss(fall)
    known = {hash8(item) for item in _known_items(expected)}
    expired = excused = 0
    for name, user in expected.users.items():
        sent = lists.newest.get(name)
        if user.due_offset < 0:
            _check_not_due(check, name, user, rows.get(name), lists)
            continue
        check.checked += 1
        if name in rows and rows[name].is_postponed and known:
            check.lose(f"a list of user {name} is still postponed")
        elif sent is None or not _contains(sent, user, applied.get(sent.rec_id)):
            if expected.has_expired(user):
                expired += 1
            elif known <= _seen_by(user) or (
                sent is None and _has_nothing_to_list(name, user, lists, topic, known)
            ):
                excused += 1
            else:
                check.lose(
                    f"user {name} has no list, or an old one; due since offset {user.due_offset}"
                )
        if sent is not None and name in rows and not _is_unlisted(rows[name], user, floors or {}):
            is_shown = applied.get(sent.rec_id, -1) >= user.shown_nothing_offset
            _compare_with_row(check, name, sent, rows[name], is_shown)
    for name in lists.newest.keys() - expected.users.keys():
        check.miss(f"a list of user {name}, who has no events")
    check.notes.append(f"{lists.records:,} lists in all")
    check.notes.append(f"{expired} without their last list, which has expired")
    check.notes.append(f"{excused} without their last list, as there was nothing to list")
    return check


def _check_not_due(
    check: Check, name: User, user: ExpectedUser, row: StoredRow | None, lists: SentLists
) -> None:
    """Who was deleted or has opted out has no list, and the next one does not begin at 1 again.

    A list whose batch was not finished is on the topic, and not in the row.
    """
    if user.forgotten_offset < 0:
        return
    check.checked += 1
    if name in lists.newest and user.may_list_offset < user.forgotten_offset:
        check.miss(f"a list of user {name}, who was deleted or has opted out")
    highest = lists.highest.get(name, 0)
    if row is not None and row.seq < highest - 1:
        check.miss(f"the row of user {name} has seq {row.seq}, and there was a list {highest}")
    if row is not None and row.is_postponed:
        check.miss(f"a list of user {name} is postponed, who was deleted or has opted out")


def check_interests(records: Iterable[Any], expected: ExpectedState) -> Check:
    """What was told of interests that a user had forgotten is taken away.

    Interests name no offset: it is known what must be only where no list could come later.
    """
    check = Check("forgotten interests", "users")
    newest: dict[User, Any] = {}
    user_of: dict[tuple[int, bytes], User] = {}
    for record in records:
        where = (record.partition, record.key)
        if record.value is not None:
            user_of[where] = _owner(json.loads(record.value))
        if where in user_of:
            newest[user_of[where]] = record.value
    for name, user in expected.users.items():
        if user.due_offset >= 0 or user.may_list_offset >= user.no_interests_offset:
            continue
        check.checked += 1
        if newest.get(name) is not None:
            check.miss(f"interests of user {name}, who was deleted or has opted out")
    return check


def _key(name: User) -> bytes:
    """The key of a user's list."""
    tenant, kind, owner = name
    if (tenant, kind) == ("default", "u") and "\x1f" not in owner:
        return owner.encode()
    return "\x1f".join((*name, "home")).encode()


def _contains(sent: SentList, user: ExpectedUser, applied: int | None) -> bool:
    if applied is not None:
        return applied >= user.due_offset
    # without decisions: a trigger that is a visit may stand before other events of its batch
    bound = user.due_visit_offset if sent.reason == "visit" else user.due_offset
    return sent.trigger_offset >= bound


def _known_items(expected: ExpectedState) -> set[str]:
    return {delta.item_id for delta in expected.deltas.values() if delta.weight}


def _seen_by(user: ExpectedUser) -> set[bytes]:
    """The items that no list of this user's has any more, by all that a row keeps."""
    return {packed[:8] for _, _, packed in user.history} | set(user.taken)


def _has_nothing_to_list(
    name: User, user: ExpectedUser, lists: SentLists, topic: DeltaTopic, known: set[bytes]
) -> bool:
    """Whether the last due event was in the first batch of all, or the user has taken all items,
    or a list was taken away from a user with filters: what they leave is not judged here."""
    is_taken_away = name in lists.taken_away or _key(name) in lists.never_any
    if user.filters and is_taken_away:
        return True
    if not known or topic.is_in_first_batch(user.partition, user.due_offset):
        return True
    return all(int.from_bytes(item, "little") in user.taken_ever for item in known)


def _is_unlisted(row: StoredRow, user: ExpectedUser, floors: Mapping[int, int]) -> bool:
    return not row.rec_ids and 0 < floors.get(user.partition, 0) == row.seq


def _compare_with_row(
    check: Check, name: User, sent: SentList, row: StoredRow, is_shown: bool
) -> None:
    """`is_shown`: the row knows what was listed last; else the user had it forgotten since."""
    if row.seq != sent.seq:
        check.miss(f"the row of user {name} has seq {row.seq}, the newest list {sent.seq}")
        return
    if not is_shown and not row.served:
        return
    rec_id = bytes.fromhex(sent.rec_id)[:8]
    if not row.rec_ids or row.rec_ids[-1] != rec_id:
        check.miss(f"the row of user {name} does not end with rec_id {sent.rec_id}")
    elif row.served and row.served != tuple(hash8(item) for item in sent.items[:_MAX_SERVED]):
        # none: a visit's list was postponed since, and whatever comes next is to be sent
        check.miss(f"the row of user {name} names other served items than its newest list")
