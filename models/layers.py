"""The parts of the model: item tower, gate, and gated attention blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

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

    def forward(self, x: Tensor, valid: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, T, D] tokens, [B, T] valid -> [B, T, D].

        With `at` [B] only the token of that place is computed -> [B, 1, D]: the same values, less
        work, for the last block.
        """
        D = x.shape[2]
        normed = self.attention_norm(x)
        key, value = (self._split(t) for t in self.key_value(normed).chunk(2, dim=-1))
        if at is not None:
            place = at[:, None, None].expand(-1, 1, D)
            x, normed = x.gather(1, place), normed.gather(1, place)  # [B, T, D] -> [B, 1, D]
        attended = scaled_dot_product_attention(
            self._split(self.query(normed)),
            key,
            value,
            attn_mask=valid[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )  # [B, H, T or 1, D / H]
        attended = attended.transpose(1, 2).flatten(2)  # [B, T or 1, D]
        x = x + self.drop(self.attention_out(attended)) * torch.sigmoid(self.attention_gate(x))
        linear, gated = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        fed = self.feed_out(self.drop(silu(linear) * gated))
        out: Tensor = x + self.drop(fed) * torch.sigmoid(self.feed_gate(x))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D / H]"""
        B, T, _ = x.shape
        return x.reshape(B, T, self.heads, -1).transpose(1, 2)
