"""The small edits that passes share: constants, descriptions of new values, single users."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Returns the initializer called `name`; adds it to the graph if it is missing.

    The graph must not hold another array under that name.
    """
    if name in graph.initializers:
        tensor = graph.initializers[name].const_value
        assert tensor is not None and np.array_equal(tensor.numpy(), array), f"two tensors: {name}"
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def describe(new: ir.Value, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    """Sets the name and dtype of a new value, and gives it the shape of `like`."""
    new.name, new.shape, new.dtype = name, like.shape, dtype


def name_value(
    node: ir.Node,
    name: str,
    shape: ir.Shape | None,
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> ir.Value:
    """Returns the first output of a new node after setting its name, shape and dtype."""
    value = node.outputs[0]
    value.name, value.shape, value.dtype = name, shape, dtype
    return value


def drop_unused_constants(graph: ir.Graph) -> None:
    """Removes the initializers that no node uses and that are no graph output."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def only_user(value: ir.Value) -> ir.Node | None:
    """Returns the only node that uses a value.

    Returns:
        The node; None if the value has no use or several, or is a graph output.
    """
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None
