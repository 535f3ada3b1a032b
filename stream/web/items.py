"""Know the items as people see them: titles, categories, and which of them to offer."""

from __future__ import annotations

import random

import msgspec
from msgspec import UNSET, Struct

from stream.catalogue import Catalogue
from stream.events import decode_item

#: Items whose titles are kept; those beyond are shown by their ids.
MAX_TITLES = 100_000
MAX_CATEGORIES = 200
_MAX_TITLE = 120


class ItemCard(Struct, frozen=True):
    """An item as the page shows it."""

    id: str
    title: str
    category: str  # the first one; empty where it has none


class Items:
    """Titles and categories by item id; takes the records of `items`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._titles: dict[str, str] = {}
        self._by_category: dict[str, dict[str, None]] = {}

    def take(self, key: bytes | None, value: bytes | None) -> bool:
        """Take over a record of `items`; returns whether it could be read."""
        if self._catalogue.take(key, value) is not None:
            return False
        assert key is not None  # the catalogue refuses those
        item_id = key.decode()
        self._remove(item_id)
        known = self._catalogue.items.get(item_id)
        if value is None or known is None or len(self._titles) >= MAX_TITLES:
            return True
        try:
            item = decode_item(value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        self._titles[item_id] = item_id if item.title is UNSET else item.title[:_MAX_TITLE]
        category = known.categories[0] if known.categories else ""
        if known.is_listable and (
            category in self._by_category or len(self._by_category) < MAX_CATEGORIES
        ):
            self._by_category.setdefault(category, {})[item_id] = None
        return True

    def __len__(self) -> int:
        return len(self._titles)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._titles

    def card(self, item_id: str) -> ItemCard:
        """What to show of an item; its id where nothing is known of it."""
        categories = self._catalogue.categories(item_id)
        title = self._titles.get(item_id, item_id[:_MAX_TITLE])
        return ItemCard(item_id, title, categories[0] if categories else "")

    def categories(self) -> list[str]:
        """All categories that have items, in the alphabet's order."""
        return sorted(category for category, items in self._by_category.items() if items)

    def offer(self, count: int, category: str, words: str, seed: int) -> list[ItemCard]:
        """Up to `count` items to click, mixed by `seed`, of all categories in turn.

        `category` and `words`, part of a title in any case, narrow them; empty: they do not.
        """
        rng = random.Random(seed)
        wanted = words.casefold()
        piles = []
        for name in [category] if category else self.categories():
            pile = list(self._by_category.get(name, ()))
            if wanted:
                pile = [item for item in pile if wanted in self._titles[item].casefold()]
            piles.append(rng.sample(pile, min(count, len(pile))))
        rng.shuffle(piles)
        taken: list[ItemCard] = []
        while len(taken) < count and any(piles):
            taken += [self.card(pile.pop()) for pile in piles if pile]
        return taken[:count]

    def _remove(self, item_id: str) -> None:
        self._titles.pop(item_id, None)
        for items in self._by_category.values():
            items.pop(item_id, None)
