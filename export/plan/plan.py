"""The result of the analysis of a decoder: binding times, token axes, constants and caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import prod
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from hybrid_deploy.export.plan.cached_value import CacheAccess, CachedValue
from hybrid_deploy.export.plan.causal_mask import CausalPattern
from hybrid_deploy.export.trace.capture import Capture, as_expr, example_size
from hybrid_deploy.export.trace.refusal import refuse


class BindingTime(Enum):
    """When the value of a node is known.

    Attributes:
        CONSTANT: at export; the value depends on neither memory nor tokens.
        MEMORY: when an input is encoded; it depends on memory alone.
        TOKEN: at each decoding step; it depends on tokens, or combines memory with positions.
        SIZE: a symbolic size, or a number that is computed from sizes.
        NOTHING: the node has no value; an assertion, for example.
    """

    CONSTANT = auto()
    MEMORY = auto()
    TOKEN = auto()
    SIZE = auto()
    NOTHING = auto()


@dataclass(frozen=True)
class Layout:
    """The token axes of a value that depends on tokens.

    Attention scores (B, H, L, L) have rows 2 and keys 3; hidden states (B, L, W) have rows 1. The
    last row belongs to the last token: of `x[:, 1:]` (B, L - 1, W) the first row is token 1.

    Attributes:
        rows: axis of the tokens being decoded; None if there is none.
        keys: axis of all tokens so far; None if there is none.
        merged: whether the row axis is folded together with the batch axis.
    """

    rows: int | None = None
    keys: int | None = None
    merged: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the value has no token axis: every row reads the same value."""
        return self.rows is None and self.keys is None


@dataclass(frozen=True)
class RelativeShift:
    """Operators that move attention scores from their distances to the keys.

    Attributes:
        source: the scores by distance.
        end: the last of the operators, which has the scores of the keys.
    """

    source: fx.Node
    end: fx.Node


@dataclass
class DecodePlan:
    """Everything that the ONNX graphs of a decoder are generated from.

    Attributes:
        capture: the traces of the decoder.
        binding_times: binding time of each node.
        layouts: token axes of each node that depends on tokens.
        constants: value of each constant node; a batch axis has size one in it.
        causal_patterns: the two values of each causal table among constants and example values.
        causally_masked: nodes that hide later tokens: causal masks, and values computed from them.
        example_values: values, at the example's sizes, of nodes that depend on the memory's sizes
            alone.
        prefix_size: number of memory rows before the tokens, in decoder-only models; None if the
            model concatenates nothing before the tokens.
        accesses: how a consumer reads an operand, for each pair (consumer, operand) whose operand
            depends on memory alone or is needed for all tokens so far.
        first_rows: the row axis of each value that the model computes for the first token alone,
            and the graphs for every token, since only the first token's row is read.
        relative_shifts: the shift that a node is a part of.
    """

    capture: Capture
    binding_times: dict[fx.Node, BindingTime] = field(default_factory=dict)
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    causal_patterns: dict[fx.Node, CausalPattern] = field(default_factory=dict)
    causally_masked: set[fx.Node] = field(default_factory=set)
    example_values: dict[fx.Node, Any] = field(default_factory=dict)
    prefix_size: int | torch.SymInt | None = None
    accesses: dict[tuple[fx.Node, fx.Node], CacheAccess] = field(default_factory=dict)
    first_rows: dict[fx.Node, int] = field(default_factory=dict)
    relative_shifts: dict[fx.Node, RelativeShift] = field(default_factory=dict)

    @property
    def caches(self) -> list[CachedValue]:
        """The cached values of earlier tokens, in the order of the decoder graphs' inputs."""
        return [c for c in self._cached_values() if self.depends_on_tokens(c.source)]

    @property
    def memory(self) -> list[CachedValue]:
        """The memory values that the decoder graphs read, in the order of the encoder's outputs."""
        return [c for c in self._cached_values() if not self.depends_on_tokens(c.source)]

    def shape(self, node: fx.Node) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape of a node in the trace at length L; for a tuple, of its first item."""
        value = node.meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        return tuple(example_size(size) if as_expr(size).is_Integer else size for size in shape)

    def rank(self, node: fx.Node) -> int:
        """Returns the number of dimensions of a node."""
        return len(self.shape(node))

    def token_axes(self, node: fx.Node) -> tuple[int, ...]:
        """Returns the axes of a node whose size follows the number of tokens."""
        if node in self.first_rows:
            return (self.first_rows[node],)
        pairs = zip(self.shape(node), self.shape_in_shorter_trace(node), strict=True)
        differs = (example_size(longer) != example_size(shorter) for longer, shorter in pairs)
        return tuple(axis for axis, is_token_axis in enumerate(differs) if is_token_axis)

    def shape_in_shorter_trace(self, node: fx.Node) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape of a node in the trace at length L - 1."""
        return self.shape(self.capture.shorter_trace[node])

    def have_same_shape(self, node: fx.Node, other: fx.Node) -> bool:
        """Returns whether two nodes have one shape, whatever the sizes that vary.

        It compares expressions: `==` of sizes that are equal in the example, such as a batch of two
        and two heads, would fix the size that varies at the other.
        """
        return [*map(as_expr, self.shape(node))] == [*map(as_expr, self.shape(other))]

    def values_per_token(self, node: fx.Node, axis: int) -> int:
        """Returns the number of elements of a token along one of a node's token axes."""
        shorter = self.shape_in_shorter_trace(node)
        return example_size(self.shape(node)[axis]) - example_size(shorter[axis])

    def first_position(self, node: fx.Node, axis: int) -> int:
        """Returns the position of the first element along one of a node's token axes.

        The last element is the last token's, so an axis of L - 1 begins at token 1, and one with a
        row before the tokens at -1.

        Raises:
            UnsupportedModelError: the axis is no multiple of the tokens.
        """
        if node in self.first_rows:
            return 0
        count, rest = divmod(
            example_size(self.shape(node)[axis]), self.values_per_token(node, axis)
        )
        if rest:
            raise refuse(node, "this axis does not hold the same number of values for every token")
        return self.capture.length - count

    def prefix_length(self, node: fx.Node, axis: int) -> sympy.Expr:
        """Returns the number of elements before token 0 along one of a node's token axes.

        It is negative if the axis begins after token 0, and the prefix size if it is as long.
        """
        prefix = -self.first_position(node, axis)
        if self.prefix_size is None or prefix != example_size(self.prefix_size):
            return sympy.Integer(prefix)
        return as_expr(self.prefix_size)

    def has_prefix(self, node: fx.Node) -> bool:
        """Returns whether a node's row axis holds memory before the tokens."""
        rows = self.layouts[node].rows
        if rows is None or self.prefix_size is None:
            return False
        return -self.first_position(node, rows) == example_size(self.prefix_size)

    def is_position_table(self, node: fx.Node) -> bool:
        """Returns whether a node may hold a table per position that all sequences share."""
        if self.binding_times[node] is BindingTime.MEMORY:
            return self.batch_axis(node) is None and bool(self.token_axes(node))
        return self.binding_times[node] is BindingTime.CONSTANT

    def batch_axis(self, node: fx.Node) -> int | None:
        """Returns the axis of the batch, with any heads folded into it; None if there is none."""
        symbol = self.capture.batch
        for axis, size in enumerate(self.shape(node)):
            if symbol in as_expr(size).free_symbols:
                return axis
        return None

    def depends_on_tokens(self, node: object) -> bool:
        """Returns whether a node is computed in the decoder graphs."""
        return isinstance(node, fx.Node) and self.binding_times.get(node) is BindingTime.TOKEN

    def fold_factor(self, node: fx.Node) -> int:
        """Returns the number of elements of a node's batch axis that belong to one sequence."""
        axis, batch = self.batch_axis(node), self.shape(self.capture.tokens)[0]
        return 1 if axis is None else example_size(self.shape(node)[axis]) // example_size(batch)

    def set_access(self, consumer: fx.Node, operand: fx.Node, access: CacheAccess) -> None:
        """Records how a consumer reads an operand."""
        self.accesses[consumer, operand] = access

    def cached_shape(self, cached: CachedValue) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape of a cache or memory tensor; its length is that of a full sequence.

        Raises:
            UnsupportedModelError: the number of heads or the width of a cache varies.
        """
        sizes, layout = self.shape(cached.source), cached.layout
        if layout is None:
            return self._batch_first_shape(cached)
        flattened = [sizes[axis] for axis in layout.heads], [sizes[axis] for axis in layout.width]
        if not all(isinstance(size, int) for part in flattened for size in part):
            raise refuse(cached.source, "the number or the width of the heads varies")
        heads, width = (prod(part) for part in flattened)
        batch, length = self.shape(self.capture.tokens)[0], sizes[layout.length]
        if self.depends_on_tokens(cached.source):
            # Every token has a place in a cache, whichever of them the model reads.
            length = self.capture.length if example_size(length) < self.capture.length else length
        return (batch, heads * layout.fold_factor, length, width)

    def _batch_first_shape(self, cached: CachedValue) -> tuple[int | torch.SymInt, ...]:
        """Returns the shape of a memory tensor that keeps its own shape, with the batch first."""
        sizes, way = self.shape(cached.source), cached.batch_first
        if way is None:
            return sizes
        batch = self.shape(self.capture.tokens)[0]
        folded = () if way.elements is None else (way.elements,)
        return (batch, *sizes[: way.batch], *folded, *sizes[way.batch + 1 :])

    def _cached_values(self) -> list[CachedValue]:
        return list(dict.fromkeys(access.cached for access in self.accesses.values()))
