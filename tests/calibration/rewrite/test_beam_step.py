"""Beam searches in quantized variants: the beam step of each form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import HIDDEN, LOGITS, GraphRole, is_memory, is_next_cache
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from tests.closeness import float32_error, largest
from tests.fakes.edited_bundle import with_varied_tokens
from tests.fakes.size_limits import lift_size_limits
from tests.runtime.backends.onnxruntime.test_shared_memory import ranked, without_beam_step

Images = list[dict[str, NDArray[np.float32]]]

BEAMS, LENGTH = 3, 8
PROMPTS = ([[1, 3], [1, 3]], [[1, 3, 4, 5, 6], [1]])
FORMS = ("int8", "int8-full", "int4-weights", "fp32-cpu", "int8-cpu", "int4-cpu")


@pytest.fixture
def without_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the size limits of the two-stage projection and of 8-bit memory."""
    lift_size_limits(monkeypatch)


def beam_searched(
    bundle: Bundle, variant: str, images: Images
) -> list[list[tuple[tuple[int, ...], float | None]]]:
    """Returns the best three sequences of every input and prompt, with their scores."""
    backend = OnnxRuntimeBackend(bundle, variant, BackendOptions(threads=1))
    settings = DecodingSettings(
        Limits((4, 9), 0, LENGTH, LENGTH), beams=Beams(BEAMS, BEAMS), scores=True
    )
    sequences = []
    for image in images:
        batch = {"image": np.concatenate([image["image"], 0.7 * image["image"]])}
        for prompts in PROMPTS:
            rows = BeamSearch(backend.start(batch), prompts, settings).run().sequences
            sequences += [ranked(row) for row in rows]
    return sequences


def largest_logit(bundle: Bundle, image: dict[str, NDArray[np.float32]]) -> float:
    """Returns the largest magnitude of the float logits behind the start tokens."""
    decoding = OnnxRuntimeBackend(bundle, "fp32", BackendOptions(threads=1)).start(image)
    return largest(decoding.prefill(np.array([PROMPTS[0][0]]), np.array([0]), np.array([1])))


@pytest.mark.usefixtures("without_size_limits")
def test_shared_memory_finds_the_sequences_of_copied_memory(bundle: Bundle, images: Images) -> None:
    folder = with_varied_tokens(bundle).folder
    floats = beam_searched(open_bundle(folder), "fp32", images)
    logit = largest_logit(open_bundle(folder), images[0])  # a score is a mean of log-probabilities
    assert len({row[0][0] for row in floats}) > 3, "the inputs have different sequences"
    for form in FORMS:
        quantized = quantize_bundle(folder, form, images).bundle
        assert GraphRole.BEAM_STEP in quantized.graphs(form)
        shared = beam_searched(quantized, form, images)
        copied_memory = beam_searched(without_beam_step(quantized, form), form, images)
        for row, copied in zip(shared, copied_memory, strict=True):
            assert [tokens for tokens, _ in row] == [tokens for tokens, _ in copied], form
            scores = [score for _, score in copied]
            # the kernel for one row per memory rounds the query to 8 bits too
            tolerance = 0.02 * logit if form in ("int8-cpu", "int4-cpu") else float32_error(logit)
            assert [score for _, score in row] == pytest.approx(scores, rel=0, abs=tolerance), form
        if form == "fp32-cpu":
            assert [[t for t, _ in row] for row in shared] == [
                [t for t, _ in row] for row in floats
            ]


@pytest.mark.usefixtures("without_size_limits")
def test_the_beam_step_has_exact_logits_and_8_bit_memory(bundle: Bundle, images: Images) -> None:
    quantized = quantize_bundle(bundle.folder, "int8-cpu", images).bundle
    graph = quantized.graph("int8-cpu", GraphRole.BEAM_STEP)
    outputs = {tensor.name for tensor in graph.outputs if not is_next_cache(tensor.name)}
    assert HIDDEN not in outputs and outputs == {LOGITS}
    shapes = {t.name: (t.dtype, t.shape[0]) for t in graph.inputs if is_memory(t.name)}
    assert shapes == {
        "cross_key_0": ("int8", "inputs"), "cross_key_0_scale": ("float", "inputs"),
        "cross_value_0": ("int8", "inputs"), "cross_value_0_scale": ("float", "inputs"),
    }  # fmt: skip
    backend = OnnxRuntimeBackend(quantized, "int8-cpu", BackendOptions(threads=1))
    assert backend.beam_session is not backend.step_session


@pytest.mark.usefixtures("without_size_limits")
def test_the_beam_step_shares_all_weights(bundle: Bundle, images: Images) -> None:
    quantized = quantize_bundle(bundle.folder, "int8-cpu", images).bundle
    roles = quantized.loop_graphs("int8-cpu")
    loop_weights = set().union(*(weight_ranges(quantized, role) for role in roles))
    beam_weights = weight_ranges(quantized, GraphRole.BEAM_STEP)
    assert beam_weights and beam_weights <= loop_weights


def weight_ranges(bundle: Bundle, role: GraphRole) -> set[tuple[int | None, int | None]]:
    """Returns the offset and length of each weight of a graph in the weight file."""
    graph = ir.load(bundle.graph_path("int8-cpu", role)).graph
    tensors = [value.const_value for value in graph.initializers.values()]
    return {(t.offset, t.length) for t in tensors if isinstance(t, ir.ExternalTensor)}


def test_one_beam_costs_a_step(bundle: Bundle) -> None:
    cost = bundle.graph("fp32", GraphRole.BEAM_STEP).cost
    assert cost is not None and cost == bundle.graph("fp32", GraphRole.STEP).cost
