from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hybrid_deploy.calibration.graphs.transpose_motion import move_transposes_behind_products
from hybrid_deploy.calibration.half_precision.float16 import convert_to_half
from hybrid_deploy.calibration.half_precision.float16_range import FLOAT16
from hybrid_deploy.contract import GraphRole
from tests.closeness import assert_close_in_float32

Build = Callable[..., ir.Model]
TEXT = """g (float[b,n,8] image) => (float[n,b,6] y) {
    t = Transpose <perm: ints = [1,0,2]> (image)
    m = MatMul (t, w)
    y = Identity (m)
}"""


@pytest.fixture
def model(build: Build) -> ir.Model:
    weight = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    return build(TEXT, {"w": weight})


def _session(model: ir.Model) -> ort.InferenceSession:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def test_result_stays_the_same(model: ir.Model) -> None:
    image = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    expected = _session(model).run(None, {"image": image})[0]
    assert move_transposes_behind_products(model) == 1
    assert [node.op_type for node in model.graph] == ["MatMul", "Transpose", "Identity"]
    actual = _session(model).run(None, {"image": image})[0]
    assert_close_in_float32(actual, expected)


def test_transpose_of_the_last_axis_is_left_alone(build: Build) -> None:
    text = TEXT.replace("[1,0,2]", "[0,2,1]").replace("float[n,b,6] y", "float[b,8,6] y")
    model = build(text.replace("[b,n,8]", "[b,8,8]"), {"w": np.ones((8, 6), np.float32)})
    assert move_transposes_behind_products(model) == 0


def test_half_graph_does_not_crash_onnxruntime(model: ir.Model) -> None:
    """Regression: ONNX Runtime 1.32 crashes with a segmentation fault on the float16 Transpose."""
    convert_to_half(model, GraphRole.ENCODER, FLOAT16)
    result = _session(model).run(None, {"image": np.ones((2, 3, 8), np.float32)})[0]
    assert result.shape == (3, 2, 6)
