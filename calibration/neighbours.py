"""What stands next to a value in a graph."""

from __future__ import annotations

import onnx_ir as ir


def only_user(value: ir.Value) -> ir.Node | None:
    """Gives the one node that takes a value; None if there are others, or the graph returns it."""
    users = list(value.uses())
    return users[0][0] if len(users) == 1 and not value.is_graph_output() else None
