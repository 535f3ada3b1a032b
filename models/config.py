"""The shape of a model, as transformers keeps it in config.json."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from export.features import AGE_BUCKETS, GATE_FEATURES


class DriftlineConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes and dropouts of a `DriftlineModel`.

    items, attributes, event_types: rows of the tables; event-type row 0 is every other type.
    popularity_share: the part of popularity in the list that live statistics make alone.
    id_dropout: how often training hides an item's id, so that its attributes alone can place it.
    """

    model_type = "driftline"

    def __init__(
        self,
        items: int = 0,
        attributes: int = 0,
        event_types: int = 1,
        width: int = 32,
        heads: int = 2,
        blocks: int = 2,
        gate_width: int = 16,
        dropout: float = 0.4,
        embedding_dropout: float = 0.2,
        id_dropout: float = 0.3,
        popularity_share: float = 0.7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.attributes = attributes
        self.event_types = event_types
        self.width = width
        self.heads = heads
        self.blocks = blocks
        self.gate_width = gate_width
        self.dropout = dropout
        self.embedding_dropout = embedding_dropout
        self.id_dropout = id_dropout
        self.popularity_share = popularity_share
        self.age_buckets = AGE_BUCKETS
        self.gate_features = GATE_FEATURES
