"""Fold events into the rows of many users at once, where nothing of a user is out of the ordinary.

Headers of all rows are read and changed as columns, and a new row is put together from the bytes of
the old one: no row is decoded. What comes out is, byte for byte, what `UserRow.fold` makes of one
event after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from export.statistics import CHAIN_DEPTH
from stream.decoding import LONGEST_MS
from stream.event_columns import EventColumns, KeptEvents
from stream.history import RowLimits, UserRow, put_behind, ring_at
from stream.row_codec import (
    CODEC_VERSION,
    EVENT_BYTES,
    FILTER,
    HASH_BYTES,
    HEADER,
    HEADER_DTYPE,
    MERGED_OFFSET,
    OLD_IDS,
    RING_ENTRY_BYTES,
    as_newest,
)

_VERSION = bytes([CODEC_VERSION])
#: All of a row is words of so many bytes.
_WORD_BYTES = 8
_HEADER_WORDS = HEADER.size // _WORD_BYTES
_EVENT_WORDS = EVENT_BYTES // _WORD_BYTES
_RING_WORDS = RING_ENTRY_BYTES // _WORD_BYTES
#: In rings of more entries, those to forget are looked for one after another.
_LONG_RING = 64
#: Where an event's offset lies in it, and the time in an entry of the ring, in words.
_EVENT_OFFSET, _RING_TIME = 2, 1
_LOW_BITS = np.dtype("<u2")
#: Spreads the numbers of users over so many bits.
_ODD = 40503


class StoredRows:
    """The rows of U users, whose headers and ends of histories can be read as columns.

    Raises RowError, as `UserRow.decode` does, for one that cannot be read.
    """

    def __init__(self, rows: Sequence[bytes], fingerprint: int) -> None:
        self.rows = [row if row[:1] == _VERSION else as_newest(row) for row in rows]
        sizes = np.fromiter(map(len, self.rows), np.int64, len(rows))
        if (sizes < HEADER.size).any() or (sizes % _WORD_BYTES).any():
            self._refuse(np.ones(len(rows), dtype=np.bool_), fingerprint)
        self._words = np.frombuffer(b"".join(self.rows), "<u8")
        self._begins = (np.cumsum(sizes) - sizes) // _WORD_BYTES
        at = self._begins[:, None] + np.arange(_HEADER_WORDS)
        #: [U] HEADER_DTYPE
        self.headers = self._words.take(at).view(HEADER_DTYPE).reshape(-1)
        headers = self.headers
        #: [U] bytes of a row after which its history and its ring end
        self.events_end = HEADER.size + headers["events"].astype(np.int64) * EVENT_BYTES
        self.ring_end = self.events_end + headers["ring"].astype(np.int64) * RING_ENTRY_BYTES
        hashes = headers["taken"].astype(np.int64) + headers["served"] + headers["rec_ids"]
        end = (
            self.ring_end + hashes * HASH_BYTES + headers["filters"].astype(np.int64) * FILTER.size
        )
        is_wrong = (end != sizes) | (headers["source"] != fingerprint)
        if is_wrong.any():
            self._refuse(is_wrong, fingerprint)

    def _refuse(self, is_wrong: NDArray[np.bool_], fingerprint: int) -> None:
        for at in np.flatnonzero(is_wrong).tolist():
            UserRow.decode(self.rows[at], fingerprint)

    def ordinary(self, columns: EventColumns) -> NDArray[np.bool_]:
        """[U] whose events are all new, neither late nor out of order, with no wish among them.

        Most users' are. Then they can be put behind the history as they are. False for some of whom
        that cannot be told at once.
        """
        headers, kept = self.headers, columns.kept
        first_offsets = columns.all.offsets[columns.order[columns.bounds[:-1]]]
        is_ordinary: NDArray[np.bool_] = (
            columns.is_in_order
            & ((headers["flags"] & OLD_IDS) == 0)
            & (first_offsets > np.maximum(headers["applied_offset"], headers["silent_until"]))
        )
        has_kept = kept.counts > 0
        times_ms = kept.packed["time_ms"]
        first_ms = times_ms.take(kept.bounds[:-1], mode="clip") if len(times_ms) else 0
        is_ordinary &= ~has_kept | (first_ms >= headers["newest_ms"])
        self._leave_out_known(is_ordinary, has_kept, kept)
        return is_ordinary

    def _leave_out_known(
        self, is_ordinary: NDArray[np.bool_], has_kept: NDArray[np.bool_], kept: KeptEvents
    ) -> None:
        """Of users who have one of the new ids in their ring already, the events are looked at."""
        is_in = is_ordinary & has_kept & (self.headers["ring"] > 0)
        users = np.flatnonzero(is_in)
        if not len(users):
            return
        counts = kept.counts
        new = kept.ids.view(_LOW_BITS)[:: RING_ENTRY_BYTES // 2][np.repeat(is_in, counts)]
        begins = self._begins[users] + self.events_end[users] // _WORD_BYTES
        ends = begins + self.headers["ring"][users].astype(np.int64) * _RING_WORDS
        old = self._low_bits(begins, ends, _RING_WORDS)
        for at in set(_perhaps_known(old, new, counts[users])[0].tolist()):
            user, row = users[at], self.rows[users[at]]
            ids = kept.ids["hash"][kept.bounds[user] : kept.bounds[user + 1]].tobytes()
            ring = row[self.events_end[user] : self.ring_end[user]]
            is_ordinary[user] = not any(
                ids[begin : begin + HASH_BYTES] in ring for begin in range(0, len(ids), HASH_BYTES)
            )

    def _low_bits(
        self, begins: NDArray[np.int64], ends: NDArray[np.int64], step: int
    ) -> list[NDArray[np.uint16]]:
        """The lowest bits of every `step`-th word from each begin to its end."""
        bits, each = self._words.view(_LOW_BITS), _WORD_BYTES // 2
        bounds = zip((begins * each).tolist(), (ends * each).tolist(), strict=True)
        return [bits[begin : end : step * each] for begin, end in bounds]

    def items_before(self, kept: KeptEvents, depth: int) -> NDArray[np.uint64]:
        """[K, CHAIN_DEPTH] the `depth` items before each kept event, where all of them enter the
        histories: newest first, 0 for none and for those that came with a merged user.

        Events stand as in `kept.packed`.
        """
        counts = kept.counts
        distance = np.arange(CHAIN_DEPTH, 0, -1)
        number = self.headers["events"][:, None].astype(np.int64) - distance
        at = self._begins[:, None] + _HEADER_WORDS + number * _EVENT_WORDS
        at[number < 0] = 0
        old = self._words.take(at)
        is_merged = self._words.take(at + _EVENT_OFFSET) == np.uint64(MERGED_OFFSET % 2**64)
        old[(number < 0) | is_merged] = 0
        users = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(users)) + (users + 1) * CHAIN_DEPTH
        items = np.empty(len(users) + old.size, dtype=np.uint64)
        is_old = np.ones(len(items), dtype=np.bool_)
        is_old[places] = False
        items[is_old] = old.reshape(-1)
        items[places] = kept.packed["item"]
        before: NDArray[np.uint64] = items.take(places[:, None] - np.arange(1, CHAIN_DEPTH + 1))
        before[:, depth:] = 0
        return before

    def folded(
        self, columns: EventColumns, is_in: NDArray[np.bool_], limits: RowLimits
    ) -> list[bytes]:
        """[U] the rows with their users' events in them, of those for whom `ordinary` holds.

        Of users who are not in, what stands there is worth nothing.
        """
        kept, old, new = columns.kept, self.headers, self._headers_after(columns)
        begins, ends, counts = kept.bounds[:-1], kept.bounds[1:], kept.counts
        size = old["events"] + counts
        dropped = np.where(counts > 0, np.maximum(size - limits.max_history, 0), 0)
        forgotten = self._forgotten(kept, is_in, new["newest_ms"], limits)
        new["events"], new["ring"] = size - dropped, old["ring"] + counts - forgotten
        packed, ids = kept.packed.tobytes(), kept.ids.tobytes()
        rests = [row[end:] for row, end in zip(self.rows, self.ring_end.tolist(), strict=True)]
        for user, taken in self._taken_after(kept, is_in, dropped, limits):
            rests[user] = taken + rests[user][int(old["taken"][user]) * HASH_BYTES :]
            new["taken"][user] = len(taken) // HASH_BYTES
        old_dropped = np.minimum(dropped, old["events"])
        old_forgotten = np.minimum(forgotten, old["ring"])
        cuts = (
            HEADER.size + EVENT_BYTES * old_dropped,
            self.events_end,
            EVENT_BYTES * (begins + dropped - old_dropped),
            EVENT_BYTES * ends,
            self.events_end + RING_ENTRY_BYTES * old_forgotten,
            self.ring_end,
            RING_ENTRY_BYTES * (begins + forgotten - old_forgotten),
            RING_ENTRY_BYTES * ends,
        )
        headers = new.tobytes()
        at = range(0, len(headers), HEADER.size)
        each = zip(at, self.rows, rests, *(cut.tolist() for cut in cuts), strict=True)
        return [
            b"".join(
                (headers[h : h + HEADER.size], row[a:b], packed[c:d], row[e:f], ids[i:j], rest)
            )
            for h, row, rest, a, b, c, d, e, f, i, j in each
        ]

    def _headers_after(self, columns: EventColumns) -> NDArray[np.void]:
        """[U] the headers as they will be, but for what they count in the row."""
        kept, headers = columns.kept, self.headers.copy()
        counts = kept.counts
        headers["applied_offset"] = columns.all.offsets[columns.order[columns.bounds[1:] - 1]]
        headers["events_total"] += counts.astype(np.uint32)
        if len(kept.packed):
            last_ms = kept.packed["time_ms"].take(kept.bounds[1:] - 1, mode="clip")
            headers["newest_ms"] = np.where(counts > 0, last_ms, headers["newest_ms"])
        return headers

    def _taken_after(
        self,
        kept: KeptEvents,
        is_in: NDArray[np.bool_],
        dropped: NDArray[np.int64],
        limits: RowLimits,
    ) -> Iterator[tuple[int, bytes]]:
        """Users of whom events are dropped, so many of each, and the taken items they have then.

        Which of the dropped items may be there already, their lowest bits tell of all at once.
        """
        users = np.flatnonzero(is_in & (dropped > 0))
        if not len(users) or not limits.max_taken:
            return
        words, new_items = self._words, kept.packed["item"]
        begins = self._begins[users] + _HEADER_WORDS
        old = np.minimum(dropped[users], self.headers["events"][users])
        items = [
            words[begin : begin + count * _EVENT_WORDS : _EVENT_WORDS]
            for begin, count in zip(begins.tolist(), old.tolist(), strict=True)
        ]
        for at in np.flatnonzero(dropped[users] > old).tolist():
            begin = kept.bounds[users[at]]
            end = begin + dropped[users[at]] - old[at]
            items[at] = np.concatenate([items[at], new_items[begin:end]])
        sizes = self.headers["taken"][users].astype(np.int64)
        begins = self._begins[users] + self.ring_end[users] // _WORD_BYTES
        old_bits = self._low_bits(begins, begins + sizes, 1)
        new_bits = np.concatenate(items).astype(_LOW_BITS)
        of_user, places = _perhaps_known(old_bits, new_bits, [len(its) for its in items])
        known: list[dict[int, int]] = [{} for _ in items]
        hashes = words[begins[of_user] + places].tolist()
        for at, item, place in zip(of_user.tolist(), hashes, places.tolist(), strict=True):
            known[at][item] = place
        for user, its_items, its_known in zip(users.tolist(), items, known, strict=True):
            begin, size = int(self.ring_end[user]), int(self.headers["taken"][user])
            taken = self.rows[user][begin : begin + size * HASH_BYTES]
            yield user, put_behind(taken, its_items.tolist(), its_known, limits.max_taken)

    def _forgotten(
        self,
        kept: KeptEvents,
        is_in: NDArray[np.bool_],
        newest_ms: NDArray[np.int64],
        limits: RowLimits,
    ) -> NDArray[np.int64]:
        """[U] how many entries a ring with the new ones loses, as `ring_at` says: the first ones of
        it, and then of the new ones."""
        old, counts = self.headers["ring"].astype(np.int64), kept.counts
        horizons_ms = newest_ms - min(limits.max_lateness_ms, LONGEST_MS)
        times = self._begins + self.events_end // _WORD_BYTES + _RING_TIME  # of the first entries
        first_ms = self._words.take(times, mode="clip").view(np.int64)
        is_in = is_in & (counts > 0)
        users = np.repeat(np.arange(len(old)), counts)
        is_ahead = kept.ids["time_ms"] != kept.packed["time_ms"]  # these stay while later ones go
        has_ahead = np.bincount(users[is_ahead], minlength=len(old)) > 0
        is_long = is_in & ((old > _LONG_RING) | (old + counts > limits.dedupe_ring) | has_ahead)
        looked = np.flatnonzero(is_in & ~is_long & (old > 0) & (first_ms < horizons_ms))
        forgotten = np.zeros(len(old), dtype=np.int64)
        if len(looked):
            sizes = old[looked]
            begins = np.cumsum(sizes) - sizes
            place = np.arange(begins[-1] + sizes[-1]) - np.repeat(begins, sizes)
            at = np.repeat(times[looked], sizes) + place * _RING_WORDS
            is_young = self._words.take(at).view(np.int64) >= np.repeat(horizons_ms[looked], sizes)
            place[~is_young] = _LONG_RING
            forgotten[looked] = np.minimum(np.minimum.reduceat(place, begins), sizes)
        is_old = kept.ids["time_ms"] < horizons_ms[users]
        forgotten += np.where(forgotten == old, np.bincount(users[is_old], minlength=len(old)), 0)
        for user in np.flatnonzero(is_long).tolist():
            ring = self.rows[user][self.events_end[user] : self.ring_end[user]]
            ring += kept.ids[kept.bounds[user] : kept.bounds[user + 1]].tobytes()
            left = len(ring_at(ring, int(newest_ms[user]), limits))
            forgotten[user] = (len(ring) - left) // RING_ENTRY_BYTES
        return forgotten


def _perhaps_known(
    old: list[NDArray[np.uint16]],
    new: NDArray[np.uint16],
    counts: NDArray[np.int64] | list[int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of some users' old hashes may be among their new ones, by the lowest bits of each.

    Arguments: the old ones of each user, the new ones of all, and how many those of each are.

    Returns: ([F] numbers of users, [F] places among the old ones of that user).
    """
    salts = (np.arange(len(old)) * _ODD).astype(_LOW_BITS)  # one user's hashes are no other's
    is_wanted = np.zeros(2**16, dtype=np.bool_)
    is_wanted[new ^ np.repeat(salts, counts)] = True
    sizes = np.fromiter(map(len, old), np.int64, len(old))
    # with an index in place of `take`, it takes three times as long
    found = is_wanted.take(np.concatenate(old) ^ np.repeat(salts, sizes)).nonzero()[0]
    ends = np.cumsum(sizes)
    users = np.searchsorted(ends, found, side="right")
    return users, found - (ends - sizes)[users]
