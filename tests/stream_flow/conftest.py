"""A scene with its workers, and a node of a test's own, that may be killed and cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch_harness import Scene, WorkerProcess

from stream.chaos.brokers import Cluster, NoKafkaError, find_libs


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, which can be reached through a line, too."""
    try:
        libs = find_libs(None)
    except NoKafkaError as error:
        pytest.skip(str(error))
    cluster = Cluster(libs, tmp_path_factory.mktemp("cluster"), 1)
    cluster.start(cluster.nodes)
    yield cluster
    cluster.close()


@pytest.fixture
def scene(kafka, prefix) -> Iterator[Scene]:
    scene = Scene(kafka.bootstrap, prefix)
    yield scene
    scene.close()


@pytest.fixture
def worker(scene: Scene, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Makes workers of this scene; those that still run are killed at the end."""
    made: list[WorkerProcess] = []

    def make(name: str = "worker", **wishes: object) -> WorkerProcess:
        made.append(WorkerProcess(scene, tmp_path, name, **wishes))
        return made[-1]

    yield make
    for process in made:
        process.clean_up()
