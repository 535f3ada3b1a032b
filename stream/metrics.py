"""Count and time what a worker does, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

EVENTS = Counter(
    "driftline_events",
    "Events by what became of them: folded, visits, replayed, late, ...",
    ["outcome"],
)
DEAD_LETTERS = Counter("driftline_dead_letters", "Refused records", ["topic"])
REFUSED_BATCHES = Counter(
    "driftline_refused_batches",
    "Record batches that would become too large, or cannot be unpacked",
    ["topic"],
)
RECORDS_LOST = Counter(
    "driftline_records_lost", "Records of user-events that were gone before they were read"
)
MISROUTED = Counter(
    "driftline_misrouted", "Records that were sent again under their user's key and partition"
)
LISTS = Counter("driftline_lists", "Lists sent, by what made them due", ["reason"])
LISTS_POSTPONED = Counter("driftline_lists_postponed", "Lists that had to wait, each once")
LISTS_SKIPPED = Counter("driftline_lists_skipped", "Lists never sent, by reason", ["reason"])
WAITING_LISTS = Gauge("driftline_waiting_lists", "Postponed lists that wait to be ranked")
EMPTY_LISTS = Counter("driftline_empty_lists", "Lists that were due and had no item to hold")
BATCHES = Counter("driftline_batches", "Batches done")
BATCH_SECONDS = Histogram(
    "driftline_batch_seconds", "Time of a batch's steps", ["step"], buckets=_SECONDS
)
STATISTICS_EVENTS = Gauge("driftline_statistics_events", "Events in the live statistics")
STATISTICS_SUMS = Gauge("driftline_statistics_sums", "Sums of transitions in the live statistics")
STATISTICS_FLOOR = Gauge(
    "driftline_statistics_floor", "Pairs are those of one in 8 to the power of this of the events"
)
ITEMS = Gauge("driftline_items", "Items that were met, of which each takes memory")
STATISTICS_REFUSED = Gauge("driftline_statistics_refused", "Unreadable records of item-statistics")
RELEASE_VERSION = Gauge("driftline_release_version", "The release that ranks; 0 is none")
READY = Gauge("driftline_ready", "1 while partitions are assigned, restored, and move")
TOPICS_MISSING = Gauge("driftline_topics_missing", "Topics of the engine that are not there")
LAG = Gauge("driftline_lag_records", "Records of user-events that are not done yet")


def observe_progress(is_ready: Callable[[], bool], lag: Callable[[], int]) -> None:
    """Ask for readiness and lag whenever the metrics are read."""
    READY.set_function(lambda: float(is_ready()))
    LAG.set_function(lambda: float(lag()))
