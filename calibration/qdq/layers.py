"""The layers of a model that quantization treats, or leaves alone, each as one.

A decoder's layer is in two graphs, prefill and step: one weight, quantized once.
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
    """An operator with a weight.

    Attributes:
        name: of its component and its weight, as `decoder/decoder.layers.0.linear1`.
        operator: Conv, MatMul or Gemm.
        shape: of the weight.
        names: what the weight is called in each graph, as `Linear.name`.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    names: Mapping[GraphRole, frozenset[str]]

    @property
    def parameter_count(self) -> int:
        """Numbers in the weight."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def layers_of(graphs: Mapping[GraphRole, ir.Model]) -> list[Layer]:
    """Lists the layers of float graphs in the order of the graphs, the encoder's first."""
    layers = [
        Layer(f"encoder/{name}", of[0].node.op_type, of[0].weight_shape, _named(name))
        for name, of in _by_name(graphs[GraphRole.ENCODER]).items()
    ]
    named: dict[bytes, dict[GraphRole, frozenset[str]]] = {}
    first: dict[bytes, tuple[str, Linear]] = {}
    for role in (role for role in _DECODER_ROLES if role in graphs):
        for name, of in _by_name(graphs[role]).items():
            if of[0].node.op_type != "Conv":
                key = weight_key(of[0])
                first.setdefault(key, (name, of[0]))
                known = named.setdefault(key, {})
                known[role] = known.get(role, frozenset()) | {name}
    return layers + [
        Layer(f"decoder/{name}", linear.node.op_type, linear.weight_shape, named[key])
        for key, (name, linear) in first.items()
    ]


def names_in_float(
    layers: Collection[Layer], layers_in_float: Collection[str], role: GraphRole
) -> frozenset[str]:
    """Returns what the weights of the kept layers are called in a graph.

    Raises:
        UsageError: there is no layer of such a name.
    """
    known = {layer.name: layer for layer in layers}
    for name in layers_in_float:
        if name not in known:
            raise UsageError(f"the model has no layer {name!r}; its layers: {', '.join(known)}")
    return frozenset().union(
        *(known[name].names.get(role, frozenset()) for name in layers_in_float)
    )


def weight_key(linear: Linear) -> bytes:
    """Returns what two operators with equal weights have in common, whatever graph they are in."""
    tensor = linear.weight.const_value
    assert tensor is not None
    array = tensor.numpy()
    if linear.channel_axis == 0 and linear.node.op_type == "Gemm":
        array = array.T  # as MatMul would have it
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).digest()


def _named(name: str) -> dict[GraphRole, frozenset[str]]:
    return {GraphRole.ENCODER: frozenset({name})}


def _by_name(model: ir.Model) -> dict[str, list[Linear]]:
    found: dict[str, list[Linear]] = {}
    for linear in linear_operators(model.graph):
        found.setdefault(linear.name, []).append(linear)
    return found
