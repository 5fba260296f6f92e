from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from hybrid_deploy.calibration.graphs.batchnorm_folding import fold_batchnorm
from tests.closeness import assert_close_in_float32

Build = Callable[..., ir.Model]

TEXT = """g (float[1,2,4,4] x) => (float[1,3,4,4] y) {
    c = Conv <pads: ints = [1,1,1,1]> (x, w)
    y = BatchNormalization (c, gamma, beta, mean, var)
}"""


def test_fold_keeps_the_result(build: Build) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(3, 2, 3, 3)).astype(np.float32),
        **{n: rng.normal(size=3).astype(np.float32) for n in ("gamma", "beta", "mean")},
        "var": rng.uniform(0.5, 2, 3).astype(np.float32),
    }
    x = rng.normal(size=(1, 2, 4, 4)).astype(np.float32)
    model = build(TEXT, constants)
    before = _run(model, x)
    assert fold_batchnorm(model) == 1
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert len(model.graph.initializers) == 2
    assert_close_in_float32(_run(model, x), before)


def test_a_convolution_with_two_uses_is_not_folded(build: Build) -> None:
    text = TEXT.replace("(float[1,3,4,4] y)", "(float[1,3,4,4] y, float[1,3,4,4] z)").replace(
        "\n}", "\n    z = Relu (c)\n}"
    )
    ones = np.ones(3, np.float32)
    constants = dict.fromkeys(("gamma", "beta", "mean", "var"), ones)
    model = build(text, {"w": np.ones((3, 2, 3, 3), np.float32), **constants})
    assert fold_batchnorm(model) == 0


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result
