"""Tests numerically whether an operator treats tokens one by one.

Semantics are tested, not names: an operator may be computed for new tokens only, if any rows that
are computed without the others are the same as among the others. With x = (B, 5, W) at random:

    operator               row 2 alone          row 2 of all five      treats tokens one by one
    glu(x, -1)             glu(x[:, 2:3], -1)   glu(x, -1)[:, 2:3]     yes, they are equal
    cumsum(x, 1)           x[:, 2:3]            the sum of three rows  no
    x.flip(1)              x[:, 2:3]            x[:, 2:3]              no, row 0 differs

The test runs at two lengths, on small and on large values, and also takes every sequence of the
batch, and every key of attention scores, without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from hybrid_deploy.export.analysis.rules.rule import call_operator
from hybrid_deploy.export.plan.plan import DecodePlan, Layout
from hybrid_deploy.export.trace.capture import example_size

MIXES_TOKENS = (
    "this operator mixes tokens: computed for some of them alone, it returns other values than "
    "among the others"
)
MIXES_SEQUENCES = "this operator mixes the sequences of a batch"
IS_RANDOM = "this operator is random: two runs on the same values differ"
UNDECIDED = (
    "this operator is not known to treat tokens one by one, and a test on random values does not "
    "decide it"
)

_LENGTHS = (8, 5)  # numbers of tokens
_DRAWS = ((0, 1.0), (1, 30.0))  # seed and scale of the random values
_TOLERANCE = 1e-4  # of the largest value: float32 sums in another order differ by less


def mixing(plan: DecodePlan, node: fx.Node, layout: Layout) -> str | None:
    """Returns why a node cannot be computed for some tokens alone; None if it can be.

    Args:
        plan: the plan of the nodes before this one.
        node: the node; no argument of it follows the number of tokens.
        layout: the token axes that its result has to have.
    """
    length = plan.capture.length
    for count in sorted({min(size, length) for size in _LENGTHS}):
        for seed, scale in _DRAWS:
            with torch.random.fork_rng(devices=[]):
                try:
                    trial = _Trial(plan, node, layout, count, seed, scale)
                except RuntimeError:  # a size of an operand grows by another number for each token
                    return UNDECIDED
                reason = trial.run()
            if reason is not None:
                return reason
    return None


class _Trial:
    """One run of a node on random values, as a whole and in parts."""

    def __init__(
        self, plan: DecodePlan, node: fx.Node, layout: Layout, count: int, seed: int, scale: float
    ) -> None:
        self._plan, self._node, self._layout, self._count = plan, node, layout, count
        generator = torch.Generator().manual_seed(seed)
        self._values = {
            operand: self._draw(operand, generator, scale)
            for operand in node.all_input_nodes
            if isinstance(operand.meta["val"], Tensor)
        }

    def run(self) -> str | None:
        try:
            whole = self._result(self._values)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return UNDECIDED
        if not all(_close(a, b) for a, b in zip(whole, self._result(self._values), strict=True)):
            return IS_RANDOM
        if not self._parts_are_equal(whole, self._layout.rows, "rows"):
            return MIXES_TOKENS
        if self._layout.keys is not None and not self._parts_are_equal(
            whole, self._layout.keys, "keys"
        ):
            return MIXES_TOKENS
        batch = self._plan.batch_axis(self._node)
        if batch is None or not (self._layout.merged or self._sequences_are_equal(whole, batch)):
            return MIXES_SEQUENCES
        return None

    def _parts_are_equal(self, whole: list[Tensor], axis: int | None, kind: str) -> bool:
        if axis is None or any(axis >= value.dim() for value in whole):
            return False
        size = whole[0].shape[axis]
        if any(value.shape[axis] != size for value in whole):
            return False
        axes = {n: self._axis_of(n, axis, kind) for n in self._values}
        sizes = {self._values[n].shape[a] for n, a in axes.items() if a is not None}
        if sizes != {size}:
            return False
        return all(self._part_is_equal(whole, axis, axes, part) for part in _parts(size))

    def _sequences_are_equal(self, whole: list[Tensor], batch: int) -> bool:
        axes = {n: self._plan.batch_axis(n) for n in self._values}
        count = example_size(self._plan.shape(self._plan.capture.tokens)[0])
        return all(
            self._part_is_equal(
                whole, batch, axes, lambda size, index=index: _share(size, count, index)
            )
            for index in range(count)
        )

    def _part_is_equal(
        self, whole: list[Tensor], axis: int, axes: dict[fx.Node, int | None], part: Any
    ) -> bool:
        """Returns whether a part of the operands gives the same part of the result."""
        values = {
            n: value if axes[n] is None else _narrow(value, axes[n], part)
            for n, value in self._values.items()
        }
        try:
            alone = self._result(values)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        return all(
            _close(value, _narrow(expected, axis, part))
            for value, expected in zip(alone, whole, strict=True)
        )

    def _axis_of(self, operand: fx.Node, axis: int, kind: str) -> int | None:
        """Returns the axis of an operand that runs along an axis of the result."""
        if self._plan.depends_on_tokens(operand):
            layout = self._plan.layouts[operand]
            return layout.rows if kind == "rows" else layout.keys
        own = axis - self._plan.rank(self._node) + self._plan.rank(operand)
        return own if own in self._plan.token_axes(operand) else None

    def _result(self, values: dict[fx.Node, Tensor]) -> list[Tensor]:
        def value(operand: fx.Node) -> Any:
            return values[operand] if operand in values else example_size(operand.meta["val"])

        args, kwargs = fx.map_arg((self._node.args, self._node.kwargs), value)
        with torch.no_grad():
            result = call_operator(self._node, args, kwargs)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def _draw(self, operand: fx.Node, generator: torch.Generator, scale: float) -> Tensor:
        """Returns a random value of an operand, or its own value if it is constant."""
        plan, length = self._plan, self._plan.capture.length
        sizes = [example_size(size) for size in plan.shape(operand)]
        for axis in plan.token_axes(operand):
            sizes[axis] -= (length - self._count) * plan.values_per_token(operand, axis)
        constant = plan.constants.get(operand)
        if constant is not None:
            for axis in plan.token_axes(operand):
                constant = constant.narrow(axis, 0, sizes[axis])
            return constant.expand(sizes)
        dtype = operand.meta["val"].dtype
        if dtype.is_floating_point:
            return (torch.randn(sizes, generator=generator) * scale).to(dtype)
        return torch.randint(2, sizes, generator=generator).to(dtype)


def _parts(size: int) -> Iterator[Any]:
    """Yields parts of an axis, as functions from its size to first index and length."""
    for first in range(size):
        yield lambda _, first=first: (first, 1)
    if size > 2:
        yield lambda _: (1, 2)


def _share(size: int, count: int, index: int) -> tuple[int, int]:
    """Returns first index and length of one sequence along an axis of the batch."""
    return index * (size // count), size // count


def _narrow(value: Tensor, axis: int | None, part: Any) -> Tensor:
    assert axis is not None
    return value.narrow(axis, *part(value.shape[axis]))


def _close(value: Tensor, expected: Tensor) -> bool:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(value, expected)
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(value, expected, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
