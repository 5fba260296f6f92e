"""Tests numerically whether an operator over the keys reads nothing of the tokens after a row.

The scores are drawn at random, the masks are the model's own. Row t of the result has to be the
same if the operator sees the keys up to t alone. Example, scores masked by -inf above the diagonal:

    operator            row 1 from keys 0, 1     row 1 from all keys     hides later tokens
    amax(s, -1)         max(s10, s11)            the same                yes
    exp(s).sum(-1)      exp(s10) + exp(s11)      the same                yes
    exp(s).mean(-1)     (...) / 2                (...) / L               no
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.plan.plan import DecodePlan
from hybrid_deploy.export.trace.capture import example_size

_DRAWS = ((0, 1.0), (1, 30.0))  # seed and scale of the scores: a weak mask fails on large ones
_PRODUCTS = ("aten.bmm.default", "aten.matmul.default", "aten.mm.default")


def hides_later_keys(plan: DecodePlan, node: fx.Node, source: fx.Node) -> bool:
    """Returns whether a node that works along the keys of `source` reads no later token.

    Args:
        plan: the plan of the nodes before this one.
        node: the node.
        source: its first operand, which has rows and keys, one key per token.
    """
    layout, length = plan.layouts[source], plan.capture.length
    rows, keys = layout.rows, layout.keys
    sizes = [example_size(size) for size in plan.shape(source)]
    if rows is None or keys is None or sizes[rows] != length or sizes[keys] != length:
        return False
    return any(
        all(_hides_later_keys(plan, node, source, first, *draw) for draw in _DRAWS)
        for first in (0, 1)
    )


def _hides_later_keys(
    plan: DecodePlan, node: fx.Node, source: fx.Node, first: int, seed: int, scale: float
) -> bool:
    """Returns whether no row of one draw changes without the keys after it.

    Integers and bools of the first token are `first`: of 0 and 1, one is no padding, so that no
    row is left without a key.
    """
    layout, length = plan.layouts[source], plan.capture.length
    assert layout.rows is not None and layout.keys is not None
    generator = torch.Generator().manual_seed(seed)
    value = _Drawn(plan, generator, scale, first).value(source)
    whole = _result(node, value)
    for row in sorted({0, 1, length // 2, length - 2}):
        seen = value.narrow(layout.rows, row, 1).narrow(layout.keys, 0, row + 1)
        if not _is_same(_result(node, seen), whole, row, plan):
            return False
    return True


class _Drawn:
    """Values of nodes: random scores, and what the model computes from them."""

    def __init__(
        self, plan: DecodePlan, generator: torch.Generator, scale: float, first: int
    ) -> None:
        self._plan, self._generator, self._scale, self._first = plan, generator, scale, first
        self._values: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node) -> Any:
        """Returns the value of a node; the nodes before the scores are not computed."""
        if node not in self._values:
            self._values[node] = self._compute(node)
        return self._values[node]

    def _compute(self, node: fx.Node) -> Any:
        plan = self._plan
        if not isinstance(node.meta["val"], (Tensor, tuple, list)):
            return example_size(node.meta["val"])
        if node in plan.constants:
            return plan.constants[node]
        layouts = [plan.layouts[n] for n in (node, *node.all_input_nodes) if n in plan.layouts]
        has_keys = any(layout.keys is not None for layout in layouts)
        if not has_keys or str(node.target) in _PRODUCTS:
            return self._draw(node)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
        with torch.no_grad():
            return call_operator(node, args, kwargs)

    def _draw(self, node: fx.Node) -> Tensor:
        dtype = node.meta["val"].dtype
        sizes = [example_size(size) for size in self._plan.shape(node)]
        if dtype.is_floating_point:
            return torch.randn(sizes, generator=self._generator).mul(self._scale).to(dtype)
        value = torch.randint(2, sizes, generator=self._generator)
        for axis in self._plan.token_axes(node):
            value.select(axis, 0).fill_(self._first)
        return value.to(dtype)


def _result(node: fx.Node, value: Tensor) -> Tensor:
    with torch.no_grad():
        result = call_operator(node, (value, *node.args[1:]), node.kwargs)
    first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return first


def _is_same(seen: Tensor, whole: Tensor, row: int, plan: DecodePlan) -> bool:
    """Returns whether one row's result from the keys that it sees is that from all keys."""
    part = whole
    for axis, size in enumerate(seen.shape):
        if size != part.shape[axis]:
            is_rows = size == 1 and part.shape[axis] == plan.capture.length and part is whole
            part = part.narrow(axis, row if is_rows else 0, size)
    return torch.allclose(seen, part, rtol=1e-5, atol=1e-7, equal_nan=True)
