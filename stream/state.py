"""Fold a batch of raw records into users' rows: what is in it, what it changes, what it makes due.

Pure: records and stored rows go in, a `FoldedBatch` comes out; nothing is sent or written here.
Events of a user are applied in the order of their offsets, into a history that is ordered by event
time. So the state after an offset depends on the log alone, not on where batches were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from export.statistics import CHAIN_DEPTH
from stream.accepting import Acceptor, misrouted
from stream.control import asks_for_list, takes_interests_away, takes_list_away
from stream.decoding import Record
from stream.deltas import DeltaBuilder, whole_deltas
from stream.event_columns import (
    AcceptedEvents,
    EventColumns,
    HashesOf,
    Span,
    by_user,
    nan_if_unset,
    session_hash,
)
from stream.events import DEFAULT_SCENARIO, MergePart, UserEvent, Wish
from stream.folded_batch import FoldedBatch, ReadRows, Slice, TouchedUser
from stream.guards import ALL_GUARDS, Guards
from stream.history import (
    HistoryEvent,
    RowLimits,
    UserRow,
    id_hash,
)
from stream.merge import Turn, fold_wish, is_overtaken_by
from stream.partitioner import partitions_of
from stream.rekeyed import Originals
from stream.repetitions import tell_copies, tell_legs
from stream.settings import Settings
from stream.whole_rows import StoredRows

_FOR_EVER_MS = 2**63
NO_OFFSETS: AbstractSet[int] = frozenset()


@dataclass(frozen=True, slots=True)
class UsersOfBatch:
    """Events of U users beside their rows; `foreign` are the numbers of those who do not belong to
    the partition that their events lie in."""

    columns: EventColumns
    rows: StoredRows
    foreign: set[int]


class Folder:
    """Folds batches of one `user-events` topic.

    `fingerprint` names the topic (stream.history.source_fingerprint): a stored row of another one
    raises RowError. `hashes_of` gives the export.items.item_hash of item ids. `seq_floor` tells
    after which `seq` the lists of users begin who have no row in a partition.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partitions: int,
        fingerprint: int,
        hashes_of: HashesOf,
        guards: Guards = ALL_GUARDS,
        seq_floor: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self._acceptor = Acceptor(settings, topic)
        self._partitions = partitions
        self._fingerprint = fingerprint
        self._hashes_of = hashes_of
        self._guards = guards
        self.originals = Originals(topic, fingerprint)
        self._seq_floor = seq_floor
        self._limits = RowLimits(
            settings.max_history,
            settings.max_taken,
            settings.dedupe_ring,
            settings.max_lateness_ms,
        )
        self._max_event_bytes = settings.max_event_bytes
        self._max_lateness_ms = settings.max_lateness_ms if guards.lateness else _FOR_EVER_MS

    def fold(self, slices: Iterable[Slice], read_rows: ReadRows) -> FoldedBatch:
        """Steps 1 to 3 of a batch: decode and validate, read rows, fold.

        Slices of one partition stand in the order of their offsets.
        """
        batch = FoldedBatch()
        records: dict[int, list[Record]] = {}
        for piece in slices:
            partition = piece.tp.partition
            records.setdefault(partition, []).extend(piece.records)
            batch.first_offsets.setdefault(partition, piece.records[0].offset)
            batch.last_offsets[partition] = piece.records[-1].offset
        parts = [self._acceptor.accept(*its, batch) for its in records.items()]  # 1. decode
        parts = [part for part in parts if len(part.events)]
        if parts:
            columns = by_user(parts, self._hashes_of)
            users = self._read(columns, read_rows)  # 2. read rows
            tell_copies(columns, users.foreign, self.originals, read_rows, batch)
            tell_legs(columns, users.foreign, read_rows, batch)
            self._fold_users(users, batch)  # 3. fold
        return batch

    def _read(self, columns: EventColumns, read_rows: ReadRows) -> UsersOfBatch:
        """The rows of the events' users, empty for new ones."""
        rows: list[bytes] = []
        foreign: set[int] = set()
        for span in columns.spans:
            found = read_rows(span.partition, columns.row_keys[span.users])
            new = [user for user, row in enumerate(found, span.users.start) if row is None]
            data = b""
            if new:
                foreign |= self._foreign(new, columns, span.partition)
                empty = UserRow(self._fingerprint)
                empty.seq = self._seq_floor(span.partition)
                data = empty.encode()
            rows += [data if row is None else row for row in found]
        return UsersOfBatch(columns, StoredRows(rows, self._fingerprint), foreign)

    def _foreign(self, users: list[int], columns: EventColumns, partition: int) -> set[int]:
        """Those of these users of a partition who belong to another one."""
        first = columns.order[columns.bounds[users]].tolist()
        owners = [columns.all.records[at].key or b"" for at in first]
        homes = partitions_of(owners, self._partitions)
        return {user for user, home in zip(users, homes, strict=True) if home != partition}

    def _fold_users(self, users: UsersOfBatch, batch: FoldedBatch) -> None:
        """Fold each user's events that were not applied before."""
        columns = users.columns
        is_whole = self._are_whole(users, batch.repetitions)
        deltas = self._whole_deltas(users, is_whole, batch)
        rows = users.rows.folded(columns, is_whole, self._limits)
        looks_at_each = columns.may_ask or not is_whole.all()
        for span, builder in zip(columns.spans, deltas, strict=True):
            if looks_at_each:
                self._fold_others(span, users, rows, is_whole, builder, batch)
            else:
                keys = columns.row_keys[span.users]
                batch.rows[span.partition] = dict(zip(keys, rows[span.users], strict=True))
            built = builder.build()
            if built is not None:
                batch.deltas[span.partition] = built
                batch.count("folded", len(built.offsets))

    def _are_whole(
        self, users: UsersOfBatch, repetitions: Mapping[int, AbstractSet[int]]
    ) -> NDArray[np.bool_]:
        """[U] whose events can be put behind the history as they are: most users' can."""
        columns = users.columns
        if not self._guards.replay_skip:
            return np.zeros(len(columns.row_keys), dtype=np.bool_)
        are_whole = users.rows.ordinary(columns)
        are_whole[list(users.foreign)] = False
        for span in columns.spans:
            again = repetitions.get(span.partition)
            if again:
                is_again = np.isin(columns.all.offsets[span.events], list(again))
                are_whole[columns.users[span.events][is_again]] = False
        return are_whole

    def _whole_deltas(
        self, users: UsersOfBatch, is_whole: NDArray[np.bool_], batch: FoldedBatch
    ) -> list[DeltaBuilder]:
        """For each partition, what the events of users add whose rows are folded at once."""
        columns, kept = users.columns, users.columns.kept
        is_in = np.repeat(is_whole, kept.counts)
        count = int(np.count_nonzero(is_in))
        events = np.diff(columns.bounds)[is_whole].sum()
        batch.count("visits", int(events) - count)
        if not count:
            return [DeltaBuilder(None) for _ in columns.spans]
        depth = min(CHAIN_DEPTH, self._limits.max_history)
        before = users.rows.items_before(kept, depth)
        spans = [span.kept for span in columns.spans]
        return [DeltaBuilder(whole) for whole in whole_deltas(kept, is_in, before, spans)]

    def _fold_others(
        self,
        span: Span,
        users: UsersOfBatch,
        folded: list[bytes],
        is_whole: NDArray[np.bool_],
        deltas: DeltaBuilder,
        batch: FoldedBatch,
    ) -> None:
        """Put in a partition's users whose events are folded, and fold those of all others.

        `folded`: [U] the rows that users have for whom `is_whole` holds.
        """
        columns, partition = users.columns, span.partition
        rows = batch.rows.setdefault(partition, {})
        for number in range(span.users.start, span.users.stop):
            key, places = columns.row_keys[number], columns.places_of(number)
            if number in users.foreign:  # on this partition nothing of the user may be folded
                records = [columns.all.records[at] for at in places]
                batch.misrouted += [misrouted(r.key or b"", r, partition) for r in records]
                continue
            if not is_whole[number]:
                user = batch.users.get(key)
                if user is None:
                    stored = UserRow.decode(users.rows.rows[number], self._fingerprint)
                    user = batch.users[key] = _touched(key, columns.all, places, partition, stored)
                self._fold_singly(columns.all, places, user, deltas, batch)
                continue
            asking = [at for at in places if _asks(columns.all, at)]
            if not asking:
                rows[key] = folded[number]
                continue
            new = UserRow.decode(folded[number], self._fingerprint)
            user = batch.users[key] = _touched(key, columns.all, places, partition, new)
            user.is_changed = True
            for at in asking:
                _make_due(user, columns.all, at)

    def _fold_singly(
        self,
        events: AcceptedEvents,
        places: list[int],
        user: TouchedUser,
        deltas: DeltaBuilder,
        batch: FoldedBatch,
    ) -> None:
        """Fold a user's events one after another, but those that were applied before.

        An event that is too far behind its user's newest one is passed over, and makes nothing due.
        Whether an event that is read again was, its row does not tell: its user gets a list.

        A user of whom nothing is known gets none for an event that is read or sent again: it came
        before the user was forgotten.
        """
        row, counts = user.row, batch.counts
        skips_replays, max_lateness_ms = self._guards.replay_skip, self._max_lateness_ms
        for at in places:
            event, kind = events.events[at], events.kinds[at]
            offset, time_ms = int(events.offsets[at]), int(events.times_ms[at])
            if not isinstance(event, UserEvent) or offset <= row.silent_until:
                turn = Turn(offset, time_ms, events.records[at].timestamp)
                self._fold_beside(event, turn, user, batch)
                continue
            is_replayed = offset <= row.applied_offset and skips_replays
            is_late = time_ms < row.newest_ms - max_lateness_ms and kind.is_kept
            is_again = (
                not (is_replayed or is_late or kind.is_visit)
                and skips_replays
                and self._came_before(event, offset, user, batch)
            )
            may_ask = kind.is_visit or row.events_total or not (is_replayed or is_again)
            if kind.refreshes and (is_replayed or not is_late) and may_ask and _is_home(event):
                user.becomes_due(event.event_id, offset, time_ms, kind.is_visit)
            if is_replayed:
                counts["replayed"] += 1
                continue
            user.is_changed = True
            row.applied_offset = offset
            if kind.is_visit:
                counts["visits"] += 1
            elif is_late:
                counts["late"] += 1
            elif is_again:
                counts["duplicates"] += 1
            else:
                kept = self._history_event(event, events, at)
                previous = row.fold(kept, self._limits)
                deltas.add(event.item_id or "", kept, previous, kind.weight)

    def _came_before(
        self,
        event: UserEvent | Wish,
        offset: int,
        user: TouchedUser,
        batch: FoldedBatch,
    ) -> bool:
        """Whether an event that lies at a new offset was folded from another one."""
        is_copy = offset in batch.repetitions.get(user.partition, NO_OFFSETS)
        return is_copy or user.row.has_event(event.event_id, id_hash(event.event_id))

    def _fold_beside(
        self,
        event: UserEvent | Wish,
        turn: Turn,
        user: TouchedUser,
        batch: FoldedBatch,
    ) -> None:
        """Take what does not enter the history: wishes, and events that make nothing due as they
        came before their user was forgotten, or while the user had opted out."""
        offset = turn.offset
        row, skips_replays = user.row, self._guards.replay_skip
        wish = None if isinstance(event, UserEvent) else event
        is_overtaken = wish is None or is_overtaken_by(row, wish, offset)
        if wish and asks_for_list(wish) and not is_overtaken:
            user.becomes_due(event.event_id, offset, turn.time_ms, is_visit=False)
        if offset <= row.applied_offset and skips_replays:
            batch.counts["replayed"] += 1
            return
        user.is_changed = True
        row.applied_offset = offset
        if wish is None or (isinstance(wish, MergePart) and is_overtaken):
            batch.counts["opted_out"] += 1
        elif skips_replays and (
            row.has_event(event.event_id, id_hash(event.event_id))
            or offset in batch.repetitions.get(user.partition, NO_OFFSETS)
        ):
            batch.counts["duplicates"] += 1
        else:
            batch.counts["control"] += 1
            self._fold_wish(wish, user, turn, batch)

    def _fold_wish(self, wish: Wish, user: TouchedUser, turn: Turn, batch: FoldedBatch) -> None:
        """Do what a wish asks for the first time."""
        batch.own_records += fold_wish(user.row, wish, turn, self._limits, self._max_event_bytes)
        if takes_interests_away(wish):
            batch.no_interests.append(user)
        if takes_list_away(wish):
            user.is_no_longer_due()
            batch.no_list.append(user)

    def _history_event(self, event: UserEvent, events: AcceptedEvents, at: int) -> HistoryEvent:
        (item,) = self._hashes_of([event.item_id or ""])  # never empty: refused without one
        return HistoryEvent(
            id_hash(event.event_id),
            item,
            int(events.times_ms[at]),
            int(events.offsets[at]),
            events.kinds[at].hash,
            nan_if_unset(event.value),
            nan_if_unset(event.portion),
            session_hash(event.session_id),
            int(events.said_ms[at]),
        )


def _owner(event: UserEvent | Wish) -> str:
    """The id whose event this is; one without any is refused."""
    owner = event.user_id
    return event.anonymous_id if owner is UNSET else owner  # type: ignore[union-attr,return-value]


def _touched(
    key: bytes, events: AcceptedEvents, places: list[int], partition: int, row: UserRow
) -> TouchedUser:
    """The user of these events."""
    first = events.events[places[0]]
    return TouchedUser(key, _owner(first), first.user_id is not UNSET, first.tenant, partition, row)


def _asks(events: AcceptedEvents, at: int) -> bool:
    """Whether an event, which is no wish, asks for a list."""
    return events.kinds[at].refreshes and _is_home(events.events[at])


def _make_due(user: TouchedUser, events: AcceptedEvents, at: int) -> None:
    offset, time_ms = int(events.offsets[at]), int(events.times_ms[at])
    user.becomes_due(events.events[at].event_id, offset, time_ms, events.kinds[at].is_visit)


def _is_home(event: UserEvent | Wish) -> bool:
    scenario = event.scenario  # type: ignore[union-attr]  # asked of no wish
    return scenario is UNSET or scenario == DEFAULT_SCENARIO
