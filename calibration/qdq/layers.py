"""The layers of a model, by the names that the accuracy budget and reports use.

A layer is one weight. Prefill and step hold the same weights, so a layer of the decoder is an
operator of each of these graphs, and both are quantized or both stay float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from hybrid_deploy.calibration.qdq.linear_operators import Linear, linear_operators
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import UsageError

_DECODER_ROLES = (GraphRole.STEP, GraphRole.PREFILL)


@dataclass(frozen=True)
class Layer:
    """A weight and the operators that use it.

    Attributes:
        name: component and weight name, such as `decoder/decoder.layers.0.linear1`.
        operator: operator type: Conv, MatMul or Gemm.
        shape: shape of the weight.
        summed_size: number of weights of each channel, over which a product sums.
        names: names of the weight's operators in each graph, as `Linear.name` returns them.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    summed_size: int
    names: Mapping[GraphRole, frozenset[str]]

    @property
    def parameter_count(self) -> int:
        """The number of elements of the weight."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def layers_of(graphs: Mapping[GraphRole, ir.Model]) -> list[Layer]:
    """Returns the layers of float graphs, the encoder's first, each in the order of its graph."""
    layers = [
        Layer(
            f"encoder/{name}",
            operators[0].node.op_type,
            operators[0].weight_shape,
            operators[0].summed_size,
            _names_in_encoder(name),
        )
        for name, operators in _by_name(graphs[GraphRole.ENCODER]).items()
    ]
    names: dict[bytes, dict[GraphRole, frozenset[str]]] = {}
    first_operators: dict[bytes, tuple[str, Linear]] = {}
    for role in (role for role in _DECODER_ROLES if role in graphs):
        for name, operators in _by_name(graphs[role]).items():
            if operators[0].node.op_type != "Conv":
                key = weight_key(operators[0])
                first_operators.setdefault(key, (name, operators[0]))
                names_by_role = names.setdefault(key, {})
                names_by_role[role] = names_by_role.get(role, frozenset()) | {name}
    return layers + [
        Layer(
            f"decoder/{name}",
            linear.node.op_type,
            linear.weight_shape,
            linear.summed_size,
            names[key],
        )
        for key, (name, linear) in first_operators.items()
    ]


def operator_names(
    layers: Collection[Layer], chosen: Collection[str], role: GraphRole
) -> frozenset[str]:
    """Returns the operator names, as `Linear.name`, of chosen layers in a graph.

    Args:
        layers: all layers of the model.
        chosen: names of the chosen layers.
        role: role of the graph.

    Raises:
        UsageError: the model has no layer of one of the names.
    """
    layers_by_name = {layer.name: layer for layer in layers}
    for name in chosen:
        if name not in layers_by_name:
            raise UsageError(
                f"the model has no layer {name!r}; its layers: {', '.join(layers_by_name)}"
            )
    return frozenset().union(
        *(layers_by_name[name].names.get(role, frozenset()) for name in chosen)
    )


def weight_key(linear: Linear) -> bytes:
    """Returns a SHA-256 hash that operators with equal weights share, in any graph.

    A Gemm with a transposed weight has the key of the MatMul that computes the same.
    """
    tensor = linear.weight.const_value
    assert tensor is not None
    array = tensor.numpy()
    if linear.channel_axis == 0 and linear.node.op_type == "Gemm":
        array = array.T  # the orientation of a MatMul's weight
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest()


def _names_in_encoder(name: str) -> dict[GraphRole, frozenset[str]]:
    return {GraphRole.ENCODER: frozenset({name})}


def _by_name(model: ir.Model) -> dict[str, list[Linear]]:
    operators: dict[str, list[Linear]] = {}
    for linear in linear_operators(model.graph):
        operators.setdefault(linear.name, []).append(linear)
    return operators
