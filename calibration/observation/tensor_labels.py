"""What a user knows a tensor by: its graph and name, and the layer of the model that it comes from.

Exported nodes carry no module names, but weights keep theirs.
"""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.contract import GraphRole


def label_of(role: GraphRole, value: ir.Value) -> str:
    """Names a tensor for messages, as `encoder/relu (Relu after encoder.stages.0)`."""
    name, node = f"{role.value}/{value.name}", value.producer()
    if node is None:
        return name
    if module := _module(node):
        return f"{name} ({node.op_type} of {module})"
    before = _nearest_module(node)
    return f"{name} ({node.op_type} after {before})" if before else f"{name} ({node.op_type})"


def _nearest_module(node: ir.Node) -> str | None:
    """Goes up from a node, level by level, to one with a weight of the model."""
    level, seen = [node], {node}
    while level:
        for each in level:
            if module := _module(each):
                return module
        above = dict.fromkeys(n for each in level for n in each.predecessors() if n not in seen)
        seen |= above.keys()
        level = list(above)
    return None


def _module(node: ir.Node) -> str | None:
    """Returns the module that a node's weight belongs to: `encoder.stages.0` of its `.weight`."""
    for value in node.inputs:
        if value is not None and value.const_value is not None and "." in str(value.name):
            return str(value.name).rpartition(".")[0]
    return None
