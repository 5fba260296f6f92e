from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.graphs.float_graphs import prepared_graphs
from hybrid_deploy.calibration.observation.tensor_labels import label_of
from hybrid_deploy.contract import GraphRole

TEXT = """
net (float[1,2,4,4] image) => (float[1,2,4,4] y) {
    weighed = Conv (image, weight)
    relu = Relu (weighed)
    plain = Abs (image)
    sum = Add (plain, relu)
    y = Neg (sum)
}
"""


@pytest.mark.parametrize(
    ("tensor", "label"),
    [
        ("image", "encoder/image"),
        ("weighed", "encoder/weighed (Conv of encoder.stages.0)"),
        ("relu", "encoder/relu (Relu after encoder.stages.0)"),
        ("plain", "encoder/plain (Abs)"),
        ("sum", "encoder/sum (Add after encoder.stages.0)"),
    ],
)
def test_labels(build: Callable[..., ir.Model], tensor: str, label: str) -> None:
    graph = build(TEXT, {"weight": np.ones((2, 2, 1, 1), np.float32)}).graph
    graph.initializers["weight"].name = "encoder.stages.0.weight"
    values = {v.name: v for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    assert label_of(GraphRole.ENCODER, values[tensor]) == label


def test_an_exported_graph_names_its_modules(bundle: Bundle) -> None:
    step = prepared_graphs(bundle, "fp32")[GraphRole.STEP].graph
    norms = [node for node in step if node.op_type == "LayerNormalization"]
    label = label_of(GraphRole.STEP, norms[-1].outputs[0])
    assert label.startswith("step/layer_norm")
    assert label.endswith(" (LayerNormalization of decoder.layers.0.norm3)")
