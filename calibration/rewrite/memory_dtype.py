"""The memory where encoder and decoder meet: floats as wide as the decoder takes them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from hybrid_deploy.contract import GraphRole


def match_memory_dtype(encoder: ir.Model, decoder: Mapping[GraphRole, ir.Model]) -> None:
    """Lets the encoder return what the decoder takes, in place: a Cast where the types differ."""
    wanted = {value.name: value.dtype for model in decoder.values() for value in model.graph.inputs}
    graph = encoder.graph
    for index, output in enumerate(list(graph.outputs)):
        dtype = wanted.get(output.name)
        if dtype is None or dtype is output.dtype:
            continue
        name = str(output.name)
        output.name = f"{name}_wide"
        cast = ir.node("Cast", [output], {"to": dtype}, name=f"cast_{name}")
        cast.outputs[0].name, cast.outputs[0].shape = name, output.shape
        cast.outputs[0].dtype = dtype
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
