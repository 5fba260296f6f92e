"""Rules for attention: matrix products of rows with keys and values, or the fused operator.

With B sequences, H heads, T cached tokens, width W, in a step graph:

    full sequence                                    one token
    scores  (B, H, L, W) @ (B, H, W, L)              (B, H, 1, W) x cached keys (B, H, T, W)
    mixing  (B, H, L, L) @ (B, H, L, W)              (B, H, 1, T) x cached values (B, H, T, W)
    weights (B, L, W) @ (W, V)                       (B, W) @ (W, V)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.analysis.rules.proven import ProvenRowWise
from hybrid_deploy.export.plan.attention_math import attention, attention_scores, weighted_values
from hybrid_deploy.export.plan.axis_alignment import Alignment
from hybrid_deploy.export.plan.cache_selection import (
    select_key_value_cache,
    select_memory,
    select_state_cache,
)
from hybrid_deploy.export.plan.causal_mask import BLOCKED_BELOW, future_mask
from hybrid_deploy.export.plan.data_movement import is_movement
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import example_size
from hybrid_deploy.export.trace.refusal import NO_CAUSAL_MASK, refuse

_SOFTMAX = "softmax"
_OTHER_PRODUCT = ProvenRowWise()  # products with the tokens on another axis than the rows


class MatrixProduct:
    """Matrix products of rows with weights or keys, and of attention weights with values."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        rank = plan.rank(node)
        if not _has_matrix_rows(plan, left):
            return _OTHER_PRODUCT.bind(plan, node)
        left_layout = plan.layouts.get(left, Layout(rows=plan.rank(left) - 2))
        if not plan.depends_on_tokens(right):
            if left_layout.keys is None and _is_table_of_keys(plan, right):
                return Layout(rows=rank - 2, keys=rank - 1)
            if plan.token_axes(right):
                raise refuse(node, "a matrix product with a constant that runs along the tokens")
            if plan.binding_times[right] is BindingTime.MEMORY and plan.batch_axis(right) == 0:
                is_mixing = _is_probability(plan, left)
                kind = "value" if is_mixing else "key"
                select_key_value_cache(plan, node, right, kind, transposed=not is_mixing)
            return Layout(rows=rank - 2)
        token_axes = plan.token_axes(right)
        if left_layout.keys is None and token_axes == (plan.rank(right) - 1,):
            select_key_value_cache(plan, node, right, "key", transposed=True)
            return Layout(rows=rank - 2, keys=rank - 1)
        if left_layout.keys == plan.rank(left) - 1 and token_axes == (plan.rank(right) - 2,):
            select_key_value_cache(plan, node, right, "value")
            return Layout(rows=rank - 2)
        raise refuse(node, "this matrix product mixes tokens in a way that is not attention")

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        if not _has_matrix_rows(executor.plan, left):
            return _OTHER_PRODUCT.run(executor, node)
        single = executor.is_single(node)
        rows = _query_rows(executor, node, left)
        access = executor.plan.accesses.get((node, right))
        if access is None or access.cached.layout is None:
            factor = executor.fixed_value(node, right)
            if not single or factor.dim() == 2:
                return torch.matmul(rows, factor)
            return torch.matmul(rows.unsqueeze(-2), factor).squeeze(-2)
        cached, groups = executor.cached_heads(node, right)
        heads = with_heads(rows.unsqueeze(-2) if single else rows, cached.shape[1] * groups)
        has_keys = access.cached.kind == "key"
        product = attention_scores(heads, cached) if has_keys else weighted_values(heads, cached)
        return without_heads(executor, node, product)


class FusedAttention:
    """The operator scaled_dot_product_attention of PyTorch."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        call = _AttentionCall(node)
        rows = plan.rank(call.query) - 2
        if not _has_matrix_rows(plan, call.query):
            raise refuse(node, "the attention's query does not carry the tokens on axis -2")
        if plan.depends_on_tokens(call.key):
            self._bind_self_attention(plan, node, call, rows)
        else:
            select_key_value_cache(plan, node, call.key, "key")
            select_key_value_cache(plan, node, call.value, "value")
            if call.mask is not None and plan.binding_times[call.mask] is BindingTime.MEMORY:
                select_memory(plan, node, call.mask, "mask")
        return Layout(rows=rows)

    def run(self, executor: RowExecutor, node: fx.Node) -> Any:
        call, single = _AttentionCall(node), executor.is_single(node)
        query = _query_rows(executor, node, call.query)
        keys, groups = executor.cached_heads(node, call.key)
        values, _ = executor.cached_heads(node, call.value)
        query = with_heads(query.unsqueeze(-2) if single else query, keys.shape[1] * groups)
        mask = _mask(executor, node, call)
        # keys that are rotated after their repetition have more heads than the values
        if executor.native and keys.shape[1] == values.shape[1]:
            result = F.scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=mask,
                scale=call.scale,
                enable_gqa=query.shape[1] != keys.shape[1],
            )
        else:
            result = attention(query, keys, values, mask, call.scale)
        return without_heads(executor, node, result)

    def _bind_self_attention(
        self, plan: DecodePlan, node: fx.Node, call: _AttentionCall, rows: int
    ) -> None:
        if not plan.depends_on_tokens(call.value) or plan.layouts[call.key].rows != rows:
            raise refuse(node, "the attention's keys do not carry the tokens on axis -2")
        select_key_value_cache(plan, node, call.key, "key")
        select_key_value_cache(plan, node, call.value, "value")
        if call.mask is None and not call.is_causal:
            raise refuse(node, NO_CAUSAL_MASK)
        if call.mask is None:
            return
        table = plan.constants.get(call.mask, plan.example_values.get(call.mask))
        if table is not None:
            _check_causal(plan, node, table)
        elif plan.depends_on_tokens(call.mask):
            layout = plan.layouts[call.mask]
            if layout.keys is None and layout.rows == plan.rank(call.mask) - 1:
                select_state_cache(plan, node, call.mask)


class _AttentionCall:
    """The arguments of a node that calls scaled_dot_product_attention, by name.

    Args:
        node: the node.
    """

    def __init__(self, node: fx.Node) -> None:
        def argument(index: int, name: str, default: Any) -> Any:
            return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)

        self.query: fx.Node = argument(0, "query", None)
        self.key: fx.Node = argument(1, "key", None)
        self.value: fx.Node = argument(2, "value", None)
        self.mask: fx.Node | None = argument(3, "attn_mask", None)
        self.is_causal: bool = argument(5, "is_causal", False)
        self.scale: float | None = argument(6, "scale", None)


def with_heads(rows: Tensor, heads: int) -> Tensor:
    """Returns rows as (batch, heads, rows, width).

    Args:
        rows: (batch, heads, rows, width), or (batch * heads, rows, width) with the heads folded
            into the batch, or (batch, several axes of heads, rows, width).
        heads: number of heads, which a fold does not show.
    """
    if rows.dim() == 4:
        return rows
    if rows.dim() == 3:
        return torch.unflatten(rows, 0, (-1, heads))
    return rows.flatten(1, -3)


def without_heads(executor: RowExecutor, node: fx.Node, product: Tensor) -> Tensor:
    """Returns a product (batch, heads, rows, width) in the shape of its node."""
    if executor.is_single(node):
        product = product.squeeze(2)
    shape = executor.shape(node)
    return product if product.dim() == len(shape) else product.reshape(shape)


def _mask(executor: RowExecutor, node: fx.Node, call: _AttentionCall) -> Tensor | None:
    """Returns the mask of an attention, broadcastable to (batch, heads, rows, keys), if any."""
    if call.mask is None and not call.is_causal:
        return None
    own = executor.alignment(node)
    rank = max(own.rank, 0 if call.mask is None else executor.plan.rank(call.mask))
    alignment = Alignment(rank=rank, rows=-2, batch=own.batch, fold_factor=own.fold_factor)
    return _with_head_axis(executor.attention_mask(node, call.key, call.mask, alignment), own)


def _with_head_axis(mask: Tensor, own: Alignment) -> Tensor:
    """Inserts a head axis into the mask of an attention that has rank three.

    Its heads are either absent, or folded into the batch.
    """
    if own.rank != 3 or mask.dim() != 3:
        return mask
    if own.fold_factor == 1:
        return mask.unsqueeze(1)
    return torch.unflatten(mask, 0, (-1, own.fold_factor))


def _check_causal(plan: DecodePlan, node: fx.Node, table: Tensor) -> None:
    """Refuses a constant self-attention mask in which a token sees later tokens."""
    prefix = 0 if plan.prefix_size is None else example_size(plan.prefix_size)
    count = plan.capture.length + prefix
    if table.shape[-1] not in (plan.capture.length, count) or table.shape[-2] != table.shape[-1]:
        raise refuse(node, "the self-attention mask has no row and column per token")
    future = future_mask(table.shape[-1], plan.capture.length)
    visible = table if table.dtype is torch.bool else table > BLOCKED_BELOW
    if bool(visible[..., future].any()):
        raise refuse(node, "the self-attention mask lets a token see the tokens after it")


def _is_table_of_keys(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a constant (..., width, tokens) has a vector for every place or distance."""
    is_constant = plan.binding_times[node] is BindingTime.CONSTANT
    columns = (plan.rank(node) - 1,)
    return is_constant and plan.batch_axis(node) is None and plan.token_axes(node) == columns


def _has_matrix_rows(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether the new tokens are the rows of a matrix, the axis before the last one.

    The matrix may be a table of queries, one per position, as in PARSeq's decoder.
    """
    if plan.depends_on_tokens(node):
        return plan.layouts[node].rows == plan.rank(node) - 2
    is_constant = plan.binding_times[node] is BindingTime.CONSTANT
    return is_constant and plan.token_axes(node) == (plan.rank(node) - 2,)


def _query_rows(executor: RowExecutor, node: fx.Node, query: fx.Node) -> Any:
    """Returns the new rows of the left operand of a product, or of the query of an attention."""
    if executor.plan.depends_on_tokens(query):
        return executor.token_value(query, single=executor.is_single(node))
    return executor.aligned_value(node, query, executor.alignment(node))


def _is_probability(plan: DecodePlan, node: object) -> bool:
    """Returns whether a value is the result of a softmax, at most moved or scaled afterwards."""
    while isinstance(node, fx.Node) and plan.depends_on_tokens(node):
        if _SOFTMAX in str(node.target):
            return True
        source = node.args[0] if node.args else None
        keeps_shape = isinstance(source, fx.Node) and plan.have_same_shape(source, node)
        node = source if keeps_shape or is_movement(node) else None
    return False
