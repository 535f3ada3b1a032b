"""`driftline sample` shows lists as they come, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import COMMAND, environment, wait_until
from kafka import KafkaAdminClient
from kafka_cluster import Broker

PATIENCE_S = 120
LINE = re.compile(r"^ *\d+\.\d s  (ada|bob|cyd) +(visit|click \S+) +\d+\.\d ms  \S+-\d\d", re.M)


@pytest.fixture
def sample(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts it with its temporary files in a folder of the test."""
    if sys.platform != "linux":
        pytest.skip("looks for processes in /proc")
    pytest.importorskip("noida_db", reason="the embedded broker is not installed (extra demo)")

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, "sample", "--pace-s", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(TMPDIR=str(tmp_path)),
        )

    return start


def left_behind(folder: Path) -> list[str]:
    """Files in the folder, and processes that were started with it in their command."""
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command and int(process.name) != os.getpid():
            found.append(command)
    return found


def test_it_prints_the_lists_of_visits_and_clicks_with_their_delay_and_ends_by_itself(
    sample, tmp_path
):
    said, _ = sample("--clicks", "4").communicate(timeout=PATIENCE_S)

    assert "noida-db, embedded" in said, said
    assert len(LINE.findall(said)) == 8
    assert "ada has had enough of jazz" in said
    assert "half within" in said and "ada's interests: now" in said
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_from_outside_it_leaves_no_process_and_no_file(sample, tmp_path, number):
    process = sample("--clicks", "100000")
    said = ""
    deadline = time.monotonic() + PATIENCE_S
    while not LINE.search(said) and time.monotonic() < deadline:
        said += process.stdout.readline()

    process.send_signal(number)
    rest, _ = process.communicate(timeout=PATIENCE_S)

    assert "stopped: the worker is ended" in rest, said + rest
    assert process.returncode == 0
    assert left_behind(tmp_path) == []


def test_two_at_once_do_not_meet(sample, tmp_path):
    both = [sample("--clicks", "1") for _ in range(2)]

    for process in both:
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
    assert left_behind(tmp_path) == []


def test_without_the_embedded_broker_it_says_what_to_do(tmp_path):
    code = "import sys; sys.modules['noida_db'] = None; from stream.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", code, "sample"],
        capture_output=True,
        text=True,
        env=environment(TMPDIR=str(tmp_path)),
        timeout=PATIENCE_S,
    )

    assert done.returncode == 2
    assert "driftline[cpu,demo]" in done.stderr and "--bootstrap" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == []


def test_a_kafka_that_is_not_there_is_named(sample, tmp_path):
    process = sample("--bootstrap", "127.0.0.1:1")

    said, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 2
    assert "127.0.0.1:1 cannot be used" in said and "Traceback" not in said
    assert left_behind(tmp_path) == []


@pytest.mark.broker
def test_on_a_kafka_of_yours_it_takes_its_topics_away_again(sample, tmp_path, kafka: Broker):
    said, _ = sample("--bootstrap", kafka.bootstrap, "--clicks", "2").communicate(
        timeout=PATIENCE_S
    )

    prefix = re.search(r"their names begin with (sample-\w+-)", said)
    assert prefix is not None, said
    assert len(LINE.findall(said)) == 4
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    wait_until(
        lambda: not [n for n in admin.list_topics() if n.startswith(prefix[1])],
        "its topics are gone",
    )
    admin.close()
    assert left_behind(tmp_path) == []
