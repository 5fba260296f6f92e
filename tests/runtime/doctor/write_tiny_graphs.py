"""Writes the graphs of `hybrid-deploy doctor`: python -m tests.runtime.doctor.write_tiny_graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hybrid_deploy.runtime.doctor.tiny_graphs import (
    CAPACITY,
    GRAPHS,
    KERNEL,
    LEVELS,
    PROJECTION,
    SCALE,
)

FLOAT = """<ir_version: 8, opset_import: ["": 18]>
float_graph (float[1,1,16,16] image) => (float[1,16] result)
<int64[2] axes = {2, 3}>
{
  maps = Conv (image, kernel)
  positive = Relu (maps)
  pooled = ReduceMean <keepdims = 0> (positive, axes)
  result = MatMul (pooled, projection)
}
"""
STEP = """<ir_version: 10, opset_import: ["": 24]>
step_graph (float[1,2,1,16] new, int64[1] position,
            float[1,2,8,16] self_key_0, float[1,2,8,16] self_value_0)
  => (float[1,2,1,16] result, float[1,2,8,16] self_key_0_next, float[1,2,8,16] self_value_0_next)
<int64[4] column = {-1, 1, 1, 1}>
{
  self_key_0_next = TensorScatter <axis = -2, mode = "linear"> (self_key_0, new, position)
  self_value_0_next = TensorScatter <axis = -2, mode = "linear"> (self_value_0, new, position)
  last_key = Reshape (position, column)
  mask = LessOrEqual (key_index, last_key)
  result = Attention (new, self_key_0_next, self_value_0_next, mask)
}
"""
INT8 = """<ir_version: 8, opset_import: ["": 18]>
int8_graph (float[1,64] row) => (float[1,64] result)
{
  weights = DequantizeLinear <axis = 1> (levels, scale)
  result = MatMul (row, weights)
}
"""
TEXTS = {"float": FLOAT, "step": STEP, "int8": INT8}
WEIGHTS: dict[str, dict[str, NDArray[Any]]] = {
    "float": {"kernel": KERNEL, "projection": PROJECTION},
    "step": {"key_index": np.arange(CAPACITY).reshape(1, 1, 1, CAPACITY)},
    "int8": {"levels": LEVELS, "scale": SCALE},
}


def model(name: str) -> onnx.ModelProto:
    """Returns the model of one graph, from its text and its weights."""
    graph_model = onnx.parser.parse_model(TEXTS[name])
    for key, value in WEIGHTS[name].items():
        graph_model.graph.initializer.append(numpy_helper.from_array(value, key))
    onnx.checker.check_model(graph_model, full_check=True)
    return graph_model


if __name__ == "__main__":
    for name, graph in GRAPHS.items():
        onnx.save(model(name), graph.file)
