"""What the analysis of a decoder finds: binding times, layouts, caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

import torch
from torch import Tensor, fx

from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.capture import Capture, as_expr, hint
from hybrid_deploy.export.causal import CausalPattern


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


@dataclass(frozen=True)
class Cache:
    """A value that is kept for all tokens so far.

    Attributes:
        source: the node whose new rows are written.
        axis: its axis of tokens, counted from the end.
        kind: what it serves as: `key`, `value` or `state`.
    """

    source: fx.Node
    axis: int
    kind: str = field(compare=False)


@dataclass
class Plan:
    """What the analysis found; everything that the graphs are made from.

    Attributes:
        capture: the program.
        times: binding time of every node.
        layouts: layout of every node that depends on tokens.
        constants: the folded constants; a batch dimension in them has size one.
        causal: those of them that are causal tables.
        keyed: pairs (consumer, operand) where the operand is needed along the key axis.
        caches: the caches, in the order of the graphs' inputs.
        memory: what the encoder graph hands to the decoder graphs, each with its kind
            (`key`, `value`, `mask` or `state`), in the order of the encoder's outputs.
    """

    capture: Capture
    times: dict[fx.Node, BindingTime] = field(default_factory=dict)
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    causal: dict[fx.Node, CausalPattern] = field(default_factory=dict)
    keyed: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    caches: list[Cache] = field(default_factory=list)
    memory: dict[fx.Node, str] = field(default_factory=dict)

    def shape(self, node: fx.Node) -> tuple[int | torch.SymInt, ...]:
        """Gives the shape of a node at full length; of its first part if it gives several."""
        value = node.meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        return tuple(hint(size) if as_expr(size).is_Integer else size for size in shape)

    def rank(self, node: fx.Node) -> int:
        """Gives the number of dimensions of a node."""
        return len(self.shape(node))

    def token_axes(self, node: fx.Node) -> tuple[int, ...]:
        """Gives the axes of a node whose size follows the number of tokens."""
        pairs = zip(self.shape(node), self.shape_of_twin(node), strict=True)
        return tuple(axis for axis, (long, short) in enumerate(pairs) if hint(long) != hint(short))

    def shape_of_twin(self, node: fx.Node) -> tuple[int | torch.SymInt, ...]:
        """Gives the shape of a node when the program runs on one token less."""
        return self.shape(self.capture.twins[node])

    def batch_axis(self, node: fx.Node) -> int | None:
        """Gives the axis that holds the batch, alone or with something folded into it."""
        symbol = self.capture.batch
        for axis, size in enumerate(self.shape(node)):
            if symbol in as_expr(size).free_symbols:
                return axis
        return None

    def depends_on_tokens(self, node: object) -> bool:
        """Tells whether a node is computed in the decoder graphs."""
        return isinstance(node, fx.Node) and self.times.get(node) is BindingTime.TOKEN

    def request_keys(self, consumer: fx.Node, operand: fx.Node, kind: str) -> None:
        """Notes that `consumer` needs `operand` for all tokens so far, and gives it a cache."""
        layout = self.layouts[operand]
        if layout.rows is None:
            return
        if layout.merged:
            raise refuse(operand, "keys with the token axis folded into another axis")
        self.keyed.add((consumer, operand))
        source, axis, _ = self.key_source(operand)
        cache = Cache(source, axis, kind)
        if cache not in self.caches:
            self.caches.append(cache)

    def key_source(self, operand: fx.Node) -> tuple[fx.Node, int, tuple[fx.Node, ...]]:
        """Finds the value to cache for `operand`: before its transpositions, where that helps.

        A cache of rank four with the tokens on axis -2 can be written in place everywhere.

        Returns:
            The node to cache, its token axis counted from the end, and the transpositions to
            apply to the cache, in order.
        """
        node: fx.Node = operand
        transpositions: list[fx.Node] = []
        while not self._writes_in_place(node) and str(node.target) in TRANSPOSITIONS:
            transpositions.insert(0, node)
            node = node.all_input_nodes[0]
        if not self._writes_in_place(node):
            node, transpositions = operand, []
        rows = self.layouts[node].rows
        assert rows is not None
        return node, rows - self.rank(node), tuple(transpositions)

    def note_memory(self, node: object, kind: str) -> None:
        """Notes what a value of the encoder graph serves as, if it is one."""
        if isinstance(node, fx.Node) and self.times.get(node) is BindingTime.MEMORY:
            self.memory.setdefault(node, kind)

    def _writes_in_place(self, node: fx.Node) -> bool:
        return self.rank(node) == 4 and self.layouts[node].rows == 2


TRANSPOSITIONS = frozenset(
    {
        "aten.permute.default",
        "aten.transpose.int",
        "aten.t.default",
        "aten.movedim.int",
        "aten.numpy_T.default",
    }
)
"""Operators that only reorder axes."""


def refuse(node: fx.Node, why: str) -> UnsupportedModelError:
    """Makes the error for a node that has no incremental form; names where it comes from."""
    modules = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    return UnsupportedModelError(
        f"{why} (operator {node.target}, module {modules[-1] if modules else 'decode'}, "
        f"at {' '.join(trace[-2:]) if trace else 'an unknown line'})"
    )
