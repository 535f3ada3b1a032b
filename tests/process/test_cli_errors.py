"""What is wrong is said by name, with what to do, exit code 2 and no traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import onnxruntime
import pytest
from engine import Engine, driftline, event, wait_until
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka_cluster import Broker, OwnNode

NO_BROKER = "127.0.0.1:1"
#: From the call to the message.
MAX_WAIT_S = 10.0


def assert_wrong_use(done: subprocess.CompletedProcess[str], *words: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    for word in words:
        assert word in said


def test_everything_wrong_with_the_settings_is_named_at_once(tmp_path: Path) -> None:
    config = tmp_path / "driftline.toml"
    config.write_text('nonsense = 1\npartitions = 0\nevent_types = {click = {role = "glad"}}\n')

    done = driftline(
        "worker", "--config", config, "--device", "tpu", DRIFTLINE_BATCH_WAIT_MS="soon"
    )

    assert_wrong_use(
        done, "nonsense", "partitions", "event_types", "--device", "DRIFTLINE_BATCH_WAIT_MS"
    )
    assert "Settings are:" in done.stderr


@pytest.mark.parametrize("content", [None, b"partitions = = 8", b"\xff\xfe"])
def test_a_settings_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    config = tmp_path / "driftline.toml"
    if content is not None:
        config.write_bytes(content)

    assert_wrong_use(driftline("worker", "--config", config), str(config), "TOML")


def test_an_unknown_option_or_verb_is_wrong_use() -> None:
    assert_wrong_use(driftline("worker", "--colour", "blue"), "--colour")
    assert_wrong_use(driftline("wrk"), "wrk")


@pytest.mark.parametrize(
    "verb",
    [
        ["worker"],
        ["topics", "create"],
        ["topics", "check"],
        ["verify", "fold"],
        ["replay", "EVENTS", "--format", "jsonl"],
    ],
    ids=" ".join,
)
def test_a_broker_that_is_not_there_is_named_within_seconds(
    tmp_path: Path, verb: list[str]
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"user": "u", "item": "i", "time": 1}\n')
    verb = [str(events) if word == "EVENTS" else word for word in verb]
    begun = time.monotonic()

    done = driftline(*verb, "--bootstrap", NO_BROKER)

    assert_wrong_use(done, NO_BROKER, "bootstrap")
    assert time.monotonic() - begun < MAX_WAIT_S


def test_missing_topics_are_listed_with_the_command_that_makes_them(
    kafka: Broker, prefix: str, tmp_path: Path
) -> None:
    options = ["--bootstrap", kafka.bootstrap, "--prefix", prefix]

    done = driftline("worker", *options, "--data-dir", tmp_path)

    assert_wrong_use(done, f"{prefix}user-events", f"{prefix}decisions", "driftline topics create")
    assert_wrong_use(driftline("topics", "check", *options), f"{prefix}user-events")


def test_another_partition_count_is_refused(engine: Engine) -> None:
    for verb in (["worker", "--data-dir", str(engine.home)], ["topics", "check"]):
        done = driftline(*verb, *engine.options[:4], "--partitions", "4")

        assert_wrong_use(done, "user-events: wanted 4 partitions, got 8")


def test_a_limit_of_how_old_records_may_be_is_refused(engine: Engine) -> None:
    events = f"{engine.prefix}user-events"
    setting = "message.timestamp.before.max.ms"
    admin = KafkaAdminClient(bootstrap_servers=engine.bootstrap)
    try:
        admin.alter_configs([ConfigResource("TOPIC", events, {setting: "86400000"})])
    finally:
        admin.close()

    done = driftline("topics", "check", *engine.options[:4])

    assert_wrong_use(done, f"{events}: wanted no limit of {setting}, got 86400000")


def test_verifying_topics_that_are_not_there_is_wrong_use(kafka: Broker, prefix: str) -> None:
    done = driftline("verify", "fold", "--bootstrap", kafka.bootstrap, "--prefix", prefix)

    assert_wrong_use(done, f"{prefix}user-events", "--prefix")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="ONNX Runtime offers CUDA here",
)
def test_a_gpu_that_is_not_there_stops_the_start_and_names_what_is() -> None:
    done = driftline("worker", "--device", "cuda")

    assert_wrong_use(done, "CUDAExecutionProvider", "CPUExecutionProvider")


def test_a_data_directory_that_cannot_be_written_is_named(engine: Engine, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")

    done = driftline("worker", *engine.options, "--data-dir", taken)

    assert_wrong_use(done, str(taken), "--data-dir")


def newest_list(engine: Engine, user: str) -> dict | None:
    """The newest list of a user."""
    found = [r.value for r in engine.read("recommendations") if r.key == user.encode()]
    return json.loads(found[-1]) if found else None


def serve_some(engine: Engine) -> None:
    """A worker that has served without a release."""
    engine.send((b"first", event("first", n, item_id=f"item-{n}")) for n in range(3))
    engine.worker().start()
    engine.wait_until_all_is_done()


def visit(engine: Engine, user: str, number: int) -> dict:
    """A visit, and the list that answers it."""
    engine.send([(user.encode(), event(user, number, "visit"))])
    found = wait_until(lambda: newest_list(engine, user), engine.logs)
    assert isinstance(found, dict)
    return found


def test_without_a_release_the_live_statistics_serve(engine: Engine) -> None:
    serve_some(engine)

    answer = visit(engine, "visitor", 10)

    assert answer["release"]["version"] == 0
    assert answer["items"]


def announce(engine: Engine, version: int, value: bytes | None = None) -> None:
    stage = {
        "schema": "driftline.model-release/1",
        "name": "driftline",
        "version": version,
        "stage": "live",
        "sha256": "0" * 64,
        "path": f"driftline/{version}",
        "at": 1_700_000_000_000,
    }
    key = f"driftline/{version}".encode()
    topic = engine.topic("model-releases")
    engine.producer.send(topic, key=key, value=value or json.dumps(stage).encode()).get(30)


def test_broken_releases_are_refused_and_the_worker_goes_on(engine: Engine) -> None:
    serve_some(engine)
    (worker,) = engine.workers
    broken = engine.registry / "driftline" / "2"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_bytes(b"{")
    (broken / "model.onnx").write_bytes(bytes(1000))

    announce(engine, 1)  # of which there is no folder
    announce(engine, 2)
    announce(engine, 3, b"no JSON \xff")
    announce(engine, 3, b'{"x":' + b"[" * 20_000)
    announce(engine, 4, json.dumps({"version": "four"}).encode())
    wait_until(lambda: "driftline/2 is refused" in worker.log(), engine.logs)
    answer = visit(engine, "visitor", 10)

    assert answer["release"]["version"] == 0
    assert worker.is_running
    assert worker.stop() == 0
    worker.start()
    assert visit(engine, "another", 11)["release"]["version"] == 0


def test_a_worker_waits_for_a_broker_that_goes_away(kafka: Broker, engine: Engine) -> None:
    if not isinstance(kafka, OwnNode):
        pytest.skip("the broker is somebody else's, and not ours to restart")
    serve_some(engine)

    kafka.restart()

    assert visit(engine, "visitor", 10)["items"]


def test_a_port_of_the_metrics_that_is_taken_is_named(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        done = driftline("worker", *engine.options, "--metrics-port", port)

    assert_wrong_use(done, str(port), "--metrics-port")
