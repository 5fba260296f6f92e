"""Transposes moved behind the products that they feed.

    BEFORE                           AFTER
    x                                x
    Transpose (perm)                 MatMul (constant weight)
    MatMul (constant weight)         Transpose (perm)
    y                                y

The pattern matches where perm leaves the last axis in place and the weight has two dimensions; both
forms then compute the same. ONNX Runtime 1.32 fuses a Transpose and the MatMul behind it, and
crashes the process while it does so in a float16 graph on the CPU. It does not fuse the form AFTER.
"""

from __future__ import annotations

import onnx_ir as ir


def move_transposes_behind_products(model: ir.Model) -> int:
    """Rewrites MatMul(Transpose(x), constant) as Transpose(MatMul(x, constant)), in place.

    Returns:
        The number of rewritten products.
    """
    graph = model.graph
    pairs = [
        (node, transpose) for node in graph if (transpose := _transpose_before(node)) is not None
    ]
    for node, transpose in pairs:
        _move(graph, node, transpose)
    for transpose in {transpose for _, transpose in pairs}:
        output = transpose.outputs[0]
        if not output.uses() and not output.is_graph_output():
            graph.remove(transpose, safe=True)
    return len(pairs)


def _transpose_before(node: ir.Node) -> ir.Node | None:
    if node.op_type != "MatMul" or node.outputs[0].is_graph_output():
        return None
    activation, weight = node.inputs
    if activation is None or weight is None or weight.const_value is None:
        return None
    transpose = activation.producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    perm = transpose.attributes.get_ints("perm")
    keeps_last = perm is not None and perm[-1] == len(perm) - 1
    return transpose if keeps_last and len(weight.const_value.shape) == 2 else None


def _move(graph: ir.Graph, node: ir.Node, transpose: ir.Node) -> None:
    product = node.outputs[0]
    users = list(product.uses())
    perm = transpose.attributes["perm"].as_ints()
    new_transpose = ir.node(
        "Transpose", [product], {"perm": perm}, name=f"{product.name}/transpose"
    )
    result = new_transpose.outputs[0]
    result.name, result.type, result.shape = f"{product.name}/moved", product.type, product.shape
    if product.shape is not None:
        sizes = list(product.shape)
        product.shape = ir.Shape([sizes[perm.index(axis)] for axis in range(len(perm))])
    node.replace_input_with(0, transpose.inputs[0])
    graph.insert_after(node, new_transpose)
    for user, index in users:
        user.replace_input_with(index, result)
