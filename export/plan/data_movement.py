"""Recognizes operators that only move or repeat elements, and applies them to other tensors.

Example: keys of 2 heads that are repeated for 4 query heads before an attention reads them.

    keys (B, 2, L, D) -> expand (B, 2, 2, L, D) -> reshape (B, 4, L, D) -> attention

`movement_chain(reshape)` is [reshape, expand, keys]. Replaying [expand, reshape] on a tensor whose
elements are all different shows where each element of `keys` goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

TRANSPOSITIONS = frozenset(
    {
        "aten.permute.default",
        "aten.transpose.int",
        "aten.t.default",
        "aten.movedim.int",
        "aten.numpy_T.default",
    }
)
"""Operators that reorder axes."""

RESHAPES = frozenset(
    {
        "aten._unsafe_view.default",
        "aten.flatten.using_ints",
        "aten.reshape.default",
        "aten.squeeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.unflatten.int",
        "aten.unsqueeze.default",
        "aten.view.default",
    }
)
"""Operators that read the same elements in the same order with another shape."""

_COPIES = frozenset({"aten.clone.default", "aten.contiguous.default", "aten.alias.default"})
_EXPAND = "aten.expand.default"
_REPETITIONS = frozenset({"aten.repeat_interleave.self_int", "aten.repeat.default"})
_MOVEMENTS = TRANSPOSITIONS | RESHAPES | _COPIES | _REPETITIONS | {_EXPAND}

ShapeOf = Callable[[fx.Node], "list[Any]"]
"""Returns the shape of a node; a size may be symbolic."""


def is_movement(node: fx.Node) -> bool:
    """Returns whether a node only moves or repeats the elements of its first operand."""
    return str(node.target) in _MOVEMENTS and len(node.all_input_nodes) >= 1


def movement_chain(operand: fx.Node, may_include: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Returns `operand` and the values that it was moved from, from the last to the first.

    Args:
        operand: the node at which the chain begins.
        may_include: returns whether the chain may go on to a node.
    """
    values = [operand]
    while is_movement(values[-1]):
        source = values[-1].args[0]
        if not isinstance(source, fx.Node) or not may_include(source):
            break
        values.append(source)
    return values


def replay(path: Iterable[fx.Node], value: Tensor, shape_of: ShapeOf) -> Tensor:
    """Returns a value after the movements of some nodes.

    Args:
        path: the nodes, in the order of their movements.
        value: any tensor of the shape of the first node's operand.
        shape_of: returns the shape that each node's result gets.
    """
    for node in path:
        name = str(node.target)
        if name in RESHAPES:
            value = value.reshape(_with_unknown_size(shape_of(node)))
        elif name == _EXPAND:
            value = value.expand(shape_of(node))
        elif name not in _COPIES:
            value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return value


def numbered_tensor(sizes: Iterable[int]) -> Tensor:
    """Returns an int64 tensor of the given shape whose elements are 0, 1, 2, ..."""
    sizes = tuple(sizes)
    return torch.arange(prod(sizes)).reshape(sizes)


def _with_unknown_size(sizes: list[Any]) -> list[Any]:
    """Returns sizes with -1 in place of the symbolic one, if there is exactly one."""
    unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    return [-1 if [i] == unknown else size for i, size in enumerate(sizes)]
