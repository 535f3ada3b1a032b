"""The catalogue of the demo: stories on twelve subjects, with titles that a person can read."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stream.events import Item

#: Category -> (ten topics, three forms that a title takes): thirty items each.
_SHELVES: dict[str, tuple[str, str]] = {
    "jazz": (
        "Bebop|Cool Jazz|Hard Bop|Swing|Latin Jazz|Free Jazz|Modal Jazz|Ragtime|Gypsy Jazz|Bossa "
        "Nova",
        "{} After Midnight|The Story of {}|{} in Seven Records",
    ),
    "hiking": (
        "the Dolomites|the Pyrenees|Corsica|the Lake District|Patagonia|the Tatras|Madeira|the "
        "Black Forest|Lapland|the Balkans",
        "Hut to Hut in {}|A Week on Foot in {}|Ten Day Walks in {}",
    ),
    "cooking": (
        "Sourdough|Ramen|Risotto|Dumplings|Pickles|Curry|Tacos|Custard|Lentils|Noodles",
        "{} on a Weeknight|The Patient Cook's {}|{} Like Grandmother Made",
    ),
    "astronomy": (
        "Saturn|Mars|Jupiter|the Moon|Andromeda|the Milky Way|Betelgeuse|Comets|Black Holes|Europa",
        "A Night with {}|What We Know about {}|{} through a Small Telescope",
    ),
    "chess": (
        "the Sicilian|the French Defence|the King's Gambit|the Endgame|the Queen's Pawn|the Pin|"
        "the Fork|the Open File|the Caro-Kann|the Sacrifice",
        "Understanding {}|Fifty Puzzles on {}|How Masters Play {}",
    ),
    "gardening": (
        "Tomatoes|Roses|Herbs|Apple Trees|Ferns|Pumpkins|Lavender|Beans|Tulips|Berries",
        "{} from Seed to Table|The Small Garden: {}|{} in Dry Summers",
    ),
    "film": (
        "Film Noir|the Western|Silent Comedy|the Heist|the Musical|the Road Movie|Slow Cinema|"
        "the New Wave|Stop Motion|the Space Opera",
        "How {} Was Invented|{} in Twelve Scenes|The Last Days of {}",
    ),
    "history": (
        "Venice|Carthage|the Silk Road|Byzantium|the Hanse|the Inca Road|Samarkand|Old Lisbon|the "
        "Vikings|Babylon",
        "A Short History of {}|Daily Life in the Time of {}|{}: Myths and Maps",
    ),
    "cycling": (
        "the Alps|Flanders|the Loire|Tuscany|the Danube|Mallorca|the Baltic Coast|Wales|Jutland|"
        "Provence",
        "Cycling {}|{} by Gravel Bike|The Great Climbs: {}",
    ),
    "photography": (
        "Portraits|Street Scenes|Night Skies|Black and White|Macro|Wildlife|Old Lenses|Architecture"
        "|Available Light|Film Grain",
        "{}: A Practical Course|Seeing {}|{} with One Camera",
    ),
    "sailing": (
        "the Aegean|the Solent|Brittany|the Frisian Islands|the Azores|the Caribbean|Norway|the "
        "Adriatic|Cape Horn|the Hebrides",
        "Single-Handed round {}|First Cruise: {}|{} by Chart and Compass",
    ),
    "poetry": (
        "Sonnets|Haiku|Ballads|Odes|Elegies|Villanelles|Prose Poems|Love Letters|Epics|Nonsense",
        "Reading {}|{} for Winter Evenings|The Craft of {}",
    ),
}
CATEGORIES = tuple(_SHELVES)
ITEMS_PER_CATEGORY = 30
#: Items of each category that are there when the demo begins; the others appear as it goes on.
ESTABLISHED = 24
#: How long before the demo the oldest items appeared.
_OLDEST_MS = 56 * 86_400_000
#: Which items of a category are its newest is drawn once.
_ORDER_SEED = 20_260


@cache
def demo_items() -> tuple[Item, ...]:
    """All items: number k of category c stands at c * ITEMS_PER_CATEGORY + k."""
    made = []
    for category, (topics, forms) in _SHELVES.items():
        for topic in topics.split("|"):
            for form in forms.split("|"):
                title = form.format(topic)
                title = title[0].upper() + title[1:]
                item_id = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
                made.append(Item(item_id, 1, title=title, categories=[category]))
    return tuple(made)


def birth_times(now_ms: int, interval_ms: int) -> NDArray[np.int64]:
    """[C, K] when each item appears.

    ESTABLISHED items of each category have appeared evenly over the last eight weeks; the others
    appear after now, one every `interval_ms`.
    """
    rng = np.random.default_rng(_ORDER_SEED)
    shape = len(CATEGORIES), ITEMS_PER_CATEGORY
    order = rng.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)  # [C, K]
    before = now_ms - _OLDEST_MS * (ESTABLISHED - order) // ESTABLISHED
    turn = (order - ESTABLISHED) * shape[0] + np.arange(shape[0])[:, None]
    after = now_ms + (turn + 1) * interval_ms
    return np.where(order < ESTABLISHED, before, after).astype(np.int64)
