"""Compare users' rows, in the changelog and on disk, with what they must be."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rocksdict

from stream.verify.report import Check
from stream.verify.users import ExpectedState, ExpectedUser, hash8

#: version, flags, counts of events, ring, taken, served, rec_ids and filters, events in all,
#: fingerprint, applied offset, seq, newest event time, request time of the list, digest of
#: interests, last source offset that makes no list due.
_HEADER = struct.Struct("<BBHHHBBHIQqQqqQq")
_POSTPONED_FLAG, _OLD_IDS_FLAG = 1, 2
_HISTORY_EVENT = struct.Struct("<QqqffII")
_SEEN = struct.Struct("<8sq")
_FILTER = struct.Struct("<Q8sq")
#: The time of an id from a row of version 1 or 2.
_UNTIMED_MS = 2**63 - 1
_SOURCE_KEY = b"\x00source"
#: In the place of a fingerprint: rows of an older worker, or of a broker that tells no ids.
_UNKNOWN = 0
_CHANGELOG_KEY = b"\x00changelog"  # on disk alone
_FENCE_KEY = b"\x00fence"  # for the broker: no disk keeps it
_OWN_KEYS = (_SOURCE_KEY, b"\x00postponed", _FENCE_KEY)
#: How far copies of each other partition are folded, and where legs of merges are.
_OTHERS_KEYS = (b"\x00copies-", b"\x00leg-")
_POSITION_KEY = b"__faust\x00offset__"
_SEPARATOR = "\x1f"
#: Versions 1 and 2 have 8 bytes an id, and only the second one filters, at its end.
_NEWEST, _PLAIN, _WITH_CONTROLS = 3, 1, 2
_OLD_HEADER = struct.Struct("<BBHHHHHIQqQqqQ")
_OLD_CONTROLS = struct.Struct("<qH")
_OLD_FILTER = struct.Struct("<B8sq")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row, taken apart."""

    fingerprint: int
    events: tuple[bytes, ...]
    ring: tuple[tuple[bytes, int], ...]  # hash of an event id, time as given
    taken: tuple[bytes, ...]
    served: tuple[bytes, ...]
    rec_ids: tuple[bytes, ...]
    events_total: int
    applied_offset: int
    seq: int
    newest_ms: int
    is_postponed: bool
    has_old_ids: bool
    silent_until: int | None
    filters: tuple[tuple[int, bytes, int], ...]

    @classmethod
    def parse(cls, data: bytes) -> StoredRow:
        """Raises ValueError for bytes that are no such row."""
        if data[:1] != bytes([_NEWEST]):
            return _parse_old(data)
        if len(data) < _HEADER.size:
            raise ValueError(f"{len(data)} bytes of version {_NEWEST}")
        _, flags, *counts, total, fingerprint, applied, seq, newest, _, _, silent_until = (
            _HEADER.unpack_from(data)
        )
        sizes = [_HISTORY_EVENT.size, _SEEN.size, 8, 8, 8, _FILTER.size]
        parts, end = _split(data, _HEADER.size, counts, sizes)
        if end != len(data):
            raise ValueError(f"{len(data)} bytes where the header tells {end}")
        events, ring, taken, served, rec_ids, filters = parts
        return cls(
            fingerprint,
            events,
            tuple(_SEEN.unpack(entry) for entry in ring),
            taken,
            served,
            rec_ids,
            total,
            applied,
            seq,
            newest,
            bool(flags & _POSTPONED_FLAG),
            bool(flags & _OLD_IDS_FLAG),
            None if silent_until < 0 else silent_until,
            tuple(_FILTER.unpack(entry) for entry in filters),
        )

    def offsets(self) -> list[int]:
        """The source offsets of the events in the history."""
        return [_HISTORY_EVENT.unpack(event)[2] for event in self.events]


def stands_at(data: bytes) -> tuple[int, int]:
    """(source offset applied, seq) of a row, without the rest. Raises ValueError for no row."""
    if data[:1] != bytes([_NEWEST]) or len(data) < _HEADER.size:
        row = StoredRow.parse(data)
        return row.applied_offset, row.seq
    _, _, _, applied, seq, *_ = _HEADER.unpack_from(data)[7:]
    return applied, seq


def _parse_old(data: bytes) -> StoredRow:
    """A row of version 1 or 2, which no event of its user came after yet."""
    if len(data) < _OLD_HEADER.size or data[0] not in (_PLAIN, _WITH_CONTROLS):
        raise ValueError(f"{len(data)} bytes, version {data[:1].hex()}")
    _, flags, *counts, total, fingerprint, applied, seq, newest, _, _ = _OLD_HEADER.unpack_from(
        data
    )
    parts, at = _split(data, _OLD_HEADER.size, counts, [_HISTORY_EVENT.size, 8, 8, 8, 8])
    silent_until = -1
    filters: tuple[bytes, ...] = ()
    if data[0] == _WITH_CONTROLS:
        if len(data) < at + _OLD_CONTROLS.size:
            raise ValueError(f"{len(data)} bytes of version 2, of which version 1 takes {at}")
        silent_until, count = _OLD_CONTROLS.unpack_from(data, at)
        (filters,), at = _split(data, at + _OLD_CONTROLS.size, [count], [_OLD_FILTER.size])
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where the header tells {at}")
    events, ring, taken, served, rec_ids = parts
    return StoredRow(
        fingerprint,
        events,
        tuple((hashed, _UNTIMED_MS) for hashed in ring),
        taken,
        served,
        rec_ids,
        total,
        applied,
        seq,
        newest,
        bool(flags & _POSTPONED_FLAG),
        bool(ring),
        None if silent_until < 0 else silent_until,
        tuple(_OLD_FILTER.unpack(entry) for entry in filters),
    )


def _split(
    data: bytes, at: int, counts: list[int], sizes: list[int]
) -> tuple[list[tuple[bytes, ...]], int]:
    """So many entries of each size from byte `at` on, and where they end, be it behind the data."""
    parts = []
    for count, size in zip(counts, sizes, strict=True):
        parts.append(tuple(data[at + i * size : at + (i + 1) * size] for i in range(count)))
        at += count * size
    if at > len(data):
        raise ValueError(f"{len(data)} bytes where the header tells {at}")
    return parts, at


@dataclass(slots=True)
class Changelog:
    """The newest value of every key in the changelog, and where it stands."""

    values: dict[tuple[int, bytes], tuple[int, bytes | None]]  # partition, key -> offset, value
    ends: dict[int, int]

    @classmethod
    def of(cls, records: Iterable[Any], ends: dict[int, int]) -> Changelog:
        """Of all records of the changelog."""
        return cls({(r.partition, r.key): (r.offset, r.value) for r in records}, ends)

    def rows(self) -> dict[tuple[int, bytes], bytes]:
        """The users' rows."""
        return {
            where: value
            for where, (_, value) in self.values.items()
            if value is not None
            and where[1] not in _OWN_KEYS
            and not where[1].startswith(_OTHERS_KEYS)
        }

    def seq_floors(self) -> dict[int, int]:
        """Partition -> the seq above which its lists go on, as its state was built again."""
        marks = {p: value for (p, key), (_, value) in self.values.items() if key == _SOURCE_KEY}
        return {
            partition: int.from_bytes(value[24:32], "little", signed=True)
            for partition, value in marks.items()
            if value is not None
        }

    def source_offset(self, partition: int) -> int:
        """The last source offset that the rows of a partition contain; -1: none."""
        _, value = self.values.get((partition, _SOURCE_KEY), (0, None))
        return -1 if value is None else int.from_bytes(value[:8], "little", signed=True)


def check_rows(
    changelog: Changelog, expected: ExpectedState, fingerprint: int, ends: dict[int, int]
) -> tuple[Check, dict[tuple[str, str, str], StoredRow]]:
    """Every user's newest row against the log; gives back the rows that can be read."""
    check = Check("rows in the changelog", "users", len(expected.users))
    stored = changelog.rows()
    found: dict[tuple[str, str, str], StoredRow] = {}
    for name, user in expected.users.items():
        data = stored.pop((user.partition, _SEPARATOR.join(name).encode()), None)
        if data is None:
            check.lose(f"no row of user {name} with {user.events_total} events", 1)
            continue
        try:
            found[name] = row = StoredRow.parse(data)
        except ValueError as error:
            check.miss(f"the row of user {name} cannot be read: {error}")
            continue
        _compare(check, name, user, row, fingerprint)
    for partition, key in stored:
        check.miss(f"a row of {key!r} in partition {partition}, who has no events there")
    for partition, end in ends.items():
        if end and changelog.source_offset(partition) != end - 1:
            check.lose(
                f"partition {partition} is applied up to {changelog.source_offset(partition)}, "
                f"and ends at {end}"
            )
    check.notes.append(f"{sum(u.events_total for u in expected.users.values()):,} events folded")
    check.notes.append(f"{expected.duplicates:,} duplicates and {expected.late:,} late ones not")
    return check, found


def _compare(
    check: Check, name: tuple[str, str, str], user: ExpectedUser, row: StoredRow, fingerprint: int
) -> None:
    wanted, got = Counter(user.offsets()), Counter(row.offsets())
    lost = max((wanted - got).total(), user.events_total - row.events_total)
    repeated = sum(max(count - max(wanted[offset], 1), 0) for offset, count in got.items())
    again = max(repeated, row.events_total - user.events_total)
    if lost > 0:
        check.lose(f"{lost} events of user {name}", lost)
    if again > 0:
        check.repeat(f"{again} events of user {name}", again)
    if lost > 0 or again > 0:
        return
    pairs = {
        "fingerprint": (fingerprint, row.fingerprint),
        "history": (tuple(packed for _, _, packed in user.history), row.events),
        "dedupe ring": _rings(user, row),
        "taken items": (tuple(user.taken), row.taken),
        "applied offset": (user.applied_offset, row.applied_offset),
        "newest event time": (user.newest_ms, row.newest_ms),
        "offset that nothing is listed up to": (user.silent_until(), row.silent_until),
        "filters": (tuple(user.filters), row.filters),
    }
    for what, (should, has) in pairs.items():
        if should != has:
            check.miss(f"{what} of user {name}: wanted {should!r:.200}, got {has!r:.200}")
            return


def _rings(
    user: ExpectedUser, row: StoredRow
) -> tuple[tuple[tuple[bytes, int], ...], tuple[tuple[bytes, int], ...]]:
    """The ring as it must be and as it is.

    Ids that an earlier version has put in have no time and leave by count alone: what stands behind
    them stays longer, and of those before it kept fewer. Then the newest of both are compared.
    """
    if not row.has_old_ids:
        return tuple((seen.hashed, seen.time_ms) for seen in user.ring), row.ring
    both = min(len(user.ring), len(row.ring))
    has = row.ring[len(row.ring) - both :]
    wanted = list(user.ring)[len(user.ring) - both :]
    should = tuple(
        (hash8(seen.event_id), time_ms) if time_ms == _UNTIMED_MS else (seen.hashed, seen.time_ms)
        for seen, (_, time_ms) in zip(wanted, has, strict=True)
    )
    return should, has


def check_disk(
    data_dirs: list[Path], app: str, changelog: Changelog, changelog_fingerprint: int
) -> Check:
    """What workers have on disk against the changelog, up to where each one has it.

    A key that has a newer record in the changelog than the disk knows of cannot be judged: the
    older record may be compacted away. Copies of a changelog of the same name that was deleted are
    noted: a worker sets them aside when it comes to open them.
    """
    check = Check("rows on disk", "rows")
    current = set()
    for path in sorted(p for d in data_dirs for p in d.glob(f"{app}/v*/tables/*-*.db")):
        partition = int(path.stem.rpartition("-")[2])
        rows = rows_on_disk(path)
        mark = rows.pop(_CHANGELOG_KEY, None) or rows.get(_SOURCE_KEY, b"")[16:24]
        if int.from_bytes(mark, "little") not in (_UNKNOWN, changelog_fingerprint):
            check.notes.append(f"{path} is of a changelog that was deleted")
            continue
        position = int(rows.pop(_POSITION_KEY, b"-1"))
        if position >= changelog.ends[partition] - 1:
            current.add(partition)
        _compare_disk(check, path, partition, position, rows, changelog)
    behind = sorted({p for p, end in changelog.ends.items() if end} - current)
    if behind:
        check.notes.append(f"no copy of partitions {behind} is as new as the changelog")
    return check


def _compare_disk(
    check: Check,
    path: Path,
    partition: int,
    position: int,
    rows: dict[bytes, bytes],
    changelog: Changelog,
) -> None:
    for (of, key), (offset, value) in changelog.values.items():
        if of != partition or offset > position or key == _FENCE_KEY:
            continue
        check.checked += 1
        if rows.get(key) == value:
            continue
        if value is not None and key not in rows:
            check.lose(f"{path}: no row of {key!r}")
        else:
            check.miss(f"{path}: the row of {key!r} is not that of changelog offset {offset}")
    for key in rows:
        if (partition, key) not in changelog.values:
            check.miss(f"{path}: a row of {key!r}, which the changelog does not know")


def rows_on_disk(path: Path) -> dict[bytes, bytes]:
    """All that a database holds. Raises rocksdict's Exception where a part cannot be read."""
    database = rocksdict.Rdict(
        str(path),
        options=rocksdict.Options(raw_mode=True),
        access_type=rocksdict.AccessType.read_only(),
    )
    try:
        rows = {}
        at = database.iter()
        at.seek_to_first()
        while at.valid():
            rows[at.key()] = at.value()
            at.next()
        at.status()  # `items` ends at a block that cannot be read as if there were no more
        return rows
    finally:
        database.close()
