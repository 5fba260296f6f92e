"""Rules for attention: the products of rows with keys and values, written out or fused."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.plan.attention_math import attention, mix, scores
from hybrid_deploy.export.plan.axis_alignment import Alignment
from hybrid_deploy.export.plan.cache_selection import (
    select_key_value_cache,
    select_memory,
    select_state_cache,
)
from hybrid_deploy.export.plan.causal_mask import BLOCKED_BELOW, later_places
from hybrid_deploy.export.plan.data_movement import is_movement
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan, Layout
from hybrid_deploy.export.plan.row_executor import RowExecutor
from hybrid_deploy.export.trace.capture import hint
from hybrid_deploy.export.trace.refusal import NO_CAUSAL_MASK, refuse

_SOFTMAX = "softmax"


class MatrixProduct:
    """Matrix products: with weights, of rows with keys (scores), of scores with values."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        rank = plan.rank(node)
        if not plan.depends_on_tokens(left) or plan.layouts[left].rows != plan.rank(left) - 2:
            raise refuse(node, "the token axis is not the row axis of this matrix product")
        lhs = plan.layouts[left]
        if not plan.depends_on_tokens(right):
            if plan.token_axes(right):
                raise refuse(node, "a matrix product with a constant that runs along the tokens")
            if plan.times[right] is BindingTime.MEMORY and plan.batch_axis(right) == 0:
                mixes = _is_probability(plan, left)
                kind = "value" if mixes else "key"
                select_key_value_cache(plan, node, right, kind, transposed=not mixes)
            return Layout(rows=rank - 2)
        along = plan.token_axes(right)
        if lhs.keys is None and along == (plan.rank(right) - 1,):
            select_key_value_cache(plan, node, right, "key", transposed=True)
            return Layout(rows=rank - 2, keys=rank - 1)
        if lhs.keys == plan.rank(left) - 1 and along == (plan.rank(right) - 2,):
            select_key_value_cache(plan, node, right, "value")
            return Layout(rows=rank - 2)
        raise refuse(node, "this matrix product mixes tokens in a way that is not attention")

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        single = frame.is_single(node)
        rows = frame.raw(left, single=single)
        access = frame.plan.accesses.get((node, right))
        if access is None or access.cached.form is None:
            other = frame.fixed(node, right)
            if not single or other.dim() == 2:
                return torch.matmul(rows, other)
            return torch.matmul(rows.unsqueeze(-2), other).squeeze(-2)
        kept, groups = frame.heads(node, right)
        heads = with_heads(rows.unsqueeze(-2) if single else rows, kept.shape[1] * groups)
        transposed = access.cached.kind == "key"
        product = scores(heads, kept) if transposed else mix(heads, kept)
        return without_heads(frame, node, product)


class FusedAttention:
    """torch's scaled_dot_product_attention."""

    def bind(self, plan: DecodePlan, node: fx.Node) -> Layout:
        call = _AttentionCall.of(node)
        rows = plan.rank(call.query) - 2
        if not plan.depends_on_tokens(call.query) or plan.layouts[call.query].rows != rows:
            raise refuse(node, "the attention's query does not carry the tokens on axis -2")
        if plan.depends_on_tokens(call.key):
            self._bind_self_attention(plan, node, call, rows)
        else:
            select_key_value_cache(plan, node, call.key, "key")
            select_key_value_cache(plan, node, call.value, "value")
            if call.mask is not None and plan.times[call.mask] is BindingTime.MEMORY:
                select_memory(plan, node, call.mask, "mask")
        return Layout(rows=rows)

    def run(self, frame: RowExecutor, node: fx.Node) -> Any:
        call, single = _AttentionCall.of(node), frame.is_single(node)
        query = frame.raw(call.query, single=single)
        keys, groups = frame.heads(node, call.key)
        values, _ = frame.heads(node, call.value)
        query = with_heads(query.unsqueeze(-2) if single else query, keys.shape[1] * groups)
        mask = None
        if call.mask is not None or call.is_causal:
            own = frame.alignment(node)
            rank = max(own.rank, 0 if call.mask is None else frame.plan.rank(call.mask))
            into = Alignment(rank=rank, rows=-2, batch=own.batch, folded=own.folded)
            mask = _with_head_axis(frame.attention_mask(node, call.key, call.mask, into), own)
        if frame.native:
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
        return without_heads(frame, node, result)

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
        table = plan.constants.get(call.mask, plan.samples.get(call.mask))
        if table is not None:
            _check_causal(plan, node, table)
        elif plan.depends_on_tokens(call.mask):
            layout = plan.layouts[call.mask]
            if layout.keys is None and layout.rows == plan.rank(call.mask) - 1:
                select_state_cache(plan, node, call.mask)


class _AttentionCall:
    """The arguments of scaled_dot_product_attention by name."""

    def __init__(self, node: fx.Node) -> None:
        def given(index: int, name: str, default: Any) -> Any:
            return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)

        self.query: fx.Node = given(0, "query", None)
        self.key: fx.Node = given(1, "key", None)
        self.value: fx.Node = given(2, "value", None)
        self.mask: fx.Node | None = given(3, "attn_mask", None)
        self.is_causal: bool = given(5, "is_causal", False)
        self.scale: float | None = given(6, "scale", None)
        self.enable_gqa: bool = given(7, "enable_gqa", False)

    @classmethod
    def of(cls, node: fx.Node) -> _AttentionCall:
        """Reads the call that a node makes."""
        return cls(node)


def with_heads(rows: Tensor, heads: int) -> Tensor:
    """Returns rows as (batch, heads, rows, width), whatever is folded or missing."""
    if rows.dim() == 4:
        return rows
    if rows.dim() == 3:
        return torch.unflatten(rows, 0, (-1, heads))
    return rows.flatten(1, -3)


def without_heads(frame: RowExecutor, node: fx.Node, product: Tensor) -> Tensor:
    """Returns a product (batch, heads, rows, width) the shape that the node has."""
    if frame.is_single(node):
        product = product.squeeze(2)
    return product if product.dim() == len(shape := frame.shape(node)) else product.reshape(shape)


def _with_head_axis(mask: Tensor, own: Alignment) -> Tensor:
    """Returns the mask of an attention without a head axis one."""
    if own.rank != 3 or mask.dim() != 3:
        return mask
    return mask.unsqueeze(1) if own.folded == 1 else torch.unflatten(mask, 0, (-1, own.folded))


def _check_causal(plan: DecodePlan, node: fx.Node, table: Tensor) -> None:
    """Refuses a constant self-attention mask that lets a token see later ones."""
    count = plan.capture.length + (0 if plan.prefix is None else hint(plan.prefix))
    if table.shape[-1] not in (plan.capture.length, count) or table.shape[-2] != table.shape[-1]:
        raise refuse(node, "the self-attention mask has no row and column per token")
    later = later_places(table.shape[-1], plan.capture.length)
    visible = table if table.dtype is torch.bool else table > BLOCKED_BELOW
    if bool(visible[..., later].any()):
        raise refuse(node, "the self-attention mask lets a token see the tokens after it")


def _is_probability(plan: DecodePlan, node: object) -> bool:
    """Returns whether a value comes out of a softmax, moved or scaled at most."""
    while isinstance(node, fx.Node) and plan.depends_on_tokens(node):
        if _SOFTMAX in str(node.target):
            return True
        source = node.args[0] if node.args else None
        same = isinstance(source, fx.Node) and plan.shape(source) == plan.shape(node)
        node = source if same or is_movement(node) else None
    return False
