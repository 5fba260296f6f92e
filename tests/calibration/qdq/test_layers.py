from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from hybrid_deploy.calibration.qdq.layers import layers_of, operator_names
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import UsageError

Build = Callable[..., ir.Model]
ENCODER = "g (float[b,3,4,4] x) => (float[b,2,4,4] y) { y = Conv (x, stem_weight) }"
DECODER = "g (float[b,4] x) => (float[b,4] z) { y = MatMul (x, NAME) z = MatMul (y, other) }"


@pytest.fixture
def graphs(build: Build) -> dict[GraphRole, ir.Model]:
    shared, other = np.full((4, 4), 2, np.float32), np.eye(4, dtype=np.float32)
    return {
        GraphRole.ENCODER: build(ENCODER, {"stem_weight": np.ones((2, 3, 1, 1), np.float32)}),
        GraphRole.STEP: build(DECODER.replace("NAME", "a"), {"a": shared, "other": other}),
        GraphRole.PREFILL: build(DECODER.replace("NAME", "b"), {"b": shared, "other": other}),
    }


def test_a_weight_of_prefill_and_step_is_one_layer(graphs: dict[GraphRole, ir.Model]) -> None:
    layers = {layer.name: layer for layer in layers_of(graphs)}
    assert list(layers) == ["encoder/stem_weight", "decoder/a", "decoder/other"]
    assert layers["decoder/a"].names == {
        GraphRole.STEP: frozenset({"a"}),
        GraphRole.PREFILL: frozenset({"b"}),
    }
    assert layers["encoder/stem_weight"].parameter_count == 6


def test_operator_names_are_those_of_the_graph(graphs: dict[GraphRole, ir.Model]) -> None:
    layers = layers_of(graphs)
    assert operator_names(layers, ["decoder/a"], GraphRole.PREFILL) == {"b"}
    assert operator_names(layers, ["decoder/a"], GraphRole.ENCODER) == frozenset()
    with pytest.raises(UsageError, match="no layer 'a'; its layers: encoder/stem_weight, "):
        operator_names(layers, ["a"], GraphRole.STEP)
