"""The programs in `examples/` do what they say, against a real Kafka."""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from engine import Engine, environment, event, wait_until
from generate import ROOT

from export.registry import Registry

EXAMPLES = ROOT / "examples"


def at(engine: Engine) -> dict[str, str]:
    """The environment in which an example finds an engine."""
    where = {"DRIFTLINE_BOOTSTRAP": engine.bootstrap, "DRIFTLINE_PREFIX": engine.prefix}
    return environment(**where)


@pytest.mark.broker
def test_clicks_that_the_producer_sends_are_answered_with_lists_that_the_consumer_reads(engine):
    engine.worker().start()
    engine.send([(b"zoe", event("zoe", 1, "click", item_id="blue-train"))])
    engine.wait_until_all_is_done()
    said: list[str] = []
    reading = subprocess.Popen(
        [sys.executable, EXAMPLES / "consumer.py"],
        stdout=subprocess.PIPE,
        text=True,
        env=at(engine),
    )
    assert reading.stdout is not None
    listener = threading.Thread(target=lambda: said.extend(reading.stdout), daemon=True)
    listener.start()

    try:
        sent = subprocess.run(
            [sys.executable, EXAMPLES / "producer.py"],
            capture_output=True,
            text=True,
            timeout=60,
            env=at(engine),
        )
        assert sent.returncode == 0, sent.stderr
        wait_until(
            lambda: any("mingus-ah-um" in line for line in said if line.startswith("ada [")),
            lambda: f"ada is listed what bob took: {said}",
        )
    finally:
        reading.kill()
        reading.wait()
        listener.join()

    ada = [line for line in said if line.startswith("ada [")][-1]
    assert "kind-of-blue" not in ada
    assert "a-love-supreme" in ada


def write_clicks(path: Path) -> None:
    """Clicks of users who stay within one of three categories."""
    rng = np.random.default_rng(1)
    time = datetime(2026, 1, 1, tzinfo=UTC)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user", "item", "time", "title", "categories"])
        for number in range(600):
            user, kind = number % 40, number % 40 % 3
            item = f"item-{kind}-{rng.integers(12)}"
            time += timedelta(minutes=5)
            rows.writerow([f"u-{user}", item, time.isoformat(), item.title(), f"kind-{kind}"])


def test_own_data_becomes_a_release_in_the_registry(tmp_path):
    pytest.importorskip("torch", reason="the trainer's packages are not installed (extra train)")
    write_clicks(tmp_path / "clicks.csv")
    registry = tmp_path / "registry"

    done = subprocess.run(
        [
            *(sys.executable, EXAMPLES / "train_on_own_data.py"),
            *(tmp_path / "clicks.csv", registry, "--epochs", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )

    # 1: it is written, and may not go live: so few events may well be worse than counters
    assert done.returncode in (0, 1), done.stderr
    assert "HR@10" in done.stdout and f"release {registry}" in done.stdout
    release = Registry(registry).open("driftline")
    assert "category:kind-1" in release.attributes
    assert "item-0-3" in release.items
