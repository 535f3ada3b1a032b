"""Lay out examples as the tensors that the network reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.features import MAX_HISTORY, age_buckets
from export.items import Rows
from models.event_log import Ints
from models.examples import Examples
from models.layers import ItemTower
from models.network import LiveInputs

#: Items of a user that training and evaluation take as seen: the newest ones.
MAX_SEEN = 2000


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """What the tower reads of each of V items."""

    id_rows: Ints  # [V] row in the release's table, -1 for an item known by its attributes alone
    attribute_rows: Ints  # [V, A] padded with -1


def item_features(
    ids: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    id_row: Mapping[str, int],
    attribute_row: Mapping[str, int],
) -> ItemFeatures:
    """Features of V items, given the names of each item's attributes."""
    known = [[attribute_row[a] for a in attributes.get(i, ()) if a in attribute_row] for i in ids]
    rows = np.full((len(ids), max(1, *map(len, known), 1)), -1, dtype=np.int64)
    for at, found in enumerate(known):
        rows[at, : len(found)] = found
    id_rows = np.array([id_row.get(item, -1) for item in ids], dtype=np.int64)
    return ItemFeatures(id_rows, rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples over the rows of an item axis, without the item vectors.

    The axis is `axis` [U] of all items: the first V rows of it are those that are ranked.
    """

    numbers: Ints  # [B]
    live: LiveInputs  # item vectors empty; popularity [2, B, V], known [B, V]
    id_rows: Tensor  # [U]
    attribute_rows: Tensor  # [U, A]
    targets: Tensor  # [B] places on the axis, -1 where the target is not on it

    def with_vectors(self, tower: ItemTower, id_kept: Tensor | None = None) -> LiveInputs:
        """The inputs of the network, with item vectors of `tower`; `id_kept` [U] hides ids."""
        item_input, item_output = tower(self.id_rows, self.attribute_rows, id_kept)
        V = self.live.known.shape[-1]
        return self.live._replace(item_input=item_input, item_output=item_output[:V])


class BatchMaker:
    """Makes batches of one set of examples.

    `type_rows` gives the release's row of each event type of the examples.
    """

    def __init__(
        self,
        examples: Examples,
        items: ItemFeatures,
        filters_seen: bool,
        type_rows: Ints | None = None,
    ) -> None:
        self.examples = examples
        self._types = (
            examples.events.types if type_rows is None else type_rows[examples.events.types]
        )
        self.items = items
        self.filters_seen = filters_seen
        events = examples.events
        # One user's events lie together, in their order: a history is a slice.
        self._by_user = np.lexsort((events.times_ms, events.users))
        place = np.empty_like(self._by_user)
        place[self._by_user] = np.arange(len(events))
        users = events.users[self._by_user]
        is_first = np.ones(len(events), dtype=bool)
        is_first[1:] = users[1:] != users[:-1]
        begins = np.maximum.accumulate(np.where(is_first, np.arange(len(events)), 0))
        self._end = place  # [N] a history ends before its event
        self._begin = begins[place]  # [N]
        self._snapshots = torch.from_numpy(examples.snapshots)

    @property
    def history_lengths(self) -> Ints:
        """[N] events of the same user before each event."""
        return self._end - self._begin

    def was_known(self, numbers: Ints) -> NDArray[np.bool_]:
        """[B] whether the target could be listed: an event of it was known."""
        x = self.examples
        return x.first_event[x.events.items[numbers]] < x.known_before[numbers - x.first]

    def was_seen(self, numbers: Ints) -> NDArray[np.bool_]:
        """[B] whether the user had taken the target before."""
        items = self.examples.events.items
        users = self.examples.events.users
        order = np.lexsort((self._end, items, users))
        again = np.zeros(len(items), dtype=bool)
        again[order[1:]] = (users[order[1:]] == users[order[:-1]]) & (
            items[order[1:]] == items[order[:-1]]
        )
        return again[numbers]

    def batch(self, numbers: Ints, candidates: Rows) -> Batch:
        """The examples `numbers`, ranked over the items `candidates` [V], which stand once each."""
        x = self.examples
        at = numbers - x.first
        history, _ = self._history(numbers, MAX_HISTORY)
        is_token = history >= 0
        tokens = np.where(is_token, x.events.items[history], 0)
        place = np.full(x.n_items + 1, -1, dtype=np.int64)
        place[candidates] = np.arange(len(candidates))
        others = np.unique(tokens[is_token & (place[tokens] < 0)])
        place[others] = len(candidates) + np.arange(len(others))
        axis = np.concatenate([candidates, others])
        V = len(candidates)
        ages = (x.events.times_ms[numbers] - 1)[:, None] - x.events.times_ms[history]
        chain_rows, chain_weights = self._chains(at, place, V)
        live = LiveInputs(
            torch.from_numpy(np.where(is_token, place[tokens], 0)),
            torch.from_numpy(np.where(is_token, self._types[history], 0)),
            torch.from_numpy(np.where(is_token, age_buckets(ages), 0)),
            torch.from_numpy(is_token.sum(1)),
            torch.from_numpy(x.gate_features[at]),
            self._popularity(at, candidates),
            chain_rows,
            chain_weights,
            torch.from_numpy(
                (x.first_event[candidates] < x.known_before[at][:, None]).astype(np.float32)
            ),
            torch.from_numpy(self._seen(numbers, place, V)),
            torch.empty(0),
            torch.empty(0),
        )
        targets = place[x.events.items[numbers]]
        return Batch(
            numbers,
            live,
            torch.from_numpy(self.items.id_rows[axis]),
            torch.from_numpy(self.items.attribute_rows[axis]),
            torch.from_numpy(np.where(targets < V, targets, -1)),
        )

    def live_mass(self, numbers: Ints) -> NDArray[np.float64]:
        """[V] what the live parts hold of each item: mean popularity and chain of the examples."""
        x = self.examples
        at = numbers - x.first
        mass: NDArray[np.float64] = x.snapshots[x.snapshot_at[at[-1]], 0] * float(len(at))
        mass = mass.astype(np.float64)
        for begin, end in zip(
            x.chain_ends[at].tolist(), x.chain_ends[at + 1].tolist(), strict=True
        ):
            np.add.at(mass, x.chain_rows[begin:end], x.chain_weights[0, begin:end])
        return mass

    def _history(self, numbers: Ints, limit: int) -> tuple[Ints, Ints]:
        """([B, T] numbers of the newest events before, oldest first, -1 where padded; [B] sizes).

        T is that of the longest, at least 1.
        """
        end = self._end[numbers]
        sizes = np.minimum(end - self._begin[numbers], limit)
        T = max(int(sizes.max(initial=0)), 1)
        column = np.arange(T)[None]
        places = (end - sizes)[:, None] + column
        inside = column < sizes[:, None]
        return np.where(inside, self._by_user[np.where(inside, places, 0)], -1), sizes

    def _popularity(self, at: Ints, candidates: Rows) -> Tensor:
        """[2, B, V] the shares of the candidates before each example."""
        snapshot = torch.from_numpy(self.examples.snapshot_at[at])
        V = len(candidates)
        if V and candidates[0] == 0 and candidates[-1] == V - 1:  # all of the first rows
            return self._snapshots[:, :, :V][snapshot].transpose(0, 1)
        on_axis = torch.from_numpy(candidates)
        return self._snapshots[snapshot[:, None], :, on_axis[None]].permute(2, 0, 1)

    def _chains(self, at: Ints, place: Ints, V: int) -> tuple[Tensor, Tensor]:
        """([B, K] places, [2, B, K] weights); an item that is not ranked has a weight of 0."""
        x = self.examples
        begins, ends = x.chain_ends[at], x.chain_ends[at + 1]
        K = max(int((ends - begins).max(initial=0)), 1)
        entries = begins[:, None] + np.arange(K)[None]
        inside = entries < ends[:, None]
        entries = np.where(inside, entries, 0)
        if not len(x.chain_rows):
            return torch.zeros(len(at), 1, dtype=torch.int64), torch.zeros(2, len(at), 1)
        places = place[x.chain_rows[entries]]
        ranked = inside & (places >= 0) & (places < V)
        weights = x.chain_weights[:, entries] * ranked
        return torch.from_numpy(np.where(ranked, places, 0)), torch.from_numpy(weights)

    def _seen(self, numbers: Ints, place: Ints, V: int) -> Ints:
        """[B, S] places of items that may not be listed, V where padded."""
        if not self.filters_seen:
            return np.full((len(numbers), 1), V, dtype=np.int64)
        before, _ = self._history(numbers, MAX_SEEN)
        places = place[self.examples.events.items[before]]
        return np.where((before >= 0) & (places >= 0) & (places < V), places, V)
