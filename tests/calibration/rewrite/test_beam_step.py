"""Beam searches in quantized variants: the graph that is made of each form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.onnxruntime_cpu import (
    int8_cross_attention as short_memory,
)
from hybrid_deploy.calibration.onnxruntime_cpu import (
    two_stage_projection as rough_projection,
)
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.contract import HIDDEN, LOGITS, GraphRole, is_memory, is_next_cache
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from tests.closeness import float32_error, largest
from tests.fakes.edited_bundle import with_varied_tokens
from tests.runtime.backends.onnxruntime.test_shared_memory import ranked, without_beam_step

Images = list[dict[str, NDArray[np.float32]]]

BEAMS, LENGTH = 3, 8
PROMPTS = ([[1, 3], [1, 3]], [[1, 3, 4, 5, 6], [1]])
FORMS = ("int8", "int8-full", "int4-weights", "fp32-cpu", "int8-cpu", "int4-cpu")


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the smallest vocabulary and the smallest memory be worth it."""
    monkeypatch.setattr(rough_projection, "LEAST_WORDS", 1)
    monkeypatch.setattr(short_memory, "LEAST_BYTES", 1)
    monkeypatch.setattr(short_memory, "LEAST_WIDTH", 8)


def searched(
    bundle: Bundle, variant: str, images: Images
) -> list[list[tuple[tuple[int, ...], float | None]]]:
    """Returns the best three sequences of every input, with their totals."""
    backend = OnnxRuntimeBackend(bundle, variant, BackendOptions(threads=1))
    rules = DecodingSettings(
        Limits((4, 9), 0, LENGTH, LENGTH), beams=Beams(BEAMS, BEAMS), scores=True
    )
    found = []
    for one in images:
        batch = {"image": np.concatenate([one["image"], 0.7 * one["image"]])}
        for prompts in PROMPTS:
            rows = BeamSearch(backend.start(batch), prompts, rules).run().sequences
            found += [ranked(row) for row in rows]
    return found


def largest_logit(bundle: Bundle, image: dict[str, NDArray[np.float32]]) -> float:
    """Returns the size of the float logits, of the start tokens alone."""
    decoding = OnnxRuntimeBackend(bundle, "fp32", BackendOptions(threads=1)).start(image)
    return largest(decoding.prefill(np.array([PROMPTS[0][0]]), np.array([0]), np.array([1])))


@pytest.mark.usefixtures("small_counts")
def test_every_form_finds_what_it_finds_with_copies(bundle: Bundle, images: Images) -> None:
    folder = with_varied_tokens(bundle).folder
    floats = searched(open_bundle(folder), "fp32", images)
    logit = largest_logit(open_bundle(folder), images[0])  # a total is a mean of scores
    assert len({row[0][0] for row in floats}) > 3, "or it proves nothing"
    for form in FORMS:
        done = quantize_bundle(folder, form, images).bundle
        assert GraphRole.BEAM_STEP in done.graphs(form)
        found = searched(done, form, images)
        wanted = searched(without_beam_step(done, form), form, images)
        for row, copied in zip(found, wanted, strict=True):
            assert [tokens for tokens, _ in row] == [tokens for tokens, _ in copied], form
            totals = [total for _, total in copied]
            # memory in 8 bits meets a query in 8 bits in the kernel that copies are for
            near = 0.02 * logit if form in ("int8-cpu", "int4-cpu") else float32_error(logit)
            assert [total for _, total in row] == pytest.approx(totals, rel=0, abs=near), form
        if form == "fp32-cpu":
            assert [[t for t, _ in row] for row in found] == [[t for t, _ in row] for row in floats]


@pytest.mark.usefixtures("small_counts")
def test_logits_of_beams_are_true_and_memory_keeps_its_bits(bundle: Bundle, images: Images) -> None:
    done = quantize_bundle(bundle.folder, "int8-cpu", images).bundle
    graph = done.graph("int8-cpu", GraphRole.BEAM_STEP)
    outputs = {tensor.name for tensor in graph.outputs if not is_next_cache(tensor.name)}
    assert HIDDEN not in outputs and outputs == {LOGITS}
    shapes = {t.name: (t.dtype, t.shape[0]) for t in graph.inputs if is_memory(t.name)}
    assert shapes == {
        "cross_key_0": ("int8", "inputs"), "cross_key_0_scale": ("float", "inputs"),
        "cross_value_0": ("int8", "inputs"), "cross_value_0_scale": ("float", "inputs"),
    }  # fmt: skip
    backend = OnnxRuntimeBackend(done, "int8-cpu", BackendOptions(threads=1))
    assert backend.beam_session is not backend.step_session


@pytest.mark.usefixtures("small_counts")
def test_the_graph_brings_no_weights_of_its_own(bundle: Bundle, images: Images) -> None:
    done = quantize_bundle(bundle.folder, "int8-cpu", images).bundle
    known = {place for role in done.loop_graphs("int8-cpu") for place in places(done, role)}
    assert places(done, GraphRole.BEAM_STEP) <= known


def places(bundle: Bundle, role: GraphRole) -> set[tuple[int | None, int | None]]:
    """Returns where in the file of weights a graph reads."""
    graph = ir.load(bundle.graph_path("int8-cpu", role)).graph
    tensors = [value.const_value for value in graph.initializers.values()]
    return {(t.offset, t.length) for t in tensors if isinstance(t, ir.ExternalTensor)}


def test_a_call_with_one_beam_costs_a_step(bundle: Bundle) -> None:
    cost = bundle.graph("fp32", GraphRole.BEAM_STEP).cost
    assert cost is not None and cost == bundle.graph("fp32", GraphRole.STEP).cost
