"""The memory between encoder and decoder, in the float type that the decoder takes.

BEFORE                             AFTER
encoder output cross_key_0         encoder value cross_key_0_wide
                                   Cast (to the dtype of the decoder's input)
                                   encoder output cross_key_0
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from hybrid_deploy.contract import GraphRole


def match_memory_dtype(encoder: ir.Model, decoder: Mapping[GraphRole, ir.Model]) -> None:
    """Adds a Cast to each encoder output whose dtype differs from the decoder's input, in place."""
    decoder_dtypes = {
        value.name: value.dtype for model in decoder.values() for value in model.graph.inputs
    }
    graph = encoder.graph
    for index, output in enumerate(list(graph.outputs)):
        dtype = decoder_dtypes.get(output.name)
        if dtype is None or dtype is output.dtype:
            continue
        name = str(output.name)
        output.name = f"{name}_wide"
        cast = ir.node("Cast", [output], {"to": dtype}, name=f"cast_{name}")
        cast.outputs[0].name, cast.outputs[0].shape = name, output.shape
        cast.outputs[0].dtype = dtype
        graph.append(cast)
        graph.outputs[index] = cast.outputs[0]
