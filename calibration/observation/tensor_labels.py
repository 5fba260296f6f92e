"""Labels that tell a user which tensor of the model a message is about.

A label states the graph, the tensor's name, and the PyTorch module that computes the tensor. An
exported node has no module name, but the names of weights start with that of their module.
"""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.contract import GraphRole


def label_of(role: GraphRole, value: ir.Value) -> str:
    """Returns the label of a tensor, such as `encoder/relu (Relu after encoder.stages.0)`."""
    name, node = f"{role.value}/{value.name}", value.producer()
    if node is None:
        return name
    if module := _module(node):
        return f"{name} ({node.op_type} of {module})"
    previous = _nearest_module(node)
    return f"{name} ({node.op_type} after {previous})" if previous else f"{name} ({node.op_type})"


def _nearest_module(node: ir.Node) -> str | None:
    """Searches the predecessors of a node, the nearest first, for one that has a module."""
    level, visited = [node], {node}
    while level:
        for candidate in level:
            if module := _module(candidate):
                return module
        next_level = dict.fromkeys(p for n in level for p in n.predecessors() if p not in visited)
        visited |= next_level.keys()
        level = list(next_level)
    return None


def _module(node: ir.Node) -> str | None:
    """Returns the module of a node's weight: `encoder.stages.0` for `encoder.stages.0.weight`."""
    for value in node.inputs:
        if value is not None and value.const_value is not None and "." in str(value.name):
            return str(value.name).rpartition(".")[0]
    return None
