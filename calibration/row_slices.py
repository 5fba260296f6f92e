"""What operators that only move numbers make of a matrix, one row for each sequence.

Between a product and an attention stand reshapes, transpositions and selections, as many as the
model's author needed. `row_slice` looks through them all: it lets them move indices in place of
numbers, for a batch of two, and sees whether what comes out are the columns of the rows, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_BATCH = 2
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class RowSlice:
    """Columns of a matrix.

    Attributes:
        source: (batch, width), what computes the numbers.
        begin: first column.
        width: how many.
    """

    source: ir.Value
    begin: int
    width: int


def row_slice(value: ir.Value) -> RowSlice | None:
    """Gives the columns that a tensor consists of, row by row; None if it is anything else."""
    source = source_of(value)
    width = _width(source)
    if width is None:
        return None
    indices = np.arange(_BATCH * width).reshape(_BATCH, width)
    moved = _moved(value, source, indices)
    if moved is None or moved.ndim == 0 or len(moved) != _BATCH:
        return None
    rows = moved.reshape(_BATCH, -1)
    begin, count = int(rows[0, 0]), rows.shape[1]
    straight = begin + count <= width and np.array_equal(rows, indices[:, begin : begin + count])
    return RowSlice(source, begin, count) if straight else None


def as_rows(value: ir.Value) -> ir.Value | None:
    """Follows a tensor down to where it is (batch, width) again, each row in its order."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape[1:]):
        return None
    sizes = [int(size) for size in value.shape[1:] if isinstance(size, int)]
    shape = (_BATCH, *sizes)
    indices = np.arange(int(np.prod(shape))).reshape(shape)
    flat, moved, here = indices.reshape(_BATCH, -1), indices, value
    while True:
        users = list(here.uses())
        if len(users) != 1 or users[0][1] != 0 or here.is_graph_output():
            return None
        node = users[0][0]
        found = _apply(node, moved, node.outputs[0])
        if found is None or len(node.outputs) != 1:
            return None
        here, moved = node.outputs[0], found
        if (
            moved.ndim == 2
            and moved.size == flat.size
            and here.shape is not None
            and here.shape.rank() == 2
        ):
            return here if np.array_equal(moved, flat) else None


def source_of(value: ir.Value) -> ir.Value:
    """Climbs to the first tensor that is no mere movement of another."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and not node.domain:
        before = node.inputs[0]
        if before is None or before.const_value is not None:
            break
        value, node = before, before.producer()
    return value


def _width(source: ir.Value) -> int | None:
    if source.shape is None or source.shape.rank() != 2:
        return None
    rows, width = source.shape
    return width if isinstance(width, int) and not isinstance(rows, int) else None


def _moved(value: ir.Value, source: ir.Value, indices: Indices) -> Indices | None:
    if value is source:
        return indices
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    before = _moved(node.inputs[0], source, indices)
    return None if before is None else _apply(node, before, value)


def _apply(node: ir.Node, before: Indices, output: ir.Value) -> Indices | None:
    """Does to indices what a node does to numbers; None if it does not only move them."""
    if node.op_type not in _MOVES or node.domain:
        return None
    constants = [_array(value) for value in node.inputs[1:]]
    if any(array is None for array in constants):
        return None
    try:
        return _MOVES[node.op_type](node, before, [a for a in constants if a is not None], output)
    except (ValueError, IndexError):  # a shape that holds for one batch size alone
        return None


def _array(value: ir.Value | None) -> NDArray[np.int64] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else np.asarray(tensor.numpy())


def _reshape(node: ir.Node, before: Indices, constants: list[Indices], output: ir.Value) -> Indices:
    wanted = [int(size) for size in constants[0]]
    if not node.attributes.get_int("allowzero", 0):
        wanted = [before.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return before.reshape(wanted)


def _transpose(
    node: ir.Node, before: Indices, constants: list[Indices], output: ir.Value
) -> Indices:
    moved: Indices = before.transpose(node.attributes.get_ints("perm"))
    return moved


def _unsqueeze(
    node: ir.Node, before: Indices, constants: list[Indices], output: ir.Value
) -> Indices:
    return np.expand_dims(before, tuple(int(axis) for axis in constants[0].reshape(-1)))


def _squeeze(
    node: ir.Node, before: Indices, constants: list[Indices], output: ir.Value
) -> Indices | None:
    if not constants:
        return None
    return np.squeeze(before, tuple(int(axis) for axis in constants[0].reshape(-1)))


def _gather(node: ir.Node, before: Indices, constants: list[Indices], output: ir.Value) -> Indices:
    return np.take(before, constants[0], axis=node.attributes.get_int("axis", 0))


def _split(node: ir.Node, before: Indices, constants: list[Indices], output: ir.Value) -> Indices:
    axis, index = node.attributes.get_int("axis", 0), node.outputs.index(output)
    parts = np.cumsum(constants[0])[:-1] if constants else len(node.outputs)
    part: Indices = np.split(before, parts, axis)[index]
    return part


_MOVES = {
    "Gather": _gather,
    "Reshape": _reshape,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
