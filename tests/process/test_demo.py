"""`driftline demo` shows a living engine, brings a dead worker back, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from demonstration import PATIENCE_S, Demo
from engine import wait_until
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka_cluster import Broker

QUICK = ["--past", "300", "--rate", "10"]
READY = r"ready +\d+\.\d s"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    if sys.platform != "linux":
        pytest.skip("looks for processes in /proc")
    pytest.importorskip("noida_db", reason="the embedded broker is not installed (extra demo)")
    started: list[Demo] = []

    def start(*options: str, terminal: int | None = None) -> Demo:
        started.append(Demo(tmp_path / f"demo-{len(started)}", *options, terminal=terminal))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(PATIENCE_S)


def read(bootstrap: str, topic: str) -> list[dict]:
    """All records of a topic by now, in order within each partition."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
    ends = consumer.end_offsets(places)
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    values = []
    while any(consumer.position(place) < ends[place] for place in places):
        for records in consumer.poll(timeout_ms=200).values():
            values += [json.loads(record.value) for record in records]
    consumer.close()
    return values


def newest_seq(bootstrap: str) -> dict[str, int]:
    """User -> seq of the newest list; fails where it does not grow."""
    newest: dict[str, int] = {}
    for found in read(bootstrap, "recommendations"):
        user = found["user_id"]
        assert found["seq"] >= newest.get(user, 1)
        newest[user] = found["seq"]
    return newest


def test_page_lists_and_truth_are_there_until_ctrl_c_then_nothing_is(demo) -> None:
    one = demo(*QUICK)
    url = one.wait_for(r"http://127\.0\.0\.1:\d+/")[0]
    one.wait_for("Users act until")

    with urllib.request.urlopen(url + "healthz", timeout=10) as answer:
        assert answer.status == 200
    wait_until(lambda: len(read(one.bootstrap, "demo-truth")) > 40, one.said, PATIENCE_S)
    truth = read(one.bootstrap, "demo-truth")
    clicks = [e for e in read(one.bootstrap, "user-events") if e["event_id"] > "demo-"]
    lists = read(one.bootstrap, "recommendations")
    one.stop()

    for step in ("broker", "topics", "release", "past", "worker", "list", "page", "ready"):
        assert re.search(rf"^{step} +\d+\.\d s ", one.said(), re.MULTILINE), one.said()
    assert "stopped: all processes are ended, its files are removed" in one.said()
    assert one.left_behind() == []
    assert {told["user_id"] for told in truth} <= {event["user_id"] for event in clicks}
    served = {found["rec_id"]: [i["item_id"] for i in found["items"]] for found in lists}
    from_lists = [event for event in clicks if "rec" in event]
    assert all(served[e["rec"]["rec_id"]][e["rec"]["position"]] == e["item_id"] for e in from_lists)
    assert lists[-1]["release"]["version"] >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ended_from_outside_even_before_it_is_ready_it_leaves_nothing(demo, number) -> None:
    one = demo(*QUICK, "--no-page")
    one.wait_for(r"past +\d+\.\d s")

    one.stop(number)

    assert one.left_behind() == []


def test_a_closed_terminal_ends_it_without_a_trace(demo) -> None:
    ours, theirs = pty.openpty()
    one = demo(*QUICK, "--no-page", terminal=theirs)
    os.close(theirs)
    said = b""
    while b"Users act until" not in said:
        said += os.read(ours, 4096)

    os.close(ours)

    one.process.wait(PATIENCE_S)
    assert one.left_behind() == []


def test_killed_it_takes_its_processes_along(demo) -> None:
    one = demo(*QUICK)
    one.wait_for("Users act until")
    assert len(one.processes_left()) >= 3

    one.process.kill()
    one.process.wait()

    wait_until(lambda: not one.processes_left(), one.said, PATIENCE_S)


def test_two_at_once_do_not_meet(demo) -> None:
    both = [demo(*QUICK), demo(*QUICK)]
    urls = {one.wait_for(r"http://127\.0\.0\.1:\d+/")[0] for one in both}
    for one in both:
        one.wait_for("Users act until")

    assert len(urls) == 2
    for one in both:
        one.stop()
        assert one.left_behind() == []


def test_a_killed_worker_comes_back_and_lists_go_on_where_they_were(demo) -> None:
    one = demo(*QUICK, "--no-page", "--users", "5")
    pid = int(one.wait_for(r"kill -9 (\d+)")[1])
    before = wait_until(lambda: newest_seq(one.bootstrap), one.said, PATIENCE_S)

    os.kill(pid, signal.SIGKILL)

    one.wait_for("the worker has died .killed by signal 9.")
    one.wait_for(r"the worker is back: lists go on, \d+\.\d s after")
    after = newest_seq(one.bootstrap)
    assert all(after[user] >= seq for user, seq in before.items())
    assert sum(after.values()) > sum(before.values())
    one.stop()
    assert one.left_behind() == []


def test_a_worker_that_dies_again_and_again_ends_the_demo_with_its_log(demo) -> None:
    one = demo(*QUICK, "--no-page")
    os.kill(int(one.wait_for(r"kill -9 (\d+)")[1]), signal.SIGKILL)
    killed = 0
    for _ in range(2):
        pid = wait_until(
            lambda last=killed: next(
                (p for p in map(int, re.findall(r"as process (\d+)", one.said())) if p != last), 0
            ),
            one.said,
            PATIENCE_S,
        )
        os.kill(pid, signal.SIGKILL)
        killed = pid

    assert one.process.wait(PATIENCE_S) == 2
    assert "the worker ends again and again" in one.said() and "Traceback" not in one.said()
    assert one.left_behind() == []


def test_a_step_that_fails_is_named_and_leaves_nothing(demo) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        one = demo(*QUICK, "--port", port)
        assert one.process.wait(PATIENCE_S) == 2
    other = demo(*QUICK, "--bootstrap", "127.0.0.1:1")
    assert other.process.wait(PATIENCE_S) == 2

    assert f"wanted port {port}" in one.said() and "Traceback" not in one.said()
    assert "127.0.0.1:1 cannot be used" in other.said() and "Traceback" not in other.said()
    assert one.left_behind() == other.left_behind() == []


def test_a_folder_is_kept_and_one_with_files_in_it_is_refused(demo, tmp_path) -> None:
    kept = tmp_path / "kept"
    one = demo(*QUICK, "--no-page", "--dir", str(kept))
    one.wait_for(READY)
    one.stop()
    again = demo(*QUICK, "--no-page", "--dir", str(kept))

    assert again.process.wait(PATIENCE_S) == 2
    assert f"its files are in {kept}" in one.said()
    assert (kept / "worker.log").exists() and (kept / "registry" / "driftline").is_dir()
    assert "new or empty folder" in again.said()
    assert one.left_behind() == []


def test_real_data_is_played_in_place_of_simulated_users(demo, tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [
        {"user": f"ann-{n % 7}", "item": f"film-{n * 13 % 97}", "time": 1_300_000_000 + 60 * n}
        for n in range(400)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    one = demo(*QUICK, "--no-page", "--data", "jsonl", str(path))
    one.wait_for(READY)

    lists = wait_until(
        lambda: [
            e for e in read(one.bootstrap, "recommendations") if e["trigger"]["reason"] == "visit"
        ],
        one.said,
        PATIENCE_S,
    )
    one.stop()

    assert lists[-1]["user_id"].startswith("ann-") and lists[-1]["items"]
    assert lists[-1]["release"]["version"] == 0
    assert one.left_behind() == []


@pytest.mark.broker
def test_on_a_kafka_of_yours_it_takes_its_topics_away_again(demo, kafka: Broker) -> None:
    one = demo(*QUICK, "--no-page", "--bootstrap", kafka.bootstrap)
    prefix = one.wait_for(r"their names begin with (demo-\w+-)")[1]
    one.wait_for(READY)
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    assert f"{prefix}demo-truth" in admin.list_topics()

    one.stop()

    wait_until(
        lambda: not [name for name in admin.list_topics() if name.startswith(prefix)],
        "its topics are gone",
    )
    admin.close()
    assert one.left_behind() == []
