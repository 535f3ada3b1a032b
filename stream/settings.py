"""Read a worker's settings: a TOML file, then DRIFTLINE_* variables, then the command line.

All that is wrong is said at once, by name; an unknown setting is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.settings import SettingsError, convert, gather
from export.statistics import DAY_MS, Pairs, StatisticsSettings
from stream.dead_letters import MAX_KEPT_BYTES

#: Room for what is sent with an event: its key, its headers, and what a record and a batch take.
REQUEST_ROOM_BYTES = 65_536
#: Most of a refused record that its dead letter keeps, of key and value; no row is larger.
DEAD_LETTER_BYTES = 2 * MAX_KEPT_BYTES
#: Most that an item of a list takes: its id and three in its reason, 256 characters each, escaped.
LISTED_ITEM_BYTES = 6_400

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
ListsPerSecond = Annotated[float, Meta(ge=0, le=1000)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set, with its unit and its default."""

    bootstrap: str = "127.0.0.1:9092"  # Kafka: host:port, several with commas
    prefix: str = ""  # before every topic name and the group's
    group: str = "driftline"  # the consumer group of the workers
    instance: str = ""  # static membership: a restart within the session moves no partition

    # topics
    partitions: Positive = 8  # of every user-keyed topic, and most workers; never changes
    replication_factor: Positive = 1  # of topics that are created
    retention_ms: Positive = 30 * DAY_MS  # of events, lists, decisions, deltas, dead letters

    # state
    data_dir: str = "data"  # folder of this worker's RocksDB; one for each worker
    standby_replicas: Count = 0  # workers that keep a warm copy of another's rows
    block_cache_bytes: Positive = 64 * 2**20  # of RocksDB, for all partitions together
    write_buffer_bytes: Positive = 128 * 2**20  # of all partitions: rows in no file yet
    max_history: Annotated[int, Meta(ge=1, le=200)] = 50  # newest events of a user in the row
    max_taken: Annotated[int, Meta(ge=0, le=8000)] = 2000  # older items known as taken
    dedupe_ring: Annotated[int, Meta(ge=0, le=1024)] = 256  # most event ids a row remembers
    max_lateness_ms: Positive = DAY_MS  # behind the user's newest event; later is not folded
    max_event_bytes: Annotated[int, Meta(ge=8192)] = 65_536  # a larger event is refused
    max_batch_bytes: Annotated[int, Meta(ge=2**16, le=2**30)] = 2**24  # unpacked; more is refused
    max_future_ms: Positive = DAY_MS  # an event further ahead of its record is refused

    # batches
    batch_records: Annotated[int, Meta(ge=1, le=65_536)] = 256  # most records of a batch
    batch_wait_ms: Annotated[float, Meta(ge=0, le=1000)] = 1.0  # longest wait for more records
    commit_interval_s: Annotated[float, Meta(gt=0, le=60)] = 0.5  # between two commits
    session_timeout_s: Annotated[float, Meta(ge=2, le=300)] = 10.0  # a silent worker is out
    max_request_bytes: Positive = 1_000_000  # largest request to Kafka

    # lists
    list_length: Annotated[int, Meta(ge=1, le=200)] = 50  # items of a list
    list_lifetime_ms: Positive = DAY_MS  # in event time; then a list has expired
    seen_items: Literal["filter", "allow"] = "filter"  # whether items already taken are left out
    refresh_debounce_ms: Count = 0  # an event's list waits until the last one is so old
    refresh_min_change: Annotated[float, Meta(ge=0, le=1)] = 0.0  # of new items in an event's list
    refresh_expiring: ListsPerSecond = 0.0  # expired lists a worker makes anew a second; 0: none
    refresh_active_ms: Positive = 7 * DAY_MS  # of users whose last event is younger than this
    postpone_after_ms: Positive = 1000  # lists wait while more work than this waits
    decisions: bool = True  # whether full records go to `decisions`
    cloud_events: bool = False  # CloudEvents headers on every list
    trending_interval_s: Annotated[float, Meta(gt=0)] = 1.0  # between two looks for news
    trending_max_age_ms: Positive = 3_600_000  # sent again after so much event time

    # statistics
    popularity_half_lives_ms: tuple[Positive, Positive] = (DAY_MS, 7 * DAY_MS)  # of the trend
    chain_half_life_ms: Positive = 14 * DAY_MS  # of transitions between items
    neighbours: Annotated[int, Meta(ge=1, le=1000)] = 64  # strongest of each item that are read
    max_pairs: Pairs = 4_000_000  # of items, counted; where there are more, of a sample of events
    popularity_share: Annotated[float, Meta(ge=0, le=1)] = 0.7  # of a list without a model
    snapshot_interval_s: Annotated[float, Meta(gt=0)] = 60.0  # between two saved statistics

    # model
    registry: str = "registry"  # folder of releases and snapshots; one for all
    release: str = "driftline"  # name of the releases to follow
    device: Literal["cpu", "cuda"] = "cpu"  # where models run; absent stops the start
    model: bool = True  # False: live statistics alone
    inference_threads: Positive = 1  # of ONNX Runtime
    release_budget_ms: Positive = 1000  # a release that needs longer for 16 users is refused
    max_rank_batch: Positive = 16  # users ranked in one call

    # this process
    metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0  # Prometheus, on 127.0.0.1; 0: none
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # of what is logged
    event_types: dict[str, EventRole] = field(default_factory=dict)  # role and weight by type

    def role_of(self, event_type: str) -> EventRole | None:
        """What a type does; None: unknown, so ignored."""
        return self.event_types.get(event_type) or DEFAULT_EVENT_TYPES.get(event_type)

    @property
    def statistics(self) -> StatisticsSettings:
        """The part that decides what the live statistics are."""
        return StatisticsSettings.of(self)

    def topic(self, name: str) -> str:
        """The full name of one of the topics."""
        return self.prefix + name

    @property
    def heartbeat_interval_s(self) -> float:
        return self.session_timeout_s / 4


def load_settings(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings of file, environment and `overrides` (those that are not None), the last wins.

    Raises SettingsError naming every unknown and every impossible setting, and two that are
    impossible together.
    """
    given = gather(path, overrides or {}, environment)
    known = {field.name for field in msgspec.structs.fields(Settings)}
    wrong = [
        f"{setting.origin}: there is no setting {name!r}"
        for name, setting in given.items()
        if name not in known
    ]
    values, impossible = convert(given, Settings)
    if wrong or impossible:
        names = ", ".join(sorted(known))
        raise SettingsError("\n".join([*wrong, *impossible, f"Settings are: {names}."]))
    settings = Settings(**values)
    if too_large := _too_large(settings):
        raise SettingsError("\n".join(too_large))
    return settings


def _too_large(settings: Settings) -> list[str]:
    """What an event could make larger than a request, which would end every worker."""
    room = settings.max_request_bytes - REQUEST_ROOM_BYTES
    most_items = max(room // LISTED_ITEM_BYTES, 0)
    wide = f"max_request_bytes is {settings.max_request_bytes}"
    found = []
    if room < DEAD_LETTER_BYTES:
        found.append(
            f"max_request_bytes = {settings.max_request_bytes}: a dead letter takes up to "
            f"{DEAD_LETTER_BYTES + REQUEST_ROOM_BYTES}; raise that and the broker's "
            "message.max.bytes"
        )
    if settings.max_event_bytes > room:
        found.append(
            f"max_event_bytes = {settings.max_event_bytes}: an event on a wrong partition is sent "
            f"on, with up to {REQUEST_ROOM_BYTES} bytes more, and {wide}; raise that and the "
            "broker's message.max.bytes"
        )
    if settings.list_length > most_items:
        found.append(
            f"list_length = {settings.list_length}: of the longest ids a list may have "
            f"{most_items} items, as {wide}; raise that and the broker's message.max.bytes"
        )
    return found
