"""Check an engine against an independent fold of its log.

1. Every record of user-events is judged and folded, in the order of the log.
2. Every user's row in the changelog must be that fold; every database on disk must be the
   changelog up to where it says it stands.
3. The deltas on item-statistics must count each folded event once, and a worker's own counts, as
   it saved them, must be those of the log.
4. Every user with a due event must have a list ranked with it; a user who was deleted or has
   opted out must have none, and no interests.
5. Every refused record must be on dead-letters, every merge must have the records of its legs,
   every record of another key must have been sent on, and the group must have committed all.

Nothing of the worker's code is used here but the reading of its settings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream.settings import Settings
from stream.verify.counts import CountsSettings, check_snapshot
from stream.verify.deltas import check_deltas
from stream.verify.events import EventRules, Refused, SentOn
from stream.verify.lists import SentLists, applied_offsets, check_interests, check_lists
from stream.verify.merges import MergeLog, MergePart, MergeRequest, check_merges
from stream.verify.report import Check, Report
from stream.verify.rows import Changelog, check_disk, check_rows
from stream.verify.topics import KafkaLog, LogError
from stream.verify.users import ExpectedState


@dataclass(slots=True)
class FoldedLog:
    """What the records of user-events are, and what they fold to."""

    state: ExpectedState
    merges: MergeLog = field(default_factory=MergeLog)
    records: int = 0
    refused: set[tuple[int, int]] = field(default_factory=set)  # partition, offset
    #: Where no record can be read: ends of transactions, and what a batch held that is not opened.
    without_record: set[tuple[int, int]] = field(default_factory=set)
    sent_on: list[tuple[bytes, int, int]] = field(default_factory=list)  # key, value, partition
    present: set[tuple[bytes | None, int, int]] = field(default_factory=set)  # of all records


def verify_fold(settings: Settings, data_dirs: list[Path]) -> Report:
    """Compare everything an engine keeps and sends with its log; the engine should be at rest.

    Raises LogError where the log cannot be read from its beginning.
    """
    log = KafkaLog(settings.bootstrap, settings.max_batch_bytes)
    app, events = settings.prefix + settings.group, settings.topic("user-events")
    ends = log.ends(events)
    folded = fold_log(log, settings, len(ends))  # 1
    state = folded.state
    changes = f"{app}-user-state-changelog"
    changelog = Changelog.of(log.read(changes, "rows"), log.ends(changes))
    rows, stored = check_rows(changelog, state, log.fingerprint(events), ends)  # 2
    deltas, topic = check_deltas(log.read(settings.topic("item-statistics"), "deltas"), state)  # 3
    counts = check_snapshot(
        Path(settings.registry) / ".statistics" / app,
        state.deltas,
        CountsSettings.of(settings),
    )
    sent = SentLists.of(log.read(settings.topic("recommendations"), "lists"))  # 4
    applied = applied_offsets(log.read(settings.topic("decisions"), "decisions"), sent)
    lists = check_lists(sent, applied, state, stored, topic, changelog.seq_floors())
    interests = check_interests(log.read(settings.topic("interests"), "interests"), state)
    letters = check_dead_letters(
        log.read(settings.topic("dead-letters"), "letters"), events, folded
    )
    return Report(
        [
            rows,
            *(
                [check_disk(data_dirs, app, changelog, log.fingerprint(changes))]
                if data_dirs
                else []
            ),
            deltas,
            counts,
            lists,
            interests,
            letters,  # 5
            check_merges(folded.merges, state.merges),
            check_sent_on(folded, EventRules(settings, len(ends))),
            check_commits(log.committed(app, events), ends),
        ]
    )


def fold_log(log: KafkaLog, settings: Settings, partitions: int) -> FoldedLog:
    """Fold the whole of user-events."""
    topic = settings.topic("user-events")
    begins = log.begins(topic)
    if any(begins.values()):
        raise LogError(
            f"{topic} begins at offsets {begins}: its oldest records are gone, and the state "
            "cannot be folded from what is left; verify an engine with a longer retention"
        )
    rules = EventRules(settings, partitions)
    copies = Copies(topic, log.fingerprint(topic))
    folded = FoldedLog(ExpectedState(settings))
    ends = dict.fromkeys(begins, 0)
    for record in log.read(topic, "events"):
        folded.records += 1
        at = record.partition
        folded.without_record.update((at, offset) for offset in range(ends[at], record.offset))
        ends[at] = record.offset + 1
        judged = rules.judge(record)
        if isinstance(judged, Refused):
            folded.refused.add((record.partition, record.offset))
            continue
        if isinstance(judged, SentOn):
            folded.sent_on.append((judged.key, hash(record.value), record.offset))
        elif judged is not None:
            is_again = copies.came_before(record)
            folded.state.apply(judged, record.partition, record.offset, is_again)
            if isinstance(judged, MergeRequest | MergePart):
                folded.merges.take(judged)
        folded.present.add((record.key, hash(record.value), record.partition))
    for at, end in log.ends(topic).items():
        folded.without_record.update((at, offset) for offset in range(ends[at], end))
    return folded


class Copies:
    """Tells copies of records that were sent on and are there again: they name their original, and
    of one partition to another they lie in the order of those."""

    def __init__(self, topic: str, fingerprint: int) -> None:
        self._begin, self._end = f"{topic}-", f"@{fingerprint:016x}"
        self._newest: dict[tuple[int, int], int] = {}  # of which partition's originals, where

    def came_before(self, record: Any) -> bool:
        """Whether this record is such a copy; it is to be asked of each event once, in order."""
        named = dict(record.headers).get("rekeyed-from") or b""
        origin = named.decode("utf-8", "replace")
        if not (origin.startswith(self._begin) and origin.endswith(self._end)):
            return False
        partition, _, offset = origin[len(self._begin) : -len(self._end)].partition(":")
        if not (partition.isdecimal() and offset.isdecimal()):
            return False
        way = int(partition), record.partition
        if int(offset) <= self._newest.get(way, -1):
            return True
        self._newest[way] = int(offset)
        return False


def check_dead_letters(records: Any, events_topic: str, folded: FoldedLog) -> Check:
    """Every refused record is there; a crash may have sent one again."""
    check = Check("dead letters", "refused", len(folded.refused))
    found: Counter[tuple[int, int]] = Counter()
    for record in records:
        headers = {name: value.decode() for name, value in record.headers}
        if headers.get("topic") == events_topic:
            found[int(headers["partition"]), int(headers["offset"])] += 1
    for where in folded.refused - found.keys():
        check.lose(f"no dead letter of the refused record at {where}")
    for where in found.keys() - folded.refused - folded.without_record:
        check.miss(f"a dead letter of the record at {where}, which is a valid event")
    again = found.total() - len(found)
    if again:
        check.notes.append(f"{again} were sent again after a crash")
    return check


def check_sent_on(folded: FoldedLog, rules: EventRules) -> Check:
    """Every record that lay under another key or partition is there again where it belongs."""
    check = Check("wrong keys", "records", len(folded.sent_on))
    for key, value, offset in folded.sent_on:
        if (key, value, rules.partition_of(key)) not in folded.present:
            check.lose(f"the record at offset {offset} was not sent on to key {key!r}")
    return check


def check_commits(committed: dict[int, int | None], ends: dict[int, int]) -> Check:
    """The group has committed all there is."""
    check = Check("commits", "partitions", len(ends))
    for partition, end in ends.items():
        if end and committed[partition] != end:
            check.lose(f"partition {partition}: committed {committed[partition]}, ends at {end}")
    return check
