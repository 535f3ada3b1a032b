"""What a worker ranks with, for tests that take batches through it without Kafka."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from export.statistics import ItemStatistics
from stream.catalogue import Catalogue
from stream.requests import LiveTensors
from stream.statistics import LiveStatistics


def live_of(
    statistics: ItemStatistics,
    newest_ms: int,
    ranker: Any = None,
    catalogue: Catalogue | None = None,
) -> Any:
    """Live parts that hold these statistics and stay as they are."""
    popularity = statistics.popularity()
    known = (popularity[1] > 0).astype(np.float32)
    tensors = LiveTensors(popularity, known, dict(statistics.watermarks), newest_ms)
    return SimpleNamespace(
        index=statistics.index,
        statistics=LiveStatistics(statistics),
        catalogue=catalogue or Catalogue(statistics.index),
        catalogue_positions={},
        ranking_tensors=lambda: tensors,
        wrote_deltas=lambda records: None,
        ranker=ranker,
    )
