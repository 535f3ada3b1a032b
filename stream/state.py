"""Fold a batch of raw records into users' rows: what is in it, what it changes, what it makes due.

Pure: records and stored rows go in, a `FoldedBatch` comes out; nothing is sent or written here.
Events of a user are applied in the order of their offsets, into a history that is ordered by event
time. So the state after an offset depends on the log alone, not on where batches were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from msgspec import UNSET

from export.statistics import CHAIN_DEPTH
from stream.accepting import Acceptor, misrouted
from stream.control import asks_for_list, takes_interests_away, takes_list_away
from stream.decoding import Kind
from stream.deltas import DeltaBuilder
from stream.event_columns import (
    AcceptedEvents,
    EventColumns,
    HashesOf,
    UserSpan,
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
from stream.rekeyed import Originals, copies_key, folded_up_to
from stream.row_codec import EVENT_BYTES, HASH_BYTES, RING_ENTRY_BYTES
from stream.settings import Settings

_FOR_EVER_MS = 2**63
NO_OFFSETS: AbstractSet[int] = frozenset()


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
        accepted: dict[int, AcceptedEvents] = {}
        for piece in slices:  # 1. decode and validate
            partition = piece.tp.partition
            self._acceptor.accept(piece, accepted.setdefault(partition, AcceptedEvents()), batch)
            batch.first_offsets.setdefault(partition, piece.records[0].offset)
            batch.last_offsets[partition] = piece.records[-1].offset
        for partition, events in accepted.items():
            if events.events:
                columns = by_user(events, self._hashes_of)
                rows = self._read(partition, columns, read_rows)  # 2. read rows
                self._tell_copies(partition, events, rows, read_rows, batch)
                self._fold_users(columns, partition, rows, batch)  # 3. fold
        return batch

    def _read(
        self, partition: int, columns: EventColumns, read_rows: ReadRows
    ) -> dict[bytes, UserRow | None]:
        """The rows of the events' users, empty for new ones; None: they do not belong here."""
        fingerprint, users = self._fingerprint, columns.users
        rows: dict[bytes, UserRow | None] = {}
        new: list[bytes] = []
        for key, data in zip(users, read_rows(partition, list(users)), strict=True):
            if data is not None:
                rows[key] = UserRow.decode(data, fingerprint)
            else:
                new.append(key)
        owners = [columns.all.records[users[key].begin].key or b"" for key in new]
        wanted = partitions_of(owners, self._partitions)
        for key, right_one in zip(new, wanted, strict=True):
            rows[key] = self._new_row(partition) if right_one == partition else None
        return rows

    def _tell_copies(
        self,
        partition: int,
        events: AcceptedEvents,
        rows: dict[bytes, UserRow | None],
        read_rows: ReadRows,
        batch: FoldedBatch,
    ) -> None:
        """Tell which copies of misrouted records came before, and how far they come with these."""
        copies = [
            (record.offset, original)
            for record, key in zip(events.records, events.row_keys, strict=True)
            if record.headers and rows[key] is not None and (original := self.originals.of(record))
        ]
        if not copies:
            return
        sources = sorted({source for _, (source, _) in copies})
        kept = read_rows(partition, [copies_key(source) for source in sources])
        known = {source: folded_up_to(row) for source, row in zip(sources, kept, strict=True)}
        again = batch.repetitions.setdefault(partition, set())
        for offset, (source, original_offset) in copies:
            if original_offset <= known[source]:
                again.add(offset)
            else:
                known[source] = original_offset
        batch.copies[partition] = known

    def _new_row(self, partition: int) -> UserRow:
        row = UserRow(self._fingerprint)
        row.seq = self._seq_floor(partition)
        return row

    def _fold_users(
        self,
        columns: EventColumns,
        partition: int,
        rows: dict[bytes, UserRow | None],
        batch: FoldedBatch,
    ) -> None:
        """Fold each user's events that were not applied before; all users are touched."""
        again = batch.repetitions.get(partition, NO_OFFSETS)
        deltas = DeltaBuilder(columns.kept, min(CHAIN_DEPTH, self._limits.max_history))
        for key, span in columns.users.items():
            row = rows[key]
            if row is None:  # on this partition nothing of the user may be folded
                batch.misrouted += [
                    misrouted(record.key or b"", record, partition)
                    for record in columns.all.records[span.begin : span.end]
                ]
                continue
            user = batch.users.get(key)
            if user is None:
                user = batch.users[key] = _touched(key, columns.all, span, partition, row)
            offsets = columns.all.offsets[span.begin : span.end]
            if again.isdisjoint(offsets) and self._is_plain(columns, span, user.row):
                self._fold_whole(columns, span, user, deltas, batch)
            else:
                self._fold_singly(columns.all, span, user, deltas, batch)
        if deltas.has_any:
            batch.deltas[partition] = deltas.build()
            batch.count("folded", len(batch.deltas[partition].offsets))

    def _is_plain(self, columns: EventColumns, span: UserSpan, row: UserRow) -> bool:
        """Whether a user's events are all new, neither late nor out of order, and none is a wish.

        Most users' are. Then they can be put behind the history as they are.
        """
        if not span.is_in_order or row.has_old_ids or not self._guards.replay_skip:
            return False
        if columns.all.offsets[span.begin] <= max(row.applied_offset, row.silent_until):
            return False
        kept = columns.kept
        if span.kept_begin < span.kept_end and kept.times_ms[span.kept_begin] < row.newest_ms:
            return False
        ring, ids = row.ring, kept.id_bytes
        return not ring or not any(
            ids[at : at + HASH_BYTES] in ring
            for at in range(
                span.kept_begin * RING_ENTRY_BYTES,
                span.kept_end * RING_ENTRY_BYTES,
                RING_ENTRY_BYTES,
            )
        )

    def _fold_whole(
        self,
        columns: EventColumns,
        span: UserSpan,
        user: TouchedUser,
        deltas: DeltaBuilder,
        batch: FoldedBatch,
    ) -> None:
        """Fold plain events: what `_fold_singly` would come to, at once."""
        events, kept, row = columns.all, columns.kept, user.row
        for at in range(span.begin, span.end) if columns.may_ask else ():
            kind = events.kinds[at]
            if kind.refreshes and _is_home(events.events[at]):
                event_id, offset = events.events[at].event_id, events.offsets[at]
                user.becomes_due(event_id, offset, events.times_ms[at], kind.is_visit)
        user.is_changed = True
        row.applied_offset = events.offsets[span.end - 1]
        begin, end = span.kept_begin, span.kept_end
        batch.count("visits", span.end - span.begin - (end - begin))
        if begin < end:
            deltas.add_span(row.events, span)
            row.extend(
                kept.packed_bytes[begin * EVENT_BYTES : end * EVENT_BYTES],
                kept.id_bytes[begin * RING_ENTRY_BYTES : end * RING_ENTRY_BYTES],
                kept.times_ms[end - 1],
                self._limits,
            )

    def _fold_singly(
        self,
        events: AcceptedEvents,
        span: UserSpan,
        user: TouchedUser,
        deltas: DeltaBuilder,
        batch: FoldedBatch,
    ) -> None:
        """Fold a user's events one after another, but those that were applied before.

        An event that is too far behind its user's newest one is passed over, and makes nothing due.
        Whether an event that is read again was, its row does not tell: its user gets a list.
        """
        row, counts = user.row, batch.counts
        skips_replays, max_lateness_ms = self._guards.replay_skip, self._max_lateness_ms
        for at in range(span.begin, span.end):
            event, kind = events.events[at], events.kinds[at]
            offset, time_ms = events.offsets[at], events.times_ms[at]
            if not isinstance(event, UserEvent) or offset <= row.silent_until:
                turn = Turn(offset, time_ms, events.records[at].timestamp)
                self._fold_beside(event, turn, user, batch)
                continue
            is_replayed = offset <= row.applied_offset and skips_replays
            is_late = time_ms < row.newest_ms - max_lateness_ms and kind.is_kept
            if kind.refreshes and (is_replayed or not is_late) and _is_home(event):
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
            elif skips_replays and self._came_before(event, offset, user, batch):
                counts["duplicates"] += 1
            else:
                kept = self._history_event(event, time_ms, offset, kind)
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

    def _history_event(
        self, event: UserEvent, time_ms: int, offset: int, kind: Kind
    ) -> HistoryEvent:
        (item,) = self._hashes_of([event.item_id or ""])  # never empty: refused without one
        return HistoryEvent(
            id_hash(event.event_id),
            item,
            time_ms,
            offset,
            kind.hash,
            nan_if_unset(event.value),
            nan_if_unset(event.portion),
            session_hash(event.session_id),
        )


def _owner(event: UserEvent | Wish) -> str:
    """The id whose event this is; one without any is refused."""
    owner = event.user_id
    return event.anonymous_id if owner is UNSET else owner  # type: ignore[union-attr,return-value]


def _touched(
    key: bytes, events: AcceptedEvents, span: UserSpan, partition: int, row: UserRow
) -> TouchedUser:
    """The user of these events, as before them."""
    first = events.events[span.begin]
    return TouchedUser(key, _owner(first), first.user_id is not UNSET, first.tenant, partition, row)


def _is_home(event: UserEvent | Wish) -> bool:
    scenario = event.scenario  # type: ignore[union-attr]  # asked of no wish
    return scenario is UNSET or scenario == DEFAULT_SCENARIO
