"""Refuses a parsed network that would build but compute something else than its ONNX graph.

TensorRT's parser drops inputs that it does not implement, without any message: it ignores
`nonpad_kv_seqlen` of an `Attention` node, and a mask can get lost with it. A dropped input leaves
one of three traces in the parsed network: an input that no output depends on, a boolean tensor that
no layer reads, or a self-attention layer without a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hybrid_deploy.contract import TOKEN, TOKENS, next_cache
from hybrid_deploy.errors import BuildError

_KEY, _MASK = 1, 3


@dataclass(frozen=True)
class _NetworkView:
    """A network as names of tensors; `producers` maps a tensor to the layer that computes it."""

    layers: tuple[Any, ...]
    producers: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def sources(self, tensors: list[str]) -> set[str]:
        """Returns the names of these tensors and of all tensors that they depend on."""
        visited: set[str] = set()
        pending = list(tensors)
        while pending:
            name = pending.pop()
            if name not in visited:
                visited.add(name)
                pending.extend(_input_names(self.producers.get(name)))
        return visited


def lint_network(network: Any, graph: str) -> None:
    """Refuses a network in which TensorRT's parser dropped an input.

    Args:
        network: parsed `INetworkDefinition`.
        graph: name of the graph, for messages.

    Raises:
        BuildError: an input has no effect, no layer reads a mask, or a self-attention has no mask.
    """
    view = _view(network)
    _refuse_unmasked_attention(view, graph)
    _refuse_dropped_masks(view, graph)
    _refuse_dead_inputs(view, graph)


def attention_layers(network: Any) -> Iterator[Any]:
    """Yields the input layer of each native attention: it takes query, key, value, maybe a mask."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            yield layer


def _refuse_unmasked_attention(view: _NetworkView, graph: str) -> None:
    self_inputs = {TOKEN, TOKENS} | {n for n in view.inputs if next_cache(n) in view.outputs}
    for layer in view.layers:
        if layer.type.name != "ATTENTION_INPUT" or _has_input(layer, _MASK):
            continue
        key = layer.get_input(_KEY).name
        if self_inputs & view.sources([key]):
            raise BuildError(
                f"{graph}: self-attention {layer.name} has no mask in TensorRT, so it would read "
                "cache rows that are not written yet; export it with an explicit bool mask "
                "(not nonpad_kv_seqlen, not is_causal)"
            )


def _refuse_dropped_masks(view: _NetworkView, graph: str) -> None:
    read = {name for layer in view.layers for name in _input_names(layer)} | set(view.outputs)
    for name, layer in view.producers.items():
        if name not in read and _output(layer, name).dtype.name == "BOOL":
            raise BuildError(
                f"{graph}: TensorRT computes the mask {name} ({layer.name}) and no layer reads it; "
                "the node that takes it uses an input that TensorRT ignores"
            )


def _refuse_dead_inputs(view: _NetworkView, graph: str) -> None:
    # Layers without an output (trip limits of loops, assertions) have an effect of their own.
    effective = [
        name for layer in view.layers if not layer.num_outputs for name in _input_names(layer)
    ]
    alive = view.sources([*view.outputs, *effective])
    dead = [name for name in view.inputs if name not in alive]
    if dead:
        raise BuildError(
            f"{graph}: no output depends on {', '.join(dead)} after TensorRT's parser read it; "
            "the graph never used it, or the node that takes it uses an input that TensorRT ignores"
        )


def _view(network: Any) -> _NetworkView:
    layers = tuple(network.get_layer(i) for i in range(network.num_layers))
    producers = {
        layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)
    }
    inputs = tuple(network.get_input(i).name for i in range(network.num_inputs))
    outputs = tuple(network.get_output(i).name for i in range(network.num_outputs))
    return _NetworkView(layers, producers, inputs, outputs)


def _input_names(layer: Any) -> list[str]:
    if layer is None:
        return []
    tensors = (layer.get_input(i) for i in range(layer.num_inputs))
    return [tensor.name for tensor in tensors if tensor is not None]


def _has_input(layer: Any, index: int) -> bool:
    return layer.num_inputs > index and layer.get_input(index) is not None


def _output(layer: Any, name: str) -> Any:
    outputs = (layer.get_output(i) for i in range(layer.num_outputs))
    return next(tensor for tensor in outputs if tensor.name == name)
