"""Read a worker's settings: a TOML file, then DRIFTLINE_* variables, then the command line.

All that is wrong is said at once, by name; an unknown setting is an error.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from export.errors import DriftlineError

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Role = Literal["positive", "negative", "visit", "impression", "ignored"]

DAY_MS = 86_400_000
ENVIRONMENT_PREFIX = "DRIFTLINE_"


class SettingsError(DriftlineError):
    """One or more settings are unknown or impossible; the message names every one."""


class EventRole(Struct, frozen=True, forbid_unknown_fields=True):
    """What an event of a type does.

    positive: enters history and statistics. negative: enters the history only. visit: the user is
    here, wants a list. impression, ignored: counted, nothing else.
    """

    role: Role
    #: What it adds to the statistics; kept as whole sixteenths.
    weight: Annotated[float, Meta(ge=0, le=16)] = 1.0
    #: Whether the user's list is due after it.
    refreshes: bool = True


#: The types that most producers send; settings add to them and override them.
DEFAULT_EVENT_TYPES: dict[str, EventRole] = {
    "visit": EventRole("visit", 0.0),
    "click": EventRole("positive"),
    "view": EventRole("positive"),
    "watch": EventRole("positive"),
    "read": EventRole("positive"),
    "like": EventRole("positive"),
    "rate": EventRole("positive"),
    "cart": EventRole("positive"),
    "purchase": EventRole("positive"),
    "dislike": EventRole("negative", 0.0),
    "impression": EventRole("impression", 0.0, False),
}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set, with its unit and its default."""

    bootstrap: str = "127.0.0.1:9092"  # Kafka: host:port, several with commas
    prefix: str = ""  # before every topic name and the group's
    group: str = "driftline"  # the consumer group of the workers
    instance: str = ""  # static membership: a restart within the session moves no partition

    # topics
    partitions: Positive = 8  # of every user-keyed topic; never changes
    replication_factor: Positive = 1  # of topics that are created
    retention_ms: Positive = 30 * DAY_MS  # of events, lists, decisions and deltas

    # state
    data_dir: str = "data"  # folder of this worker's RocksDB; one for each worker
    standby_replicas: Count = 0  # workers that keep a warm copy of another's rows
    block_cache_bytes: Positive = 64 * 2**20  # of RocksDB, for each partition
    max_history: Annotated[int, Meta(ge=1, le=200)] = 50  # newest events of a user in the row
    max_taken: Annotated[int, Meta(ge=0, le=8000)] = 2000  # items known beyond it
    dedupe_ring: Annotated[int, Meta(ge=0, le=1024)] = 64  # event ids a row remembers
    max_event_bytes: Positive = 65_536  # a larger event is refused
    max_future_ms: Positive = DAY_MS  # an event further ahead of its record is refused

    # batches
    batch_records: Annotated[int, Meta(ge=1, le=65_536)] = 256  # most records of a batch
    batch_wait_ms: Annotated[float, Meta(ge=0, le=1000)] = 1.0  # for a fuller batch
    commit_interval_s: Annotated[float, Meta(gt=0, le=60)] = 0.5  # between two commits
    session_timeout_s: Annotated[float, Meta(ge=2, le=300)] = 10.0  # a silent worker is out
    max_request_bytes: Positive = 1_000_000  # largest request to Kafka

    # lists
    list_length: Annotated[int, Meta(ge=1, le=200)] = 50  # items of a list
    list_lifetime_ms: Positive = DAY_MS  # in event time; then a list has expired
    seen_items: Literal["filter", "allow"] = "filter"  # whether items already taken are left out
    decisions: bool = True  # whether full records go to `decisions`
    cloud_events: bool = False  # CloudEvents headers on every list
    trending_interval_s: Annotated[float, Meta(gt=0)] = 1.0  # between two looks for news
    trending_max_age_ms: Positive = 3_600_000  # sent again after so much event time

    # statistics
    popularity_half_lives_ms: tuple[Positive, Positive] = (DAY_MS, 7 * DAY_MS)  # of the trend
    chain_half_life_ms: Positive = 14 * DAY_MS  # of transitions between items
    neighbours: Annotated[int, Meta(ge=1, le=1000)] = 64  # strongest of each item that are read
    popularity_share: Annotated[float, Meta(ge=0, le=1)] = 0.7  # of a list without a model
    snapshot_interval_s: Annotated[float, Meta(gt=0)] = 60.0  # between two saved statistics

    # model
    registry: str = "registry"  # folder of releases and snapshots; shared
    release: str = "driftline"  # name of the releases to follow
    device: Literal["cpu", "cuda"] = "cpu"  # where models run; absent stops the start
    model: bool = True  # False: live statistics alone
    inference_threads: Positive = 1  # of ONNX Runtime
    release_budget_ms: Positive = 1000  # a release that needs longer for 16 users is refused
    max_rank_batch: Positive = 64  # users ranked in one call

    # this process
    metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0  # of Prometheus metrics; 0: none
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # of what is logged
    event_types: dict[str, EventRole] = field(default_factory=dict)  # role and weight by type

    def role_of(self, event_type: str) -> EventRole | None:
        """What a type does; None: unknown, so ignored."""
        return self.event_types.get(event_type) or DEFAULT_EVENT_TYPES.get(event_type)

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

    Raises SettingsError naming every unknown and every impossible setting.
    """
    wrong: list[str] = []
    merged: dict[str, tuple[str, Any]] = {}  # name -> where from, value
    if path is not None:
        merged |= {name: (str(path), value) for name, value in _read_file(path).items()}
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and not variable.startswith("DRIFTLINE_TEST_"):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            merged[name] = (variable, _parsed(text))
    for name, value in (overrides or {}).items():
        if value is not None:
            merged[name] = ("--" + name.replace("_", "-"), value)
    known = {f.name: f.type for f in msgspec.structs.fields(Settings)}
    values = {}
    for name, (origin, value) in merged.items():
        if name not in known:
            wrong.append(f"{origin}: there is no setting {name!r}")
            continue
        try:
            values[name] = msgspec.convert(value, known[name], strict=False)
        except msgspec.ValidationError as error:
            wrong.append(f"{origin}: {name} = {value!r}: {error}")
    if wrong:
        names = ", ".join(sorted(known))
        raise SettingsError("\n".join([*wrong, f"Settings are: {names}."]))
    return Settings(**values)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: wanted a TOML file of settings, got: {error}") from error


def _parsed(text: str) -> Any:
    """A variable's list or object as JSON; everything else stays the text it is."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
