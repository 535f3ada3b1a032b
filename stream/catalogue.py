"""Know the items: what they are about, and whether they may be listed."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from export.catalogue import attributes_of
from export.items import ItemIndex
from stream.events import Item, decode_item


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """What the engine keeps of an item."""

    version: int
    categories: tuple[str, ...]
    attributes: tuple[str, ...]
    is_listable: bool


def refusal(key: bytes | None, value: bytes | None, max_bytes: int = 262_144) -> str | None:
    """Why a record of `items` is refused; None for a good one. A null value deletes."""
    if key is None:
        return "no key: the key of an item is its item_id"
    if value is None:
        return None
    if len(value) > max_bytes:
        return f"{len(value)} bytes: at most {max_bytes} are taken"
    try:
        item = decode_item(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    if item.item_id.encode() != key:
        return "the key is not the item_id"
    return None


class Catalogue:
    """All items by id, newest version of each, with a row of `index` for every one.

    `changed` holds the rows whose attributes changed since somebody emptied it.
    """

    def __init__(self, index: ItemIndex) -> None:
        self.items: dict[str, CatalogueItem] = {}
        self.changed: set[int] = set()
        self._index = index
        self._hidden: set[int] = set()

    def take(self, key: bytes | None, value: bytes | None) -> None:
        """Take over a record of `items`; one that is refused changes nothing."""
        if refusal(key, value) is not None or key is None:
            return
        if value is None:
            self._delete(key.decode(errors="replace"))
            return
        item = decode_item(value)
        known = self.items.get(item.item_id)
        if known is not None and known.version > item.version:
            return
        row = self._index.row(item.item_id)
        self.items[item.item_id] = entry = _entry(item)
        if known is None or known.attributes != entry.attributes:
            self.changed.add(row)
        (self._hidden.discard if entry.is_listable else self._hidden.add)(row)

    def hide_unlisted(self, known: NDArray[np.float32]) -> None:
        """Set to 0 the rows of [V] `known` whose items may not be listed."""
        if self._hidden:
            known[[row for row in self._hidden if row < len(known)]] = 0.0

    def categories(self, item_id: str) -> tuple[str, ...]:
        """The item's categories; none for an item that the catalogue does not hold."""
        item = self.items.get(item_id)
        return item.categories if item else ()

    def attributes(self, item_id: str) -> tuple[str, ...]:
        """What the model knows the item by besides its id."""
        item = self.items.get(item_id)
        return item.attributes if item else ()

    def _delete(self, item_id: str) -> None:
        if self.items.pop(item_id, None) is not None:
            row = self._index.row(item_id)
            self.changed.add(row)
            self._hidden.add(row)


def _entry(item: Item) -> CatalogueItem:
    categories = () if item.categories is UNSET else tuple(item.categories)
    attributes = attributes_of(
        "" if item.title is UNSET else item.title,
        list(categories),
        [] if item.tags is UNSET else item.tags,
        "" if item.creator_id is UNSET else item.creator_id,
    )
    is_listable = item.available is not False and item.hidden is not True
    return CatalogueItem(item.version, categories, tuple(attributes), is_listable)
