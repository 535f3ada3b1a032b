"""`driftline doctor` names each fault with what to do about it, whatever else is broken."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from engine import Engine, driftline, event
from kafka_cluster import Broker

from export.manifest import file_entry
from export.registry import Registry
from export.release import Release
from stream.demo.release import BUNDLED_REGISTRY
from stream.partitioner import partitions_of

PARTITIONS = 8


def examined(*options: object, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and findings by name."""
    done = driftline("doctor", *options, "--json", **environment)
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in report["checks"]}


def of(engine: Engine, *options: object, **environment: str) -> tuple[int, dict[str, Any]]:
    """What it says of an engine."""
    data = ["--data-dir", engine.home / "data"]
    return examined(*engine.options, *data, *options, **environment)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def now_ms() -> int:
    return int(time.time() * 1000)


def clicks(count: int, **fields: object) -> list[tuple[bytes, bytes]]:
    """Clicks of as many users, of this moment."""
    made = {"item_id": "item-1", "event_time": now_ms(), **fields}
    return [(b"u-%d" % n, event(f"u-{n}", n, "click", **made)) for n in range(count)]


def release_of(engine: Engine) -> Release:
    """The demo's release, in the engine's registry."""
    shutil.copytree(BUNDLED_REGISTRY, engine.registry)
    return Registry(engine.registry).open("driftline")


def announce(engine: Engine, release: Release, sha256: str) -> None:
    stage = {
        "schema": "driftline.model-release/1",
        "name": release.name,
        "version": release.version,
        "stage": "live",
        "sha256": sha256,
        "path": f"{release.name}/{release.version}",
        "at": 1_700_000_000_000,
    }
    key = f"{release.name}/{release.version}".encode()
    value = json.dumps(stage).encode()
    engine.producer.send(engine.topic("model-releases"), key=key, value=value).get(30)


def test_an_engine_that_serves_is_in_order(engine: Engine) -> None:
    release = release_of(engine)
    engine.send(clicks(50))
    port = free_port()
    engine.worker().start(DRIFTLINE_METRICS_PORT=str(port))
    engine.wait_until_all_is_done()
    announce(engine, release, release.sha256)

    code, found = of(engine, "--metrics-port", port)

    assert code == 0, found
    assert {name: check["status"] for name, check in found.items()} == dict.fromkeys(
        [
            *("python", "packages", "provider", "disk", "ports", "broker", "topics"),
            *("fence", "partitioner", "events", "clock", "group", "registry"),
        ],
        "ok",
    )
    assert "a worker answers" in found["ports"]["said"]
    assert "1 member, 0 events behind" in found["group"]["said"]
    assert "driftline/1 is live" in found["registry"]["said"]


def test_for_people_every_check_is_one_line(engine: Engine) -> None:
    done = driftline("doctor", *engine.options)

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 13
    assert all(line.split()[0] in {"ok", "warn"} for line in lines)
    assert any("driftline worker" in line for line in lines if line.startswith("warn  group"))


def test_a_producer_with_another_partitioner_is_noticed(engine: Engine) -> None:
    for key, value in clicks(40):
        (right,) = partitions_of([key], PARTITIONS)
        wrong = (right + 1) % PARTITIONS
        engine.producer.send(engine.topic("user-events"), key=key, value=value, partition=wrong)
    engine.producer.flush()

    code, found = of(engine)

    assert code == 1
    assert found["partitioner"]["status"] == "fail"
    assert "40 lie on another partition" in found["partitioner"]["said"]
    assert "partitioner=murmur2_random" in found["partitioner"]["advice"]
    assert found["events"]["status"] == "ok"


def test_one_misplaced_record_among_many_is_a_warning(engine: Engine) -> None:
    engine.send(clicks(300))
    ((key, value),) = clicks(1)
    (right,) = partitions_of([key], PARTITIONS)
    topic = engine.topic("user-events")
    engine.producer.send(topic, key=key, value=value, partition=(right + 1) % PARTITIONS).get(30)

    code, found = of(engine)

    assert (code, found["partitioner"]["status"]) == (0, "warn")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"event_time": 1_700_000_000}, "milliseconds, not seconds"),
        ({"event_time": 32_500_000_000_000}, "max_future_ms"),
        ({"user_id": "another"}, "the key is not the user"),
        ({"item_id": ""}, "item_id"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_event_is_named(engine: Engine, fields: dict[str, Any], what: str) -> None:
    engine.send(clicks(10, **fields))

    code, found = of(engine)

    assert (code, found["events"]["status"]) == (1, "fail")
    assert what in found["events"]["said"]


def test_records_from_the_future_mean_that_clocks_differ(engine: Engine) -> None:
    for ahead_s, status in ((10, "warn"), (3600, "fail")):
        ((key, value),) = clicks(1)
        at = now_ms() + ahead_s * 1000
        topic = engine.topic("user-events")
        engine.producer.send(topic, key=key, value=value, timestamp_ms=at).get(30)

        _, found = of(engine)

        assert found["clock"]["status"] == status
        assert "NTP" in found["clock"]["advice"]


def test_missing_topics_are_named_with_the_command_that_makes_them(
    kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    options = ["--bootstrap", kafka.bootstrap, "--prefix", prefix, "--registry", tmp_path]

    code, found = examined(*options)

    assert code == 1
    assert f"{prefix}user-events: missing" in found["topics"]["said"]
    assert "driftline topics create" in found["topics"]["advice"]
    assert found["partitioner"]["status"] == "skip"


def test_a_damaged_release_is_named(engine: Engine) -> None:
    release = release_of(engine)
    announce(engine, release, release.sha256)
    graph = release.path / "model.onnx"
    graph.write_bytes(bytes(len(graph.read_bytes())))

    code, found = of(engine)

    assert (code, found["registry"]["status"]) == (1, "fail")
    assert "model.onnx" in found["registry"]["said"] and "sha256" in found["registry"]["said"]


def test_a_release_that_computes_something_else_is_named(engine: Engine) -> None:
    release = release_of(engine)
    golden = release.path / "golden.npz"
    with np.load(golden) as arrays:
        changed = dict(arrays)
    changed["graph.out.scores"] = changed["graph.out.scores"] + 1
    np.savez(golden, **changed)
    manifest = msgspec.json.decode((release.path / "manifest.json").read_bytes())
    entry = file_entry(golden)
    manifest["files"]["golden.npz"] = {"sha256": entry.sha256, "bytes": entry.bytes}
    (release.path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    announce(engine, release, file_entry(release.path / "manifest.json").sha256)

    code, found = of(engine)

    assert (code, found["registry"]["status"]) == (1, "fail")
    assert "golden outputs" in found["registry"]["said"]


def test_another_release_than_the_announced_one_is_named(engine: Engine) -> None:
    release = release_of(engine)
    announce(engine, release, "ab" * 32)

    code, found = of(engine)

    assert (code, found["registry"]["status"]) == (1, "fail")
    assert "abababababab was announced" in found["registry"]["said"]


def test_a_release_that_is_live_and_not_there_is_named(engine: Engine) -> None:
    release = release_of(engine)
    announce(engine, release, release.sha256)
    release.path.rename(engine.home / "elsewhere")

    code, found = of(engine)

    assert (code, found["registry"]["status"]) == (1, "fail")
    assert "driftline/1" in found["registry"]["said"]


def test_without_a_broker_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    begun = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, found = examined(
            *("--bootstrap", "127.0.0.1:1", "--metrics-port", port, "--data-dir", taken / "data"),
            *("--registry", tmp_path / "registry"),
        )

    assert code == 1
    assert {name for name, check in found.items() if check["status"] == "fail"} == {
        "broker",
        "disk",
        "ports",
    }
    assert "127.0.0.1:1" in found["broker"]["said"] and "--bootstrap" in found["broker"]["advice"]
    assert str(taken) in found["disk"]["said"] and str(port) in found["ports"]["said"]
    assert found["registry"]["status"] == "warn"
    assert found["group"]["status"] == "skip"
    assert time.monotonic() - begun < 15


def test_both_runtimes_at_once_are_named(tmp_path: Path) -> None:
    installed = tmp_path / "onnxruntime_gpu-1.20.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n"
    )

    code, found = examined("--bootstrap", "127.0.0.1:1", PYTHONPATH=str(tmp_path))

    assert code == 1
    assert found["packages"]["status"] == "fail"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found["packages"]["advice"]


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="ONNX Runtime offers CUDA here",
)
def test_a_device_that_is_not_there_is_named() -> None:
    code, found = examined("--bootstrap", "127.0.0.1:1", "--device", "cuda")

    assert (code, found["provider"]["status"]) == (1, "fail")
    assert "CUDAExecutionProvider" in found["provider"]["said"]


def test_wrong_use_is_told_apart_from_a_fault() -> None:
    done: subprocess.CompletedProcess[str] = driftline("doctor", "--partitions", "none")

    assert done.returncode == 2
    assert "partitions" in done.stderr
