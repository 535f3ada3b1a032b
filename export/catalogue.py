"""Name what an item is about, and keep the items, attributes and event types of a release."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

#: Attributes of an item that a model reads; those after them are left out.
MAX_ATTRIBUTES = 32
#: From this year on every year is an attribute of its own, before it the decade.
_FIRST_SINGLE_YEAR = 2010
_YEAR = re.compile(r"\((\d{4})\)\s*$")


class ReleaseCatalogue(Struct, frozen=True):
    """What the rows of a release's tables stand for.

    `items[i]` is the id of row i of the item tower; an item that is not in it is known by its
    attributes alone. `attributes[i]` is attribute row i. `event_types[i]` is event-type row i;
    row 0 stands for every other type.
    """

    items: list[str]
    attributes: list[str]
    event_types: list[str]


def attributes_of(
    title: str, categories: Sequence[str], tags: Sequence[str], creator_id: str
) -> list[str]:
    """What a model knows an item by besides its id: at most MAX_ATTRIBUTES names, none twice.

    Categories, the year or decade at the end of a title such as "Alien (1979)", the creator, and
    then the tags.
    """
    names = [f"category:{category}" for category in categories]
    names += _year(title)
    names += [f"creator:{creator_id}"] if creator_id else []
    names += [f"tag:{tag}" for tag in tags]
    return list(dict.fromkeys(names))[:MAX_ATTRIBUTES]


def _year(title: str) -> list[str]:
    found = _YEAR.search(title)
    if found is None:
        return []
    year = int(found.group(1))
    return [f"year:{year}" if year >= _FIRST_SINGLE_YEAR else f"decade:{year // 10 * 10}"]
