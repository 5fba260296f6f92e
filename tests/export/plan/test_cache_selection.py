"""The selection of cached values: as small as possible, in a layout that needs no transpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.model.interface import DecodePart
from hybrid_deploy.export.plan.attention_math import attention, attention_scores, weighted_values
from hybrid_deploy.export.plan.cached_value import CacheLayout
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import capture_decoder, example_size
from tests.closeness import assert_close_in_float32

VOCABULARY, WIDTH, HEADS, LENGTH, MEMORY = 11, 12, 4, 6, 5
DEPTH = WIDTH // HEADS

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Grouped(nn.Module):
    """Four query heads share two key heads; `repeat_heads` repeats the keys for each query head."""

    def __init__(self, repeat_heads: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.repeat_heads = repeat_heads
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        return memory, padding

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        rows = self.embedding(tokens)
        batch, length, _ = rows.shape
        queries = rows.view(batch, length, HEADS, DEPTH).transpose(1, 2)
        keys = rows[..., : WIDTH // 2].view(batch, length, 2, DEPTH).transpose(1, 2)
        repeated = self.repeat_heads(keys)
        rows = F.scaled_dot_product_attention(queries, repeated, repeated, is_causal=True)
        for _ in range(2):
            cross = memory.view(batch, memory.shape[1], HEADS, DEPTH).transpose(1, 2)
            mask = padding[:, None, None, :].expand(batch, HEADS, 1, memory.shape[1])
            rows = F.scaled_dot_product_attention(rows, cross, cross, attn_mask=mask)
        logits: Tensor = self.head(rows.transpose(1, 2).reshape(batch, length, WIDTH))
        return logits


def by_expanding(keys: Tensor) -> Tensor:
    batch, groups, length, depth = keys.shape
    repeated = keys[:, :, None].expand(batch, groups, 2, length, depth)
    return repeated.reshape(batch, HEADS, length, depth)


def by_tiling(keys: Tensor) -> Tensor:
    return keys.repeat(1, 2, 1, 1)


def plan_of(model: nn.Module) -> DecodePlan:
    memory = torch.randn(2, MEMORY, WIDTH), torch.ones(2, MEMORY, dtype=torch.bool)
    return analyse(capture_decoder(DecodePart(model.eval()), memory, ((1,), (1,)), LENGTH))


def sizes(plan: DecodePlan) -> list[list[int]]:
    return [[example_size(size) for size in plan.cached_shape(cache)] for cache in plan.caches]


@pytest.mark.parametrize("repeat_heads", [by_expanding, lambda keys: keys.repeat_interleave(2, 1)])
def test_keys_are_cached_before_they_are_repeated(repeat_heads: Callable[[Tensor], Tensor]) -> None:
    plan = plan_of(Grouped(repeat_heads))
    assert sizes(plan) == [[2, 2, LENGTH, DEPTH]]  # keys and values are the same tensor


def test_keys_that_are_not_repeated_in_groups_are_cached_with_all_heads() -> None:
    assert sizes(plan_of(Grouped(by_tiling))) == [[2, HEADS, LENGTH, DEPTH]]


def test_all_layers_share_the_cached_memory_and_its_mask() -> None:
    plan = plan_of(Grouped(by_expanding))
    shapes = [[example_size(size) for size in plan.cached_shape(cached)] for cached in plan.memory]
    assert shapes == [[2, HEADS, MEMORY, DEPTH], [2, 1, 1, MEMORY]]  # keys and values are the same
    assert plan.memory[1].kind == "mask"


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (CacheLayout(0, (1,), 2, (3,)), (2, 3, 5, 4)),
        (CacheLayout(0, (2,), 1, (3,)), (2, 5, 3, 4)),
        (CacheLayout(1, (), 0, (2,)), (5, 2, 4)),
        (CacheLayout(0, (), 1, ()), (2, 5)),
        (CacheLayout(0, (), 2, (1,), fold_factor=3), (6, 4, 5)),
    ],
)
def test_from_cache_inverts_to_cache(layout: CacheLayout, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    cached = layout.to_cache(value)
    assert cached.dim() == 4
    assert cached.shape[::2] == (2, 5)
    torch.testing.assert_close(layout.from_cache(cached, shape), value, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_attention_by_elementary_operators_equals_pytorch(rows: int, groups: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, rows, 8)
    keys, values = torch.randn(2, 4 // groups, 7, 8), torch.randn(2, 4 // groups, 7, 6)
    mask = torch.rand(2, 1, rows, 7) > 0.3
    mask[..., 0] = True
    expected = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=groups > 1)
    assert_close_in_float32(attention(query, keys, values, mask, None), expected)
    repeated = keys.repeat_interleave(groups, 1)
    assert_close_in_float32(attention_scores(query, keys), query @ repeated.transpose(-1, -2))
    weights = attention_scores(query, keys).softmax(-1)
    assert_close_in_float32(
        weighted_values(weights, values), weights @ values.repeat_interleave(groups, 1)
    )
