"""Runs graphs of the tests in ONNX Runtime, before or after a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.contract import is_next_cache, next_cache

Arrays = Mapping[str, NDArray[Any]]


def cleaned(model: ir.Model) -> ir.Model:
    """Removes the nodes and constants that a pass left unused; returns the same model."""
    RemoveUnusedNodesPass()(model)
    drop_unused_constants(model.graph)
    return model


def operators(model: ir.Model) -> Counter[str]:
    """Returns how many nodes of each operator a graph has."""
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Runs a graph and returns its outputs by name.

    As in the backends, a cache output shares the buffer of its input; the given arrays are copied.
    """
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in inputs.items()
    }
    binding = session.io_binding()
    for graph_input in session.get_inputs():
        binding.bind_ortvalue_input(graph_input.name, values[graph_input.name])
    caches = {next_cache(name): value for name, value in values.items()}
    for name in names:
        if is_next_cache(name):
            binding.bind_ortvalue_output(name, caches[name])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    results = zip(names, binding.get_outputs(), strict=True)
    return {name: value.numpy().copy() for name, value in results}
