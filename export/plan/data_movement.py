"""Operators that only move numbers: which they are, and doing again what they did."""

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
"""Operators that read the same numbers in the same order as another shape."""

_COPIES = frozenset({"aten.clone.default", "aten.contiguous.default", "aten.alias.default"})
_EXPAND = "aten.expand.default"
_REPETITIONS = frozenset({"aten.repeat_interleave.self_int", "aten.repeat.default"})
_MOVEMENTS = TRANSPOSITIONS | RESHAPES | _COPIES | _REPETITIONS | {_EXPAND}

Shape = Callable[[fx.Node], "list[Any]"]


def is_movement(node: fx.Node) -> bool:
    """Returns whether a node only moves the numbers of its one operand."""
    return str(node.target) in _MOVEMENTS and len(node.all_input_nodes) >= 1


def path_back(operand: fx.Node, goes_on: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Lists `operand` and, one before the other, the values that it was moved from.

    Args:
        operand: where to begin.
        goes_on: whether a value may be among them.
    """
    values = [operand]
    while is_movement(values[-1]):
        source = values[-1].args[0]
        if not isinstance(source, fx.Node) or not goes_on(source):
            break
        values.append(source)
    return values


def replay(path: Iterable[fx.Node], value: Tensor, shape: Shape) -> Tensor:
    """Moves a value the way the nodes of a path did, in order; `shape` gives a node's sizes."""
    for node in path:
        name = str(node.target)
        if name in RESHAPES:
            value = value.reshape(_one_unknown(shape(node)))
        elif name == _EXPAND:
            value = value.expand(shape(node))
        elif name not in _COPIES:
            value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return value


def numbered(sizes: Iterable[int]) -> Tensor:
    """Returns a tensor of which every element is another number, to see where it is moved."""
    sizes = tuple(sizes)
    return torch.arange(prod(sizes)).reshape(sizes)


def _one_unknown(sizes: list[Any]) -> list[Any]:
    unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    return [-1 if [i] == unknown else size for i, size in enumerate(sizes)]
