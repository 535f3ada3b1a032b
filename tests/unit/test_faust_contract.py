"""What the batch layer uses of the inside of faust and aiokafka.

Both are pinned. When one of these tests fails after an upgrade, read what changed there before the
pin is moved: the layer overrides or calls exactly this.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version

import aiokafka
import faust
import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.sender import SendProduceReqHandler
from faust.app.base import App
from faust.stores import rocksdb
from faust.streams import Stream
from faust.tables.base import Collection
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport import consumer as faust_consumer
from faust.transport.conductor import Conductor
from faust.transport.drivers import aiokafka as driver
from mode.supervisors import CrashingSupervisor
from mode.utils.queues import FlowControlEvent, ThrowableQueue


def test_the_versions_are_those_the_layer_was_written_for():
    assert version("faust-streaming") == "0.15.3"
    assert version("aiokafka") == "0.14.0"


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        # consumer: overridden
        (driver.Consumer, "_drain_messages", ["self", "fetcher"]),
        (driver.Consumer, "perform_seek", ["self"]),
        (driver.Consumer, "seek_wait", ["self", "partitions"]),
        (driver.Consumer, "wait_empty", ["self"]),
        (driver.Consumer, "on_task_error", ["self", "exc"]),
        (driver.Consumer, "_crash", ["self", "reason"]),
        (driver.Consumer, "_new_offset", ["self", "tp"]),
        (driver.Consumer, "_filter_tps_with_pending_acks", ["self", "topics"]),
        (driver.Consumer, "verify_event_path", ["self", "now", "tp"]),
        # consumer: called
        (driver.Consumer, "_wait_next_records", ["self", "timeout"]),
        (driver.Consumer, "_to_message", ["self", "tp", "record"]),
        (driver.Consumer, "_add_gap", ["self", "tp", "offset_from", "offset_to"]),
        (driver.Consumer, "earliest_offsets", ["self", "partitions"]),
        (driver.Consumer, "highwaters", ["self", "partitions"]),
        (driver.AIOKafkaConsumerThread, "seek_wait", ["self", "partitions"]),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer", ["self"]),
        (faust_consumer, "ensure_TP", ["tp"]),
        (AIOKafkaClient, "_wait_on_metadata", ["self", "topic"]),
        # plain records
        (Fetcher, "_proc_fetch_request", ["self", "assignment", "node_id", "request"]),
        (FetchResult, "getall", ["self", "max_records"]),
        (FetchResult, "check_assignment", ["self", "tp"]),
        (FetchResult, "has_more", ["self"]),
        (FetchResult, "_update_position", ["self"]),
        (PartitionRecords, "_consumer_record", ["self", "tp", "record"]),
        # producer
        (driver.Producer, "_ensure_producer", ["self"]),
        (aiokafka.AIOKafkaProducer, "create_batch", ["self"]),
        (aiokafka.AIOKafkaProducer, "send_batch", ["self", "batch", "topic", "partition"]),
        (BatchBuilder, "append", ["self", "timestamp", "key", "value", "headers"]),
        (BatchBuilder, "close", ["self"]),
        (BatchBuilder, "record_count", ["self"]),
        (
            BatchBuilder,
            "_set_producer_state",
            ["self", "producer_id", "producer_epoch", "base_sequence"],
        ),
        (AIOKafkaClient, "coordinator_lookup", ["self", "coordinator_type", "coordinator_key"]),
        (AIOKafkaClient, "send", ["self", "node_id", "request", "group"]),
        # stream
        (Stream, "_channel_stop_iteration", ["self", "channel"]),
        (ThrowableQueue, "force_put_nowait", ["self", "item"]),
        (FlowControlEvent, "acquire", ["self"]),
        (FlowControlEvent, "is_active", ["self"]),
        # tables
        (Collection, "_new_store", ["self"]),
        (rocksdb.Store, "_db_for_partition", ["self", "partition"]),
        (rocksdb.Store, "_open_for_partition", ["self", "partition"]),
        (rocksdb.Store, "partition_path", ["self", "partition"]),
        (rocksdb.Store, "revoke_partitions", ["self", "table", "tps"]),
        (rocksdb.Store, "stop", ["self"]),
        (Recovery, "need_recovery", ["self"]),
        (Recovery, "_build_highwaters", ["self", "consumer", "tps", "destination", "title"]),
        (Recovery, "standby_remaining_total", ["self"]),
        (TableManager, "on_standbys_ready", ["self"]),
    ],
)
def test_a_method_has_the_parameters_the_layer_relies_on(owner, name, parameters):
    function = inspect.unwrap(getattr(owner, name))

    assert list(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize(
    ("owner", "word"),
    [
        (driver.Consumer._commit_tps, "_filter_committable_offsets"),
        (driver.Consumer.force_commit, "_filter_tps_with_pending_acks"),
        (driver.Consumer._filter_committable_offsets, "_new_offset"),
        (driver.Consumer.getmany, "_wait_next_records"),
        (faust_consumer.Fetcher._fetcher.fun, "_drain_messages"),
        (Recovery.on_recovery_completed, "perform_seek"),
        (Recovery._restart_recovery.fun, "signal_recovery_end"),
        (Recovery._seek_offsets, "seek_wait"),
        (App._on_agent_error, "on_task_error"),
        (App._on_partitions_revoked, "_consumer_wait_empty"),
        (Conductor._update_tp_index, "tp_index"),
        (PartitionRecords._unpack_records, "self._consumer_record(tp, record)"),
        (PartitionRecords.__next__, "next(self._records_iterator)"),
        (Fetcher.fetched_records, "type(res_or_error) is FetchResult"),
        (Fetcher.fetched_records, "res_or_error.getall(max_records)"),
        (Fetcher._proc_fetch_request, "self._records[tp] = FetchResult("),
        # readers
        (Fetcher._get_actions_per_node, "self._fetch_min_bytes"),
    ],
)
def test_a_method_still_goes_through_what_the_layer_overrides(owner, word):
    assert word in inspect.getsource(inspect.unwrap(owner))


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (Recovery, "active_tps"),
        (Recovery, "standby_tps"),
        (Recovery, "active_offsets"),
        (Recovery, "standby_offsets"),
        (Recovery, "_active_events_received_at"),
        (TableManager, "_changelogs"),
        (Conductor, "_tp_index"),
        (faust_consumer.Consumer, "_committed_offset"),
        (faust_consumer.Consumer, "_read_offset"),
        (faust_consumer.Consumer, "_buffered_partitions"),
        (faust_consumer.Consumer, "flow_active"),
        (faust_consumer.Consumer, "suspend_flow"),
    ],
)
def test_an_attribute_the_layer_reads_is_declared(owner, attribute):
    assert attribute in owner.__annotations__


def test_the_group_generation_is_where_ownership_is_read():
    assert "self.generation = OffsetCommitRequest.DEFAULT_GENERATION_ID" in inspect.getsource(
        GroupCoordinator.reset_generation
    )


def test_the_store_keeps_the_changelog_offset_as_text_under_its_own_key():
    assert rocksdb.Store.offset_key == b"__faust\0offset__"
    assert "str(offset).encode()" in inspect.getsource(rocksdb.Store.set_persisted_offset)


def test_a_crashing_supervisor_does_not_restart_its_agents():
    assert (
        "supervisor"
        not in inspect.getsource(CrashingSupervisor._contribute_to_service).split("pass")[1]
    )


def test_an_app_takes_transports_and_classes():
    settings = dir(faust.Settings)

    assert {"Stream", "Table", "agent_supervisor", "stream_wait_empty"} <= set(settings)
    assert App.transport.fset is not None
    assert App.producer_transport.fset is not None


def test_changelogs_are_fenced_after_it_is_known_how_far_they_are_applied_and_before_their_ends():
    """`highwaters` fences those in `active_tps`; what is applied stands in `active_offsets`.

    It forgets the end of an earlier recovery too, before the end of this one is waited for.
    """
    steps = ["_build_highwaters", "_build_offsets", "need_recovery", "signal_recovery_end.wait"]
    source = inspect.getsource(Recovery._restart_recovery.fun)  # a Service.task

    assert [source.index(step) for step in steps] == sorted(map(source.index, steps))
    assert "consumer.highwaters(*tps)" in inspect.getsource(Recovery._build_highwaters)
    assert "persisted_offset" in inspect.getsource(Recovery._add)


def test_a_producer_without_a_transaction_manager_leaves_epochs_of_batches_alone():
    source = inspect.getsource(MessageAccumulator._pop_batch)

    assert "if self._txn_manager is not None and not_retry:" in source
    assert source.count("set_producer_state") == 1
    assert "ProducerFenced" in inspect.getsource(SendProduceReqHandler.handle_response)
