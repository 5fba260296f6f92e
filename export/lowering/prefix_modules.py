"""Decoder-only models: what stands before the tokens is computed once, by the encoder graph.

No row of the memory sees a token, so keys and values of those rows depend on the memory alone. A
frame over the prefix computes them with the same rules as a frame over tokens, and the caches that
the decoder graphs go on with begin with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hybrid_deploy.export.analysis.rule_table import find_rule
from hybrid_deploy.export.plan.cached_value import CachedValue
from hybrid_deploy.export.plan.plan import BindingTime, DecodePlan
from hybrid_deploy.export.plan.row_executor import Lookup, RowExecutor, with_cache_dtype
from hybrid_deploy.export.trace.capture import as_expr


def prefixed_caches(plan: DecodePlan) -> list[CachedValue]:
    """Lists the caches that begin with what stands before the tokens."""
    return [cache for cache in plan.caches if plan.prefix_lengths(cache.source)]


def nodes_before_the_tokens(plan: DecodePlan) -> set[fx.Node]:
    """Lists the nodes with rows before the tokens that caches are computed from."""
    needed: set[fx.Node] = set()
    pending = [cache.source for cache in prefixed_caches(plan)]
    while pending:
        node = pending.pop()
        if node not in needed and plan.depends_on_tokens(node) and _has_prefix(plan, node):
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


class PrefixExecutor(RowExecutor):
    """One run over the rows before the tokens.

    Args:
        plan: the analysed decoder.
        memory: values of the nodes that depend on memory.
        sizes: the symbolic sizes.
        constants: the folded constants.
    """

    def __init__(
        self,
        plan: DecodePlan,
        memory: Mapping[fx.Node, Tensor],
        sizes: Mapping[sympy.Symbol, Any],
        constants: Lookup,
    ) -> None:
        batch = sizes[plan.capture.batch]
        nothing = torch.zeros(1, dtype=torch.int64).expand(batch)
        super().__init__(
            plan, nothing, nothing, None, None, [], constants, frozenset(), native=True
        )
        self._by_node = memory
        self._sizes = dict(sizes)
        assert plan.prefix is not None
        self._rows = self.size(as_expr(plan.prefix))

    def run(self) -> list[Tensor]:
        """Returns the caches that begin with the prefix, (batch, heads, capacity, width) each."""
        caches = prefixed_caches(self.plan)
        wanted = nodes_before_the_tokens(self.plan)
        for node in self.plan.capture.nodes:
            if node in wanted:
                self.store(node, find_rule(node).run(self, node))
        return [F.pad(self._cached(c), (0, 0, 0, self.plan.capture.length)) for c in caches]

    def fixed(self, consumer: fx.Node, operand: fx.Node) -> Any:
        if self.plan.times[operand] is BindingTime.MEMORY:
            return self._by_node[operand]
        return super().fixed(consumer, operand)

    def heads(self, consumer: fx.Node, operand: fx.Node) -> tuple[Tensor, int]:
        access = self.plan.accesses[consumer, operand]
        kept = access.cached
        if self.plan.depends_on_tokens(kept.source):
            return self._cached(kept), access.groups
        assert kept.form is not None
        return kept.form.to_cache(self._by_node[kept.source]), access.groups

    def join_prefix(self, node: fx.Node, parts: Sequence[Any]) -> Any:
        batch = self._sizes[self.plan.capture.batch]
        values = [self.fixed(node, part) for part in parts[:-1]]
        axis = self.plan.layouts[node].rows
        assert axis is not None
        whole = [v if v.shape[0] != 1 else v.expand(batch, *v.shape[1:]) for v in values]
        return whole[0] if len(whole) == 1 else torch.cat(whole, axis)

    def row_count(self) -> Any:
        return self._rows

    def key_count(self, prefix_length: sympy.Expr) -> Any:
        return self._rows

    def positions(self, prefix_length: sympy.Expr, *, single: bool) -> Tensor:
        batch = self._sizes[self.plan.capture.batch]
        return torch.arange(self._rows).expand(batch, self._rows)

    def _cached(self, cache: CachedValue) -> Tensor:
        assert cache.form is not None
        return with_cache_dtype(cache, cache.form.to_cache(self._values[cache.source]))

    def _with_keys(self, operand: fx.Node, table: Tensor) -> Tensor:
        axes = self.plan.token_axes(operand)
        return table.narrow(axes[-1], 0, self._rows) if len(axes) == 2 else table

    def _full_shape(self, node: fx.Node) -> list[Any]:
        tokens = self.plan.token_axes(node)
        shape = super()._full_shape(node)
        return [self._rows if axis in tokens else size for axis, size in enumerate(shape)]


def _has_prefix(plan: DecodePlan, node: fx.Node) -> bool:
    layout = plan.layouts[node]
    axis = layout.keys if layout.rows is None else layout.rows
    return axis is not None and plan.prefix_length(node, axis) != 0
