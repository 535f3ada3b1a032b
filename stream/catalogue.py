"""Know the items: what they are about, and whether they may be listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from export.catalogue import attributes_of
from export.items import ItemIndex
from stream.control import group_key
from stream.events import Item, decode_item

#: A record of `items` above this is refused; text of 20,000 characters and a vector fit in.
MAX_ITEM_BYTES = 262_144
#: Stands for no publish time; differences to it do not overflow.
_LONG_AGO_MS = -(2**62)
#: JSON has whole numbers of any size; the column has not.
_LATEST_MS = 2**62
#: Stands where an item has fewer categories than another.
NO_CATEGORY = -1


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """What the engine keeps of an item."""

    version: int
    categories: tuple[str, ...]
    attributes: tuple[str, ...]
    is_listable: bool
    groups: tuple[bytes, ...]  # its categories and creator, as filters know them


@dataclass(frozen=True, slots=True)
class CatalogueColumns:
    """What the catalogue knew at one moment, by the rows of the item index; never changes.

    Categories are numbered in the order in which they were met; `labels` only gets longer.
    """

    category_numbers: NDArray[np.int32]  # [n, W] NO_CATEGORY where padded
    published_ms: NDArray[np.int64]  # [n]
    labels: Sequence[str]

    def categories_of(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """[..., W] numbers of the categories of rows of any shape, padded with NO_CATEGORY; none
        where the catalogue did not hold the item."""
        known = rows < len(self.category_numbers)
        found = self.category_numbers.take(rows, axis=0, mode="clip")
        found[~known] = NO_CATEGORY
        return found

    def published_at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The `publish_time` of rows of any shape, in ms; far back where it was not given."""
        known = rows < len(self.published_ms)
        if known.all():
            return self.published_ms[rows]
        return np.where(known, self.published_ms[np.where(known, rows, 0)], _LONG_AGO_MS)


class Catalogue:
    """All items by id, newest version of each, with a row of `index` for every one.

    `changes` counts changes of attributes, `listable_changes` those of what may be listed, so that
    others can tell what they have not seen yet.
    """

    def __init__(self, index: ItemIndex) -> None:
        self.items: dict[str, CatalogueItem] = {}
        self.changes = 0
        self.listable_changes = 0
        self._changed_at: dict[int, int] = {}  # row -> count of changes when it last changed
        self._index = index
        self._hidden: set[int] = set()
        self._rows_in: dict[bytes, set[int]] = {}  # group -> rows of its items
        self.labels: list[str] = []
        self._number_of: dict[str, int] = {}
        self._categories = np.full((1, 1), NO_CATEGORY, dtype=np.int32)
        self._published_ms = np.full(1, _LONG_AGO_MS)
        self._is_handed_out = False  # the two above: they are copied before they change

    def take(self, key: bytes | None, value: bytes | None) -> str | None:
        """Take over a record of `items`; a null value deletes. Returns why it is refused, if so."""
        if key is None:
            return "no key: the key of an item is its item_id"
        if value is None:
            self._delete(key.decode(errors="replace"))
            return None
        if len(value) > MAX_ITEM_BYTES:
            return f"{len(value)} bytes: at most {MAX_ITEM_BYTES} are taken"
        try:
            item = decode_item(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return str(error)
        if item.item_id.encode() != key:
            return "the key is not the item_id"
        self._upsert(item)
        return None

    def _upsert(self, item: Item) -> None:
        known = self.items.get(item.item_id)
        if known is not None and known.version > item.version:
            return
        row = self._index.row(item.item_id)
        self.items[item.item_id] = entry = _entry(item)
        if known is None or known.attributes != entry.attributes:
            self._note_change(row)
        self._set_groups(row, known.groups if known else (), entry.groups)
        self._set_listable(row, entry.is_listable)
        published_ms = _LONG_AGO_MS if item.publish_time is UNSET else item.publish_time
        self._set_columns(row, entry.categories, min(published_ms, _LATEST_MS))

    def columns(self) -> CatalogueColumns:
        """What stands here now; later changes do not reach it."""
        self._is_handed_out = True
        return CatalogueColumns(self._categories, self._published_ms, self.labels)

    def changed_since(self, changes: int) -> list[int]:
        """Rows whose attributes changed after the count of changes was this."""
        if changes == self.changes:
            return []
        return [row for row, count in self._changed_at.items() if count > changes]

    def hide_unlisted(self, known: NDArray[np.float32]) -> None:
        """Set to 0 the rows of [V] `known` whose items may not be listed."""
        if self._hidden:
            known[[row for row in self._hidden if row < len(known)]] = 0.0

    def categories(self, item_id: str) -> tuple[str, ...]:
        """The item's categories; none for an item that the catalogue does not hold."""
        item = self.items.get(item_id)
        return item.categories if item else ()

    def rows_in(self, group: bytes) -> set[int]:
        """The rows of the items of a category or a creator, given as a `group_key`."""
        return self._rows_in.get(group, set())

    def attributes(self, item_id: str) -> tuple[str, ...]:
        """What the model knows the item by besides its id."""
        item = self.items.get(item_id)
        return item.attributes if item else ()

    def _delete(self, item_id: str) -> None:
        known = self.items.pop(item_id, None)
        if known is not None:
            row = self._index.row(item_id)
            self._set_groups(row, known.groups, ())
            self._note_change(row)
            self._set_listable(row, False)
            self._set_columns(row, (), _LONG_AGO_MS)

    def _set_columns(self, row: int, categories: tuple[str, ...], published_ms: int) -> None:
        if self._is_handed_out:
            self._categories = self._categories.copy()
            self._published_ms = self._published_ms.copy()
            self._is_handed_out = False
        rows, width = self._categories.shape
        if row >= rows or len(categories) > width:
            grown = max(rows, 2 * row) + 1 if row >= rows else rows, max(width, len(categories))
            self._categories = _padded(self._categories, grown, NO_CATEGORY)
            self._published_ms = _padded(self._published_ms, grown[:1], _LONG_AGO_MS)
        self._categories[row] = NO_CATEGORY
        self._categories[row, : len(categories)] = [self._number(name) for name in categories]
        self._published_ms[row] = published_ms

    def _number(self, category: str) -> int:
        """The number of a category, a new one where it has none yet."""
        number = self._number_of.setdefault(category, len(self.labels))
        if number == len(self.labels):
            self.labels.append(category)
        return number

    def _set_groups(self, row: int, before: tuple[bytes, ...], now: tuple[bytes, ...]) -> None:
        if before == now:
            return
        for group in before:
            self._rows_in[group].discard(row)
            if not self._rows_in[group]:
                del self._rows_in[group]
        for group in now:
            self._rows_in.setdefault(group, set()).add(row)

    def _set_listable(self, row: int, is_listable: bool) -> None:
        if is_listable == (row in self._hidden):
            (self._hidden.discard if is_listable else self._hidden.add)(row)
            self.listable_changes += 1

    def _note_change(self, row: int) -> None:
        self.changes += 1
        self._changed_at[row] = self.changes


def _padded(array: NDArray[Any], shape: tuple[int, ...], filling: int) -> NDArray[Any]:
    """An array in the corner of a larger one."""
    larger = np.full(shape, filling, dtype=array.dtype)
    larger[tuple(map(slice, array.shape))] = array
    return larger


def _entry(item: Item) -> CatalogueItem:
    categories = () if item.categories is UNSET else tuple(item.categories)
    creator_id = "" if item.creator_id is UNSET else item.creator_id
    attributes = attributes_of(
        "" if item.title is UNSET else item.title,
        list(categories),
        [] if item.tags is UNSET else item.tags,
        creator_id,
    )
    groups = {group_key("category", name) for name in categories}
    groups |= {group_key("creator", creator_id)} if creator_id else set()
    is_listable = item.available is not False and item.hidden is not True
    return CatalogueItem(
        item.version, categories, tuple(attributes), is_listable, tuple(sorted(groups))
    )
