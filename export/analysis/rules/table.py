"""The table that maps PyTorch operators to their rules."""

from __future__ import annotations

import operator

import torch
from torch import fx

from hybrid_deploy.export.analysis.rules.attention import FusedAttention, MatrixProduct
from hybrid_deploy.export.analysis.rules.custom import custom_rule
from hybrid_deploy.export.analysis.rules.proven import ProvenRowWise
from hybrid_deploy.export.analysis.rules.relative_shift import ShiftedScores
from hybrid_deploy.export.analysis.rules.row_shift import Pad, Pick
from hybrid_deploy.export.analysis.rules.rowwise import (
    ChannelWise,
    Dropout,
    Elementwise,
    Embedding,
    LinearWithBiasFirst,
    Reduction,
    RowWise,
    TupleItem,
)
from hybrid_deploy.export.analysis.rules.rule import Rule
from hybrid_deploy.export.analysis.rules.shape import (
    AlongAxis,
    Concatenation,
    Expand,
    Repeat,
    Reshape,
    Transposition,
)
from hybrid_deploy.export.analysis.whole_values import WholeValue, is_whole
from hybrid_deploy.export.plan.data_movement import RESHAPES, TRANSPOSITIONS
from hybrid_deploy.export.plan.plan import DecodePlan

_TABLE: dict[Rule, tuple[str, ...]] = {
    Elementwise(): (
        "aten.__and__.Tensor",
        "aten.__or__.Tensor",
        "aten._to_copy.default",
        "aten.alias.default",
        "aten.clone.default",
        "aten.contiguous.default",
        "aten.detach.default",
        "aten.full_like.default",
        "aten.lift_fresh_copy.default",
        "aten.ones_like.default",
        "aten.to.device",
        "aten.to.dtype",
        "aten.to.dtype_layout",
        "aten.zeros_like.default",
    ),
    Dropout(): ("aten.dropout.default", "aten.feature_dropout.default"),
    RowWise(): ("aten.linear.default",),
    ChannelWise(): (
        "aten._native_batch_norm_legit_no_training.default",
        "aten.batch_norm.default",
        "aten.conv1d.default",
    ),
    LinearWithBiasFirst(): ("aten.addmm.default",),
    RowWise(trailing_argument=1): (
        "aten.layer_norm.default",
        "aten.native_layer_norm.default",
        "aten.rms_norm.default",
    ),
    Reduction(): (
        "aten.amax.default",
        "aten.linalg_vector_norm.default",
        "aten.logsumexp.default",
        "aten.max.dim",
        "aten.mean.dim",
        "aten.sum.dim_IntList",
        "aten.var.correction",
    ),
    Reduction(over_keys=True): (
        "aten._safe_softmax.default",
        "aten._softmax.default",
        "aten.log_softmax.int",
        "aten.softmax.int",
    ),
    Embedding(): ("aten.embedding.default",),
    Reshape(): tuple(sorted(RESHAPES)),
    Transposition(): tuple(sorted(TRANSPOSITIONS)),
    AlongAxis(argument=1): ("aten.unbind.int",),
    Pick(): ("aten.select.int", "aten.slice.Tensor"),
    Pad(): ("aten.constant_pad_nd.default", "aten.pad.default"),
    AlongAxis(argument=2): (
        "aten.chunk.default",
        "aten.repeat_interleave.self_int",
        "aten.split.Tensor",
        "aten.split_with_sizes.default",
    ),
    Concatenation(): ("aten.cat.default", "aten.stack.default"),
    Expand(): ("aten.expand.default",),
    Repeat(): ("aten.repeat.default",),
    MatrixProduct(): ("aten.bmm.default", "aten.matmul.default", "aten.mm.default"),
    FusedAttention(): ("aten.scaled_dot_product_attention.default",),
}
_RULES = {name: rule for rule, names in _TABLE.items() for name in names}
_ELEMENTWISE, _TUPLE_ITEM, _PROVEN = Elementwise(), TupleItem(), ProvenRowWise()
_WHOLE = WholeValue()
_SHIFTED = ShiftedScores()


def rule_of(plan: DecodePlan, node: fx.Node) -> Rule:
    """Returns the rule of a node; a user's rule comes before the table.

    A pointwise operator without an entry has the rule Elementwise, any other ProvenRowWise.
    """
    if node in plan.relative_shifts:
        return _SHIFTED
    if is_whole(plan, node):
        return _WHOLE
    if node.target is operator.getitem:
        return _TUPLE_ITEM
    rule = custom_rule(node) or _RULES.get(str(node.target))
    if rule is not None:
        return rule
    tags = getattr(node.target, "tags", ())
    return _ELEMENTWISE if torch.Tag.pointwise in tags else _PROVEN
