"""Modules of Hugging Face decoders that look at all tokens at once, and what stands in for them.

Positions that are counted over the tokens that are no padding (a cumulative sum) become positions
that every token knows of itself. This is what `generate()` computes, where a token is alone and its
position is the length of the cache; a full run differs only behind a padding token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.model.substitution import Factory, Model, substitute


def rows_by_token(table: Tensor, tokens: Tensor, padding: int) -> Tensor:
    """Returns each token's position row: from `padding + 1` on, `padding` for a padding token.

    Args:
        table: (positions, width).
        tokens: (batch, length) int64.
        padding: the padding token, and the row of the table that it has for a position.

    Returns:
        (batch, length, width).
    """
    first = padding + 1
    steps = table[first : first + tokens.shape[1]]
    return torch.where((tokens == padding).unsqueeze(-1), table[padding], steps)


class SinusoidalPositions(nn.Module):
    """Fairseq's sinusoidal positions, known to every token by itself.

    Args:
        table: (positions, width).
        padding: the padding token.
    """

    table: Tensor

    def __init__(self, table: Tensor, padding: int) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.padding = padding

    def forward(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        """Returns the rows of the tokens' positions, (batch, length, width)."""
        return rows_by_token(self.table, input_ids, self.padding)


class RobertaEmbeddings(nn.Module):
    """RoBERTa's embeddings, with positions known to every token by itself.

    Args:
        old: has the tables and the norm.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.words: nn.Embedding = old.word_embeddings
        self.types: nn.Embedding = old.token_type_embeddings
        self.positions: nn.Embedding = old.position_embeddings
        self.norm: nn.LayerNorm = old.LayerNorm
        self.padding = int(old.padding_idx)

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        """Returns the embedded tokens, (batch, length, width)."""
        words = self.words(input_ids) + self.types.weight[0]
        rows: Tensor = self.norm(
            words + rows_by_token(self.positions.weight, input_ids, self.padding)
        )
        return rows


class CrossAttentionWithoutBias(nn.Module):
    """T5's cross-attention layer without the table of zeros that it takes for a position bias.

    The table has a row per token and a column per memory position, so it would be made anew at
    every step.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with a position bias that is a single zero."""
        kwargs["position_bias"] = torch.zeros(
            1, 1, 1, 1, dtype=hidden_states.dtype, device=hidden_states.device
        )
        return self.layer(hidden_states, *args, **kwargs)


class FusedTrOCRAttention(nn.Module):
    """TrOCR's attention by torch's fused one, which keeps the heads apart from the batch.

    Args:
        old: has the projections.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.query: nn.Linear = old.q_proj
        self.key: nn.Linear = old.k_proj
        self.value: nn.Linear = old.v_proj
        self.out: nn.Linear = old.out_proj
        self.heads = int(old.num_heads)

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Attends to `key_value_states`, or to the tokens themselves."""
        attended = hidden_states if key_value_states is None else key_value_states
        query = self._split(self.query(hidden_states))
        key, value = self._split(self.key(attended)), self._split(self.value(attended))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.out(mixed.transpose(1, 2).flatten(2)), None

    def _split(self, rows: Tensor) -> Tensor:
        """Puts the heads beside the batch, (batch, heads, length, width)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


def with_token_modules(model: Model, encoder: nn.Module | None = None) -> Model:
    """Returns a copy of a model in which no decoder module looks at all tokens at once.

    Args:
        model: is or holds Hugging Face models; left as it is.
        encoder: a part of it that is kept as it is.
    """
    kept = set() if encoder is None else set(encoder.modules())
    found = {
        path: _FACTORIES[type(module).__name__]
        for path, module in model.named_modules()
        if type(module).__name__ in _FACTORIES and module not in kept
    }
    return substitute(model, found)


def _unpadded(old: Any) -> nn.Module:
    """Keeps Moonshine's heads at their own width; they are padded for another kind of kernel."""
    old.head_dim_padding = 0
    module: nn.Module = old
    return module


def _sinusoidal(old: Any) -> nn.Module:
    return SinusoidalPositions(old.weights, int(old.padding_idx))


_FACTORIES: dict[str, Factory] = {
    "CamembertEmbeddings": RobertaEmbeddings,
    "M2M100SinusoidalPositionalEmbedding": _sinusoidal,
    "MT5LayerCrossAttention": CrossAttentionWithoutBias,
    "LongT5LayerCrossAttention": CrossAttentionWithoutBias,
    "MoonshineAttention": _unpadded,
    "Pix2StructTextLayerCrossAttention": CrossAttentionWithoutBias,
    "RobertaEmbeddings": RobertaEmbeddings,
    "Speech2TextSinusoidalPositionalEmbedding": _sinusoidal,
    "T5LayerCrossAttention": CrossAttentionWithoutBias,
    "TrOCRAttention": FusedTrOCRAttention,
    "TrOCRSinusoidalPositionalEmbedding": _sinusoidal,
    "UMT5LayerCrossAttention": CrossAttentionWithoutBias,
    "XLMRobertaEmbeddings": RobertaEmbeddings,
}
"""What stands in for the modules of a class."""
