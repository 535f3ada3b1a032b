"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.network import DriftlineModel, LiveInputs


def next_item_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean -log p(target): [B, V] logits, [B] places of the targets."""
    return cross_entropy(logits, targets)


def expert_shares(live: LiveInputs, targets: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """([B, EXPERTS] share of the target, [B, EXPERTS] share of all that may be listed).

    `seen` [B, V + 1] is 1 for a user's seen items. With these two the likelihood of a mix of the
    experts, renormalised over what may be listed, needs no pass over the items.
    """
    one = targets[:, None]
    popularity = live.popularity.transpose(0, 1)  # [2, B, V] -> [B, 2, V]
    V = live.known.shape[1]
    rows = live.seen_rows
    real = (rows < V).to(popularity.dtype) / _repetitions(rows, V).clamp(min=1.0)  # [B, S]
    inside = rows.clamp(max=V - 1)
    seen_popularity = (popularity.gather(2, inside[:, None].expand(-1, 2, -1)) * real[:, None]).sum(
        2
    )
    chain = live.chain_weights.transpose(0, 1)  # [B, 2, K]
    chain_seen = seen.gather(1, live.chain_rows)[:, None]  # [B, 1, K]
    known = live.known.sum(1, keepdim=True).clamp(min=1.0)
    share = torch.cat(
        [
            popularity.gather(2, one[:, :, None].expand(-1, 2, 1))[:, :, 0],
            (chain * (live.chain_rows == one)[:, None]).sum(2),
            live.known.gather(1, one) / known,
        ],
        dim=1,
    )
    allowed = torch.cat(
        [
            popularity.sum(2) - seen_popularity,
            (chain * (1 - chain_seen)).sum(2),
            1 - real.sum(1, keepdim=True) / known,
        ],
        dim=1,
    )
    return share, allowed


def _repetitions(rows: Tensor, V: int) -> Tensor:
    """[B, S] how often each row stands in its line."""
    counts = torch.zeros(rows.shape[0], V + 1)
    counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))
    return counts.gather(1, rows)


def gate_loss(model: DriftlineModel, features: Tensor, shares: Tensor, allowed: Tensor) -> Tensor:
    """Mean -log likelihood of the target under the gate's mix of the experts.

    [B, GATE_FEATURES] features, [B, EXPERTS] shares of the target and of what may be listed.
    """
    weights = model.gate(features)
    return (
        torch.log((weights * allowed).sum(1) + 1e-9) - torch.log((weights * shares).sum(1) + 1e-9)
    ).mean()
