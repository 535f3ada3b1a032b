"""Say why an item stands in a list, from what the ranking has read and from nothing else.

`because_item`: transitions from the user's last items lead to it. The reason names the fewest of
those items that together gave at least half of its chain weight, at most three, the strongest
first. A list without a model counts the chain so; a model mixes this chain with a decaying one, so
there it is where the item is known from, not its exact share.
`new_item`: the catalogue's `publish_time` is at most NEW_ITEM_MS before the time of the request.
`interest`: the model put it there. The text is the category that it shares with the newest item of
the history that shares one; no text where there is none.
`popular`: the trend put it there.

The first that applies in the order because_item, new_item, interest, popular; but what the trend
put there is never `because_item`. These are the reasons of the mix, not of a mind: a transformer
does not say why, and `interest` claims no more than a shared category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.items import Rows
from stream.catalogue import CatalogueColumns
from stream.events import Reason
from stream.ranker import RankedLists
from stream.requests import ChainOrigins, RankRequests

#: An item counts as new for so long after its `publish_time`.
NEW_ITEM_MS = 7 * 86_400_000
#: Items that a reason names at most.
MAX_ITEMS = 3
_TREND = 0  # as in RankedLists.parts
POPULAR = Reason("popular")
NEW_ITEM = Reason("new_item")
_POPULAR, _NEW, _INTEREST = -1, -2, -3


@dataclass(frozen=True, slots=True)
class ListReasons:
    """Why each of [B, k] listed items stands where it stands."""

    rows: Rows  # [B, k]
    codes: NDArray[np.int64]  # [B, k] < 0: see above; else the places of up to three recent items
    recent_rows: Rows  # [B, D] newest first
    history_rows: Rows  # [B, T] oldest first
    history_length: NDArray[np.int64]  # [B]
    item_ids: Sequence[str]
    catalogue: CatalogueColumns

    def of(self, user: int, length: int) -> list[Reason]:
        """The reasons of the first `length` places of a user's list."""
        codes = self.codes[user, :length].tolist()
        reasons = {code: self._reason(user, code) for code in set(codes)}
        found = [reasons[code] for code in codes]
        if _INTEREST in reasons:
            taken = self.history_rows[user, : self.history_length[user]][::-1].tolist()
            for place, row in enumerate(self.rows[user, :length].tolist()):
                if codes[place] == _INTEREST:
                    found[place] = _interest(row, taken, self.catalogue)
        return found

    def _reason(self, user: int, code: int) -> Reason:
        if code < 0:
            return NEW_ITEM if code == _NEW else POPULAR
        recent = self.recent_rows[user].tolist()
        items = []
        while code:
            code, place = divmod(code, len(recent) + 1)
            items.append(self.item_ids[recent[place - 1]])
        return Reason("because_item", items)


def _interest(row: int, taken: list[int], catalogue: CatalogueColumns) -> Reason:
    """The first of an item's categories that the newest taken item (first) with any of them has."""
    categories = catalogue.categories_of(row)
    for other in taken if categories else ():
        others = catalogue.categories_of(other)
        for category in categories:
            if category in others:
                return Reason("interest", text=category)
    return Reason("interest")


def reasons_of(
    requests: RankRequests,
    origins: ChainOrigins,
    lists: RankedLists,
    requests_ms: Sequence[int],
    item_ids: Sequence[str],
    catalogue: CatalogueColumns,
) -> ListReasons:
    """The reasons of the lists that these requests were ranked into."""
    sources = lists.parts.argmax(axis=0)  # [B, k]
    weights = _link_weights(requests, origins, lists.rows)  # [B, k, D]
    linked = (sources != _TREND) & weights.any(axis=2)
    ages_ms = np.array(requests_ms, dtype=np.int64)[:, None] - catalogue.published_at(lists.rows)
    is_new = (ages_ms >= 0) & (ages_ms <= NEW_ITEM_MS)
    otherwise = np.where(is_new, _NEW, np.where(sources == _TREND, _POPULAR, _INTEREST))
    codes = otherwise.astype(np.int64)
    codes[linked] = _strongest_places(weights[linked])
    return ListReasons(
        lists.rows,
        codes,
        origins.recent_rows,
        requests.history_rows,
        requests.history_length,
        item_ids,
        catalogue,
    )


def _link_weights(
    requests: RankRequests, origins: ChainOrigins, listed: Rows
) -> NDArray[np.float64]:
    """[B, k, D] chain weight that each recent item gave to each listed one."""
    users, k = listed.shape
    depth = origins.ends.shape[1]
    size = int(max(listed.max(initial=0), requests.chain_rows.max(initial=0))) + 1
    first = np.arange(users)[:, None] * size
    place_of = np.zeros(users * size, dtype=np.int16)  # place + 1 in the list, 0 where not listed
    place_of[first + listed] = np.arange(1, k + 1, dtype=np.int16)
    places = place_of[first + requests.chain_rows].ravel()  # [B * K]
    at = np.flatnonzero(places > 0)
    user, entry = np.divmod(at, requests.chain_rows.shape[1])
    is_link = entry < origins.ends[user, -1]  # the others are padding
    at, user, entry = at[is_link], user[is_link], entry[is_link]
    recent = (origins.ends[user] <= entry[:, None]).sum(axis=1)
    recent = origins.first_places[user, recent]
    flat = (user * k + places[at] - 1) * depth + recent
    summed = np.zeros(users * k * depth)
    np.add.at(summed, flat, requests.chain_weights[0].ravel()[at].astype(np.float64))
    return summed.reshape((users, k, depth))


def _strongest_places(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N] the places + 1 of the recent items to name as digits to the base D + 1.

    For [N, D] weights, not all zero. The lowest digit is the strongest; of equal weights the newer
    item comes first.
    """
    order = np.argsort(-weights, axis=1, kind="stable")[:, :MAX_ITEMS]
    strongest = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(strongest, axis=1) - strongest
    is_named = (strongest > 0) & (before < weights.sum(axis=1, keepdims=True) / 2)
    bases = (weights.shape[1] + 1) ** np.arange(order.shape[1])
    codes: NDArray[np.int64] = ((order + 1) * is_named * bases).sum(axis=1)
    return codes
