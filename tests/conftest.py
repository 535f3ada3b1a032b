"""What every test may use: the broker, topic names of its own, and the option that demands one."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine
from kafka_cluster import Broker, NoBrokerError, running_broker

#: Tests that import ONNX Runtime report nothing either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-broker",
        action="store_true",
        help="fail the tests that need a Kafka broker where there is none, instead of skipping",
    )


@pytest.fixture(scope="session")
def kafka(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A Kafka broker with `.bootstrap`; when it is our own node also kill, restart, pause, resume.

    A test that kills or pauses it leaves it running again, as the others share it.
    """
    try:
        with running_broker(tmp_path_factory.mktemp("kafka")) as broker:
            yield broker
    except NoBrokerError as error:
        if request.config.getoption("--require-broker"):
            pytest.fail(f"--require-broker, and there is none: {error}", pytrace=False)
        pytest.skip(f"no Kafka broker: {error}")


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A beginning for topic names and group ids that no other test has."""
    name = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    return f"{name}-{uuid.uuid4().hex[:8]}-"


@pytest.fixture
def engine(kafka: Broker, prefix: str, tmp_path: Path) -> Iterator[Engine]:
    """The engine's topics under that prefix, to which workers can be started."""
    engine = Engine(kafka.bootstrap, prefix, tmp_path)
    yield engine
    engine.close()
