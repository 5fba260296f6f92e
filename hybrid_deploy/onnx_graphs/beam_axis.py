"""Folded values: the sequences of an input, its beams, get an axis of their own.

fold     value      (sequences, heads, 1, width)
         Reshape    (inputs, beams, heads, width)
         Transpose  (inputs, heads, beams, width)

unfold   value      (inputs, heads, beams, width)
         Transpose  (inputs, beams, heads, width)
         Reshape    (sequences, heads, 1, width)

The sketch has the beams in place of axis 2. Any axis of size 1 but the first can take them: it is
called the beam axis of the folded value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir

from hybrid_deploy.contract import BATCH_DIM, BEAMS_DIM, INPUTS_DIM

Size = int | ir.SymbolicDim

_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_ROWS = -2


class NotFoldableError(Exception):
    """The graph has no equivalent whose beams share their memory."""


class BeamAxis:
    """Adds the nodes that fold and unfold values to a graph, once for each value.

    Nodes are added to the end of the graph, which must be sorted afterwards. The methods take
    values of the original graph, (sequences, ..., 1, ...), unless they state another form; the
    class remembers the folded form of each.

    Args:
        graph: graph that the nodes are added to.
        memory: a memory tensor, (inputs, ...), whose first size is the number of inputs.
    """

    def __init__(self, graph: ir.Graph, memory: ir.Value) -> None:
        self._graph = graph
        self._folded: dict[tuple[ir.Value, int], ir.Value] = {}
        self._axes: dict[ir.Value, int] = {}
        self._unfolded: dict[ir.Value, ir.Value] = {}
        self._shapes: dict[tuple[ir.Value | int, ...], ir.Value] = {}
        self._sizes: dict[tuple[ir.Value, int], ir.Value] = {}
        self._masks: dict[ir.Value, ir.Value] = {}
        self._inputs = self._sizes_node("Shape", [memory], start=0, end=1)

    @property
    def used(self) -> bool:
        """Whether any value was folded."""
        return bool(self._folded)

    def axis_of(self, value: ir.Value) -> int:
        """Returns the beam axis of a value that `add_folded` or `fold_reshape` has folded."""
        return self._axes[value]

    def add_folded(self, node: ir.Node, inputs: Sequence[ir.Value | None], axis: int) -> None:
        """Adds a copy of a node that computes the folded form of the node's result.

        Args:
            node: node whose result is (sequences, ..., 1, ...).
            inputs: inputs of the copy, folded where they differ between beams.
            axis: beam axis of the copy's result.

        Raises:
            NotFoldableError: the size of that axis is not 1 in the node's result.
        """
        value = node.outputs[0]
        if axis not in _unit_axes(value):
            raise NotFoldableError
        name, attributes = f"{value.name}_of_beams", list(node.attributes.values())
        copy = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=1, name=name)
        self._graph.append(copy)
        self._set_folded(value, _describe(copy, name, value, _folded_shape(value, axis)), axis)

    def fold(self, value: ir.Value, from_end: int) -> ir.Value:
        """Returns the folded form of a value with a given beam axis.

        Args:
            value: value of sequences, (sequences, ..., 1, ...).
            from_end: beam axis, counted from the end: -1 is the last one.

        Raises:
            NotFoldableError: the size of that axis is not 1.
        """
        axis = rank_of(value) + from_end
        if axis not in _unit_axes(value):
            raise NotFoldableError
        if (value, axis) not in self._folded:
            is_folded = value in self._axes
            self._folded[value, axis] = (
                self._moved_beams(value, axis, value)
                if is_folded
                else self._folded_sequences(value, axis)
            )
        return self._folded[value, axis]

    def unfold(self, value: ir.Value) -> ir.Value:
        """Returns the form (sequences, ..., 1, ...) of a value, computed from its folded form."""
        if value not in self._unfolded:
            self._unfolded[value] = self._unfolded_as(value, value)
        return self._unfolded[value]

    def unfold_reshape(self, node: ir.Node) -> bool:
        """Replaces a Reshape, Squeeze or Unsqueeze of a folded value by the unfolding itself.

        The Reshape that ends the unfolding returns the shape of the node's result at once. The node
        stays if its result is a graph output, or has another shape than (batch, fixed sizes).

        Returns:
            Whether the node was replaced; if not, the graph is unchanged.
        """
        value, result = node.inputs[0], node.outputs[0]
        assert value is not None, "Reshape, Squeeze and Unsqueeze have an input"
        if result.shape is None or not _is_batch(result.shape[0]) or _fixed_sizes(result) is None:
            return False
        if result.is_graph_output():  # its name must stay
            return False
        self._unfolded[result] = self._unfolded_as(value, result)
        result.replace_all_uses_with(self._unfolded[result])
        return True

    def fold_reshape(self, node: ir.Node) -> bool:
        """Folds the result of a node that only moves the axis of size 1 of a folded value.

        Returns:
            Whether the result was folded; if not, the graph is unchanged.
        """
        value, result = node.inputs[0], node.outputs[0]
        assert value is not None, "Reshape, Squeeze and Unsqueeze have an input"
        if value.shape is None or result.shape is None:
            return False
        before, after = _sizes_without_units(value), _sizes_without_units(result)
        unit_axes, same_sizes = _unit_axes(result), before is not None and before == after
        if not same_sizes or len(unit_axes) != 1 or _unit_axes(value) != [self.axis_of(value)]:
            return False
        self._set_folded(result, self._moved_beams(value, unit_axes[0], result), unit_axes[0])
        return True

    def expand_mask(self, mask: ir.Value, rows: ir.Value) -> ir.Value:
        """Returns a mask with a row for every beam; ONNX Runtime's Attention repeats no single row.

        Args:
            mask: (..., 1, memory), the same for all beams of an input.
            rows: folded queries, (inputs, heads, beams, width).

        Raises:
            NotFoldableError: the mask has several rows already.
        """
        if mask not in self._masks:
            rank = rank_of(mask)
            if mask.shape is None or rank < -_ROWS or mask.shape[_ROWS] != 1:
                raise NotFoldableError
            beams = self._sizes_node("Shape", [rows], start=2, end=3)
            one = self._constant("beam_sizes_1", [1])
            parts = [*[one] * (rank + _ROWS), beams, one]
            sizes = self._sizes_node("Concat", parts, axis=0)
            node = ir.node("Expand", [mask, sizes])
            self._graph.append(node)
            shape = _folded_shape(mask, rank + _ROWS)
            self._masks[mask] = _describe(node, f"{mask.name}_of_beams", mask, shape)
        return self._masks[mask]

    def _set_folded(self, value: ir.Value, folded: ir.Value, axis: int) -> None:
        self._axes[value] = axis
        self._folded[value, axis] = folded

    def _folded_sequences(self, value: ir.Value, axis: int) -> ir.Value:
        """Adds the Reshape and Transpose that fold a value of sequences."""
        assert value.shape is not None, "rank_of was called before"
        rest = [index for index in range(1, rank_of(value)) if index != axis]
        source = _source(value) if _fixed_sizes(value) is not None else value
        split = ir.node("Reshape", [source, self._shape_of([self._inputs, -1], value, rest)])
        order = [0, *range(2, len(rest) + 2)]
        order.insert(axis, 1)
        transpose = ir.node("Transpose", [split.outputs[0]], {"perm": order})
        self._graph.extend([split, transpose])
        shape = ir.Shape([INPUTS_DIM, BEAMS_DIM, *(value.shape[index] for index in rest)])
        _describe(split, f"{value.name}_split", value, shape)
        shape = _folded_shape(value, axis)
        return _describe(transpose, f"{value.name}_of_beams_{axis}", value, shape)

    def _moved_beams(self, value: ir.Value, axis: int, result: ir.Value) -> ir.Value:
        """Adds the Transpose to another beam axis; its output is the folded form of `result`."""
        beam_axis = self.axis_of(value)
        order = [index for index in range(rank_of(value)) if index != beam_axis]
        order.insert(axis, beam_axis)
        node = ir.node("Transpose", [self._folded[value, beam_axis]], {"perm": order})
        self._graph.append(node)
        name, shape = f"{result.name}_of_beams_{axis}", _folded_shape(result, axis)
        return _describe(node, name, result, shape)

    def _unfolded_as(self, value: ir.Value, result: ir.Value) -> ir.Value:
        """Adds the Transpose and Reshape that unfold a value into the shape of `result`."""
        axis = self.axis_of(value)
        order = [index for index in range(1, rank_of(value)) if index != axis]
        folded = self._folded[value, axis]
        transpose = ir.node("Transpose", [folded], {"perm": [0, axis, *order]})
        sizes = self._shape_of([-1], result, range(1, rank_of(result)), like=folded)
        merge = ir.node("Reshape", [transpose.outputs[0], sizes])
        self._graph.extend([transpose, merge])
        assert folded.shape is not None, "_describe gave it a shape"
        shape = ir.Shape([folded.shape[index] for index in (0, axis, *order)])
        _describe(transpose, f"{value.name}_by_beam", value, shape)
        return _describe(merge, f"{result.name}_of_sequences", result, result.shape)

    def _shape_of(
        self,
        begin: Sequence[ir.Value | int],
        value: ir.Value,
        axes: Iterable[int],
        like: ir.Value | None = None,
    ) -> ir.Value:
        """Returns a shape for Reshape: `begin`, then the sizes of a value along some axes.

        Sizes that vary are read from `like` with Shape, by default from the value.
        """
        assert value.shape is not None, "rank_of was called before"
        parts: list[ir.Value | int] = list(begin)
        for axis in axes:
            size = value.shape[axis]
            parts.append(size if isinstance(size, int) else self._size(like or value, axis))
        key = tuple(parts)
        if key not in self._shapes:
            runs = groupby(parts, key=lambda part: isinstance(part, int))
            joined = [value for _, run in runs for value in self._as_values(list(run))]
            is_single = len(joined) == 1
            self._shapes[key] = (
                joined[0] if is_single else self._sizes_node("Concat", joined, axis=0)
            )
        return self._shapes[key]

    def _as_values(self, parts: Sequence[ir.Value | int]) -> list[ir.Value]:
        """Returns neighbouring numbers as one initializer, and values unchanged."""
        numbers = [part for part in parts if isinstance(part, int)]
        if not numbers:
            return [part for part in parts if isinstance(part, ir.Value)]
        return [self._constant(f"beam_sizes_{'_'.join(map(str, numbers))}", numbers)]

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        if (value, axis) not in self._sizes:
            size = self._sizes_node("Shape", [value], start=axis, end=axis + 1)
            self._sizes[value, axis] = size
        return self._sizes[value, axis]

    def _sizes_node(self, operator: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        self._graph.append(node)
        node.outputs[0].dtype = ir.DataType.INT64
        return node.outputs[0]

    def _constant(self, name: str, numbers: Sequence[int]) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.array(numbers, np.int64), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]


def rank_of(value: ir.Value | None) -> int:
    """Returns the number of axes of a value.

    Raises:
        NotFoldableError: the value has no shape.
    """
    if value is None or value.shape is None:
        raise NotFoldableError
    return value.shape.rank()


def _unit_axes(value: ir.Value) -> list[int]:
    """Returns the axes of size 1, without the first axis."""
    assert value.shape is not None, "rank_of was called before"
    return [axis for axis, size in enumerate(value.shape) if axis and size == 1]


def _fixed_sizes(value: ir.Value) -> tuple[int, ...] | None:
    """Returns all sizes behind the first axis; None if one of them is symbolic."""
    assert value.shape is not None, "rank_of was called before"
    sizes = list(value.shape)[1:]
    fixed = tuple(size for size in sizes if isinstance(size, int))
    return fixed if len(fixed) == len(sizes) else None


def _sizes_without_units(value: ir.Value) -> list[int | str] | None:
    """Returns the sizes behind the first axis that are not 1; None if one is unknown."""
    assert value.shape is not None, "rank_of was called before"
    sizes = [size if isinstance(size, int) else size.value for size in value.shape[1:]]
    known_sizes = [size for size in sizes if size is not None]
    return None if len(known_sizes) < len(sizes) else [size for size in known_sizes if size != 1]


def _folded_shape(value: ir.Value, axis: int) -> ir.Shape:
    """Returns the shape of a value's folded form with this beam axis."""
    assert value.shape is not None, "rank_of was called before"
    sizes: list[Size | str] = list(value.shape)
    sizes[axis] = BEAMS_DIM
    if _is_batch(value.shape[0]):
        sizes[0] = INPUTS_DIM
    return ir.Shape(sizes)


def _is_batch(size: Size) -> bool:
    return isinstance(size, ir.SymbolicDim) and size.value == BATCH_DIM


def _source(value: ir.Value) -> ir.Value:
    """Returns the earliest value that only reshapes turn into this one; its rows are sequences."""
    node = value.producer()
    while node is not None and node.op_type in _RESHAPING and not node.domain:
        before = node.inputs[0]
        if before is None or before.shape is None or not before.shape.rank():
            break
        if not _is_batch(before.shape[0]) or _fixed_sizes(before) is None:
            break
        value, node = before, before.producer()
    return value


def _describe(node: ir.Node, name: str, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    """Sets name, type and shape of a node's output, and returns it."""
    value = node.outputs[0]
    value.name, value.type, value.shape = name, like.type, shape
    return value
