"""A node of a test's own, that may be killed and cut off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
