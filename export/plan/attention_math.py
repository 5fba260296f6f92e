"""Products of rows with kept keys and values, in which no key is ever transposed for one row.

Heads of queries share heads of keys in groups, as in grouped-query attention: query head `h` reads
key head `h // groups`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scores(query: Tensor, keys: Tensor) -> Tensor:
    """Multiplies queries with keys.

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
    if query.shape[2] == 1:  # the heads of a group are the rows of one product
        rows = query.reshape(query.shape[0], keys.shape[1], groups, query.shape[3])
        product = torch.matmul(keys, rows.transpose(-1, -2))  # (batch, kept heads, length, groups)
        return product.transpose(-1, -2).reshape(*query.shape[:3], keys.shape[2])
    if groups > 1:
        keys = keys.repeat_interleave(groups, 1)
    return torch.matmul(query, keys.transpose(-1, -2))


def mix(weights: Tensor, values: Tensor) -> Tensor:
    """Multiplies attention weights with values.

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
    """Scaled dot-product attention written out.

    Args:
        query: (batch, heads, rows, width).
        keys: (batch, heads / groups, length, width).
        values: (batch, heads / groups, length, width of the values).
        mask: what is added to the scores, or true where a key may be seen; broadcasts to
            (batch, heads, rows, length).
        scale: factor of the scores; None: one over the root of the width.

    Returns:
        (batch, heads, rows, width of the values).
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    product = scores(query * factor, keys)
    if mask is not None and mask.dtype is torch.bool:
        product = torch.where(mask, product, torch.tensor(-torch.inf))
    elif mask is not None:
        product = product + mask
    return mix(product.softmax(-1), values)
