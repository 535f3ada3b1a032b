"""The independent fold agrees with the worker's, and finds out what is lost, twice or wrong."""

from __future__ import annotations

import ast
import dataclasses
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
from folding import FINGERPRINT, NOW_MS, PARTITIONS, Record, Store, body, control, partition_of
from hypothesis import given
from hypothesis import strategies as st

from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.items import ItemIndex
from export.statistics import ItemStatistics
from models.parity_fold import LogFold
from models.parity_log import EventLog, ParityPlan
from stream.history import UserRow, hash64
from stream.kafka.own_rows import source_row
from stream.row_codec import FILTER
from stream.settings import Settings
from stream.snapshots import save_snapshot, take_snapshot
from stream.statistics import LiveStatistics, decode_deltas, encode_deltas
from stream.verify.counts import CountsSettings, check_snapshot
from stream.verify.deltas import DeltaTopic, check_deltas
from stream.verify.events import Control, Event, EventRules, Refused, SentOn
from stream.verify.lists import SentLists, check_lists
from stream.verify.rows import Changelog, StoredRow, check_rows
from stream.verify.users import ExpectedState

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(
    max_history=4, max_taken=3, dedupe_ring=3, event_types={"skip": EventRole("negative", 0.0)}
)
USERS = ("ada", "bob", "eve")


@dataclass(frozen=True)
class Placed:
    """A record at its place in a topic."""

    partition: int
    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int = NOW_MS
    headers: tuple = ()


class World:
    """The same records folded by the worker's code and by that of the check."""

    def __init__(self, records: list[Placed], settings: Settings = SETTINGS) -> None:
        self.rules = EventRules(settings, PARTITIONS)
        self.expected = ExpectedState(settings)
        self.store = Store(settings)
        self.deltas: list[Placed] = []
        self.ends: dict[int, int] = {}
        self.take(records)

    def take(self, records: list[Placed]) -> None:
        """Fold further records."""
        for placed in records:
            judged = self.rules.judge(placed)
            if isinstance(judged, Event | Control):
                self.expected.apply(judged, placed.partition, placed.offset)
            record = Record(placed.key, placed.value, placed.offset, placed.timestamp)
            batch = self.store.fold(record, partition=placed.partition)
            for partition, columns in batch.deltas.items():
                value = encode_deltas(partition, columns)
                self.deltas.append(Placed(partition, None, value, len(self.deltas)))
        self.ends |= {r.partition: r.offset + 1 for r in records}

    def changelog(self) -> Changelog:
        rows = [Placed(p, key, value, 0) for (p, key), value in self.store.rows.items()]
        rows += [Placed(p, *source_row(end - 1), 0) for p, end in self.ends.items()]
        return Changelog.of(rows, {})

    def check_rows(self) -> object:
        return check_rows(self.changelog(), self.expected, FINGERPRINT, self.ends)[0]


CONTROLS = [
    "history_reset",
    "user_delete",
    "user_opt_out",
    "user_opt_in",
    "item_block",
    "category_mute",
    "creator_block",
    "user_merge",
]


def placed_control(draw: st.DrawFn, user: str, offset: int) -> Placed:
    """A control event, now and then one that was sent before, or one that names nothing."""
    sent = control(
        offset,
        draw(st.sampled_from(CONTROLS)),
        user,
        event_id=f"control-{draw(st.integers(0, 12)):04d}",
        event_time=NOW_MS - draw(st.integers(0, 5)) * 1000,
        target=draw(st.none() | st.sampled_from(["item-1", "item-2", "jazz"])),
        until=draw(st.none() | st.integers(NOW_MS - 5000, NOW_MS + 5000) | st.just(10**30)),
    )
    return Placed(partition_of(user), sent.key, sent.value, offset)


@st.composite
def logs(draw: st.DrawFn) -> list[Placed]:
    """Events of a few users: late ones, ones sent twice, visits, each partition in its order."""
    offsets = dict.fromkeys(range(PARTITIONS), 0)
    records = []
    for _ in range(draw(st.integers(1, 40))):
        user = draw(st.sampled_from(USERS))
        partition = partition_of(user)
        offset = offsets[partition] = offsets[partition] + draw(st.integers(1, 3))
        if draw(st.integers(0, 3)) == 0:
            records.append(placed_control(draw, user, offset))
            continue
        fields = body(
            draw(st.integers(0, 25)),
            user_id=user,
            type=draw(st.sampled_from(["click", "skip", "visit", "unheard_of"])),
            item_id=f"item-{draw(st.integers(0, 6))}",
            event_time=NOW_MS - draw(st.integers(-5, 5000) | st.integers(-5, 30 * 86_400_000)),
            value=draw(st.none() | st.floats(-5, 5)),
            session_id=draw(st.none() | st.just("s")),
        )
        records.append(Placed(partition, user.encode(), json.dumps(fields).encode(), offset))
    return records


@given(logs())
def test_rows_and_deltas_of_the_worker_are_those_of_the_independent_fold(records):
    world = World(records)

    rows, (deltas, _) = world.check_rows(), check_deltas(world.deltas, world.expected)

    assert rows.holds, rows.told
    assert deltas.holds, deltas.told


@given(logs(), st.integers(1, 6000), st.integers(0, 20))
def test_they_agree_on_what_is_too_late_and_what_came_before(records, lateness_ms, ring):
    settings = msgspec.structs.replace(SETTINGS, max_lateness_ms=lateness_ms, dedupe_ring=ring)

    world = World(records, settings)

    rows, (deltas, _) = world.check_rows(), check_deltas(world.deltas, world.expected)
    assert rows.holds, rows.told
    assert deltas.holds, deltas.told


@given(logs(), st.integers(1, 6000))
def test_the_check_of_lists_counts_the_same_events_with_the_same_items_before(records, lateness_ms):
    settings = msgspec.structs.replace(SETTINGS, max_lateness_ms=lateness_ms)
    world = World(records, settings)
    plan = ParityPlan(
        bootstrap="",
        prefix="",
        registry="",
        samples=0,
        seed=0,
        roles=DEFAULT_EVENT_TYPES | settings.event_types,
        max_history=settings.max_history,
        dedupe_ring=settings.dedupe_ring,
        max_lateness_ms=lateness_ms,
        popularity_half_lives_ms=settings.popularity_half_lives_ms,
        chain_half_life_ms=settings.chain_half_life_ms,
        neighbours=settings.neighbours,
        max_pairs=settings.max_pairs,
    )
    log = EventLog()
    fold = LogFold(plan, log, PARTITIONS)
    for placed in records:
        if not isinstance(world.rules.judge(placed), Refused):
            fold.take(placed)

    counted = {
        (event.partition, event.offset): (event.item, len(event.previous), event.time_ms)
        for event in log.events
    }

    assert counted == {
        place: (delta.item_id, len(delta.previous), delta.time_ms)
        for place, delta in world.expected.deltas.items()
    }


def as_version_1_or_2(row: UserRow, ids: list[str], version: int) -> bytes:
    """A row as earlier versions wrote it, whose ring knows these event ids."""
    filters = [FILTER.unpack_from(row.filters, at) for at in range(0, len(row.filters), 24)]
    parts = (row.events, row.ring, row.taken, row.served, row.rec_ids)
    counts = (len(part) // size for part, size in zip(parts, (40, 16, 8, 8, 8), strict=True))
    header = struct.pack(
        "<BBHHHHHIQqQqqQ",
        *(version, 0, *counts, row.events_total, row.fingerprint, row.applied_offset),
        *(row.seq, row.newest_ms, row.list_ms, row.interests_digest),
    )
    ring = b"".join(map(hash64, ids))
    old = b"".join((header, row.events, ring, row.taken, row.served, row.rec_ids))
    if version == 1:
        return old
    controls = struct.pack("<qH", row.silent_until, len(filters))
    return old + controls + b"".join(struct.pack("<B8sq", *entry) for entry in filters)


@given(logs(), st.data())
def test_rows_that_an_earlier_version_wrote_go_on_as_what_they_are(records, data):
    settings = msgspec.structs.replace(SETTINGS, max_lateness_ms=10**12, dedupe_ring=4)
    first = data.draw(st.integers(0, len(records)))
    world = World(records[:first], settings)
    for where, value in world.store.rows.items():
        row = UserRow.decode(value, FINGERPRINT)
        user = world.expected.users[tuple(where[1].decode().split("\x1f"))]
        version = 2 if row.filters or row.silent_until >= 0 else 1
        ids = [seen.event_id for seen in user.ring]
        world.store.rows[where] = as_version_1_or_2(row, ids, version)
        assert StoredRow.parse(world.store.rows[where]).has_old_ids == bool(ids)

    world.take(records[first:])

    rows, (deltas, _) = world.check_rows(), check_deltas(world.deltas, world.expected)
    assert rows.holds, rows.told
    assert deltas.holds, deltas.told


@given(st.integers(0, 400), st.sampled_from(["user_row.v1", "user_row.v2", "user_row.v3"]))
def test_the_check_reads_rows_of_all_versions_and_no_cut_ones(length, name):
    data = (Path(__file__).parent / "golden" / f"{name}.bin").read_bytes()

    row = StoredRow.parse(data)

    assert (row.seq, row.applied_offset) == (42, 1005)
    assert row.filters == () if name == "user_row.v1" else len(row.filters) == 2
    with pytest.raises(ValueError, match="bytes"):
        StoredRow.parse(data[: length % len(data)])


def clicks(count: int, user: str = "ada", item: str = "item") -> list[Placed]:
    return [
        Placed(
            partition_of(user),
            user.encode(),
            json.dumps(body(n, user_id=user, item_id=f"{item}-{n % 5}")).encode(),
            n,
        )
        for n in range(count)
    ]


def test_a_lost_and_a_repeated_event_are_found_in_a_row():
    world, short = World(clicks(7)), World(clicks(6))
    longer = World(clicks(8))

    world.store = short.store
    lost = world.check_rows()
    world.store = longer.store
    again = world.check_rows()

    assert (lost.lost, lost.twice) == (1, 0)
    assert again.twice == 1


def test_a_missing_row_a_foreign_row_and_a_damaged_row_are_found():
    world = World(clicks(3) + clicks(3, "bob"))
    (first, data), (second, _) = world.store.rows.items()

    world.store.rows = {first: data[:-1], (first[0], b"default\x1fu\x1fnobody"): data}
    check = world.check_rows()

    assert check.lost == 1, check.told  # the second user's
    assert check.wrong == 2
    assert second


def test_rows_that_lag_behind_the_log_are_found():
    world = World(clicks(3))

    world.ends = {partition: end + 1 for partition, end in world.ends.items()}
    changelog = world.changelog()
    world.ends = {partition: end + 1 for partition, end in world.ends.items()}
    check, _ = check_rows(changelog, world.expected, FINGERPRINT, world.ends)

    assert check.lost == 1


def test_deltas_that_come_again_do_not_count_and_lost_ones_are_found():
    world = World(clicks(5))

    again, topic = check_deltas([*world.deltas, *world.deltas[1:]], world.expected)
    lost, _ = check_deltas([*world.deltas[:2], *world.deltas[3:]], world.expected)
    late, _ = check_deltas([*world.deltas[1:], world.deltas[0]], world.expected)

    assert again.holds
    assert topic.passed_over == 4
    assert lost.lost == 1
    assert late.lost == 1  # below the watermark, it counts nowhere


def test_deltas_of_other_events_or_of_none_are_found():
    world, other = World(clicks(5)), World(clicks(6)[1:])

    check, _ = check_deltas(other.deltas, world.expected)

    assert check.lost == 1
    assert check.wrong > 0


@given(logs())
def test_a_workers_counts_are_those_of_the_independent_fold(tmp_path_factory, records):
    world = World(records)
    folder = tmp_path_factory.mktemp("snapshots")
    live = counted(world, 1)
    save_snapshot(folder, take_snapshot(live, "source"))

    check = check_snapshot(folder, world.expected.deltas, CountsSettings.of(SETTINGS))

    assert check.holds, check.told


def test_counts_that_count_twice_are_found(tmp_path):
    world = World(clicks(6))
    live = counted(world, 2)
    save_snapshot(tmp_path, take_snapshot(live, "source"))

    check = check_snapshot(tmp_path, world.expected.deltas, CountsSettings.of(SETTINGS))

    assert check.twice == 6
    assert check.wrong > 0


def counted(world: World, times: int) -> LiveStatistics:
    """The worker's counts, everything counted so many times."""
    index = ItemIndex()
    statistics = ItemStatistics(index)
    for _ in range(times):
        marks, statistics.watermarks = statistics.watermarks, {}
        for record in world.deltas:
            statistics.apply(decode_deltas(record.value, index))
        statistics.watermarks |= marks
    return LiveStatistics(statistics)


def sent_list(user: str, seq: int, offset: int, rec_id: str = "00" * 16) -> Placed:
    message = {
        "rec_id": rec_id,
        "tenant": "default",
        "seq": seq,
        "items": [{"item_id": "item-1", "score": 1.0}],
        "trigger": {"reason": "event", "offset": offset, "partition": partition_of(user)},
        "user_id": user,
    }
    return Placed(partition_of(user), user.encode(), json.dumps(message).encode(), seq)


def test_a_missing_a_stale_and_a_falling_list_are_found():
    world = World(clicks(5) + clicks(5, "bob") + clicks(5, "eve", "film"))
    sent = [sent_list("bob", 1, 2), sent_list("eve", 3, 4), sent_list("eve", 2, 4)]

    check = check_lists(SentLists.of(sent), {}, world.expected, {}, DeltaTopic())

    assert check.lost == 2, check.told  # ada has none, bob's is older than offset 4
    assert check.wrong == 1
    assert any("falls" in finding for finding in check.told)


def test_the_state_that_a_decision_tells_counts_and_not_the_trigger():
    world = World(clicks(5) + clicks(1, "bob", "film"))
    sent = SentLists.of([sent_list("ada", 1, 2, "ab" * 16), sent_list("bob", 1, 0)])

    fresh = check_lists(sent, {"ab" * 16: 4}, world.expected, {}, DeltaTopic())
    stale = check_lists(sent, {"ab" * 16: 3}, world.expected, {}, DeltaTopic())

    assert fresh.holds
    assert stale.lost == 1


@pytest.mark.parametrize(("smallest", "missing"), [(0.0, 1), (0.2, 0)])
def test_where_lists_with_little_news_are_left_out_none_of_an_event_is_missed(smallest, missing):
    settings = msgspec.structs.replace(SETTINGS, refresh_min_change=smallest)
    rules, expected = EventRules(settings, PARTITIONS), ExpectedState(settings)
    for placed in clicks(5) + clicks(5, "bob", "film"):
        expected.apply(rules.judge(placed), placed.partition, placed.offset)

    check = check_lists(SentLists.of([sent_list("bob", 1, 4)]), {}, expected, {}, DeltaTopic())

    assert check.lost == missing


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_list_after_a_delete_is_wrong_unless_its_user_has_come_back(comes_back):
    settings = msgspec.structs.replace(SETTINGS, refresh_min_change=0.2)
    rules, expected = EventRules(settings, PARTITIONS), ExpectedState(settings)
    wish = control(5, "user_delete", "ada")
    log = [*clicks(5), Placed(partition_of("ada"), wish.key, wish.value, 5)]
    for placed in log + (clicks(7)[6:] if comes_back else []):
        expected.apply(rules.judge(placed), placed.partition, placed.offset)

    check = check_lists(SentLists.of([sent_list("ada", 1, 6)]), {}, expected, {}, DeltaTopic())

    assert check.holds == comes_back, check.told


def test_who_came_in_the_very_first_batch_may_be_without_a_list():
    world = World(clicks(5))
    _, topic = check_deltas(world.deltas, world.expected)

    check = check_lists(SentLists.of([]), {}, world.expected, {}, topic)

    assert check.holds
    assert "nothing to list" in check.notes[-1]


@pytest.mark.parametrize(("others", "missing"), [([], 0), (clicks(1, "bob", "film"), 1)])
def test_who_has_taken_all_items_there_are_may_have_an_old_list(others, missing):
    world = World(clicks(3) + others)
    sent = SentLists.of([sent_list("ada", 1, 0), *(sent_list("bob", 1, 0) for _ in others)])

    check = check_lists(sent, {}, world.expected, {}, DeltaTopic())

    assert check.lost == missing, check.told


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, Event),
        ({"type": "visit", "item_id": None}, Event),
        ({"type": "unheard_of"}, type(None)),
        ({"type": "impression"}, type(None)),
        ({"event_id": "short"}, Refused),
        ({"event_time": 1.5}, Refused),
        ({"event_time": True}, Refused),
        ({"event_time": -1}, Refused),
        ({"event_time": NOW_MS + 2 * 86_400_000}, Refused),
        ({"item_id": None}, Refused),
        ({"item_id": "i" * 257}, Refused),
        ({"value": 1e39}, Refused),
        ({"portion": 1.5}, Refused),
        ({"items": [{"position": 1}]}, Refused),
        ({"rec": {}}, Refused),
        ({"context": {"a": []}}, Refused),
        ({"context": {"a": None, "b": 1, "c": "x"}}, Event),
        ({"tenant": "A"}, Refused),
        ({"consent": "maybe"}, Refused),
        ({"unread": {"a": [1, None]}}, Event),
        ({"user_id": None}, Refused),
    ],
)
def test_the_rules_judge_as_the_worker_does(change, kind):
    fields = body(1, **change)
    key = fields.get("user_id", "ada").encode()
    placed = Placed(partition_of("ada"), key, json.dumps(fields).encode(), 1)

    judged = EventRules(SETTINGS, PARTITIONS).judge(placed)
    batch = Store(SETTINGS).fold(Record(key, placed.value, 1), partition=placed.partition)

    assert isinstance(judged, kind)
    assert isinstance(judged, Refused) == bool(batch.dead_letters)
    assert isinstance(judged, Event) == bool(batch.users)


@given(st.dictionaries(st.sampled_from(list(body())), st.none() | st.text() | st.floats()))
def test_the_rules_refuse_what_the_worker_refuses(change):
    value = json.dumps(body(1) | change).encode()
    placed = Placed(partition_of("ada"), b"ada", value, 1)

    judged = EventRules(SETTINGS, PARTITIONS).judge(placed)
    batch = Store(SETTINGS).fold(Record(b"ada", value, 1), partition=placed.partition)

    assert isinstance(judged, Refused) == bool(batch.dead_letters)
    assert isinstance(judged, SentOn) == bool(batch.misrouted)


def test_a_record_under_another_key_or_on_another_partition_is_sent_on():
    (placed,) = clicks(1)
    rules = EventRules(SETTINGS, PARTITIONS)

    wrong_key = rules.judge(replace(placed, key=b"bob"))
    wrong_place = rules.judge(replace(placed, partition=(placed.partition + 1) % PARTITIONS))

    assert wrong_key == wrong_place == SentOn(b"ada")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_fold_uses_nothing_of_the_worker_but_its_settings():
    for path in (ROOT / "stream" / "verify").glob("*.py"):
        ours = {name for name in imports_of(path) if name.split(".")[0] == "stream"}

        assert all(n == "stream.settings" or n.startswith("stream.verify") for n in ours), path


def test_the_check_of_lists_uses_nothing_of_the_worker():
    for path in (ROOT / "models").glob("*parity*.py"):
        names = imports_of(path)

        assert not any(name.split(".")[0] == "stream" for name in names), path
        assert not names & {"export.statistics", "export.features", "export.items"}, path


@pytest.mark.parametrize(("seq", "floor", "is_right"), [(7, 7, True), (7, 0, False), (6, 7, False)])
def test_only_a_row_that_was_built_again_may_know_nothing_of_a_list(seq, floor, is_right):
    world = World(clicks(5))
    changelog = world.changelog()
    _, rows = check_rows(changelog, world.expected, FINGERPRINT, world.ends)
    (name,) = rows
    rows[name] = dataclasses.replace(rows[name], seq=seq, rec_ids=())
    partition = world.expected.users[name].partition
    key, packed = source_row(4, None, floor)
    floors = Changelog.of([Placed(partition, key, packed, 0)], {}).seq_floors()
    sent = SentLists.of([sent_list("ada", 5, 4)])

    check = check_lists(sent, {"00" * 16: 4}, world.expected, rows, DeltaTopic(), floors)

    assert check.holds == is_right, check.told
