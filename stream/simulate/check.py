"""Compare what a simulated engine holds and has sent with the fold of its log.

The judges are those of `driftline verify fold`, which share no code with the worker; here they read
the simulated broker. The last worker, which had nothing but the topics, is judged as well: its rows
on disk and its counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stream.live import statistics_source
from stream.simulate.broker import Broker
from stream.snapshots import take_snapshot
from stream.topics import state_changelog
from stream.verify.counts import CountsSettings, check_counts
from stream.verify.deltas import check_deltas
from stream.verify.events import EventRules
from stream.verify.fold import check_commits, check_dead_letters, check_sent_on, fold_log
from stream.verify.lists import SentLists, applied_offsets, check_interests, check_lists
from stream.verify.merges import check_merges
from stream.verify.report import Check, Report
from stream.verify.rows import Changelog, check_rows

if TYPE_CHECKING:
    from stream.simulate.worker import SimulatedWorker, Surroundings

_POSITION_KEY = b"__faust\x00offset__"
_FENCE_KEY = b"\x00fence"


class SimulatedLog:
    """The broker's topics, as `verify` reads them."""

    def __init__(self, broker: Broker, fingerprint: int) -> None:
        self._broker, self._fingerprint = broker, fingerprint

    def fingerprint(self, topic: str) -> int:
        return self._fingerprint

    def ends(self, topic: str) -> dict[int, int]:
        return {p: self._broker.logs[topic, p].end for p in self._broker.partitions_of(topic)}

    def begins(self, topic: str) -> dict[int, int]:
        return dict.fromkeys(self._broker.partitions_of(topic), 0)

    def read(self, topic: str, label: str) -> Iterator[Any]:
        return iter(self._broker.all_records(topic))


def check_engine(around: Surroundings, broker: Broker, last: SimulatedWorker) -> Report:
    """The engine is at rest, and `last` has all partitions."""
    settings, log = around.settings, SimulatedLog(broker, around.fingerprint)
    events = settings.topic("user-events")
    ends = log.ends(events)
    folded = fold_log(log, settings, len(ends))  # type: ignore[arg-type]
    state = folded.state
    name = state_changelog(settings)
    changelog = Changelog.of(log.read(name, ""), log.ends(name))
    rows, stored = check_rows(changelog, state, around.fingerprint, ends)
    deltas, topic = check_deltas(log.read(settings.topic("item-statistics"), ""), state)
    sent = SentLists.of(log.read(settings.topic("recommendations"), ""))
    applied = applied_offsets(log.read(settings.topic("decisions"), ""), sent)
    committed: dict[int, int | None] = {p: broker.group.committed.get(p) for p in ends}
    snapshot = take_snapshot(last.live.statistics, statistics_source(settings))
    return Report(
        [
            rows,
            check_last_disk(last, changelog),
            deltas,
            check_counts(snapshot.arrays, state.deltas, CountsSettings.of(settings)),
            check_lists(sent, applied, state, stored, topic),
            check_interests(log.read(settings.topic("interests"), ""), state),
            check_dead_letters(log.read(settings.topic("dead-letters"), ""), events, folded),
            check_merges(folded.merges, state.merges),
            check_sent_on(folded, EventRules(settings, len(ends))),
            check_commits(committed, ends),
        ]
    )


def check_last_disk(worker: SimulatedWorker, changelog: Changelog) -> Check:
    """What the last worker has on disk is the changelog."""
    check = Check("rows on disk", "rows")
    for partition, end in changelog.ends.items():
        disk = worker.disk.rows(partition)
        position = int(disk.pop(_POSITION_KEY, b"-1"))
        rows = {k: row for (of, k), row in changelog.values.items() if of == partition}
        rows.pop(_FENCE_KEY, None)  # renewed at any time, and on no disk
        newest = max((offset for offset, _ in rows.values()), default=-1)
        if not newest <= position < end:
            check.miss(
                f"partition {partition} stands at {position}, its changelog at {newest} of {end}"
            )
        for key, (_, value) in rows.items():
            check.checked += 1
            if disk.get(key) != value:
                check.miss(f"the row of {key!r} in partition {partition} is not that of its log")
    return check
