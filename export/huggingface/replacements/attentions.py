"""Attentions with an axis of their own for the heads, and masks of another form.

bmm -> softmax -> bmm, with heads in the batch axis
  becomes    scaled_dot_product_attention(batch, heads, tokens, width)
T5 cross layer:  scores + zeros(1, heads, tokens, memory)      (one row per token)
  becomes    scores + zeros(1, 1, 1, 1)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Attention by torch's fused operator, with a separate axis for the heads.

    Args:
        query: projection of the tokens.
        key: projection of what they attend to.
        value: projection of what they attend to.
        out: projection of the result.
        heads: number of heads.
        scaling: factor of the scores; None takes one over the root of a head's width.
    """

    def __init__(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        heads: int,
        scaling: float | None = None,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.heads, self.scaling = heads, scaling

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Returns attention to `key_value_states`, or self-attention if there are none.

        Args:
            hidden_states: (batch, length, width).
            key_value_states: (batch, memory, width).
            attention_mask: true for visible keys, or added to the scores.
        """
        attended = hidden_states if key_value_states is None else key_value_states
        query = self._split(self.query(hidden_states))
        key, value = self._split(self.key(attended)), self._split(self.value(attended))
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=self.scaling
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), None

    def _split(self, rows: Tensor) -> Tensor:
        """Returns rows (batch, length, width) as (batch, heads, length, width of a head)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


def fused_attention(old: Any) -> FusedAttention:
    """Returns the replacement of an attention with fairseq's names, whose projections are taken."""
    return FusedAttention(old.q_proj, old.k_proj, old.v_proj, old.out_proj, int(old.num_heads))


class FSMTAttention(nn.Module):
    """FSMT's attention, whose rows have the batch as their second axis.

    Args:
        old: FSMT's attention module, whose projections are taken.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.attention = fused_attention(old)
        self.cache_key = str(old.cache_key)  # FSMT's layers compare those of their attentions

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Returns attention to the keys, (length, batch, width).

        Args:
            query: (length, batch, width).
            key: (keys, batch, width).
            key_padding_mask: (batch, keys), true for hidden keys.
            attn_mask: true for visible keys; broadcasts to the scores.
        """
        if key_padding_mask is not None:
            attn_mask = ~key_padding_mask[:, None, None, :]
        mixed, _none = self.attention(query.transpose(0, 1), key.transpose(0, 1), attn_mask)
        return mixed.transpose(0, 1), None


class _UMT5CrossAttention(FusedAttention):
    """UMT5's attention to the memory, without its table of zero biases."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Returns attention to the memory, (batch, length, width)."""
        return super().forward(hidden_states, encoder_hidden_states, attention_mask)


def umt5_cross_layer(old: Any) -> nn.Module:
    """Returns UMT5's cross-attention layer with another attention inside."""
    inner = old.EncDecAttention
    old.EncDecAttention = _UMT5CrossAttention(
        inner.q, inner.k, inner.v, inner.o, int(inner.n_heads), float(inner.scaling)
    )
    layer: nn.Module = old
    return layer


def unpadded_heads(old: Any) -> nn.Module:
    """Returns Moonshine's attention without the padding of its heads for certain GPU kernels."""
    old.head_dim_padding = 0
    module: nn.Module = old
    return module


class CrossAttentionWithoutBias(nn.Module):
    """T5's cross-attention layer with a single zero in place of its table of zero biases.

    The table has a row per token and a column per memory position, so every step would make it
    again.

    Args:
        layer: T5's cross-attention layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs of the layer, called with a position bias (1, 1, 1, 1) of zero."""
        kwargs["position_bias"] = torch.zeros(
            1, 1, 1, 1, dtype=hidden_states.dtype, device=hidden_states.device
        )
        return self.layer(hidden_states, *args, **kwargs)


class AdditiveMask(nn.Module):
    """BigBird's full attention, which adds its mask to the scores, behind a boolean mask.

    Args:
        layer: BigBird's attention of the encoder.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Returns the outputs of the layer, called with 0 for visible keys and the least float."""
        if attention_mask is not None:
            least = torch.finfo(hidden_states.dtype).min
            hidden = torch.zeros_like(attention_mask, dtype=hidden_states.dtype)
            attention_mask = hidden.masked_fill(~attention_mask, least)
        return self.layer(hidden_states, attention_mask, **kwargs)


def fixed_distances(old: Any) -> nn.Module:
    """Returns GOT-OCR2's attention without the interpolation of its tables, of equal sizes."""
    old.get_rel_pos = _relative_rows
    module: nn.Module = old
    return module


def _relative_rows(query_size: int, key_size: int, table: Tensor) -> Tensor:
    """Returns the row of a table of distances for each query and key of one size."""
    assert query_size == key_size and len(table) == 2 * key_size - 1, "a window of another size"
    index = np.arange(query_size)[:, None] - np.arange(key_size) + key_size - 1
    return table[torch.from_numpy(index)]
