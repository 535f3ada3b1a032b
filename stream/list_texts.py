"""Make the JSON of lists from pieces that many lists have in common, each encoded once.

A list of 50 items says little that is not said in other lists too: ids, sources, most reasons. As
structs and through the encoder its items cost more than all else that is done for a list. What
comes out is byte for byte what `stream.events.encode` makes of the same items; the pieces are made
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream.events import RankedItem, Reason, Source, encode

SOURCES: tuple[Source, Source, Source] = ("trend", "chain", "sequence")
_HEAD = b'{"item_id":%b,"score":'
_CANDIDATE_TAIL = b',"propensity":1.0},'
#: Stands in the place of what differs, to see how the encoder writes the rest.
_ANY = RankedItem("", 0.0)
_ANY_HEAD = encode(_ANY)[:-1]


class Pieces(dict[int, bytes]):
    """Number -> bytes, made when first asked for."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> bytes:
        piece = self[number] = self._make(number)
        return piece


class ListTexts:
    """The pieces that one worker has made. Ids and labels only ever get longer at their ends.

    `ids` holds the JSON of items' ids by row, `labelled` by the number of a category how its entry
    among interests begins.
    """

    def __init__(self, item_ids: Sequence[str], labels: Sequence[str]) -> None:
        self._labels = labels
        self.ids = Pieces(lambda row: encode(item_ids[row]))
        self.labelled = Pieces(lambda number: b'{"label":%b' % encode(labels[number]))
        self._heads = Pieces(lambda row: _HEAD % self.ids[row])

    def heads(self, rows: list[int]) -> list[bytes]:
        """How the entries of these items begin, up to the score."""
        return list(map(self._heads.__getitem__, rows))

    def label(self, number: int) -> str:
        """A category by its number."""
        return self._labels[number]


def score_texts(scores: list[float]) -> list[bytes]:
    """The JSON of each score."""
    return encode(scores)[1:-1].split(b",")


def tail_of(source: int, reason: Reason) -> bytes:
    """How the entry of an item ends, after its score."""
    entry = encode(RankedItem(_ANY.item_id, _ANY.score, SOURCES[source], reason))
    return entry[len(_ANY_HEAD) :] + b","


def items_text(heads: list[bytes], scores: list[bytes], tails: list[bytes]) -> bytes:
    """The `items` of a list, at least one."""
    pieces = [b""] * (3 * len(heads))
    pieces[0::3], pieces[1::3], pieces[2::3] = heads, scores, tails
    return b"[%b]" % b"".join(pieces)[:-1]


def candidates_text(heads: list[bytes], scores: list[bytes]) -> bytes:
    """The `candidates` of a decision, at least one, each with a propensity of one."""
    return items_text(heads, scores, [_CANDIDATE_TAIL] * len(heads))
