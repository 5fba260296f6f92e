"""What the analysis of a decoder finds: binding times, layouts, what is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import prod
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from hybrid_deploy.export.plan.cached_value import Access, CachedValue
from hybrid_deploy.export.plan.causal_mask import CausalPattern
from hybrid_deploy.export.trace.capture import Capture, as_expr, hint
from hybrid_deploy.export.trace.refusal import refuse


class BindingTime(Enum):
    """When the value of a node is known."""

    CONSTANT = auto()
    MEMORY = auto()
    TOKEN = auto()
    SIZE = auto()
    NOTHING = auto()


@dataclass(frozen=True)
class Layout:
    """Where the tokens are in a value that depends on them.

    Attributes:
        rows: axis of the tokens being decoded; None if the value has none.
        keys: axis of all tokens so far; None if the value has none.
        merged: the row axis is folded together with the batch axis.
    """

    rows: int | None = None
    keys: int | None = None
    merged: bool = False


@dataclass
class DecodePlan:
    """What the analysis found; everything that the graphs are made from.

    Attributes:
        capture: the program.
        times: binding time of every node.
        layouts: layout of every node that depends on tokens.
        constants: the folded constants; a batch dimension in them has size one.
        causal: those of them that are causal tables.
        masked: what carries the causal mask.
        samples: values at the example's sizes of what depends on the memory's size alone.
        prefix: how many values of the memory stand before the tokens along their axis, in
            decoder-only models; None if there is nothing before them.
        accesses: how a consumer gets at an operand that is kept, for all pairs (consumer, operand)
            where the operand is of the memory or is needed for all tokens so far.
    """

    capture: Capture
    times: dict[fx.Node, BindingTime] = field(default_factory=dict)
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    causal: dict[fx.Node, CausalPattern] = field(default_factory=dict)
    masked: set[fx.Node] = field(default_factory=set)
    samples: dict[fx.Node, Any] = field(default_factory=dict)
    prefix: int | torch.SymInt | None = None
    accesses: dict[tuple[fx.Node, fx.Node], Access] = field(default_factory=dict)

    @property
    def caches(self) -> list[CachedValue]:
        """What is kept of earlier tokens, in the order of the graphs' inputs."""
        return [k for k in self._kept() if self.depends_on_tokens(k.source)]

    @property
    def memory(self) -> list[CachedValue]:
        """What the encoder graph hands to the decoder graphs, in the order of its outputs."""
        return [k for k in self._kept() if not self.depends_on_tokens(k.source)]

    def shape(self, node: fx.Node) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape of a node at full length; of its first part if it gives several."""
        value = node.meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        return tuple(hint(size) if as_expr(size).is_Integer else size for size in shape)

    def rank(self, node: fx.Node) -> int:
        """Returns the number of dimensions of a node."""
        return len(self.shape(node))

    def token_axes(self, node: fx.Node) -> tuple[int, ...]:
        """Returns the axes of a node whose size follows the number of tokens."""
        pairs = zip(self.shape(node), self.shape_in_shorter_trace(node), strict=True)
        return tuple(axis for axis, (long, short) in enumerate(pairs) if hint(long) != hint(short))

    def shape_in_shorter_trace(self, node: fx.Node) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape of a node when the program runs on one token less."""
        return self.shape(self.capture.shorter_trace[node])

    def per_row(self, node: fx.Node, axis: int) -> int:
        """Returns how many values along one of a node's token axes belong to one token."""
        return hint(self.shape(node)[axis]) - hint(self.shape_in_shorter_trace(node)[axis])

    def prefix_length(self, node: fx.Node, axis: int) -> sympy.Expr:
        """Returns how many values stand before the tokens along one of a node's token axes."""
        count = hint(self.shape(node)[axis]) // self.per_row(node, axis)
        before = count - self.capture.length
        if before == 0:
            return sympy.Integer(0)
        if self.prefix is None or before != hint(self.prefix):
            raise refuse(node, "this axis is neither as long as the tokens nor as all before them")
        return as_expr(self.prefix)

    def prefix_lengths(self, node: fx.Node) -> bool:
        """Returns whether memory stands before the tokens along a node's row axis."""
        rows = self.layouts[node].rows
        return rows is not None and self.prefix_length(node, rows) != 0

    def is_table(self, node: fx.Node) -> bool:
        """Returns whether a node holds values per position that are the same for every sequence."""
        if self.times[node] is BindingTime.MEMORY:
            return self.batch_axis(node) is None and bool(self.token_axes(node))
        return self.times[node] is BindingTime.CONSTANT

    def batch_axis(self, node: fx.Node) -> int | None:
        """Returns the axis that holds the batch, alone or with something folded into it."""
        symbol = self.capture.batch
        for axis, size in enumerate(self.shape(node)):
            if symbol in as_expr(size).free_symbols:
                return axis
        return None

    def depends_on_tokens(self, node: object) -> bool:
        """Returns whether a node is computed in the decoder graphs."""
        return isinstance(node, fx.Node) and self.times.get(node) is BindingTime.TOKEN

    def folded(self, node: fx.Node) -> int:
        """Returns how many values of one sequence are folded into a node's batch axis."""
        axis, batch = self.batch_axis(node), self.shape(self.capture.tokens)[0]
        return 1 if axis is None else hint(self.shape(node)[axis]) // hint(batch)

    def grant(self, consumer: fx.Node, operand: fx.Node, access: Access) -> None:
        """Notes how a consumer gets at an operand that is kept."""
        self.accesses[consumer, operand] = access

    def cached_shape(self, cached: CachedValue) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape in which a value is kept."""
        sizes, form = self.shape(cached.source), cached.form
        if form is None:
            return sizes
        groups = [sizes[axis] for axis in form.heads], [sizes[axis] for axis in form.width]
        if not all(isinstance(size, int) for group in groups for size in group):
            raise refuse(cached.source, "the number or the width of the heads varies")
        heads, width = (prod(group) for group in groups)
        batch = self.shape(self.capture.tokens)[0]
        return (batch, heads * form.folded, sizes[form.length], width)

    def _kept(self) -> list[CachedValue]:
        return list(dict.fromkeys(access.cached for access in self.accesses.values()))
