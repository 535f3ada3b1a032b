"""Puts the batch layer into a Faust app, through Faust's own settings and setters."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import faust

from stream.kafka.batches import BatchOptions
from stream.kafka.changelog_fence import ChangelogFence
from stream.kafka.connections import mend_connections
from stream.kafka.consumer import BatchConsumer
from stream.kafka.epochs import KafkaCoordinator
from stream.kafka.fencing import LoopGuard
from stream.kafka.header_names import mend_header_names
from stream.kafka.producer import DELIVERY_S, MAX_BATCH_BYTES
from stream.kafka.restore import end_with_late_steps
from stream.kafka.stream import BatchStream
from stream.kafka.table import RowTable
from stream.kafka.transport import BatchTransport


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """Times and sizes that the batch layer agrees on with the broker.

    `compression`: None, "gzip", "lz4", "snappy" or "zstd".
    """

    session_timeout_s: float = 10.0
    heartbeat_s: float = 3.0
    max_request_bytes: int = 1024**2
    max_poll_records: int = 4096
    compression: str | None = None


def faust_settings(limits: BrokerLimits | None = None) -> dict[str, object]:
    """Settings for `faust.App` without which the batch layer's promises do not hold.

    The caller adds its own (id, broker, datadir, standbys, instance id) and may override.
    """
    limits = limits or BrokerLimits()
    return {
        "Stream": BatchStream,
        "Table": RowTable,
        "store": "rocksdb://",  # row tables bring their own store; this is for any other
        "agent_supervisor": "mode.supervisors.CrashingSupervisor",  # an agent's error ends it all
        "stream_wait_empty": True,  # a rebalance waits for the batch in work
        "stream_recovery_delay": 0.0,
        "topic_disable_leader": True,
        "topic_allow_declare": False,  # topics are made by our command, with the right settings
        "web_enabled": False,  # it serves any table to anyone
        "broker_session_timeout": limits.session_timeout_s,
        "broker_heartbeat_interval": limits.heartbeat_s,
        "broker_max_poll_records": limits.max_poll_records,
        "consumer_auto_offset_reset": "earliest",
        # part of an assignment: a static member that comes back on another host must have the same
        "canonical_url": "http://driftline-worker",
        "producer_acks": -1,
        "producer_linger": 0.0,
        "producer_request_timeout": DELIVERY_S,
        "producer_max_batch_size": min(MAX_BATCH_BYTES, limits.max_request_bytes),
        "producer_max_request_size": limits.max_request_bytes,
        "producer_compression_type": limits.compression,
    }


def install(app: faust.App, options: BatchOptions) -> BatchTransport:
    """Give the app the batch transport; before anything asks it for a topic, agent or table.

    `options.source_watermark` may call a table that is made later: it is called after recovery.
    """
    mend_connections()
    mend_header_names()
    transport = BatchTransport(app.conf.broker_consumer, app, options)
    app.transport = transport
    app.producer_transport = BatchTransport(app.conf.broker_producer, app, options)
    end_with_late_steps(app.tables.recovery)
    return transport


def changelog_fence_of(app: faust.App, beside: Collection[str] = ()) -> ChangelogFence:
    """The fence of this app's changelogs, and of topics `beside` them; its `take` and `release`
    belong into the options."""
    return ChangelogFence(
        lambda: app.producer,
        KafkaCoordinator(lambda: app.producer._ensure_producer().client),
        lambda: int(time.time() * 1000),
        beside,
    )


def loop_guard(app: faust.App) -> LoopGuard:
    """The guard of this app: its session timeout, its consumer's partitions."""

    def check_ownership() -> None:
        app.consumer.check_ownership()

    def has_partitions() -> bool:
        consumer: BatchConsumer | None = app._consumer  # the property would make one
        return consumer is not None and consumer.holds_partitions()

    def has_lost_work() -> bool:
        consumer: BatchConsumer | None = app._consumer
        return consumer is not None and consumer.has_lost_work()

    session_timeout_s: float = app.conf.broker_session_timeout
    return LoopGuard(
        session_timeout_s,
        also_check=check_ownership,
        has_partitions=has_partitions,
        has_lost_work=has_lost_work,
    )
