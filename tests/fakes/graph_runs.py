"""Graphs of the tests, run in ONNX Runtime as they are and after a pass."""

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
    """Removes what a pass left unused."""
    RemoveUnusedNodesPass()(model)
    drop_unused_constants(model.graph)
    return model


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: ir.Model, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Runs a graph; caches are updated in place in copies of what is given, as backends do."""
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in inputs.items()
    }
    binding = session.io_binding()
    for given in session.get_inputs():
        binding.bind_ortvalue_input(given.name, values[given.name])
    caches = {next_cache(name): value for name, value in values.items()}
    for name in names:
        if is_next_cache(name):
            binding.bind_ortvalue_output(name, caches[name])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    results = zip(names, binding.get_outputs(), strict=True)
    return {name: value.numpy().copy() for name, value in results}
