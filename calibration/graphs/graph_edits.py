"""Constants that passes add to a graph, and those they leave unused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Returns the initializer of that name, made if it is not there yet."""
    if name in graph.initializers:
        known = graph.initializers[name].const_value
        assert known is not None and np.array_equal(known.numpy(), array), f"two tensors: {name}"
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def describe(new: ir.Value, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    """Names a new value that has the shape of another."""
    new.name, new.shape, new.dtype = name, like.shape, dtype


def name_value(
    node: ir.Node,
    name: str,
    shape: ir.Shape | None,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    """Names and describes the first output of a new node, and gives it."""
    value = node.outputs[0]
    value.name, value.shape, value.dtype = name, shape, dtype
    return value


def drop_unused_constants(graph: ir.Graph) -> None:
    """Removes the initializers that nothing takes."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def only_user(value: ir.Value) -> ir.Node | None:
    """Returns the only node that takes a value; None if several do, or the graph returns it."""
    users = list(value.uses())
    return users[0][0] if len(users) == 1 and not value.is_graph_output() else None
