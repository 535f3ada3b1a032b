"""The model: a gate over live experts, and a transformer that learns what they leave over.

    logits = log(mix of the experts) + scale x (user . item)

The item side starts at zero, so that an untrained model ranks as the experts do. What is listed is
a mix, as probabilities, of the live statistics' fixed list and the model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel

from models.config import DriftlineConfig
from models.layers import Block, Gate, ItemTower

#: Popularity of two half-lives, lasting chain, decaying chain, all known items alike.
EXPERTS = 5
#: What an item has in the mix at least: the logarithm of a share stays finite.
_LEAST_SHARE = 1e-9
#: What the shares of a user for whom nothing may be listed are divided by.
_LEAST_SUM = 1e-30
_FORBIDDEN = -1e9


class LiveInputs(NamedTuple):
    """What is known when lists are made; the order is that of the graph's inputs.

    V rows are those of the item axis. In training, popularity and known can have one row a user:
    [2, B, V] and [B, V].
    """

    history_rows: Tensor  # [B, T]
    history_types: Tensor  # [B, T]
    history_age_buckets: Tensor  # [B, T] 0 where padded
    history_length: Tensor  # [B]
    gate_features: Tensor  # [B, GATE_FEATURES]
    popularity: Tensor  # [2, V]
    chain_rows: Tensor  # [B, K]
    chain_weights: Tensor  # [2, B, K] 0 where padded
    known: Tensor  # [V] 1 where an item may be listed
    seen_rows: Tensor  # [B, S] V where padded
    item_input: Tensor  # [V, D]
    item_output: Tensor  # [V, D]


class Lists(NamedTuple):
    """Ranked lists, best first; an item that may not be listed has a score of 0."""

    rows: Tensor  # [B, k]
    scores: Tensor  # [B, k]
    parts: Tensor  # [3, B, k] popularity, chain, model


class DriftlineModel(PreTrainedModel):  # type: ignore[misc]
    """See the module. `model_share` is the model's part of a list, chosen after training."""

    config_class = DriftlineConfig
    base_model_prefix = "driftline"
    model_share: Tensor

    def __init__(self, config: DriftlineConfig) -> None:
        super().__init__(config)
        width = config.width
        self.tower = ItemTower(config.items, config.attributes, width)
        self.gate = Gate(config.gate_features, config.gate_width, EXPERTS)
        self.event_types = nn.Embedding(config.event_types, width)
        self.ages = nn.Embedding(config.age_buckets, width)
        self.embedding_drop = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(config.gate_features, width)
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("model_share", torch.tensor(0.5))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, DriftlineModel):
            nn.init.zeros_(self.tower.id_output.weight)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
            nn.init.constant_(self.scale, 0.1)
            nn.init.constant_(self.model_share, 0.5)
            self.gate.out.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, -3.0]))

    def forward(self, live: LiveInputs) -> Tensor:
        """[B, V] logits of the next item; far below zero where an item may not be listed."""
        mix = self.mix(live)
        logits = torch.log(mix + _LEAST_SHARE) + self.residual(live)
        return logits.masked_fill(~self.allowed(live), _FORBIDDEN)

    def mix(self, live: LiveInputs) -> Tensor:
        """[B, V] the experts' distributions, weighted by the gate."""
        weights: Tensor = self.gate(live.gate_features)  # [B, EXPERTS]
        known = live.known
        uniform = known / known.sum(-1, keepdim=True).clamp(min=1.0)  # [V] or [B, V]
        mix = (
            weights[:, 0:1] * live.popularity[0]
            + weights[:, 1:2] * live.popularity[1]
            + weights[:, 4:5] * uniform
        )  # [B, V]
        chain = (
            weights[:, 2:3] * live.chain_weights[0] + weights[:, 3:4] * live.chain_weights[1]
        )  # [B, K]
        return mix.scatter_add(1, live.chain_rows, chain)

    def residual(self, live: LiveInputs) -> Tensor:
        """[B, V] what the transformer adds to the logits; 0 for a user without a history."""
        residual: Tensor = linear(self.scale * self.encode(live), live.item_output)
        return residual

    def encode(self, live: LiveInputs) -> Tensor:
        """[B, D] what the user is after now; zeros for a user without a history."""
        B, T = live.history_rows.shape
        D = self.config.width
        x: Tensor = embedding(live.history_rows, live.item_input)  # [B, T] -> [B, T, D]
        x = x + self.ages(live.history_age_buckets) + self.event_types(live.history_types)
        x = self.embedding_drop(x).reshape(-1, D)  # [B * T, D]
        # The first place always counts: attention over nothing is not a number.
        length = live.history_length.clamp(min=1)
        valid = torch.arange(T, device=x.device) < length[:, None]  # [B, T]
        bias = torch.where(valid, 0.0, _FORBIDDEN)[:, None, None]  # [B, 1, 1, T]
        for block in self.blocks[:-1]:
            x = block(x, bias)
        newest = torch.arange(B, device=x.device) * T + length - 1  # [B]
        last: Tensor = self.blocks[-1](x, bias, newest)  # [B, D]
        share = valid.to(x.dtype) / length[:, None]  # [B, T]
        pooled = share[:, None] @ self.norm(x).reshape(B, T, D)  # [B, 1, D]
        user: Tensor = self.norm(last) + pooled[:, 0]
        user = user * (1 + self.modulation(live.gate_features))
        user = user * (live.history_length > 0).to(user.dtype)[:, None]
        return user

    def allowed(self, live: LiveInputs) -> Tensor:
        """[B, V] whether an item may be listed: known, and not among the user's seen ones."""
        B, V = live.history_rows.shape[0], live.item_output.shape[0]
        taken = torch.zeros(B, V + 1, dtype=live.item_output.dtype, device=live.known.device)
        taken = taken.scatter(1, live.seen_rows, 1.0)[:, :V]  # the last column takes the padding
        return (live.known - taken) > 0.5

    def rank(self, live: LiveInputs, k: int) -> Lists:
        """The `k` best of the final mix for every user.

        score = (1 - m) (popularity_share pop + (1 - popularity_share) chain) + m softmax(logits),
        with m the model's share, pop the first half-life's shares and chain the lasting ones. The
        live part is not scaled up for what may not be listed.
        """
        popularity, counted, model = self.score_parts(live)
        scores, rows = torch.topk(counted + model, k, dim=1)
        by_popularity = _at(popularity, rows)
        chain = counted.gather(1, rows) - by_popularity
        parts = torch.stack([by_popularity, chain, model.gather(1, rows)])  # [3, B, k]
        return Lists(rows, scores, parts)

    def score_parts(self, live: LiveInputs) -> tuple[Tensor, Tensor, Tensor]:
        """What the final scores are made of, with `known` as [V].

        [V] by popularity, [B, V] by popularity and chain, [B, V] by the model. An item that may not
        be listed has 0 in the last two. The softmax is that of `forward` without its logarithm:
        softmax(log(mix) + residual) is mix x softmax(residual), made to sum to one. Every pass over
        [B, V] counts here, so masks are put where they are small: on [V], [B, K] and [B, S].
        """
        known = live.known
        live_share = 1.0 - self.model_share
        share = self.config.popularity_share
        count = known.sum().clamp(min=1.0)
        weights: Tensor = self.gate(live.gate_features)  # [B, EXPERTS]
        popular, lasting, decaying, uniform = torch.split(weights, [2, 1, 1, 1], dim=1)
        # the uniform part gives each item 1 / count: so much more of it is _LEAST_SHARE each
        dense = torch.cat([popular, uniform + _LEAST_SHARE * count], dim=1)  # [B, 3]
        table = torch.cat([live.popularity, (known / count)[None]]) * known  # [3, V]
        chain = live.chain_weights * _at(known, live.chain_rows)  # [2, B, K]

        popularity = (live_share * share) * table[0]
        counted = popularity.expand(weights.shape[0], -1)
        counted = counted.scatter_add(1, live.chain_rows, (live_share * (1.0 - share)) * chain[0])
        mix = dense @ table
        mix = mix.scatter_add(1, live.chain_rows, lasting * chain[0] + decaying * chain[1])
        model = torch.softmax(self.residual(live), dim=-1) * _without(mix, live.seen_rows)
        model = model * (self.model_share / model.sum(1, keepdim=True).clamp(min=_LEAST_SUM))
        return popularity, _without(counted, live.seen_rows), model


def _at(values: Tensor, rows: Tensor) -> Tensor:
    """[V], [B, N] -> [B, N]"""
    return embedding(rows, values[:, None]).squeeze(2)


def _without(x: Tensor, seen_rows: Tensor) -> Tensor:
    """[B, V] `x` with 0 in the rows [B, S] of each line; rows of V are none."""
    V = x.shape[1]
    kept = (seen_rows >= V).to(x.dtype)
    return x.scatter_reduce(1, seen_rows.clamp(max=V - 1), kept, "prod")


class RankGraph(nn.Module):
    """A model with the inputs and outputs of the exported graph."""

    def __init__(self, model: DriftlineModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        history_rows: Tensor,
        history_types: Tensor,
        history_age_buckets: Tensor,
        history_length: Tensor,
        gate_features: Tensor,
        popularity: Tensor,
        chain_rows: Tensor,
        chain_weights: Tensor,
        known: Tensor,
        seen_rows: Tensor,
        item_input: Tensor,
        item_output: Tensor,
        k: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `LiveInputs` and `DriftlineModel.rank`; `k` is int64 [1]."""
        live = LiveInputs(
            history_rows,
            history_types,
            history_age_buckets,
            history_length,
            gate_features,
            popularity,
            chain_rows,
            chain_weights,
            known,
            seen_rows,
            item_input,
            item_output,
        )
        count: int = k.item()  # type: ignore[assignment]  # int() would fix it in the graph
        torch._check(count >= 1)  # type: ignore[no-untyped-call]
        torch._check(count <= item_output.shape[0])  # type: ignore[no-untyped-call]
        rows, scores, parts = self.model.rank(live, count)
        return rows, scores, parts
