"""Checks a graph that was read, so that no later pass fails over what the file does not hold."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Set

import onnx_ir as ir

from hybrid_deploy.bundle.manifest import GraphSpec


def check_graph(model: ir.Model, spec: GraphSpec, is_own_file: Callable[[str], bool]) -> None:
    """Checks that a graph has its described tensors, reads only what is computed, and has weights.

    Args:
        model: the graph.
        spec: its description in the manifest.
        is_own_file: function that returns whether a path, relative to the bundle, is one of its
            files.

    Raises:
        ValueError: the graph is another one, or a value or a weight is missing.
    """
    graph = model.graph
    for what, values, tensors in (
        ("inputs", graph.inputs, spec.inputs),
        ("outputs", graph.outputs, spec.outputs),
    ):
        if {value.name for value in values} != {tensor.name for tensor in tensors}:
            raise ValueError(f"its {what} are not those of the manifest")
    _check_order(graph, frozenset())
    home = posixpath.dirname(spec.file)
    for tensor in _tensors(graph):
        if isinstance(tensor, ir.ExternalTensor):
            location = str(tensor.location)
            if not is_own_file(posixpath.normpath(posixpath.join(home, location))):
                raise ValueError(
                    f"{tensor.name} lies in {location}, which is no file of the bundle"
                )
            if tensor.length not in (None, tensor.nbytes):
                raise ValueError(f"{tensor.name} has another size than its shape")
        tensor.numpy()  # maps the file, and reads nothing of it yet


def _check_order(graph: ir.Graph, outer: Set[ir.Value]) -> None:
    """Checks that every value is computed before it is read, also by the graphs inside of nodes."""
    known = {*outer, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                raise ValueError(
                    f"{node.name} reads {value.name}, which nothing before it computes"
                )
        for inner in inner_graphs(node):
            _check_order(inner, known)
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            raise ValueError(f"nothing computes {value.name}")


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yields the graphs inside of a node, such as the body of a loop."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


def _tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    """Yields the constants of a graph, and of the graphs inside of its nodes."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.value
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.value
        for inner in inner_graphs(node):
            yield from _tensors(inner)
