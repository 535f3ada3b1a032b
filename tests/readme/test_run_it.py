"""The commands that set the engine up and run it do so, as they stand in the README."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import COMMAND, Engine, environment, wait_until
from generate import README, ROOT
from kafka_cluster import Broker

PATIENCE_S = 120.0
INSTALL_S = 900.0
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(kafka: Broker, prefix: str, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen]]:
    """Starts a line of the README in a folder, with its output in a file; ends it at last."""
    settings = {"DRIFTLINE_BOOTSTRAP": kafka.bootstrap, "DRIFTLINE_PREFIX": prefix}
    started: list[subprocess.Popen] = []

    def start(line: str) -> subprocess.Popen:
        words = shlex.split(line)
        assert words[0] == "driftline"
        with (tmp_path / f"{words[1]}.log").open("wb") as log:
            process = subprocess.Popen(
                [*COMMAND, *words[1:]],
                stdout=log,
                stderr=log,
                cwd=tmp_path,
                env=environment(**settings),
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.mark.broker
def test_the_engine_runs_by_the_four_commands(run, kafka: Broker, prefix: str, tmp_path: Path):
    (block,) = (block for block in BLOCKS if "topics create" in block)
    create, serve, replay, train = block.splitlines()
    now_s = time.time()
    (tmp_path / "clicks.jsonl").write_text(
        "\n".join(
            json.dumps({"user": f"u{n % 7}", "item": f"i{n % 97}", "time": now_s - 500 + n})
            for n in range(500)  # at 50 a second they go on when the worker is up
        )
    )

    assert run(create).wait(PATIENCE_S) == 0
    worker = run(serve)
    assert run(replay).wait(PATIENCE_S) == 0
    engine = Engine(kafka.bootstrap, prefix, tmp_path / "engine")
    wait_until(
        lambda: (
            {record.key for record in engine.read("recommendations")}
            == {f"u{n}".encode() for n in range(7)}
        ),
        lambda: (tmp_path / "worker.log").read_text(),
        PATIENCE_S,
    )
    trainer = run(train)
    wait_until(
        lambda: "read the log" in (tmp_path / "trainer.log").read_text(),
        lambda: (tmp_path / "trainer.log").read_text(),
        PATIENCE_S,
    )

    assert worker.poll() is None and trainer.poll() is None
    engine.close()


@pytest.mark.slow
def test_the_first_command_shows_the_demo_from_a_fresh_clone(tmp_path: Path) -> None:
    """Installs from the package registries."""
    clone = tmp_path / "driftline"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    line = BLOCKS[0].strip().replace("python3", sys.executable, 1)
    process = subprocess.Popen(
        ["/bin/sh", "-c", line],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=clone,
        env=environment(TMPDIR=str(tmp_path)),
        start_new_session=True,
    )
    assert process.stdout is not None
    said, deadline = "", time.monotonic() + INSTALL_S
    for text in process.stdout:
        said += text
        if text.startswith("Users act") or time.monotonic() > deadline:
            break
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal
    process.communicate(timeout=PATIENCE_S)

    print(said)
    assert re.search(r"^  http://127\.0\.0\.1:\d+/$", said, re.MULTILINE), said
    assert float(re.search(r"^ready +(\d+\.\d) s", said, re.MULTILINE)[1]) < 60
