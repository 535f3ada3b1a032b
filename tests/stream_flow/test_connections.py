"""A request whose connection is lost does not wait for ever, however it is lost.

On uvloop, as in a worker: what goes wrong there does not on asyncio's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time

import pytest
import uvloop
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from batch_harness import Scene, WorkerProcess, new_topics, running_producer, values_of
from faust.types import TP

from stream.chaos.line import Line
from stream.kafka import connections
from stream.kafka.connections import ACKNOWLEDGEMENT_S
from stream.kafka.fencing import FENCED_EXIT_CODE
from stream.kafka.producer import BatchProducer

PATIENCE_S = 15.0


@pytest.fixture
def topic(cluster, prefix) -> str:
    """One without records: a fetch waits there."""
    new_topics(cluster.bootstrap, f"{prefix}empty")
    return f"{prefix}empty"


def test_what_waits_on_a_connection_ends_with_it_though_it_is_found_at_its_end_first(
    cluster, topic, monkeypatch
):
    # a record of the log that is kept would keep the connection, too: that must be free to go
    monkeypatch.setattr(logging.getLogger("aiokafka"), "disabled", True)

    async def fetch_from_a_node_that_dies() -> None:
        async with running_producer(cluster.bootstrap) as producer:
            client, node = await connected_client(producer, topic)
            wait_ms = int(2 * PATIENCE_S * 1000)
            request = FetchRequest(wait_ms, 1, 1024, 0, [(topic, [(0, 0, 1024)])])
            fetch = asyncio.create_task(client.send(node, request))
            await asyncio.sleep(0)
            assert client._conns[node, ConnectionGroup.DEFAULT]._requests

            cluster.nodes[0].end(signal.SIGKILL)
            try:
                client._conns[node, ConnectionGroup.DEFAULT]._protocol.eof_received()
                assert not await client.ready(node)  # refused
                with pytest.raises(KafkaConnectionError):
                    await asyncio.wait_for(fetch, PATIENCE_S)
            finally:
                cluster.start(cluster.nodes)

    uvloop.run(fetch_from_a_node_that_dies())


def test_a_transport_that_is_closed_is_an_error_of_kafka_to_who_sends_over_it(cluster, topic):
    async def send_over_a_closed_transport() -> None:
        async with running_producer(cluster.bootstrap) as producer:
            client, node = await connected_client(producer, topic)
            connection = client._conns[node, ConnectionGroup.DEFAULT]

            connection._read_task.cancel()  # as if it had not had its turn yet
            connection._writer.transport.abort()
            await connection._closed_fut

            with pytest.raises(KafkaConnectionError):
                await connection.send(MetadataRequest([]))

    uvloop.run(send_over_a_closed_transport())


async def connected_client(producer: BatchProducer, topic: str) -> tuple[AIOKafkaClient, int]:
    """A producer's client, and the node that it is connected to."""
    client = producer._ensure_producer().client
    await client._wait_on_metadata(topic)
    (node,) = (broker.nodeId for broker in client.cluster.brokers())
    assert await client.ready(node)
    return client, node


async def test_records_sent_into_a_silent_connection_arrive_by_another(cluster, topic, monkeypatch):
    monkeypatch.setattr(connections, "ANSWER_S", 1.0)
    monkeypatch.setattr(connections, "ACKNOWLEDGEMENT_S", 1.0)
    line = Line(cluster.line_ports)
    try:
        async with running_producer(cluster.line_bootstrap) as producer, asyncio.timeout(60.0):
            await send(producer, topic, b"before")
            line.silence()
            async with asyncio.timeout(PATIENCE_S):
                await send(producer, topic, b"after")
    finally:
        line.close()

    assert values_of(cluster.bootstrap, TP(topic, 0)) == [b"before", b"after"]


def test_a_worker_that_is_put_out_does_not_wait_for_answers_over_silent_connections(
    cluster, prefix, tmp_path
):
    with contextlib.ExitStack() as stack:
        line = Line(cluster.line_ports)
        stack.callback(line.close)
        scene = Scene(cluster.bootstrap, prefix)
        stack.callback(scene.close)
        hold = tmp_path / "hold"
        worker = WorkerProcess(scene, tmp_path, "silent", hold_file=str(hold), session_s=4.0)
        stack.callback(worker.clean_up)
        worker.start(bootstrap=cluster.line_bootstrap).wait_until_ready()
        hold.touch()
        scene.send(200)
        worker.wait_for("held")

        line.silence()
        hold.unlink()
        since_s = time.monotonic()
        code = worker.exit_code(2 * ACKNOWLEDGEMENT_S)

        assert code == FENCED_EXIT_CODE
        assert time.monotonic() - since_s < ACKNOWLEDGEMENT_S
        worker.start()
        scene.wait_until_all_is_done()
        assert scene.rows() == scene.expected()


async def send(producer: BatchProducer, topic: str, value: bytes) -> None:
    for delivery in await producer.send_records(topic, 0, [(None, value)], timestamp_ms=0):
        await delivery
