"""Analysis of the operators that only move numbers between a product and an attention.

    source (batch, 24)     MatMul's packed query, key and value
    Reshape, Transpose, Split, Gather, Squeeze, Unsqueeze     in any number and order
    value (batch, 2, 1, 4)     -> RowSlice(source, begin=8, width=8)

The analysis changes no graph. It applies the moving operators to element indices in place of
numbers, for a batch of two, and checks whether the result is a range of columns in their order. It
therefore needs no list of the patterns that model authors write.
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
    """Neighbouring columns of a matrix with one row for each sequence.

    Attributes:
        source: the matrix, (batch, all columns), as a node computes it.
        begin: index of the first column.
        width: number of columns.
    """

    source: ir.Value
    begin: int
    width: int


def row_slice(value: ir.Value) -> RowSlice | None:
    """Returns the columns of a matrix that a tensor consists of.

    Returns:
        The columns; None if the tensor is not a range of columns, row by row and in their order.
    """
    source = source_of(value)
    indices = _element_indices(source)
    moved = (
        None
        if indices is None or indices.ndim != 2
        else _indices_after_moves(value, source, indices)
    )
    if indices is None or moved is None or moved.ndim == 0 or len(moved) != _BATCH:
        return None
    rows, width = moved.reshape(_BATCH, -1), indices.shape[1]
    begin, selected_width = int(rows[0, 0]), rows.shape[1]
    in_order = begin + selected_width <= width and np.array_equal(
        rows, indices[:, begin : begin + selected_width]
    )
    return RowSlice(source, begin, selected_width) if in_order else None


def flattened_rows(value: ir.Value) -> ir.Value | None:
    """Follows the uses of a tensor to the value that has each of its rows flattened.

    Returns:
        The value, (batch, width), each row in the tensor's order; None if there is none, or it is a
        graph output, or a tensor on the way has several uses.
    """
    indices, current = _element_indices(value), value
    if indices is None:
        return None
    flat, moved = indices.reshape(_BATCH, -1), indices
    while moved.shape != flat.shape:
        node = only_user(current)
        if node is None or node.inputs[0] is not current or len(node.outputs) != 1:
            return None
        current = node.outputs[0]
        next_indices = _move_indices(node, moved, current)
        if next_indices is None:
            return None
        moved = next_indices
    return current if np.array_equal(moved, flat) and not current.is_graph_output() else None


def is_in_order(value: ir.Value, source: ir.Value) -> bool:
    """Returns whether a tensor holds all numbers of `source`, in their order."""
    indices = _element_indices(source)
    moved = None if indices is None else _indices_after_moves(value, source, indices)
    if indices is None or moved is None:
        return False
    return np.array_equal(moved.reshape(-1), indices.reshape(-1))


def source_of(value: ir.Value) -> ir.Value:
    """Returns the tensor that the moving operators before a value start from."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and not node.domain:
        data = node.inputs[0]
        if data is None or data.const_value is not None:
            break
        value, node = data, data.producer()
    return value


def _element_indices(value: ir.Value) -> Indices | None:
    """Numbers the elements of a tensor for a batch of two; None if another size is symbolic."""
    if value.shape is None or value.shape.rank() == 0 or isinstance(value.shape[0], int):
        return None
    sizes = [size for size in value.shape[1:] if isinstance(size, int)]
    if len(sizes) < value.shape.rank() - 1:
        return None
    return np.arange(_BATCH * math.prod(sizes)).reshape(_BATCH, *sizes)


def _indices_after_moves(value: ir.Value, source: ir.Value, indices: Indices) -> Indices | None:
    if value is source:
        return indices
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    input_indices = _indices_after_moves(node.inputs[0], source, indices)
    return None if input_indices is None else _move_indices(node, input_indices, value)


def _move_indices(node: ir.Node, indices: Indices, output: ir.Value) -> Indices | None:
    """Applies a node to indices in place of numbers; None if the node does more than move them."""
    if node.op_type not in _MOVES or node.domain:
        return None
    constants = [_array(value) for value in node.inputs[1:]]
    if any(array is None for array in constants):
        return None
    try:
        return _MOVES[node.op_type](
            node, indices, [array for array in constants if array is not None], output
        )
    except (ValueError, IndexError):  # the node's shape is valid for another batch size only
        return None


def _array(value: ir.Value | None) -> NDArray[np.int64] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else np.asarray(tensor.numpy())


def _reshape(
    node: ir.Node, indices: Indices, constants: list[Indices], output: ir.Value
) -> Indices:
    sizes = [int(size) for size in constants[0]]
    if not node.attributes.get_int("allowzero", 0):
        sizes = [indices.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return indices.reshape(sizes)


def _transpose(
    node: ir.Node, indices: Indices, constants: list[Indices], output: ir.Value
) -> Indices:
    transposed: Indices = indices.transpose(node.attributes.get_ints("perm"))
    return transposed


def _unsqueeze(
    node: ir.Node, indices: Indices, constants: list[Indices], output: ir.Value
) -> Indices:
    return np.expand_dims(indices, tuple(int(axis) for axis in constants[0].reshape(-1)))


def _squeeze(
    node: ir.Node, indices: Indices, constants: list[Indices], output: ir.Value
) -> Indices | None:
    if not constants:
        return None
    return np.squeeze(indices, tuple(int(axis) for axis in constants[0].reshape(-1)))


def _gather(node: ir.Node, indices: Indices, constants: list[Indices], output: ir.Value) -> Indices:
    return np.take(indices, constants[0], axis=node.attributes.get_int("axis", 0))


def _split(node: ir.Node, indices: Indices, constants: list[Indices], output: ir.Value) -> Indices:
    axis, index = node.attributes.get_int("axis", 0), node.outputs.index(output)
    parts = np.cumsum(constants[0])[:-1] if constants else len(node.outputs)
    part: Indices = np.split(indices, parts, axis)[index]
    return part


_MOVES = {
    "Gather": _gather,
    "Reshape": _reshape,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
