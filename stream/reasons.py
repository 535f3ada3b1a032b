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

from export.items import NO_ROW, Rows
from export.statistics import CHAIN_DEPTH
from stream.catalogue import NO_CATEGORY, CatalogueColumns
from stream.events import Reason
from stream.list_texts import SOURCES, ListTexts, Pieces, tail_of
from stream.ranker import RankedLists
from stream.requests import ChainOrigins, RankRequests, UserColumns

#: An item counts as new for so long after its `publish_time`.
NEW_ITEM_MS = 7 * 86_400_000
#: Items that a reason names at most.
MAX_ITEMS = 3
_TREND = 0  # as in RankedLists.parts
POPULAR = Reason("popular")
NEW_ITEM = Reason("new_item")
_POPULAR, _NEW, _INTEREST = range(3)
#: A user's history is shorter: stands for a category that is not in it.
_NOT_TAKEN = np.iinfo(np.int16).max


@dataclass(frozen=True, slots=True)
class ListReasons:
    """Why each of [B, k] listed items stands where it stands, as numbers.

    Below zero: the items that led there, as -1 - (places * 3 + source), see `_strongest_places`.
    Else kind * 3 + source, where kinds from _INTEREST on are that and the number of the category
    they share plus one.
    """

    numbers: NDArray[np.int64]  # [B, k]
    recent_rows: Rows  # [B, D] newest first

    def of(self, user: int, length: int, texts: ReasonTexts) -> list[bytes]:
        """How the first `length` entries of a user's list end: JSON of source and reason."""
        numbers = self.numbers[user, :length].tolist()
        names = texts.names(self.recent_rows[user].tolist())
        found = {n: texts.linked(n, names) if n < 0 else texts.others[n] for n in set(numbers)}
        return list(map(found.__getitem__, numbers))


class ReasonTexts:
    """The JSON of reasons, encoded once where lists have them in common."""

    def __init__(self, texts: ListTexts) -> None:
        self._texts = texts
        self.others = Pieces(self._other)

    def linked(self, number: int, names: list[bytes]) -> bytes:
        """That items led there which are among the newest [D], whose ids come as JSON."""
        places, before, after = _LINKED[number]
        return before + b",".join([names[place] for place in places]) + after

    def names(self, recent: list[int]) -> list[bytes]:
        """The JSON of the ids of the newest items."""
        ids = self._texts.ids
        return [ids[row] for row in recent if row != NO_ROW]

    def _other(self, number: int) -> bytes:
        kind, source = divmod(number, len(SOURCES))
        if kind < _INTEREST:
            return tail_of(source, NEW_ITEM if kind == _NEW else POPULAR)
        category = kind - _INTEREST - 1
        if category == NO_CATEGORY:
            return tail_of(source, Reason("interest"))
        return tail_of(source, Reason("interest", text=self._texts.label(category)))


class _Linked(dict[int, tuple[list[int], bytes, bytes]]):
    """Number of `ListReasons` below zero -> places of recent items, and the JSON around them."""

    def __missing__(self, number: int) -> tuple[list[int], bytes, bytes]:
        digits, source = divmod(-1 - number, len(SOURCES))
        places = []
        while digits:
            digits, digit = divmod(digits, CHAIN_DEPTH + 1)
            places.append(digit - 1)
        before, after = tail_of(source, Reason("because_item", [""])).split(b'""')
        found = self[number] = places, before, after
        return found


_LINKED = _Linked()


def reasons_of(
    columns: UserColumns,
    lists: RankedLists,
    requests_ms: Sequence[int],
    catalogue: CatalogueColumns,
) -> ListReasons:
    """The reasons of the lists that the requests of these users were ranked into."""
    sources = lists.parts.argmax(axis=0)  # [B, k]
    weights = _link_weights(columns.origins, lists.rows)  # [D, B, k]
    linked = (sources != _TREND) & weights.any(axis=0)
    ages_ms = np.array(requests_ms, dtype=np.int64)[:, None] - catalogue.published_at(lists.rows)
    is_new = (ages_ms >= 0) & (ages_ms <= NEW_ITEM_MS)
    kinds = np.where(is_new, _NEW, np.where(sources == _TREND, _POPULAR, _INTEREST))
    of_interest = (kinds == _INTEREST) & ~linked
    if of_interest.any():
        kinds[of_interest] += 1 + _shared(columns.requests, lists.rows, catalogue)[of_interest]
    numbers = kinds * len(SOURCES) + sources
    at = linked.ravel().nonzero()[0]
    places = _strongest_places(weights.reshape(len(weights), -1).take(at, axis=1))
    numbers.ravel()[at] = -1 - (places * len(SOURCES) + sources.ravel().take(at))
    return ListReasons(numbers, columns.origins.recent_rows)


def _shared(requests: RankRequests, listed: Rows, catalogue: CatalogueColumns) -> NDArray[np.int64]:
    """[B, k] of the categories of each listed item the one whose newest item in the history is the
    newest, of equals the item's first; NO_CATEGORY where none is in the history."""
    users, width = requests.history_rows.shape
    ages = requests.history_length[:, None] - 1 - np.arange(width)  # [B, T] below 0: padding
    taken = catalogue.categories_of(requests.history_rows)  # [B, T, W]
    taken[ages < 0] = NO_CATEGORY
    # the last column, which NO_CATEGORY finds, takes the padding
    newest = np.full((users, len(catalogue.labels) + 1), _NOT_TAKEN, dtype=np.int16)
    user = np.arange(users)[:, None, None]
    np.minimum.at(newest, (user, taken), ages[:, :, None].astype(np.int16))
    newest[:, -1] = _NOT_TAKEN
    wanted = catalogue.categories_of(listed)  # [B, k, W]
    since = newest[user, wanted]
    first = np.arange(users)[:, None], np.arange(listed.shape[1]), since.argmin(axis=2)
    return np.where(since[first] < _NOT_TAKEN, wanted[first], NO_CATEGORY)


def _link_weights(origins: ChainOrigins, listed: Rows) -> NDArray[np.float64]:
    """[D, B, k] chain weight that each recent item gave to each listed one."""
    users, k = listed.shape
    depth = origins.counts.shape[1]
    size = int(max(listed.max(), origins.rows.max(initial=0))) + 1
    place_of = np.zeros(users * size, dtype=np.int16)  # place + 1 in the list, 0: not listed
    first = np.arange(users) * size
    place_of[first[:, None] + listed] = np.arange(1, k + 1, dtype=np.int16)
    counts = origins.counts.ravel()
    at = first.repeat(depth).repeat(counts)
    at += origins.rows
    places = place_of.take(at)  # [E]
    found = places.nonzero()[0]
    # [B, D] where the weights of each user and recent item begin
    begins = origins.first_places * (users * k) + np.arange(users)[:, None] * k
    where = begins.ravel().repeat(counts).take(found) + (places.take(found) - 1)
    weights = np.zeros(depth * users * k)
    np.add.at(weights, where, origins.shares.take(found).astype(np.float64))
    return weights.reshape(depth, users, k)


def _strongest_places(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """[N] the places + 1 of the recent items to name as digits to the base D + 1.

    For [D, N] weights, not all zero. The lowest digit is the strongest; of equal weights the newer
    item comes first.
    """
    left = weights.copy()
    depth, count = left.shape
    each = np.arange(count)
    half = left.sum(axis=0) / 2
    reached = np.zeros(count)
    codes = np.zeros(count, dtype=np.int64)
    for place in range(MAX_ITEMS):
        strongest = left.argmax(axis=0)
        weight = left[strongest, each]
        is_named = (weight > 0) & (reached < half)
        codes += (strongest + 1) * is_named * (depth + 1) ** place
        reached += weight
        left[strongest, each] = 0.0
    return codes
