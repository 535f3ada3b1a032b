"""A corpus and a release that several tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from streams import QUICK, corpus_of, made_up_events

from export.registry import Registry
from models.corpus import Corpus
from models.pipeline import Trained, train_cold
from models.publish import Origin, Published, publish


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return corpus_of(made_up_events())


@pytest.fixture(scope="session")
def trained(corpus: Corpus) -> Trained:
    return train_cold(corpus, QUICK)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="session")
def published(trained: Trained, corpus: Corpus, registry: Registry) -> Published:
    origin = Origin({"user-events": {"0": (0, 3000)}}, None, 1_700_000_000_000)
    return publish(trained, corpus, QUICK, origin, registry, "small")


@pytest.fixture(scope="session")
def data() -> Path:
    """The public data sets: DRIFTLINE_TEST_DATA, or ../shared/data beside the repository."""
    default = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("DRIFTLINE_TEST_DATA", default))
    if not (path / "movietweetings").is_dir():
        pytest.skip(f"no data sets at {path}; set DRIFTLINE_TEST_DATA")
    return path
