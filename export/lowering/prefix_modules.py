"""Computes the rows of memory before the tokens of decoder-only models, in the encoder graph.

No row of the prefix sees a token, so its keys and values depend on the memory alone. An executor
computes them once per input, with the same rules as for tokens. Example with S memory rows, L
tokens at most, 4 heads of width 16:

    decode     x = cat([memory, embedding(tokens)], 1)     (B, S + L, 64)
               k = heads of linear(x)                      (B, 4, S + L, 16)
    encoder    x = memory                                  (B, S, 64)
               k = heads of linear(x), padded with zeros   (B, 4, S + L, 16), the initial cache
    step       x = embedding(token)                        (B, 64)
               k = heads of linear(x)                      (B, 4, 16), written at S + position
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.analysis.rules.table import rule_of
from hybrid_deploy.export.plan.cached_value import CachedValue
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.plan.row_executor import ConstantLookup, RowExecutor
from hybrid_deploy.export.trace.capture import as_expr


def prefixed_caches(plan: DecodePlan) -> list[CachedValue]:
    """Returns the caches that begin with the prefix, in the plan's order."""
    return [cache for cache in plan.caches if plan.has_prefix(cache.source)]


def prefix_nodes(plan: DecodePlan) -> set[fx.Node]:
    """Returns the nodes with prefix rows on which the prefixed caches depend."""
    needed: set[fx.Node] = set()
    pending = [cache.source for cache in prefixed_caches(plan)]
    while pending:
        node = pending.pop()
        if node not in needed and plan.depends_on_tokens(node) and _has_prefix(plan, node):
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


class PrefixExecutor(RowExecutor):
    """Executes a plan's nodes for the prefix: the rows of memory before the tokens.

    Args:
        plan: the analysed decoder of a decoder-only model.
        memory: values of the nodes that depend on memory alone.
        sizes: size of each symbol, of the batch too.
        constants: the values of the constant nodes.
    """

    def __init__(
        self,
        plan: DecodePlan,
        memory: Mapping[fx.Node, Tensor],
        sizes: Mapping[sympy.Symbol, Any],
        constants: ConstantLookup,
    ) -> None:
        batch = sizes[plan.capture.batch]
        zeros = torch.zeros(1, dtype=torch.int64).expand(batch)  # no token, position 0
        super().__init__(plan, zeros, zeros, None, None, [], constants, frozenset(), native=True)
        self._memory_values = memory
        self._sizes = dict(sizes)
        assert plan.prefix_size is not None
        self._rows = self.size(as_expr(plan.prefix_size))

    def run(self) -> list[Tensor]:
        """Returns the prefixed caches, (batch, heads, capacity, width), zeros after the prefix."""
        caches = prefixed_caches(self.plan)
        needed = prefix_nodes(self.plan)
        for node in self.plan.capture.nodes:
            if node in needed:
                self.store(node, rule_of(self.plan, node).run(self, node))
        return [F.pad(self._cached(c), (0, 0, 0, self.plan.capture.length)) for c in caches]

    def fixed_value(self, consumer: fx.Node, operand: fx.Node) -> Any:
        if self.plan.binding_times[operand] is BindingTime.MEMORY:
            return self._memory_values[operand]
        return super().fixed_value(consumer, operand)

    def cached_heads(self, consumer: fx.Node, operand: fx.Node) -> tuple[Tensor, int]:
        access = self.plan.accesses[consumer, operand]
        cached = access.cached
        if self.plan.depends_on_tokens(cached.source):
            return self._cached(cached), access.groups
        assert cached.layout is not None
        return cached.layout.to_cache(self._memory_values[cached.source]), access.groups

    def join_prefix(self, node: fx.Node, parts: Sequence[Any]) -> Any:
        batch = self._sizes[self.plan.capture.batch]
        values = [self.fixed_value(node, part) for part in parts[:-1]]
        axis = self.plan.layouts[node].rows
        assert axis is not None
        expanded = [v if v.shape[0] != 1 else v.expand(batch, *v.shape[1:]) for v in values]
        return expanded[0] if len(expanded) == 1 else torch.cat(expanded, axis)

    def row_count(self) -> Any:
        return self._rows

    def key_count(self, prefix_length: sympy.Expr) -> Any:
        return self._rows

    def positions(self, prefix_length: sympy.Expr, *, single: bool) -> Tensor:
        batch = self._sizes[self.plan.capture.batch]
        return torch.arange(self._rows).expand(batch, self._rows)

    def _cached(self, cache: CachedValue) -> Tensor:
        assert cache.layout is not None
        return cache.to_cache_dtype(cache.layout.to_cache(self._values[cache.source]))

    def _with_keys(self, operand: fx.Node, table: Tensor) -> Tensor:
        axes = self.plan.token_axes(operand)
        return table.narrow(axes[-1], 0, self._rows) if len(axes) == 2 else table

    def full_shape(self, node: fx.Node) -> list[Any]:
        token_axes = self.plan.token_axes(node)
        shape = super().full_shape(node)
        return [self._rows if axis in token_axes else size for axis, size in enumerate(shape)]


def _has_prefix(plan: DecodePlan, node: fx.Node) -> bool:
    """Returns whether a node's row axis, or its key axis if it has no rows, holds the prefix."""
    layout = plan.layouts[node]
    axis = layout.keys if layout.rows is None else layout.rows
    return axis is not None and plan.prefix_length(node, axis) != 0
