from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from hybrid_deploy.calibration.half_precision.bfloat16_emulation import emulate_bfloat16
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import make_session
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from tests.closeness import float32_error, largest

Build = Callable[..., ir.Model]


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_weights_inputs_and_results_are_rounded(build: Build, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, weight = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    bias = rng.standard_normal(5).astype(np.float32)
    image, weight = image.astype(np.float32), weight.astype(np.float32)
    text = """g (float[b,4] image) => (float[b,5] logits) {
        product = MatMul (image, weight)
        logits = Add (product, bias)
    }"""
    model = build(text, {"weight": weight, "bias": bias})
    emulate_bfloat16(model)
    ir.save(model, tmp_path / "g.onnx")
    session = make_session(tmp_path / "g.onnx", threads=1)  # optimizers must keep the Casts
    (logits,) = session.run(["logits"], {"image": image})
    product = rounded(rounded(image) @ rounded(weight))
    np.testing.assert_array_equal(logits, rounded(product + rounded(bias)))
    exact = image @ weight + bias
    assert np.abs(logits - exact).max() > 10 * float32_error(largest(exact)), (
        "the rounding errors are those of bfloat16"
    )


def test_moving_operators_are_not_rounded_again(build: Build) -> None:
    text = """g (float[b,4] image) => (float[4,b] logits) {
        logits = Transpose <perm: ints = [1, 0]> (image)
    }"""
    model = build(text, {})
    emulate_bfloat16(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Cast", "Transpose"]


def test_a_variant_for_gpus_is_compared_by_emulation(own_path: Path) -> None:
    report = quantize_bundle(own_path, "bf16")
    assert report.emulated
    bfloat16_cost, float32_cost = (
        report.bundle.graph(v, GraphRole.STEP).cost for v in ("bf16", "fp32")
    )
    assert bfloat16_cost is not None and float32_cost is not None
    assert bfloat16_cost.weight_bytes == float32_cost.weight_bytes / 2
    assert report.evaluation.agreement.token_share > 0.5
    with pytest.raises(BackendError, match="no CPU kernels for bfloat16"):
        load_backend("onnxruntime", report.bundle, "bf16", BackendOptions())
