"""Products of one activation with several weights, written as one product with a wider weight.

The projections to query, key and value read the same row. One operator in place of three saves two
calls for every layer and token, and the activation is rounded once where weights are quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import constant, name_value, only_user


@dataclass(frozen=True)
class _Product:
    """A product, what is added to it, and the one number that it is multiplied with last.

    Attributes:
        node: the MatMul.
        weight: (inputs, width), as far as it is stored in float; else the quantized numbers.
        dequantize: what makes a float weight of quantized numbers; None if it is stored in float.
        bias: (width,), None without.
        factor: 1 without.
        result: the last value of all these.
    """

    node: ir.Node
    weight: ir.Value
    dequantize: ir.Node | None
    bias: ir.Value | None
    factor: float
    result: ir.Value

    @property
    def width(self) -> int:
        """Output columns."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.shape.numpy()[1])

    @property
    def kind(self) -> tuple[object, ...]:
        """What two products must have in common."""
        if self.dequantize is None:
            return ("float",)
        block = self.dequantize.attributes.get_int("block_size", 0)
        return (self.weight.dtype, block, _array(self.scale).shape[:-1])

    @property
    def scale(self) -> ir.Value | None:
        """What the quantized numbers are multiplied with."""
        return None if self.dequantize is None else self.dequantize.inputs[1]


def fuse_qkv(model: ir.Model) -> int:
    """Merges the products of every activation, in place; the old ones are left to be removed.

    Returns:
        How many products are gone.
    """
    graph, gone = model.graph, 0
    for siblings in _siblings(graph):
        _fuse(graph, siblings)
        gone += len(siblings) - 1
    return gone


def _siblings(graph: ir.Graph) -> list[list[_Product]]:
    groups: dict[tuple[object, ...], list[_Product]] = {}
    for node in graph:
        found = _product(node)
        if found is not None:
            groups.setdefault((node.inputs[0], *found.kind), []).append(found)
    return [group for group in groups.values() if len(group) > 1]


def _product(node: ir.Node) -> _Product | None:
    if node.op_type != "MatMul" or node.domain or node.outputs[0].dtype is not ir.DataType.FLOAT:
        return None
    weight, dequantize = node.inputs[1], None
    if weight is not None and weight.const_value is None:
        dequantize = weight.producer()
        if dequantize is None or not _is_per_column(dequantize):
            return None
        weight = dequantize.inputs[0]
    if weight is None or weight.const_value is None or weight.const_value.shape.rank() != 2:
        return None
    if len(weight.uses()) != 1 and dequantize is None:
        return None
    result, bias = _with_bias(node.outputs[0])
    result, factor = _with_factor(result)
    if result.is_graph_output():
        return None
    return _Product(node, weight, dequantize, bias, factor, result)


def _is_per_column(dequantize: ir.Node) -> bool:
    """Returns whether every column of a matrix has scales of its own, and no zero point."""
    if dequantize.op_type != "DequantizeLinear" or len(dequantize.inputs) != 2:
        return False
    scale = dequantize.inputs[1]
    if scale is None or scale.const_value is None:
        return False
    axis = dequantize.attributes.get_int("axis", 1)
    rank = scale.const_value.shape.rank()
    return (rank, axis) == (1, 1) or (rank, axis) == (2, 0)


def _with_bias(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    user = only_user(value)
    if user is not None and user.op_type in ("Add", "Sum") and len(user.inputs) == 2:
        bias = next((v for v in user.inputs if v is not value), None)
        if bias is not None and bias.const_value is not None and _is_row(bias, value):
            return user.outputs[0], bias
    return value, None


def _is_row(bias: ir.Value, value: ir.Value) -> bool:
    if bias.const_value is None or value.shape is None:
        return False
    return bias.const_value.shape.rank() == 1 and bias.const_value.size == value.shape[-1]


def _with_factor(value: ir.Value) -> tuple[ir.Value, float]:
    user = only_user(value)
    if user is not None and user.op_type == "Mul":
        other = next((v for v in user.inputs if v is not value), None)
        factor = None if other is None else other.const_value
        if factor is not None and factor.size == 1 and factor.shape.rank() <= 1:
            return user.outputs[0], float(factor.numpy().reshape(()))
    return value, 1.0


def _fuse(graph: ir.Graph, siblings: Sequence[_Product]) -> None:
    first = siblings[0]
    name = f"{first.node.outputs[0].name}_siblings"
    nodes, weight = _joined_weight(graph, siblings, name)
    nodes.append(ir.node("MatMul", [first.node.inputs[0], weight], name=name))
    width = sum(product.width for product in siblings)
    result = name_value(nodes[-1], name, _shape(first, width))
    if any(product.bias is not None for product in siblings):
        bias = constant(graph, f"{name}_bias", np.concatenate([_bias(p) for p in siblings]))
        nodes.append(ir.node("Add", [result, bias], name=f"{name}_added"))
        result = name_value(nodes[-1], f"{name}_added", _shape(first, width))
    sizes = constant(graph, f"{name}_widths", np.array([p.width for p in siblings]))
    axis = {"axis": -1}
    split = ir.node("Split", [result, sizes], axis, num_outputs=len(siblings), name=f"{name}_split")
    graph.insert_before(first.node, [*nodes, split])
    for index, (part, old) in enumerate(zip(split.outputs, siblings, strict=True)):
        part.name, part.shape = f"{name}_{index}", _shape(old, old.width)
        part.dtype = ir.DataType.FLOAT
        old.result.replace_all_uses_with(part)


def _shape(product: _Product, width: int) -> ir.Shape | None:
    shape = product.node.outputs[0].shape
    return None if shape is None else ir.Shape([*list(shape)[:-1], width])


def _bias(product: _Product) -> NDArray[np.float32]:
    if product.bias is None or product.bias.const_value is None:
        return np.zeros(product.width, np.float32)
    return np.asarray(product.bias.const_value.numpy() * np.float32(product.factor))


def _joined_weight(
    graph: ir.Graph, siblings: Sequence[_Product], name: str
) -> tuple[list[ir.Node], ir.Value]:
    """Returns the weight of all, and the nodes that make it float."""
    arrays = [_array(product.weight) for product in siblings]
    first = siblings[0].dequantize
    if first is None:
        scaled = [a * np.float32(p.factor) for a, p in zip(arrays, siblings, strict=True)]
        return [], constant(graph, f"{name}_weight", np.concatenate(scaled, axis=1))
    scales = [_array(p.scale) * np.float32(p.factor) for p in siblings]
    values = constant(graph, f"{name}_weight", np.concatenate(arrays, axis=1))
    scale = constant(graph, f"{name}_scale", np.concatenate(scales, axis=-1))
    given = ("axis", "block_size")
    attributes = {k: first.attributes[k].as_int() for k in given if k in first.attributes}
    node = ir.node("DequantizeLinear", [values, scale], attributes, name=f"{name}_restored")
    return [node], name_value(node, f"{name}_restored", values.shape)


def _array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None and value.const_value is not None
    array: NDArray[Any] = value.const_value.numpy()
    return array
