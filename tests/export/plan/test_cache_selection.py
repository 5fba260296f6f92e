"""What is kept between calls: as little as possible, in a form that nobody has to transpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.export.analysis.binding_time import analyse
from hybrid_deploy.export.model.interface import DecodePart
from hybrid_deploy.export.plan.attention_math import attention, mix, scores
from hybrid_deploy.export.plan.cached_value import CacheLayout
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import capture_decoder, hint
from tests.closeness import assert_close_in_float32

VOCABULARY, WIDTH, HEADS, LENGTH, MEMORY = 11, 12, 4, 6, 5
DEPTH = WIDTH // HEADS

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Grouped(nn.Module):
    """Four query heads on two key heads; `spread` repeats the keys for every query head."""

    def __init__(self, spread: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spread = spread
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        return memory, padding

    def decode(self, tokens: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        rows = self.embedding(tokens)
        batch, length, _ = rows.shape
        queries = rows.view(batch, length, HEADS, DEPTH).transpose(1, 2)
        keys = rows[..., : WIDTH // 2].view(batch, length, 2, DEPTH).transpose(1, 2)
        spread = self.spread(keys)
        rows = F.scaled_dot_product_attention(queries, spread, spread, is_causal=True)
        for _ in range(2):
            whole = memory.view(batch, memory.shape[1], HEADS, DEPTH).transpose(1, 2)
            mask = padding[:, None, None, :].expand(batch, HEADS, 1, memory.shape[1])
            rows = F.scaled_dot_product_attention(rows, whole, whole, attn_mask=mask)
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
    return [[hint(size) for size in plan.cached_shape(cache)] for cache in plan.caches]


@pytest.mark.parametrize("spread", [by_expanding, lambda keys: keys.repeat_interleave(2, 1)])
def test_keys_are_kept_before_they_are_repeated(spread: Callable[[Tensor], Tensor]) -> None:
    plan = plan_of(Grouped(spread))
    assert sizes(plan) == [[2, 2, LENGTH, DEPTH]]  # keys and values are one


def test_keys_that_are_not_repeated_in_groups_are_kept_as_they_are_used() -> None:
    assert sizes(plan_of(Grouped(by_tiling))) == [[2, HEADS, LENGTH, DEPTH]]


def test_memory_and_its_mask_are_kept_once_for_all_layers() -> None:
    plan = plan_of(Grouped(by_expanding))
    shapes = [[hint(size) for size in plan.cached_shape(kept)] for kept in plan.memory]
    assert shapes == [[2, HEADS, MEMORY, DEPTH], [2, 1, 1, MEMORY]]  # keys and values are one
    assert plan.memory[1].kind == "mask"


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (CacheLayout(0, (1,), 2, (3,)), (2, 3, 5, 4)),
        (CacheLayout(0, (2,), 1, (3,)), (2, 5, 3, 4)),
        (CacheLayout(1, (), 0, (2,)), (5, 2, 4)),
        (CacheLayout(0, (), 1, ()), (2, 5)),
        (CacheLayout(0, (), 2, (1,), folded=3), (6, 4, 5)),
    ],
)
def test_a_form_can_be_undone(form: CacheLayout, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    kept = form.to_cache(value)
    assert kept.dim() == 4
    assert kept.shape[::2] == (2, 5)
    torch.testing.assert_close(form.from_cache(kept, shape), value, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_written_out_attention_equals_pytorchs(rows: int, groups: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, rows, 8)
    keys, values = torch.randn(2, 4 // groups, 7, 8), torch.randn(2, 4 // groups, 7, 6)
    mask = torch.rand(2, 1, rows, 7) > 0.3
    mask[..., 0] = True
    wanted = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=groups > 1)
    assert_close_in_float32(attention(query, keys, values, mask, None), wanted)
    repeated = keys.repeat_interleave(groups, 1)
    assert_close_in_float32(scores(query, keys), query @ repeated.transpose(-1, -2))
    weights = scores(query, keys).softmax(-1)
    assert_close_in_float32(mix(weights, values), weights @ values.repeat_interleave(groups, 1))
