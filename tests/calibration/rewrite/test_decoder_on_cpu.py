"""The forms for ONNX Runtime's CPU on a whole bundle: quantized, loaded, decoded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import Precision, TensorSpec
from hybrid_deploy.calibration.onnxruntime_cpu import (
    int8_cross_attention as short_memory,
)
from hybrid_deploy.calibration.onnxruntime_cpu import (
    two_stage_projection as rough_projection,
)
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import (
    CANDIDATES,
    HIDDEN,
    LOGITS,
    MARGIN,
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

Images = list[dict[str, NDArray[np.float32]]]

STEPS = 6
MEMORY = ("cross_key_0", "cross_value_0")


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the smallest vocabulary and the smallest memory be worth it."""
    monkeypatch.setattr(rough_projection, "LEAST_WORDS", 1)
    monkeypatch.setattr(short_memory, "LEAST_BYTES", 1)
    monkeypatch.setattr(short_memory, "LEAST_WIDTH", 8)


def operators(bundle: Bundle, variant: str, role: GraphRole) -> Counter[str]:
    return Counter(node.op_type for node in load_graphs(bundle, variant)[role].graph)


def loaded(bundle: Bundle, variant: str) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(bundle, variant, BackendOptions(threads=1))


def tokens_of(bundle: Bundle, variant: str, images: Images) -> list[tuple[int, ...]]:
    session = Session(bundle, variant, loaded(bundle, variant))
    return [row.tokens for one in images for row in session.run_arrays(one)[0]]


def widened(images: Images, batch: int) -> Images:
    """Returns batches of several sequences, each another."""
    return [
        {"image": np.concatenate([one["image"] * (1 - 0.2 * i) for i in range(batch)])}
        for one in images
    ]


def specs(bundle: Bundle, variant: str, role: GraphRole) -> dict[str, TensorSpec]:
    graph = bundle.graph(variant, role)
    return {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}


def entry(options: ort.SessionOptions, key: str) -> str:
    """Returns a setting of a session; nothing where it is not set."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


def prompted(backend: OnnxRuntimeBackend, images: Images) -> OnnxRuntimeDecoding:
    """Starts three sequences with prompts of unequal length."""
    decoding = backend.start(widened(images[:1], 3)[0])
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
def test_float_form_gives_the_tokens_of_float(bundle: Bundle, images: Images, batch: int) -> None:
    report = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu")
    assert report.samples == 0, "needs none"
    assert report.bundle.variant("fp32-cpu").precision == Precision("fp32-cpu", "fp32-cpu")
    assert report.bundle.variant("fp32-cpu").refine is None, "so few words are projected in float"
    step = operators(report.bundle, "fp32-cpu", GraphRole.STEP)
    assert step["GroupQueryAttention"] == 1 and not step["TensorScatter"]
    encoder = operators(report.bundle, "fp32-cpu", GraphRole.ENCODER)
    assert encoder["DequantizeLinear"] == 0
    inputs = widened(images, batch)
    found = tokens_of(report.bundle, "fp32-cpu", inputs)
    assert found == tokens_of(report.bundle, "fp32", inputs)
    assert len(set(found)) > 1, "or it proves nothing"


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize("batch", [1, 3])
def test_two_stages_give_the_tokens_of_float(bundle: Bundle, images: Images, batch: int) -> None:
    done = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    assert operators(done, "fp32-cpu", GraphRole.STEP)["DynamicQuantizeMatMul"] == 1
    assert operators(done, "fp32-cpu", GraphRole.PREFILL)["DynamicQuantizeMatMul"] == 1
    for role in (GraphRole.PREFILL, GraphRole.STEP):
        described = specs(done, "fp32-cpu", role)
        assert described[HIDDEN].shape == ("batch", 32)
        assert described[MARGIN].shape == ("batch",)
    refine = specs(done, "fp32-cpu", GraphRole.REFINE)
    assert {name: spec.shape for name, spec in refine.items()} == {
        HIDDEN: (1, 32), CANDIDATES: (CANDIDATES,), LOGITS: (1, CANDIDATES),
    }  # fmt: skip
    inputs = widened(images, batch)
    assert tokens_of(done, "fp32-cpu", inputs) == tokens_of(done, "fp32", inputs)


@pytest.mark.usefixtures("small_counts")
def test_only_the_step_waits_busily_and_the_refine_graph_has_no_threads(bundle: Bundle) -> None:
    """Threads that spin after an encoder or a refine graph would take the step's cores."""
    done = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    backend = OnnxRuntimeBackend(done, "fp32-cpu", BackendOptions(threads=3))
    sessions = {
        "encoder": backend.encoder_session,
        "prefill": backend.prefill_session,
        "step": backend.step_session,
        "refine": backend.refine_session,
    }
    found = {}
    for name, session in sessions.items():
        assert session is not None
        options = session.get_session_options()
        stops = entry(options, "session.force_spinning_stop")
        spins = entry(options, "session.intra_op.spin_duration_us")
        found[name] = (options.intra_op_num_threads, stops, spins)
    assert found == {
        "encoder": (3, "1", ""),
        "prefill": (3, "1", ""),
        "step": (3, "", "1000"),
        "refine": (1, "1", ""),
    }


@pytest.mark.usefixtures("small_counts")
def test_rough_logits_are_within_the_margin_and_become_true(bundle: Bundle, images: Images) -> None:
    done = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    float_, cpu = (prompted(loaded(done, name), images) for name in ("fp32", "fp32-cpu"))
    rough_ones = 0
    for turn, token in enumerate(TOKENS):
        true = float_.step(token, FIRST + turn).copy()
        exact = cpu.step(token, FIRST + turn).copy()
        # the same float32 products, in other operators
        assert_close_in_float32(exact, true)
        rough, margin = cpu.step_approximate(token, FIRST + turn).copy(), cpu.error_bound
        assert margin is not None and (margin > 0).all()
        assert (np.abs(rough - exact) <= margin[:, None]).all()
        rough_ones += int((rough != exact).sum())
        for row in range(3):
            likely = np.flatnonzero(rough[row] >= rough[row].max() - 2 * margin[row])
            refined = cpu.exact_logits(row, likely)
            # a kernel sums by the number of its columns
            assert_close_in_float32(refined, exact[row, likely], size=largest(exact))
            assert likely[refined.argmax()] == true[row].argmax()
    assert rough_ones > 0, "else there is nothing to refine"


@pytest.mark.usefixtures("small_counts")
def test_a_prompt_is_rough_and_true_too(bundle: Bundle, images: Images) -> None:
    done = quantize_bundle(with_varied_tokens(bundle).folder, "fp32-cpu").bundle
    batch = widened(images[:1], 3)[0]
    true = loaded(done, "fp32").start(batch).prefill(*PROMPT).copy()
    decoding = loaded(done, "fp32-cpu").start(batch)
    exact = decoding.prefill(*PROMPT).copy()
    assert_close_in_float32(exact, true)
    rough = decoding.prefill_approximate(*PROMPT)
    assert decoding.error_bound is not None
    assert (np.abs(rough - exact) <= decoding.error_bound[:, None]).all()
    some = decoding.exact_logits(1, np.array([4, 2]))
    assert_close_in_float32(some, exact[1, [4, 2]], size=largest(exact))


@pytest.mark.usefixtures("small_counts")
def test_large_biases_do_not_hide_the_token(bundle: Bundle, images: Images) -> None:
    close = with_close_logits(bundle)
    done = quantize_bundle(close.folder, "fp32-cpu").bundle
    cpu = prompted(loaded(done, "fp32-cpu"), images)
    for turn, token in enumerate(TOKENS):
        exact = cpu.step(token, FIRST + turn).copy()
        rough = cpu.step_approximate(token, FIRST + turn)
        assert cpu.error_bound is not None
        assert (np.abs(rough - exact) <= cpu.error_bound[:, None]).all()


def test_without_rough_logits_all_are_exact(bundle: Bundle, images: Images) -> None:
    decoding = prompted(loaded(bundle, "fp32"), images)
    logits = decoding.step(TOKENS[0], FIRST).copy()
    assert decoding.error_bound is None
    np.testing.assert_array_equal(decoding.exact_logits(2, np.array([5, 1])), logits[2, [5, 1]])


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize("form", ["int8-cpu", "int4-cpu"])
def test_memory_in_8_bits(bundle: Bundle, images: Images, form: str) -> None:
    report = quantize_bundle(bundle.folder, form, images)
    done = report.bundle
    assert done.variant(form).precision == Precision("int8-cpu", form)
    assert done.variant(form).refine is not None
    step = operators(done, form, GraphRole.STEP)
    assert step["GroupQueryAttention"] == 2 and not step["Attention"]
    encoder = specs(done, form, GraphRole.ENCODER)
    assert {encoder[name].dtype for name in MEMORY} == {"int8"}
    returned = {t.name for t in done.graph(form, GraphRole.STEP).outputs if is_next_cache(t.name)}
    assert {next_cache(name) for name in MEMORY} <= returned
    # biases of up to 0.9 keep the tiny model's logits apart: rounding does not change a token
    inputs = widened(images, 3)
    assert tokens_of(done, form, inputs) == tokens_of(done, "fp32", inputs)
    true, near = (prompted(loaded(done, name), images) for name in ("fp32", form))
    for turn, token in enumerate(TOKENS):
        wanted = true.step(token, FIRST + turn).copy()
        difference = np.abs(near.step(token, FIRST + turn) - wanted).max()
        # weights of 4 bits are 7 % off at most, and other roundings half of a percent
        assert 0 < difference < 0.1 * largest(wanted)


def test_little_memory_stays_float_in_a_bundle(bundle: Bundle, images: Images) -> None:
    done = quantize_bundle(bundle.folder, "int8-cpu", images).bundle
    assert {specs(done, "int8-cpu", GraphRole.STEP)[name].dtype for name in MEMORY} == {"float"}


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("fp32", "int8-cpu"),
        ("fp32-cpu", "int4-cpu"),
        ("int8-cpu", "fp32-cpu"),
        ("fp16", "fp32-cpu"),
    ],
)
def test_components_mix(bundle: Bundle, images: Images, encoder: str, decoder: str) -> None:
    report = quantize_bundle(bundle.folder, None, images, encoder=encoder, decoder=decoder)
    assert report.variant == f"{encoder}+{decoder}"
    assert report.evaluation.agreement.token_share == 1.0


@pytest.mark.usefixtures("small_counts")
def test_a_variant_with_two_stages_can_be_read_again(bundle: Bundle, tmp_path: Path) -> None:
    from hybrid_deploy.bundle.bundle import open_bundle

    quantize_bundle(bundle.folder, "fp32-cpu")
    again = open_bundle(bundle.folder)
    assert GraphRole.REFINE in again.graphs("fp32-cpu")
    assert again.graph_path("fp32-cpu", GraphRole.REFINE).name == "refine.onnx"
    weights = again.folder / "fp32-cpu" / "weights.bin"
    float_weights = again.folder / "fp32" / "weights.bin"
    assert weights.stat().st_size < 1.2 * float_weights.stat().st_size, "each table once"
