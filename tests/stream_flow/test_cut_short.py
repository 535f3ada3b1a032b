"""A source that loses its newest records while workers run, as on a node that lost power."""

from __future__ import annotations

import signal
import struct
from pathlib import Path

import pytest
from batch_harness import Scene, WorkerProcess
from batch_worker import PARTITIONS

from stream.chaos.brokers import Cluster

pytestmark = pytest.mark.broker

#: Base offset and bytes that follow, of each record batch on disk.
_BATCH = struct.Struct(">qi")


def cut_short(partition: Path) -> bool:
    """Cut the last record batch off the log of a partition; False: it has only one."""
    (segment,) = partition.glob("*.log")
    log = segment.read_bytes()
    begins, at = [], 0
    while at + _BATCH.size <= len(log) and log[at : at + 12] != bytes(12):
        begins.append(at)
        at += _BATCH.size + _BATCH.unpack_from(log, at)[1]
    if len(begins) < 2:
        return False
    segment.write_bytes(log[: begins[-1]])
    return True


def test_a_worker_ends_when_its_source_was_cut_short_and_takes_nothing_new_for_old(
    cluster: Cluster, prefix: str, tmp_path: Path
) -> None:
    scene = Scene(cluster.bootstrap, prefix)
    worker = WorkerProcess(scene, tmp_path, "worker", session_s=60)
    try:
        worker.start()
        worker.wait_until_ready()
        for _ in range(3):
            scene.send(400)
        scene.wait_until_all_is_done()
        had = scene.ends(scene.events)

        (node,) = cluster.nodes
        node.end(signal.SIGKILL)
        folders = [node._home / "data" / f"{scene.events}-{p}" for p in range(PARTITIONS)]
        assert any([cut_short(folder) for folder in folders])
        cluster.start(cluster.nodes)
        has = scene.ends(scene.events)
        assert any(has[p] < had[p] for p in had)

        assert worker.exit_code(patience_s=90) == 1
        assert "was truncated or made anew" in worker.output
    finally:
        worker.clean_up()
        scene.close()
