"""The decoder's CPU forms on a whole bundle: quantized, loaded, decoded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.manifest import Precision, TensorSpec
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import (
    CANDIDATES,
    ERROR_BOUND,
    HIDDEN,
    LOGITS,
    GraphRole,
    is_next_cache,
    next_cache,
)
from hybrid_deploy.onnx_graphs.files import load_graphs
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.session.session import Session
from tests.closeness import assert_close_in_float32, largest
from tests.fakes.edited_bundle import with_close_logits, with_varied_tokens
from tests.fakes.size_limits import lift_size_limits

Images = list[dict[str, NDArray[np.float32]]]

STEPS = 6
MEMORY = ("cross_key_0", "cross_value_0")


@pytest.fixture
def without_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the size limits of the two-stage projection and of 8-bit memory."""
    lift_size_limits(monkeypatch)


def operators(bundle: Bundle, variant: str, role: GraphRole) -> Counter[str]:
    return Counter(node.op_type for node in load_graphs(bundle, variant)[role].graph)


def loaded(bundle: Bundle, variant: str) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(bundle, variant, BackendOptions(threads=1))


def tokens_of(bundle: Bundle, variant: str, images: Images) -> list[tuple[int, ...]]:
    session = Session(bundle, variant, loaded(bundle, variant))
    return [row.tokens for inputs in images for row in session.run_arrays(inputs)[0]]


def batched(images: Images, batch: int) -> Images:
    """Returns batches of `batch` inputs, each with another brightness."""
    return [
        {"image": np.concatenate([inputs["image"] * (1 - 0.2 * i) for i in range(batch)])}
        for inputs in images
    ]


def tensor_specs(bundle: Bundle, variant: str, role: GraphRole) -> dict[str, TensorSpec]:
    graph = bundle.graph(variant, role)
    return {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}


def setting_of(options: ort.SessionOptions, key: str) -> str:
    """Returns the value of a session's setting; empty where it is not set."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


def decoding_behind_prompts(backend: OnnxRuntimeBackend, images: Images) -> OnnxRuntimeDecoding:
    """Returns a decoding of three inputs behind prompts of unequal length."""
    decoding = backend.start(batched(images[:1], 3)[0])
    decoding.prefill(*PROMPT)
    return decoding


PROMPT = (
    np.array([[1, 3, 4], [1, 3, 0], [1, 0, 0]]),
    np.zeros(3, np.int64),
    np.array([2, 1, 0]),
)
TOKENS = np.array([[3, 5, 7], [4, 4, 9], [8, 3, 1]])
FIRST = np.array([3, 2, 1])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_float_form_returns_the_tokens_of_float(
    bundle: Bundle, images: Images, batch: int
) -> None:
    report = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu")
    assert report.samples == 0, "the form needs no samples"
    assert report.bundle.variant("fp32-cpu").precision == Precision("fp32-cpu", "fp32-cpu")
    assert report.bundle.variant("fp32-cpu").refine is None, (
        "a small vocabulary is projected in float"
    )
    step = operators(report.bundle, "fp32-cpu", GraphRole.STEP)
    assert step["GroupQueryAttention"] == 1 and not step["TensorScatter"]
    encoder = operators(report.bundle, "fp32-cpu", GraphRole.ENCODER)
    assert encoder["DequantizeLinear"] == 0
    inputs = batched(images, batch)
    tokens = tokens_of(report.bundle, "fp32-cpu", inputs)
    assert tokens == tokens_of(report.bundle, "fp32", inputs)
    assert len(set(tokens)) > 1, "the inputs have different tokens"


@pytest.mark.usefixtures("without_size_limits")
@pytest.mark.parametrize("batch", [1, 3])
def test_two_stages_return_the_tokens_of_float(bundle: Bundle, images: Images, batch: int) -> None:
    quantized = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    assert operators(quantized, "fp32-cpu", GraphRole.STEP)["DynamicQuantizeMatMul"] == 1
    assert operators(quantized, "fp32-cpu", GraphRole.PREFILL)["DynamicQuantizeMatMul"] == 1
    for role in (GraphRole.PREFILL, GraphRole.STEP):
        described = tensor_specs(quantized, "fp32-cpu", role)
        assert described[HIDDEN].shape == ("batch", 32)
        assert described[ERROR_BOUND].shape == ("batch",)
    refine = tensor_specs(quantized, "fp32-cpu", GraphRole.REFINE)
    assert {name: spec.shape for name, spec in refine.items()} == {
        HIDDEN: (1, 32), CANDIDATES: (CANDIDATES,), LOGITS: (1, CANDIDATES),
    }  # fmt: skip
    inputs = batched(images, batch)
    assert tokens_of(quantized, "fp32-cpu", inputs) == tokens_of(quantized, "fp32", inputs)


@pytest.mark.usefixtures("without_size_limits")
def test_only_the_step_spins_and_the_refine_graph_has_no_threads(bundle: Bundle) -> None:
    """Threads that spin after an encoder or a refine graph would occupy the step's cores."""
    quantized = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    backend = OnnxRuntimeBackend(quantized, "fp32-cpu", BackendOptions(threads=3))
    sessions = {
        "encoder": backend.encoder_session,
        "prefill": backend.prefill_session,
        "step": backend.step_session,
        "refine": backend.refine_session,
    }
    settings = {}
    for name, session in sessions.items():
        assert session is not None
        options = session.get_session_options()
        stops = setting_of(options, "session.force_spinning_stop")
        spins = setting_of(options, "session.intra_op.spin_duration_us")
        settings[name] = (options.intra_op_num_threads, stops, spins)
    assert settings == {
        "encoder": (3, "1", ""),
        "prefill": (3, "1", ""),
        "step": (3, "", "1000"),
        "refine": (1, "1", ""),
    }


@pytest.mark.usefixtures("without_size_limits")
def test_approximate_logits_are_within_the_error_bound_and_refined_ones_exact(
    bundle: Bundle, images: Images
) -> None:
    quantized = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    float_, cpu = (
        decoding_behind_prompts(loaded(quantized, name), images) for name in ("fp32", "fp32-cpu")
    )
    inexact = 0
    for turn, token in enumerate(TOKENS):
        expected = float_.step(token, FIRST + turn).copy()
        exact = cpu.step(token, FIRST + turn).copy()
        # the same float32 products, in other operators
        assert_close_in_float32(exact, expected)
        approximate, error_bound = cpu.step_approximate(token, FIRST + turn).copy(), cpu.error_bound
        assert error_bound is not None and (error_bound > 0).all()
        assert (np.abs(approximate - exact) <= error_bound[:, None]).all()
        inexact += int((approximate != exact).sum())
        for row in range(3):
            candidates = np.flatnonzero(
                approximate[row] >= approximate[row].max() - 2 * error_bound[row]
            )
            refined = cpu.exact_logits(row, candidates)
            # a kernel sums by the number of its columns
            assert_close_in_float32(refined, exact[row, candidates], size=largest(exact))
            assert candidates[refined.argmax()] == expected[row].argmax()
    assert inexact > 0, "some logits are approximate"


@pytest.mark.usefixtures("without_size_limits")
def test_a_prefill_returns_approximate_and_exact_logits(bundle: Bundle, images: Images) -> None:
    quantized = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    batch = batched(images[:1], 3)[0]
    expected = loaded(quantized, "fp32").start(batch).prefill(*PROMPT).copy()
    decoding = loaded(quantized, "fp32-cpu").start(batch)
    exact = decoding.prefill(*PROMPT).copy()
    assert_close_in_float32(exact, expected)
    approximate = decoding.prefill_approximate(*PROMPT)
    assert decoding.error_bound is not None
    assert (np.abs(approximate - exact) <= decoding.error_bound[:, None]).all()
    refined = decoding.exact_logits(1, np.array([4, 2]))
    assert_close_in_float32(refined, exact[1, [4, 2]], size=largest(exact))


@pytest.mark.usefixtures("without_size_limits")
def test_large_biases_keep_logits_within_the_error_bound(bundle: Bundle, images: Images) -> None:
    close_logits = with_close_logits(bundle)
    quantized = quantize_bundle(close_logits.folder, "fp32-cpu").bundle
    cpu = decoding_behind_prompts(loaded(quantized, "fp32-cpu"), images)
    for turn, token in enumerate(TOKENS):
        exact = cpu.step(token, FIRST + turn).copy()
        approximate = cpu.step_approximate(token, FIRST + turn)
        assert cpu.error_bound is not None
        assert (np.abs(approximate - exact) <= cpu.error_bound[:, None]).all()


def test_without_approximate_logits_all_are_exact(bundle: Bundle, images: Images) -> None:
    decoding = decoding_behind_prompts(loaded(bundle, "fp32"), images)
    logits = decoding.step(TOKENS[0], FIRST).copy()
    assert decoding.error_bound is None
    np.testing.assert_array_equal(decoding.exact_logits(2, np.array([5, 1])), logits[2, [5, 1]])


@pytest.mark.usefixtures("without_size_limits")
@pytest.mark.parametrize("form", ["int8-cpu", "int4-cpu"])
def test_memory_in_8_bits(bundle: Bundle, images: Images, form: str) -> None:
    report = quantize_bundle(bundle.folder, form, images)
    quantized = report.bundle
    assert quantized.variant(form).precision == Precision("int8-cpu", form)
    assert quantized.variant(form).refine is None
    step = operators(quantized, form, GraphRole.STEP)
    assert step["TopK"] == 1, "the likeliest tokens are scored again"
    assert step["GroupQueryAttention"] == 2 and not step["Attention"]
    encoder = tensor_specs(quantized, form, GraphRole.ENCODER)
    assert {encoder[name].dtype for name in MEMORY} == {"int8"}
    returned = {
        t.name for t in quantized.graph(form, GraphRole.STEP).outputs if is_next_cache(t.name)
    }
    assert {next_cache(name) for name in MEMORY} <= returned
    # biases of up to 0.9 keep the tiny model's logits apart: rounding does not change a token
    inputs = batched(images, 3)
    assert tokens_of(quantized, form, inputs) == tokens_of(quantized, "fp32", inputs)
    float_decoding, int8_decoding = (
        decoding_behind_prompts(loaded(quantized, name), images) for name in ("fp32", form)
    )
    for turn, token in enumerate(TOKENS):
        expected = float_decoding.step(token, FIRST + turn).copy()
        difference = np.abs(int8_decoding.step(token, FIRST + turn) - expected).max()
        # weights of 4 bits are 7 % off at most, and other roundings half of a percent
        assert 0 < difference < 0.1 * largest(expected)


def test_little_memory_stays_float_in_a_bundle(bundle: Bundle, images: Images) -> None:
    quantized = quantize_bundle(bundle.folder, "int8-cpu", images).bundle
    assert {tensor_specs(quantized, "int8-cpu", GraphRole.STEP)[name].dtype for name in MEMORY} == {
        "float"
    }


@pytest.mark.usefixtures("without_size_limits")
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("fp32", "int8-cpu"),
        ("fp32-cpu", "int4-cpu"),
        ("int8-cpu", "fp32-cpu"),
        ("fp16", "fp32-cpu"),
    ],
)
def test_forms_of_encoder_and_decoder_combine(
    bundle: Bundle, images: Images, encoder: str, decoder: str
) -> None:
    report = quantize_bundle(bundle.folder, None, images, encoder=encoder, decoder=decoder)
    assert report.variant == f"{encoder}+{decoder}"
    assert report.evaluation.agreement.token_share == 1.0


@pytest.mark.usefixtures("without_size_limits")
def test_a_variant_with_two_stages_can_be_read_again(bundle: Bundle, tmp_path: Path) -> None:
    quantize_bundle(bundle.folder, "fp32-cpu")
    reopened = open_bundle(bundle.folder)
    assert GraphRole.REFINE in reopened.graphs("fp32-cpu")
    assert reopened.graph_path("fp32-cpu", GraphRole.REFINE).name == "refine.onnx"
    weights = reopened.folder / "fp32-cpu" / "weights.bin"
    float_weights = reopened.folder / "fp32" / "weights.bin"
    assert weights.stat().st_size < 1.2 * float_weights.stat().st_size, "each table once"
