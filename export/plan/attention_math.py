"""Products of queries and attention weights with cached keys and values, (batch, heads, T, W).

In grouped-query attention (Ainslie et al. 2023), `groups` query heads share one key head: query
head `h` reads key head `h // groups`. For one row the small operand is transposed instead of the
cache:

    one row        keys (B, H, T, W) @ query (B, H, W, 1) -> (B, H, T, 1) -> (B, H, 1, T)
    several rows   query (B, H, R, W) @ keys.mT (B, H, W, T)             -> (B, H, R, T)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Returns the products of queries with keys.

    Args:
        query: (batch, heads, rows, width).
        keys: (batch, heads / groups, length, width).

    Returns:
        (batch, heads, rows, length).
    """
    groups = query.shape[1] // keys.shape[1]
    if query.shape[2] == 1 and groups == 1:
        product = torch.matmul(keys, query.reshape(*query.shape[:2], query.shape[3], 1))
        return product.reshape(*product.shape[:2], 1, product.shape[2])
    if query.shape[2] == 1:  # the query heads of a group become the rows of one product
        rows = query.reshape(query.shape[0], keys.shape[1], groups, query.shape[3])
        product = torch.matmul(keys, rows.transpose(-1, -2))  # (batch, key heads, length, groups)
        return product.transpose(-1, -2).reshape(*query.shape[:3], keys.shape[2])
    if groups > 1:
        keys = keys.repeat_interleave(groups, 1)
    return torch.matmul(query, keys.transpose(-1, -2))


def weighted_values(weights: Tensor, values: Tensor) -> Tensor:
    """Returns the values weighted by attention weights.

    Args:
        weights: (batch, heads, rows, length).
        values: (batch, heads / groups, length, width).

    Returns:
        (batch, heads, rows, width).
    """
    groups = weights.shape[1] // values.shape[1]
    if groups > 1 and weights.shape[2] == 1:
        rows = weights.reshape(weights.shape[0], values.shape[1], groups, weights.shape[3])
        product = torch.matmul(rows, values)
        return product.reshape(weights.shape[0], weights.shape[1], 1, values.shape[3])
    if groups > 1:
        values = values.repeat_interleave(groups, 1)
    return torch.matmul(weights, values)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Returns scaled dot-product attention, computed by elementary operators.

    Args:
        query: (batch, heads, rows, width).
        keys: (batch, heads / groups, length, width).
        values: (batch, heads / groups, length, width of the values).
        mask: float values that are added to the scores, or bool, true where a key may be seen;
            broadcasts to (batch, heads, rows, length).
        scale: factor of the scores; None stands for 1 / sqrt(width).

    Returns:
        (batch, heads, rows, width of the values).
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    product = attention_scores(query * factor, keys)
    if mask is not None and mask.dtype is torch.bool:
        product = torch.where(mask, product, torch.tensor(-torch.inf))
    elif mask is not None:
        product = product + mask
    return weighted_values(product.softmax(-1), values)
