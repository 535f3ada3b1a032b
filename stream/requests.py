"""Lay out what is known of the users of a batch as the columns that a ranker reads.

Everything is copied here, on the event loop: statistics may move on while a thread ranks.
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
    """Which of a user's last D items each chain entry comes from."""

    recent_rows: Rows  # [B, D] newest first, NO_ROW where there is none
    first_places: Rows  # [B, D] the first place at which the same item stands
    ends: Rows  # [B, D] the chain entries from the d-th newest item end before this one


def build_requests(
    users: Sequence[tuple[UserRow, int]],
    index: ItemIndex,
    statistics: ItemStatistics,
    event_types: Mapping[int, int],
    size: int,
    filters_seen: bool,
    hidden_rows: HiddenRows | None = None,
) -> RankRequests:
    """Columns for users given as (row, request time in ms).

    `event_types` maps a type's 32-bit hash to its row in the release, `size` is V. Items of a
    history that are in no index are left out: nothing is known of them. `hidden_rows` tells what
    a user with filters does not want listed; without it filters are passed over.
    """
    events = [row.history()[-MAX_HISTORY:] for row, _ in users]
    lengths = np.array([len(history) for history in events], dtype=np.int64)
    all_events = np.concatenate(events)
    at_user = np.repeat(np.arange(len(users)), lengths)
    requests_ms = np.array([request_ms for _, request_ms in users], dtype=np.int64)
    item_rows = index.rows_of_hashes(all_events["item"])
    types = np.fromiter(
        (event_types.get(kind, OTHER_TYPE) for kind in all_events["type"].tolist()),
        dtype=np.int64,
        count=len(all_events),
    )
    buckets = age_buckets(requests_ms[at_user] - all_events["time_ms"])
    usable = (item_rows != NO_ROW) & (item_rows < size)
    kept = np.bincount(at_user[usable], minlength=len(users)).astype(np.int64)
    column = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
    where = (at_user[usable], column)
    width = max(int(kept.max(initial=0)), 1)
    history_rows, history_types, history_buckets = (
        _scatter(values[usable], where, (len(users), width))
        for values in (item_rows, types, buckets)
    )
    chain_rows, chain_weights = _chains(history_rows, kept, statistics, size)
    return RankRequests(
        history_rows,
        history_types,
        history_buckets,
        kept,
        gate_features(
            np.array(
                [request_ms - row.newest_ms if len(row) else 0 for row, request_ms in users],
                dtype=np.int64,
            ),
            np.array([row.events_total for row, _ in users], dtype=np.int64),
            chain_weights[0].max(axis=1, initial=0.0),
        ),
        chain_rows,
        chain_weights,
        _unlisted(users, index, size, filters_seen, hidden_rows),
    )


def chain_origins(requests: RankRequests, statistics: ItemStatistics) -> ChainOrigins:
    """Where the chains of these requests come from.

    `statistics` must still be those that the requests were built with.
    """
    places = requests.history_length[:, None] - 1 - np.arange(CHAIN_DEPTH)  # [B, D]
    recent = np.take_along_axis(requests.history_rows, np.maximum(places, 0), axis=1)
    recent = np.where(places >= 0, recent, NO_ROW)
    counts = np.fromiter(
        (statistics.links_read(row) if row >= 0 else 0 for row in recent.ravel().tolist()),
        dtype=np.int64,
        count=recent.size,
    )
    first_places = (recent[:, :, None] == recent[:, None, :]).argmax(axis=2)
    return ChainOrigins(recent, first_places, counts.reshape(recent.shape).cumsum(axis=1))


def _scatter(
    values: NDArray[np.int64],
    where: tuple[NDArray[np.int64], NDArray[np.int64]],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """[N] values at their (user, column) places of a zero [B, T]."""
    out = np.zeros(shape, dtype=np.int64)
    out[where] = values
    return out


def _chains(
    history_rows: Rows, lengths: NDArray[np.int64], statistics: ItemStatistics, size: int
) -> tuple[Rows, NDArray[np.float32]]:
    """([B, K] rows, [2, B, K] shares): the chain of every user, padded to the longest.

    The statistics may know items that came after the V = `size` of the ranking: padding too.
    """
    chains = []
    for rows, length in zip(history_rows, lengths.tolist(), strict=True):
        newest_first = rows[max(length - CHAIN_DEPTH, 0) : length][::-1].tolist()
        chains.append(statistics.chain(newest_first))
    width = max(1, *(len(rows) for rows, _ in chains))
    all_rows = np.zeros((len(chains), width), dtype=np.int64)
    weights = np.zeros((2, len(chains), width), dtype=np.float32)
    for user, (rows, shares) in enumerate(chains):
        all_rows[user, : len(rows)] = rows
        weights[:, user, : len(rows)] = shares
    unknown = all_rows >= size
    all_rows[unknown] = 0
    weights[:, unknown] = 0.0
    return all_rows, weights


def _unlisted(
    users: Sequence[tuple[UserRow, int]],
    index: ItemIndex,
    size: int,
    filters_seen: bool,
    hidden_rows: HiddenRows | None,
) -> Rows:
    """[B, S] rows that may not be listed, padded with `size`."""
    taken = [row.taken_items() for row, _ in users] if filters_seen else []
    hidden = {
        user: hidden_rows(row, request_ms)
        for user, (row, request_ms) in enumerate(users)
        if row.filters and hidden_rows is not None
    }
    width = max(1, *map(len, taken), 1) + max(map(len, hidden.values()), default=0)
    seen = np.full((len(users), width), size, dtype=np.int64)
    for user, hashes in enumerate(taken):
        seen[user, : len(hashes)] = index.rows_of_hashes(hashes)
    for user, rows in hidden.items():
        seen[user, width - len(rows) :] = rows
    seen[(seen == NO_ROW) | (seen > size)] = size
    return seen
