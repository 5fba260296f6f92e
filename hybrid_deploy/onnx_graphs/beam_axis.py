"""Values whose beams have an axis: (inputs, ..., beams, ...) for (sequences, ..., 1, ...)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir

from hybrid_deploy.contract import BATCH_DIM, BEAMS_DIM, INPUTS_DIM

Size = int | ir.SymbolicDim

_MOVES = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_ROWS = -2


class NotFoldableError(Exception):
    """A graph has no form whose beams share their memory."""


class BeamAxis:
    """Adds what folds and unfolds values to a graph, each once; the graph is to be sorted then.

    A value is known by what the graph had in its place, (sequences, ..., 1, ...): an axis of one is
    where its beams go.

    Args:
        graph: nodes are added to its end.
        memory: tells how many inputs there are: (inputs, ...).
    """

    def __init__(self, graph: ir.Graph, memory: ir.Value) -> None:
        self._graph = graph
        self._folded: dict[tuple[ir.Value, int], ir.Value] = {}
        self._places: dict[ir.Value, int] = {}
        self._unfolded: dict[ir.Value, ir.Value] = {}
        self._shapes: dict[tuple[ir.Value | int, ...], ir.Value] = {}
        self._sizes: dict[tuple[ir.Value, int], ir.Value] = {}
        self._masks: dict[ir.Value, ir.Value] = {}
        self._inputs = self._sizes_node("Shape", [memory], start=0, end=1)

    @property
    def used(self) -> bool:
        """Whether any value was folded."""
        return bool(self._folded)

    def place(self, value: ir.Value) -> int:
        """Returns the axis of the beams of what `add` or `move` has folded."""
        return self._places[value]

    def add(self, node: ir.Node, inputs: Sequence[ir.Value | None], place: int) -> None:
        """Adds the node that gives the folded form of another node's result.

        Args:
            node: gives (sequences, ..., 1, ...).
            inputs: of the new node.
            place: axis of the beams in its result.

        Raises:
            NotFoldableError: that axis is not of one.
        """
        value = node.outputs[0]
        if place not in _ones(value):
            raise NotFoldableError
        name, attributes = f"{value.name}_of_beams", list(node.attributes.values())
        twin = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=1, name=name)
        self._graph.append(twin)
        self._keep(value, _described(twin, name, value, _with_beams(value, place)), place)

    def fold(self, value: ir.Value, from_end: int) -> ir.Value:
        """Returns the form of a value whose beams are at an axis, counted from the end.

        Raises:
            NotFoldableError: the axis is not of one.
        """
        place = rank_of(value) + from_end
        if place not in _ones(value):
            raise NotFoldableError
        if (value, place) not in self._folded:
            known = self._places.get(value)
            made = self._split(value, place) if known is None else self._turned(value, place, value)
            self._folded[value, place] = made
        return self._folded[value, place]

    def unfolded(self, value: ir.Value) -> ir.Value:
        """Returns what a folded value stands for, (sequences, ..., 1, ...)."""
        if value not in self._unfolded:
            self._unfolded[value] = self._merged(value, value)
        return self._unfolded[value]

    def unfold_into(self, node: ir.Node) -> bool:
        """Lets what unfolds a value do what a node does that only adds or removes axes as well.

        Returns:
            Whether it can; if not, nothing was changed.
        """
        value, result = node.inputs[0], node.outputs[0]
        assert value is not None, "these operators have an input"
        if result.shape is None or not _is_batch(result.shape[0]) or _sizes(result) is None:
            return False
        if result.is_graph_output():  # its name must stay
            return False
        self._unfolded[result] = self._merged(value, result)
        result.replace_all_uses_with(self._unfolded[result])
        return True

    def move(self, node: ir.Node) -> bool:
        """Folds what only moves the axis of one.

        Returns:
            Whether it does; if not, nothing was changed.
        """
        value, result = node.inputs[0], node.outputs[0]
        assert value is not None, "these operators have an input"
        if value.shape is None or result.shape is None:
            return False
        before, after = _but_ones(value), _but_ones(result)
        ones, alike = _ones(result), before is not None and before == after
        if not alike or len(ones) != 1 or _ones(value) != [self.place(value)]:
            return False
        self._keep(result, self._turned(value, ones[0], result), ones[0])
        return True

    def with_all_rows(self, mask: ir.Value, rows: ir.Value) -> ir.Value:
        """Returns a mask with a row for every beam: ONNX Runtime does not repeat a single one.

        Args:
            mask: (..., 1, memory), the same for all beams.
            rows: folded, (inputs, heads, beams, width).

        Raises:
            NotFoldableError: the mask has several rows already.
        """
        if mask not in self._masks:
            rank = rank_of(mask)
            if mask.shape is None or rank < -_ROWS or mask.shape[_ROWS] != 1:
                raise NotFoldableError
            count = self._sizes_node("Shape", [rows], start=2, end=3)
            one = self._numbers("beam_sizes_1", [1])
            parts = [*[one] * (rank + _ROWS), count, one]
            sizes = self._sizes_node("Concat", parts, axis=0)
            node = ir.node("Expand", [mask, sizes])
            self._graph.append(node)
            shape = _with_beams(mask, rank + _ROWS)
            self._masks[mask] = _described(node, f"{mask.name}_of_beams", mask, shape)
        return self._masks[mask]

    def _keep(self, value: ir.Value, folded: ir.Value, place: int) -> None:
        self._places[value] = place
        self._folded[value, place] = folded

    def _split(self, value: ir.Value, place: int) -> ir.Value:
        """Folds a value of sequences."""
        assert value.shape is not None, "its rank was asked for"
        sizes, rest = (
            list(value.shape),
            [axis for axis in range(1, rank_of(value)) if axis != place],
        )
        source = _source(value) if _sizes(value) is not None else value
        split = ir.node("Reshape", [source, self._shape_of([self._inputs, -1], value, rest)])
        order = [0, *range(2, len(rest) + 2)]
        order.insert(place, 1)
        turned = ir.node("Transpose", [split.outputs[0]], {"perm": order})
        self._graph.extend([split, turned])
        shape = ir.Shape([INPUTS_DIM, BEAMS_DIM, *(sizes[axis] for axis in rest)])
        _described(split, f"{value.name}_split", value, shape)
        shape = _with_beams(value, place)
        return _described(turned, f"{value.name}_of_beams_{place}", value, shape)

    def _turned(self, value: ir.Value, place: int, result: ir.Value) -> ir.Value:
        """Returns a folded value with its beams at another axis of one, shaped as `result` then."""
        known = self.place(value)
        order = [axis for axis in range(rank_of(value)) if axis != known]
        order.insert(place, known)
        node = ir.node("Transpose", [self._folded[value, known]], {"perm": order})
        self._graph.append(node)
        name, shape = f"{result.name}_of_beams_{place}", _with_beams(result, place)
        return _described(node, name, result, shape)

    def _merged(self, value: ir.Value, result: ir.Value) -> ir.Value:
        """Returns sequences again, in the shape of `result`, which has the same numbers."""
        place = self.place(value)
        order = [axis for axis in range(1, rank_of(value)) if axis != place]
        folded = self._folded[value, place]
        turned = ir.node("Transpose", [folded], {"perm": [0, place, *order]})
        sizes = self._shape_of([-1], result, range(1, rank_of(result)), like=folded)
        merged = ir.node("Reshape", [turned.outputs[0], sizes])
        self._graph.extend([turned, merged])
        assert folded.shape is not None, "folded values are described"
        shape = ir.Shape([folded.shape[axis] for axis in (0, place, *order)])
        _described(turned, f"{value.name}_by_beam", value, shape)
        return _described(merged, f"{result.name}_of_sequences", result, result.shape)

    def _shape_of(
        self,
        begin: Sequence[ir.Value | int],
        value: ir.Value,
        axes: Iterable[int],
        like: ir.Value | None = None,
    ) -> ir.Value:
        """Returns a shape that ends in sizes of a value; those that vary are asked of `like`."""
        assert value.shape is not None, "its rank was asked for"
        parts: list[ir.Value | int] = list(begin)
        for axis in axes:
            size = value.shape[axis]
            parts.append(size if isinstance(size, int) else self._size(like or value, axis))
        key = tuple(parts)
        if key not in self._shapes:
            runs = groupby(parts, key=lambda part: isinstance(part, int))
            joined = [value for _, run in runs for value in self._run(list(run))]
            alone = len(joined) == 1
            self._shapes[key] = joined[0] if alone else self._sizes_node("Concat", joined, axis=0)
        return self._shapes[key]

    def _run(self, parts: Sequence[ir.Value | int]) -> list[ir.Value]:
        """Returns numbers that follow each other as one value, and other values as they are."""
        numbers = [part for part in parts if isinstance(part, int)]
        if not numbers:
            return [part for part in parts if isinstance(part, ir.Value)]
        return [self._numbers(f"beam_sizes_{'_'.join(map(str, numbers))}", numbers)]

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

    def _numbers(self, name: str, numbers: Sequence[int]) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.array(numbers, np.int64), name=name)
            self._graph.register_initializer(ir.val(name, const_value=tensor))
        return self._graph.initializers[name]


def rank_of(value: ir.Value | None) -> int:
    """Returns how many axes a value has.

    Raises:
        NotFoldableError: nobody knows.
    """
    if value is None or value.shape is None:
        raise NotFoldableError
    return value.shape.rank()


def _ones(value: ir.Value) -> list[int]:
    """Returns the axes of one, besides the first."""
    assert value.shape is not None, "its rank was asked for"
    return [axis for axis, size in enumerate(value.shape) if axis and size == 1]


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    """Returns all sizes but the first; None if they vary."""
    assert value.shape is not None, "its rank was asked for"
    sizes = list(value.shape)[1:]
    fixed = tuple(size for size in sizes if isinstance(size, int))
    return fixed if len(fixed) == len(sizes) else None


def _but_ones(value: ir.Value) -> list[int | str] | None:
    """Returns the sizes behind the first that are not one; None if one has no name."""
    assert value.shape is not None, "its rank was asked for"
    sizes = [size if isinstance(size, int) else size.value for size in value.shape[1:]]
    named = [size for size in sizes if size is not None]
    return None if len(named) < len(sizes) else [size for size in named if size != 1]


def _with_beams(value: ir.Value, place: int) -> ir.Shape:
    """Returns the shape of a value's folded form."""
    assert value.shape is not None, "its rank was asked for"
    sizes: list[Size | str] = list(value.shape)
    sizes[place] = BEAMS_DIM
    if _is_batch(value.shape[0]):
        sizes[0] = INPUTS_DIM
    return ir.Shape(sizes)


def _is_batch(size: Size) -> bool:
    return isinstance(size, ir.SymbolicDim) and size.value == BATCH_DIM


def _source(value: ir.Value) -> ir.Value:
    """Climbs to where the numbers of a value are, one row for each sequence, in the same order."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and not node.domain:
        before = node.inputs[0]
        if before is None or before.shape is None or not before.shape.rank():
            break
        if not _is_batch(before.shape[0]) or _sizes(before) is None:
            break
        value, node = before, before.producer()
    return value


def _described(node: ir.Node, name: str, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    value = node.outputs[0]
    value.name, value.type, value.shape = name, like.type, shape
    return value
