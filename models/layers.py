"""The parts of the model: item tower, gate, and gated attention blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu

#: How much larger an item's vector is read in a history than it is stored: the tables start small.
_INPUT_SCALE = 8.0


class ItemTower(nn.Module):
    """What an item is, as two vectors: read in a history, and scored against.

    Each is the item's own vector, where the release knows it, plus those of its attributes, summed
    and divided by the root of their number. Attributes are shared by both sides.
    """

    def __init__(self, items: int, attributes: int, width: int) -> None:
        super().__init__()
        self.id_input = nn.Embedding(max(items, 1), width)
        self.id_output = nn.Embedding(max(items, 1), width)
        self.attributes = nn.Embedding(max(attributes, 1), width)

    def forward(
        self, id_rows: Tensor, attribute_rows: Tensor, id_kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[N] id rows and [N, A] attribute rows, -1 for none -> [N, D] input, [N, D] output.

        `id_kept` [N] is 0 where training hides the id.
        """
        known = (id_rows >= 0).to(self.id_input.weight.dtype)
        if id_kept is not None:
            known = known * id_kept
        rows = id_rows.clamp(min=0)
        has = (attribute_rows >= 0).to(known.dtype)  # [N, A]
        vectors = self.attributes(attribute_rows.clamp(min=0))  # [N, A] -> [N, A, D]
        count = has.sum(1, keepdim=True).clamp(min=1.0)
        content = (vectors * has[:, :, None]).sum(1) * torch.rsqrt(count)  # [N, A, D] -> [N, D]
        item_input = self.id_input(rows) * known[:, None] + content
        item_output = self.id_output(rows) * known[:, None] + content
        return item_input * _INPUT_SCALE, item_output


class Gate(nn.Module):
    """How much each live expert is trusted for a user, from what is known of the user's state."""

    def __init__(self, features: int, width: int, experts: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, experts)

    def forward(self, features: Tensor) -> Tensor:
        """[B, features] -> [B, experts] weights that sum to one."""
        return torch.softmax(self.out(torch.tanh(self.hidden(features))), dim=-1)


class Block(nn.Module):
    """A LiGR block: attention and SwiGLU, each behind a gate of its input.

    Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact" (2025).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_gate = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 8 * width)
        self.feed_out = nn.Linear(4 * width, width)
        self.feed_gate = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, at: Tensor | None = None) -> Tensor:
        """[B * T, D] tokens -> [B * T, D].

        `bias` [B, 1, 1, T] is added to how much each token is attended to. With `at` [B], one
        token of every user, only those are computed -> [B, D]: the same values, less work, for the
        last block. Tokens have one axis, as a layer's bias is then no node of its own in ONNX.
        """
        B, T, D = bias.shape[0], bias.shape[3], x.shape[1]
        normed = self.attention_norm(x)
        key, value = self._heads(self.key_value(normed), B, T, 2).chunk(2, dim=1)
        if at is not None:
            x, normed = x.index_select(0, at), normed.index_select(0, at)  # [B * T, D] -> [B, D]
        query = self._heads(self.query(normed), B, T if at is None else 1, 1)
        logits = (query @ key.transpose(2, 3)) * (D // self.heads) ** -0.5 + bias
        weights = dropout(torch.softmax(logits, dim=-1), self.dropout, self.training)
        attended = (weights @ value).transpose(1, 2).reshape(-1, D)  # [B, H, T or 1, D / H] -> x's
        x = x + self.drop(self.attention_out(attended)) * torch.sigmoid(self.attention_gate(x))
        linear, gated = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        fed = self.feed_out(self.drop(silu(linear) * gated))
        out: Tensor = x + self.drop(fed) * torch.sigmoid(self.feed_gate(x))
        return out

    def _heads(self, x: Tensor, B: int, T: int, parts: int) -> Tensor:
        """[B * T, parts x D] -> [B, parts x H, T, D / H]"""
        H = parts * self.heads
        return x.reshape(B, T, H, x.shape[1] // H).transpose(1, 2)
