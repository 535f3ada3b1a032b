"""Lay out what is known of the users of a micro-batch as the columns that a ranker reads.

Everything is copied here, on the event loop: statistics may move on while a thread ranks. One
array a column for all users together, not one a user: at 16 users a call the price of numpy's own
calls would be as large as the graph's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.features import MAX_HISTORY, OTHER_TYPE, age_buckets, gate_features
from export.items import NO_ROW, ItemIndex, Rows
from export.statistics import CHAIN_DEPTH, ItemStatistics
from stream.control import HiddenRows
from stream.history import UserRow
from stream.row_codec import EVENT


@dataclass(frozen=True, slots=True)
class LiveTensors:
    """Statistics at one position, as tensors over the V rows of the item index."""

    popularity: NDArray[np.float32]  # [2, V]
    known: NDArray[np.float32]  # [V] 1 where an item may be listed
    positions: dict[int, int]  # source partition -> last offset applied
    newest_ms: int


#: For batches in which no list is due.
NO_TENSORS = LiveTensors(
    np.zeros((2, 0), dtype=np.float32), np.zeros(0, dtype=np.float32), {}, newest_ms=0
)


@dataclass(frozen=True, slots=True)
class RankRequests:
    """B users to rank for; T <= MAX_HISTORY, K chain entries and S taken items are padded."""

    history_rows: Rows  # [B, T]
    history_types: NDArray[np.int64]  # [B, T]
    history_age_buckets: NDArray[np.int64]  # [B, T] 0 where padded
    history_length: NDArray[np.int64]  # [B]
    gate_features: NDArray[np.float32]  # [B, GATE_FEATURES]
    chain_rows: Rows  # [B, K]
    chain_weights: NDArray[np.float32]  # [2, B, K] 0 where padded
    seen_rows: Rows  # [B, S] V where padded

    def __len__(self) -> int:
        return len(self.history_length)


@dataclass(frozen=True, slots=True)
class ChainOrigins:
    """Which of a user's last D items each of the E entries of all users' chains comes from.

    One user's after another's, each user's from the newest item to the oldest.
    """

    recent_rows: Rows  # [B, D] newest first, NO_ROW where there is none
    first_places: Rows  # [B, D] the first place at which the same item stands
    counts: Rows  # [B, D] entries that come from each item
    rows: Rows  # [E]
    shares: NDArray[np.float32]  # [E] lasting ones


@dataclass(frozen=True, slots=True)
class Histories:
    """The N known items that B users have taken, as far as their events are kept.

    One user's after another's, each user's oldest first.
    """

    item_rows: Rows  # [N]
    lengths: NDArray[np.int64]  # [B]


@dataclass(frozen=True, slots=True)
class UserColumns:
    """What is known of B users: what ranks reads `requests`, what tells of lists the rest."""

    requests: RankRequests
    origins: ChainOrigins
    histories: Histories


def build_columns(
    users: Sequence[tuple[UserRow, int]],
    index: ItemIndex,
    statistics: ItemStatistics,
    event_types: Mapping[int, int],
    size: int,
    filters_seen: bool,
    hidden_rows: HiddenRows | None = None,
) -> UserColumns:
    """Columns for users given as (row, request time in ms).

    `event_types` maps a type's 32-bit hash to its row in the release, `size` is V. Items of a
    history that are in no index are left out: nothing is known of them. `hidden_rows` tells what
    a user with filters does not want listed; without it filters are passed over.
    """
    kept = _kept(users, index)
    history, length = _newest(kept, event_types, size)
    recent = _recent(history[0], length)
    chain_rows, chain_weights, origins = _chains(recent, statistics, size)
    gaps = [request_ms - row.newest_ms if row.events else 0 for row, request_ms in users]
    requests = RankRequests(
        *history,
        length,
        gate_features(
            np.array(gaps, dtype=np.int64),
            np.array([row.events_total for row, _ in users], dtype=np.int64),
            chain_weights[0].max(axis=1, initial=0.0),
        ),
        chain_rows,
        chain_weights,
        _unlisted(users, kept, size, filters_seen, hidden_rows),
    )
    is_known = kept.item_rows != NO_ROW
    known = np.bincount(kept.at_user[is_known], minlength=len(users))
    histories = Histories(kept.item_rows[is_known], known)
    return UserColumns(requests, origins, histories)


@dataclass(frozen=True, slots=True)
class _Kept:
    """All that the rows of B users hold: N events, one user's after another's, and M items taken
    before those."""

    events: NDArray[np.void]  # [N]
    lengths: NDArray[np.int64]  # [B] of events
    at_user: NDArray[np.int64]  # [N]
    item_rows: Rows  # [N]
    ages_ms: NDArray[np.int64]  # [N] at the time of the request
    taken_rows: Rows  # [M]
    taken_lengths: NDArray[np.int64]  # [B]


def _kept(users: Sequence[tuple[UserRow, int]], index: ItemIndex) -> _Kept:
    """Read the rows of users; hashes of items become rows of the index in one go."""
    events = np.frombuffer(b"".join([row.events for row, _ in users]), dtype=EVENT)
    taken = np.frombuffer(b"".join([row.taken for row, _ in users]), dtype="<u8")
    lengths = np.array([len(row.events) for row, _ in users], dtype=np.int64) // EVENT.itemsize
    taken_lengths = np.array([len(row.taken) for row, _ in users], dtype=np.int64) // 8
    requests_ms = np.array([request_ms for _, request_ms in users], dtype=np.int64)
    rows = index.rows_of_hashes(np.concatenate([events["item"], taken]))
    return _Kept(
        events,
        lengths,
        np.repeat(np.arange(len(users)), lengths),
        rows[: len(events)],
        np.repeat(requests_ms, lengths) - events["time_ms"],
        rows[len(events) :],
        taken_lengths,
    )


def _newest(
    kept: _Kept, event_types: Mapping[int, int], size: int
) -> tuple[tuple[Rows, NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """([B, T] rows, types and age buckets, [B] lengths) of the newest MAX_HISTORY events, less
    those of unknown items and of items that came after the V = `size` of the ranking."""
    users = len(kept.lengths)
    ends = np.cumsum(kept.lengths)
    usable = (kept.item_rows != NO_ROW) & (kept.item_rows < size)
    if kept.lengths.max(initial=0) > MAX_HISTORY:
        usable &= np.arange(len(usable)) >= np.repeat(ends - MAX_HISTORY, kept.lengths)
    at_user = kept.at_user[usable]
    length = np.bincount(at_user, minlength=users)
    width = max(int(length.max(initial=0)), 1)
    starts = np.cumsum(length) - length
    where = np.arange(len(at_user)) + np.repeat(np.arange(users) * width - starts, length)
    columns = np.zeros((3, users * width), dtype=np.int64)
    columns[0, where] = kept.item_rows[usable]
    columns[1, where] = _type_rows(kept.events["type"][usable], event_types)
    columns[2, where] = age_buckets(kept.ages_ms[usable])
    rows, types, buckets = columns.reshape(3, users, width)
    return (rows, types, buckets), length


def _type_rows(types: NDArray[np.uint32], event_types: Mapping[int, int]) -> NDArray[np.int64]:
    """[N] rows of event types in the release."""
    rows = np.full(len(types), OTHER_TYPE, dtype=np.int64)
    for kind, row in event_types.items():
        rows[types == kind] = row
    return rows


def _recent(history_rows: Rows, length: NDArray[np.int64]) -> Rows:
    """[B, D] the newest items of each history, newest first, NO_ROW where there is none."""
    places = length[:, None] - 1 - np.arange(CHAIN_DEPTH)
    recent = history_rows[np.arange(len(length))[:, None], np.maximum(places, 0)]
    return np.where(places >= 0, recent, NO_ROW)


_NO_LINKS = np.zeros(0, dtype=np.int64), np.zeros((2, 0), dtype=np.float32)


def _chains(
    recent: Rows, statistics: ItemStatistics, size: int
) -> tuple[Rows, NDArray[np.float32], ChainOrigins]:
    """([B, K] rows, [2, B, K] shares, the same by origin): `ItemStatistics.chain` of every user's
    [B, D] recent items, bit for bit, padded to the longest.

    The statistics may know items that came after the V = `size` of the ranking: padding too.
    """
    users, depth = recent.shape
    items = recent.ravel()
    places = np.flatnonzero(items >= 0)
    links = [_NO_LINKS] * len(items)
    strongest = statistics.strongest_of(items[places].tolist())
    for place, of_item in zip(places.tolist(), strongest, strict=True):
        links[place] = of_item
    counts = np.array([len(rows) for rows, _ in links]).reshape(users, depth)
    lengths = counts.sum(axis=1)
    starts = lengths.cumsum() - lengths
    rows = np.concatenate([rows for rows, _ in links])
    shares = np.concatenate([shares for _, shares in links], axis=1)
    distances = (np.arange(users * depth) % depth + 1).astype(np.float32)
    shares /= distances.repeat(counts.ravel())
    for begin, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        # one user's at a time: how numpy rounds a sum depends on what it is told to add up
        mine = shares[:, begin : begin + length]
        mine /= np.maximum(np.add.reduce(mine, axis=1, keepdims=True), _LEAST_TOTAL)
    if size < len(statistics.index):
        unknown = rows >= size
        rows[unknown] = 0
        shares[:, unknown] = 0.0
    width = max(int(lengths.max()), 1)
    where = np.arange(len(rows)) + (np.arange(users) * width - starts).repeat(lengths)
    all_rows = np.zeros(users * width, dtype=np.int64)
    weights = np.zeros((2, users * width), dtype=np.float32)
    all_rows[where] = rows
    for kind in range(2):
        weights[kind][where] = shares[kind]
    first_places = (recent[:, :, None] == recent[:, None, :]).argmax(axis=2)
    origins = ChainOrigins(recent, first_places, counts, rows, shares[0])
    return all_rows.reshape(users, width), weights.reshape(2, users, width), origins


#: A total is this at least: what is divided by it stays a number.
_LEAST_TOTAL = np.float32(1e-30)


def _unlisted(
    users: Sequence[tuple[UserRow, int]],
    kept: _Kept,
    size: int,
    filters_seen: bool,
    hidden_rows: HiddenRows | None,
) -> Rows:
    """[B, S] rows that may not be listed, padded with `size`."""
    hidden = {
        user: hidden_rows(row, request_ms)
        for user, (row, request_ms) in enumerate(users)
        if row.filters and hidden_rows is not None
    }
    parts = [(kept.item_rows, kept.lengths), (kept.taken_rows, kept.taken_lengths)]
    parts = parts if filters_seen else []
    if hidden:
        counts = np.array([len(hidden.get(user, ())) for user in range(len(users))])
        parts.append((np.concatenate(list(hidden.values())), counts))
    if not parts:
        return np.full((len(users), 1), size, dtype=np.int64)
    filled = np.sum([lengths for _, lengths in parts], axis=0)
    seen = np.full((len(users), max(int(filled.max()), 1)), size, dtype=np.int64)
    begin = np.arange(len(users)) * seen.shape[1]
    for rows, lengths in parts:
        starts = np.cumsum(lengths) - lengths
        where = np.arange(len(rows)) + np.repeat(begin - starts, lengths)
        seen.ravel()[where] = np.where((rows == NO_ROW) | (rows > size), size, rows)
        begin = begin + lengths
    return seen
