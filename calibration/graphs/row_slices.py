"""What operators that only move numbers make of a matrix, one row for each sequence.

Between a product and an attention stand reshapes, transpositions and selections, as many as the
model's author needed. `row_slice` looks through them all: it lets them move indices in place of
numbers, for a batch of two, and sees whether what comes out are the columns of the rows, in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import only_user

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
    """Returns the columns that a tensor consists of, row by row; None if it is anything else."""
    source = source_of(value)
    indices = _indices(source)
    moved = None if indices is None or indices.ndim != 2 else _moved(value, source, indices)
    if indices is None or moved is None or moved.ndim == 0 or len(moved) != _BATCH:
        return None
    rows, width = moved.reshape(_BATCH, -1), indices.shape[1]
    begin, count = int(rows[0, 0]), rows.shape[1]
    straight = begin + count <= width and np.array_equal(rows, indices[:, begin : begin + count])
    return RowSlice(source, begin, count) if straight else None


def flattened_rows(value: ir.Value) -> ir.Value | None:
    """Follows a tensor down to where it is (batch, width) again, each row in its order."""
    indices, here = _indices(value), value
    if indices is None:
        return None
    flat, moved = indices.reshape(_BATCH, -1), indices
    while moved.shape != flat.shape:
        node = only_user(here)
        if node is None or node.inputs[0] is not here or len(node.outputs) != 1:
            return None
        here = node.outputs[0]
        found = _apply(node, moved, here)
        if found is None:
            return None
        moved = found
    return here if np.array_equal(moved, flat) and not here.is_graph_output() else None


def is_in_order(value: ir.Value, source: ir.Value) -> bool:
    """Returns whether a tensor holds the numbers of what it was moved from, all in their order."""
    indices = _indices(source)
    moved = None if indices is None else _moved(value, source, indices)
    if indices is None or moved is None:
        return False
    return np.array_equal(moved.reshape(-1), indices.reshape(-1))


def source_of(value: ir.Value) -> ir.Value:
    """Climbs to the first tensor that is no mere movement of another."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and not node.domain:
        before = node.inputs[0]
        if before is None or before.const_value is not None:
            break
        value, node = before, before.producer()
    return value


def _indices(value: ir.Value) -> Indices | None:
    """Numbers the elements of a tensor, for a batch of two; None if more than that varies."""
    if value.shape is None or value.shape.rank() == 0 or isinstance(value.shape[0], int):
        return None
    sizes = [size for size in value.shape[1:] if isinstance(size, int)]
    if len(sizes) < value.shape.rank() - 1:
        return None
    return np.arange(_BATCH * math.prod(sizes)).reshape(_BATCH, *sizes)


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
