"""All that a training reads: examples, the names behind their rows, and what items are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
import numpy as np

from export.catalogue import ReleaseCatalogue
from models.event_log import EventColumns
from models.examples import Examples
from models.sequences import BatchMaker, ItemFeatures, item_features

_ARRAYS, _NAMES = "corpus.npz", "corpus.json"


class Names(msgspec.Struct, frozen=True):
    """What rows stand for."""

    item_ids: list[str]  # [V]
    event_types: list[str]  # by row; row 0 is every other type
    attributes: dict[str, list[str]]  # item id -> names


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples with their names. `filters_seen`: no item is listed twice to a user."""

    examples: Examples
    names: Names
    filters_seen: bool

    def catalogue(self, until: int, before: ReleaseCatalogue | None = None) -> ReleaseCatalogue:
        """Rows for what events before number `until` hold; those of `before` keep their places.

        An item without an event stays unknown: its attributes stand for it.
        """
        taken = np.unique(self.examples.events.items[:until])
        items = [self.names.item_ids[row] for row in taken.tolist()]
        found = dict.fromkeys(a for item in items for a in self.names.attributes.get(item, ()))
        return ReleaseCatalogue(
            _extended(before.items if before else [], items),
            _extended(before.attributes if before else [], sorted(found)),
            _extended(before.event_types if before else [""], self.names.event_types),
        )

    def features(self, catalogue: ReleaseCatalogue) -> ItemFeatures:
        """The tower's inputs for all items, with the rows of a catalogue."""
        return item_features(
            self.names.item_ids,
            self.names.attributes,
            {item: row for row, item in enumerate(catalogue.items)},
            {name: row for row, name in enumerate(catalogue.attributes)},
        )

    def batches(self, catalogue: ReleaseCatalogue) -> BatchMaker:
        """Makes batches whose item rows and event types are those of a catalogue."""
        type_row = {name: row for row, name in enumerate(catalogue.event_types)}
        rows = np.array([type_row.get(name, 0) for name in self.names.event_types])
        return BatchMaker(self.examples, self.features(catalogue), self.filters_seen, rows)

    def write(self, folder: Path) -> None:
        """Write everything, for another process."""
        arrays = {
            f.name: getattr(self.examples, f.name) for f in fields(Examples) if f.name != "events"
        }
        events = {
            f"events.{f.name}": getattr(self.examples.events, f.name) for f in fields(EventColumns)
        }
        np.savez(folder / _ARRAYS, **arrays, **events)
        names = msgspec.json.encode((self.names, self.filters_seen))
        (folder / _NAMES).write_bytes(names)


def read_corpus(folder: Path) -> Corpus:
    """Read what `Corpus.write` wrote."""
    names, filters_seen = msgspec.json.decode(
        (folder / _NAMES).read_bytes(), type=tuple[Names, bool]
    )
    with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
        events = EventColumns(**{f.name: arrays[f"events.{f.name}"] for f in fields(EventColumns)})
        rest = {f.name: arrays[f.name] for f in fields(Examples) if f.name != "events"}
    rest["first"] = int(rest["first"])
    return Corpus(Examples(events, **rest), names, filters_seen)


def attributes_by_item(
    attributes: Mapping[str, Sequence[str]], item_ids: Sequence[str]
) -> dict[str, list[str]]:
    """Attributes of those items that have any."""
    return {item: list(attributes[item]) for item in item_ids if attributes.get(item)}


def _extended(before: list[str], names: list[str]) -> list[str]:
    known = set(before)
    return before + [name for name in names if name not in known]
