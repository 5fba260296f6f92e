"""Products of one activation with several weights, fused into one product with a wider weight.

    BEFORE                                       AFTER
    MatMul (x, Wq), Add (bq), Mul (factor)       MatMul (x, [Wq * factor, Wk, Wv])
    MatMul (x, Wk), Add (bk)                     Add ([bq * factor, bk, bv])
    MatMul (x, Wv), Add (bv)                     Split
    q, k, v                                      q, k, v

A weight may be stored in int8 or int4; then its scales are multiplied with the factor and
concatenated, and one DequantizeLinear restores the wider weight. The projections to query, key and
value use the same row, so one operator in place of three saves two calls for every layer and token,
and the kernel rounds the row once where the weights are quantized.
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
    """A MatMul with the bias and the factor behind it: factor (x weight + bias).

    Attributes:
        node: the MatMul.
        weight: the constant weight, (inputs, width); float32, or the quantized numbers.
        dequantize: the DequantizeLinear of the weight; None for a float32 weight.
        bias: the constant bias, (width,) float32; None if nothing is added.
        factor: the number that a Mul multiplies the sum with; 1 without a Mul.
        result: the output of the last of these operators.
    """

    node: ir.Node
    weight: ir.Value
    dequantize: ir.Node | None
    bias: ir.Value | None
    factor: float
    result: ir.Value

    @property
    def width(self) -> int:
        """The number of output columns."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.shape.numpy()[1])

    @property
    def kind(self) -> tuple[object, ...]:
        """The form of the weight; only products with equal forms are fused."""
        if self.dequantize is None:
            return ("float",)
        block = self.dequantize.attributes.get_int("block_size", 0)
        return (self.weight.dtype, block, _constant_array(self.scale).shape[:-1])

    @property
    def scale(self) -> ir.Value | None:
        """The scales of a quantized weight; None for a float32 weight."""
        return None if self.dequantize is None else self.dequantize.inputs[1]


def fuse_qkv(model: ir.Model) -> int:
    """Fuses the products of every activation, in place; the replaced nodes stay in the graph.

    Returns:
        The number of products that the fusion saves.
    """
    graph, removed = model.graph, 0
    for siblings in _sibling_products(graph):
        _fuse(graph, siblings)
        removed += len(siblings) - 1
    return removed


def _sibling_products(graph: ir.Graph) -> list[list[_Product]]:
    groups: dict[tuple[object, ...], list[_Product]] = {}
    for node in graph:
        product = _match_product(node)
        if product is not None:
            groups.setdefault((node.inputs[0], *product.kind), []).append(product)
    return [group for group in groups.values() if len(group) > 1]


def _match_product(node: ir.Node) -> _Product | None:
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
    result, bias = _after_bias(node.outputs[0])
    result, factor = _after_factor(result)
    if result.is_graph_output():
        return None
    return _Product(node, weight, dequantize, bias, factor, result)


def _is_per_column(dequantize: ir.Node) -> bool:
    """Returns whether every column of a weight has its own scales, and the weight no zero point."""
    if dequantize.op_type != "DequantizeLinear" or len(dequantize.inputs) != 2:
        return False
    scale = dequantize.inputs[1]
    if scale is None or scale.const_value is None:
        return False
    axis = dequantize.attributes.get_int("axis", 1)
    rank = scale.const_value.shape.rank()
    return (rank, axis) == (1, 1) or (rank, axis) == (2, 0)


def _after_bias(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    user = only_user(value)
    if user is not None and user.op_type in ("Add", "Sum") and len(user.inputs) == 2:
        bias = next((operand for operand in user.inputs if operand is not value), None)
        if bias is not None and bias.const_value is not None and _is_bias_row(bias, value):
            return user.outputs[0], bias
    return value, None


def _is_bias_row(bias: ir.Value, value: ir.Value) -> bool:
    if bias.const_value is None or value.shape is None:
        return False
    return bias.const_value.shape.rank() == 1 and bias.const_value.size == value.shape[-1]


def _after_factor(value: ir.Value) -> tuple[ir.Value, float]:
    user = only_user(value)
    if user is not None and user.op_type == "Mul":
        factor_value = next((operand for operand in user.inputs if operand is not value), None)
        factor = None if factor_value is None else factor_value.const_value
        if factor is not None and factor.size == 1 and factor.shape.rank() <= 1:
            return user.outputs[0], float(factor.numpy().reshape(()))
    return value, 1.0


def _fuse(graph: ir.Graph, siblings: Sequence[_Product]) -> None:
    first = siblings[0]
    name = f"{first.node.outputs[0].name}_siblings"
    nodes, weight = _concatenated_weight(graph, siblings, name)
    nodes.append(ir.node("MatMul", [first.node.inputs[0], weight], name=name))
    width = sum(product.width for product in siblings)
    result = name_value(nodes[-1], name, _shape_with_width(first, width))
    if any(product.bias is not None for product in siblings):
        biases = [_scaled_bias(product) for product in siblings]
        bias = constant(graph, f"{name}_bias", np.concatenate(biases))
        nodes.append(ir.node("Add", [result, bias], name=f"{name}_added"))
        result = name_value(nodes[-1], f"{name}_added", _shape_with_width(first, width))
    sizes = constant(graph, f"{name}_widths", np.array([product.width for product in siblings]))
    axis = {"axis": -1}
    split = ir.node("Split", [result, sizes], axis, num_outputs=len(siblings), name=f"{name}_split")
    graph.insert_before(first.node, [*nodes, split])
    for index, (part, product) in enumerate(zip(split.outputs, siblings, strict=True)):
        part.name, part.shape = f"{name}_{index}", _shape_with_width(product, product.width)
        part.dtype = ir.DataType.FLOAT
        product.result.replace_all_uses_with(part)


def _shape_with_width(product: _Product, width: int) -> ir.Shape | None:
    shape = product.node.outputs[0].shape
    return None if shape is None else ir.Shape([*list(shape)[:-1], width])


def _scaled_bias(product: _Product) -> NDArray[np.float32]:
    if product.bias is None or product.bias.const_value is None:
        return np.zeros(product.width, np.float32)
    return np.asarray(product.bias.const_value.numpy() * np.float32(product.factor))


def _concatenated_weight(
    graph: ir.Graph, siblings: Sequence[_Product], name: str
) -> tuple[list[ir.Node], ir.Value]:
    """Returns the nodes that dequantize the wider weight (none for float32), and the weight."""
    arrays = [_constant_array(product.weight) for product in siblings]
    dequantize = siblings[0].dequantize
    if dequantize is None:
        factors = [np.float32(product.factor) for product in siblings]
        scaled = [array * factor for array, factor in zip(arrays, factors, strict=True)]
        return [], constant(graph, f"{name}_weight", np.concatenate(scaled, axis=1))
    scales = [_constant_array(product.scale) * np.float32(product.factor) for product in siblings]
    values = constant(graph, f"{name}_weight", np.concatenate(arrays, axis=1))
    scale = constant(graph, f"{name}_scale", np.concatenate(scales, axis=-1))
    keys = [key for key in ("axis", "block_size") if key in dequantize.attributes]
    attributes = {key: dequantize.attributes[key].as_int() for key in keys}
    node = ir.node("DequantizeLinear", [values, scale], attributes, name=f"{name}_restored")
    return [node], name_value(node, f"{name}_restored", values.shape)


def _constant_array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None and value.const_value is not None
    array: NDArray[Any] = value.const_value.numpy()
    return array
