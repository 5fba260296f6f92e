"""Rules for attention: the products of rows with keys and values, written out or fused."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from hybrid_deploy.export.causal import BLOCKED_BELOW
from hybrid_deploy.export.frame import Alignment, Frame
from hybrid_deploy.export.plan import BindingTime, Layout, Plan, refuse

_SOFTMAX = "softmax"


class MatrixProduct:
    """Matrix products: with weights, of rows with keys (scores), of scores with values."""

    def bind(self, plan: Plan, node: fx.Node) -> Layout:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        rank = plan.rank(node)
        if not plan.depends_on_tokens(left) or plan.layouts[left].rows != plan.rank(left) - 2:
            raise refuse(node, "the token axis is not the row axis of this matrix product")
        lhs = plan.layouts[left]
        if not plan.depends_on_tokens(right):
            if plan.token_axes(right):
                raise refuse(node, "a matrix product with a constant that runs along the tokens")
            plan.note_memory(right, "value" if _is_probability(plan, left) else "key")
            return Layout(rows=rank - 2)
        along = plan.token_axes(right)
        if lhs.keys is None and along == (plan.rank(right) - 1,):
            plan.request_keys(node, right, "key")
            return Layout(rows=rank - 2, keys=rank - 1)
        if lhs.keys == plan.rank(left) - 1 and along == (plan.rank(right) - 2,):
            plan.request_keys(node, right, "value")
            return Layout(rows=rank - 2)
        raise refuse(node, "this matrix product mixes tokens in a way that is not attention")

    def run(self, frame: Frame, node: fx.Node) -> Any:
        left, right = node.args[:2]
        assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
        single = frame.is_single(node)
        rows = frame.raw(left, single=single)
        other = _operand(frame, node, right)
        if not single or other.dim() == 2:
            return torch.matmul(rows, other)
        return torch.matmul(rows.unsqueeze(-2), other).squeeze(-2)


class FusedAttention:
    """torch's scaled_dot_product_attention."""

    def bind(self, plan: Plan, node: fx.Node) -> Layout:
        attention = _AttentionCall.of(node)
        rows = plan.rank(attention.query) - 2
        if (
            not plan.depends_on_tokens(attention.query)
            or plan.layouts[attention.query].rows != rows
        ):
            raise refuse(node, "the attention's query does not carry the tokens on axis -2")
        if plan.depends_on_tokens(attention.key):
            self._bind_self_attention(plan, node, attention, rows)
        else:
            plan.note_memory(attention.key, "key")
            plan.note_memory(attention.value, "value")
            plan.note_memory(attention.mask, "mask")
        return Layout(rows=rows)

    def run(self, frame: Frame, node: fx.Node) -> Any:
        attention, single = _AttentionCall.of(node), frame.is_single(node)
        query = frame.raw(attention.query, single=single)
        key, value = _operand(frame, node, attention.key), _operand(frame, node, attention.value)
        mask = None
        if attention.mask is not None or attention.is_causal:
            own = frame.alignment(node)
            rank = max(own.rank, 0 if attention.mask is None else frame.plan.rank(attention.mask))
            into = Alignment(rank=rank, rows=-2, batch=own.batch, folded=own.folded)
            mask = frame.attention_mask(node, attention.mask, into)
        result = F.scaled_dot_product_attention(
            query.unsqueeze(-2) if single else query,
            key,
            value,
            attn_mask=mask,
            scale=attention.scale,
            enable_gqa=attention.enable_gqa,
        )
        return result.squeeze(-2) if single else result

    def _bind_self_attention(
        self, plan: Plan, node: fx.Node, attention: _AttentionCall, rows: int
    ) -> None:
        if not plan.depends_on_tokens(attention.value) or plan.layouts[attention.key].rows != rows:
            raise refuse(node, "the attention's keys do not carry the tokens on axis -2")
        plan.request_keys(node, attention.key, "key")
        plan.request_keys(node, attention.value, "value")
        if attention.mask is None and not attention.is_causal:
            raise refuse(
                node,
                "self-attention without a causal mask: a token would see the tokens after it, so "
                "they cannot be decoded one by one",
            )
        if attention.mask is None:
            return
        if plan.times[attention.mask] is BindingTime.CONSTANT:
            _check_causal(plan, node, attention.mask)
        elif plan.depends_on_tokens(attention.mask):
            layout = plan.layouts[attention.mask]
            if layout.keys is None and layout.rows == plan.rank(attention.mask) - 1:
                plan.request_keys(node, attention.mask, "state")


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


def _operand(frame: Frame, node: fx.Node, operand: fx.Node) -> Any:
    if not frame.plan.depends_on_tokens(operand):
        return frame.fixed(operand)
    if (node, operand) in frame.plan.keyed:
        return frame.keyed(operand)
    return frame.raw(operand, single=frame.is_single(node))


def _check_causal(plan: Plan, node: fx.Node, mask: fx.Node) -> None:
    """Refuses a constant self-attention mask that lets a token see later ones."""
    length, table = plan.capture.length, plan.constants[mask]
    if table.shape[-2:] != (length, length):
        raise refuse(node, "the self-attention mask has no row and column per token")
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    visible = table if table.dtype is torch.bool else table > BLOCKED_BELOW
    if bool(visible[..., later].any()):
        raise refuse(node, "the self-attention mask lets a token see the tokens after it")


def _is_probability(plan: Plan, node: object) -> bool:
    """Tells whether a value comes out of a softmax, through operators that keep its shape."""
    shape = plan.shape(node) if isinstance(node, fx.Node) else ()
    while isinstance(node, fx.Node) and plan.depends_on_tokens(node) and plan.shape(node) == shape:
        if _SOFTMAX in str(node.target):
            return True
        node = node.args[0] if node.args else None
    return False
