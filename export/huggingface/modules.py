"""Replaces modules of Hugging Face decoders that read all tokens at once.

    positions:        table[padding + cumsum(tokens != padding)]    (reads all tokens)
      becomes         table[padding + 1 + index of the token]
    T5 cross layer:   scores + zeros(1, heads, tokens, memory)      (one row per token)
      becomes         scores + zeros(1, 1, 1, 1)
    Switch experts:   rows[expert == chosen]                        (reads the values of all rows)
      becomes         sum of every expert, times its share, which is 0 unless it is chosen
  TrOCR attention:  bmm -> softmax -> bmm, with heads in the batch axis
      becomes         scaled_dot_product_attention(batch, heads, tokens, width)

The new positions are those of `generate()`, which reads one token at a time and takes the length of
the cache as its position. A full run differs only for tokens after a padding token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.model.substitution import Factory, Model, substitute


def rows_by_token(table: Tensor, tokens: Tensor, padding: int) -> Tensor:
    """Returns the position vector of each token: the rows of the table from `padding + 1` on.

    A padding token has the row `padding` at every position.

    Args:
        table: (positions, width) float32, the position vectors.
        tokens: (batch, length) int64.
        padding: id of the padding token, and the row of the table that it takes.

    Returns:
        (batch, length, width) float32.
    """
    first = padding + 1
    steps = table[first : first + tokens.shape[1]]
    return torch.where((tokens == padding).unsqueeze(-1), table[padding], steps)


class SinusoidalPositions(nn.Module):
    """Fairseq's sinusoidal positions, which depend on a token's index alone.

    Args:
        table: (positions, width) float32, the position vectors.
        padding: id of the padding token.
    """

    table: Tensor

    def __init__(self, table: Tensor, padding: int) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.padding = padding

    def forward(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        """Returns the position vectors of the tokens, (batch, length, width)."""
        return rows_by_token(self.table, input_ids, self.padding)


class RobertaEmbeddings(nn.Module):
    """RoBERTa's embeddings, with positions that depend on a token's index alone.

    Args:
        old: RoBERTa's embedding module, whose tables and norm are taken.
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


class UMT5CrossAttention(nn.Module):
    """UMT5's attention to the memory, without its table of zero biases.

    Args:
        old: UMT5's attention module, whose projections are taken.
    """

    def __init__(self, old: Any) -> None:
        super().__init__()
        self.query: nn.Linear = old.q
        self.key: nn.Linear = old.k
        self.value: nn.Linear = old.v
        self.out: nn.Linear = old.o
        self.heads = int(old.n_heads)
        self.scaling = float(old.scaling)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Returns attention to the memory, (batch, length, width)."""
        query, key, value = (
            project(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, rows in (
                (self.query, hidden_states),
                (self.key, encoder_hidden_states),
                (self.value, encoder_hidden_states),
            )
        )
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=self.scaling
        )
        return self.out(mixed.transpose(1, 2).flatten(2)), None


class AllSwitchExperts(nn.Module):
    """Switch's layer of experts, which computes every expert and keeps the chosen one's rows.

    The original selects rows by their values. Its experts also drop the tokens of a sequence that
    come after `expert_capacity` tokens; a decoder in `generate()` reads one token at a time and
    drops none.

    Args:
        old: Switch's sparse layer, whose router and experts are taken.
        capacity: largest number of tokens of an expert and a sequence; None sets no limit.
    """

    def __init__(self, old: Any, capacity: int | None) -> None:
        super().__init__()
        self.classifier: nn.Linear = old.router.classifier
        self.experts = nn.ModuleList(old.experts.values())
        self.capacity = capacity

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns each row (batch, length, width) as its expert changes it."""
        shares = self.classifier(hidden_states).softmax(-1)
        share = shares.amax(-1, keepdim=True)
        chosen = shares == share  # (batch, length, experts)
        if self.capacity is not None:
            chosen = chosen & (chosen.long().cumsum(1) <= self.capacity)
        weights = share * chosen.to(share.dtype)
        rows = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self.experts):
            rows = rows + expert(hidden_states) * weights[..., number : number + 1]
        return rows


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


class FusedTrOCRAttention(nn.Module):
    """TrOCR's attention by torch's fused operator, with a separate axis for the heads.

    Args:
        old: TrOCR's attention module, whose projections are taken.
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
        """Returns attention to `key_value_states`, or self-attention if there are none."""
        attended = hidden_states if key_value_states is None else key_value_states
        query = self._split(self.query(hidden_states))
        key, value = self._split(self.key(attended)), self._split(self.value(attended))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.out(mixed.transpose(1, 2).flatten(2)), None

    def _split(self, rows: Tensor) -> Tensor:
        """Returns rows (batch, length, width) as (batch, heads, length, width of a head)."""
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


def with_incremental_modules(model: Model, encoder: nn.Module | None = None) -> Model:
    """Returns a copy of a model in which no decoder module reads all tokens at once.

    Args:
        model: a Hugging Face model, or a module that holds some; it does not change.
        encoder: part of the model whose modules may read all tokens at once.
    """
    encoder_modules = set() if encoder is None else set(encoder.modules())
    factories = {
        path: factory
        for path, module in model.named_modules()
        if (factory := _factory_of(type(module).__name__, module in encoder_modules)) is not None
    }
    return substitute(model, factories)


def _factory_of(class_name: str, in_encoder: bool) -> Factory | None:
    """Returns the factory of a module's replacement; None if the module stays."""
    return (_ENCODER_FACTORIES if in_encoder else _FACTORIES).get(class_name)


def _umt5_cross_layer(old: Any) -> nn.Module:
    """Returns UMT5's cross-attention layer with another attention inside."""
    old.EncDecAttention = UMT5CrossAttention(old.EncDecAttention)
    module: nn.Module = old
    return module


def _unlimited_experts(old: Any) -> nn.Module:
    return AllSwitchExperts(old, capacity=None)


def _limited_experts(old: Any) -> nn.Module:
    return AllSwitchExperts(old, int(old.router.expert_capacity))


def _unpadded(old: Any) -> nn.Module:
    """Returns Moonshine's attention without the padding of its heads for certain GPU kernels."""
    old.head_dim_padding = 0
    module: nn.Module = old
    return module


def _relative_rows(query_size: int, key_size: int, table: Tensor) -> Tensor:
    """Returns the row of a table of distances for each query and key of one size."""
    assert query_size == key_size and len(table) == 2 * key_size - 1, "a window of another size"
    index = np.arange(query_size)[:, None] - np.arange(key_size) + key_size - 1
    return table[torch.from_numpy(index)]


def _fixed_distances(old: Any) -> nn.Module:
    """Returns GOT-OCR2's attention without the interpolation of its tables, of equal sizes."""
    old.get_rel_pos = _relative_rows
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
    "SeamlessM4TSinusoidalPositionalEmbedding": _sinusoidal,
    "SeamlessM4Tv2SinusoidalPositionalEmbedding": _sinusoidal,
    "Speech2TextSinusoidalPositionalEmbedding": _sinusoidal,
    "SwitchTransformersLayerCrossAttention": CrossAttentionWithoutBias,
    "SwitchTransformersSparseMLP": _unlimited_experts,
    "T5LayerCrossAttention": CrossAttentionWithoutBias,
    "TrOCRAttention": FusedTrOCRAttention,
    "TrOCRSinusoidalPositionalEmbedding": _sinusoidal,
    "UMT5LayerCrossAttention": _umt5_cross_layer,
    "XLMRobertaEmbeddings": RobertaEmbeddings,
}
"""Factory of the replacement, by the class name of a module outside the encoder."""

_ENCODER_FACTORIES: dict[str, Factory] = {
    "BigBirdPegasusSelfAttention": AdditiveMask,
    "GotOcr2VisionAttention": _fixed_distances,
    "SwitchTransformersSparseMLP": _limited_experts,
}
"""Factory of the replacement, by the class name of a module of the encoder."""
