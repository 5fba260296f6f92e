"""Beams that share the memory of their input, against beams that each have a copy of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.contract import GraphRole, is_memory
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.onnxruntime.cache_rows import inputs_of
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding
from hybrid_deploy.runtime.backends.protocol import Decoding
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.sequences import Limits, SequenceResult
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from tests.closeness import assert_close_in_float32, float32_error, largest
from tests.models.zoo.case import random_floats
from tests.models.zoo.cases import find
from tests.models.zoo.check import export

INPUTS, BEAMS, LENGTH = 3, 4, 8
PROMPTS = {
    "a start token": [[1], [1], [1]],
    "short": [[1, 3], [1, 4], [1, 5]],
    "ragged": [[1, 3, 4, 5, 6], [1], [1, 2, 7]],
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A bundle and a batch of its inputs."""

    bundle: Bundle
    arrays: Mapping[str, NDArray[Any]]

    def start(self, *, shared: bool = True) -> OnnxRuntimeDecoding:
        """Returns a decoding; with `shared`, the variant has a beam step graph."""
        bundle = self.bundle if shared else without_beam_step(self.bundle)
        return OnnxRuntimeBackend(bundle, "fp32", BackendOptions(threads=1)).start(self.arrays)


def without_beam_step(bundle: Bundle, variant: str = "fp32") -> Bundle:
    """Returns a bundle whose variant has no beam step graph, like a bundle of an old version."""
    plain = msgspec.structs.replace(bundle.variant(variant), beam_step=None)
    variants = bundle.manifest.variants | {variant: plain}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


def memory_of(decoding: OnnxRuntimeDecoding) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Returns the address and shape of every memory tensor, by name."""
    values = decoding._memory.items()
    return {n: (v.data_ptr(), tuple(v.shape())) for n, v in values if is_memory(n)}


@pytest.fixture(scope="module", params=["tiny", "width-mask", "width-mask-18"])
def subject(
    request: pytest.FixtureRequest, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """A decoder without masks, and one with masks over memory of unequal lengths.

    Opset 18 has no Attention operator: there the attention is written out.
    """
    if request.param == "tiny":
        return Subject(open_bundle(tiny_path), {"image": random_floats(INPUTS, 1, 8, 24).numpy()})
    case = dataclasses.replace(find("width-mask"), max_length=LENGTH)
    opset = 18 if request.param.endswith("18") else 24
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    bundle = export(case, case.model(), path, opset)
    arrays = {n: v.numpy() for n, v in case.inputs(INPUTS, case.sizes[0]).items()}
    return Subject(bundle, arrays)


def search(decoding: Decoding, prompts: list[list[int]]) -> tuple[SequenceResult, ...]:
    settings = DecodingSettings(
        Limits((2, 5, 7), 0, LENGTH, LENGTH), beams=Beams(BEAMS, 3), scores=True
    )
    return BeamSearch(decoding, prompts, settings).run().sequences


def ranked(row: SequenceResult) -> list[tuple[tuple[int, ...], float | None]]:
    """Returns tokens and score of a sequence and of its alternatives, best first."""
    return [(result.tokens, result.sequence_score) for result in (row, *row.alternatives)]


def test_shared_memory_gives_the_results_of_copies(subject: Subject) -> None:
    lengths = {}
    first = subject.start().step(np.ones(INPUTS, np.int64), np.zeros(INPUTS, np.int64))
    logit = largest(first)  # a sequence score is a mean of differences of logits
    for name, prompts in PROMPTS.items():
        actual, expected = (
            search(subject.start(shared=shared), prompts) for shared in (True, False)
        )
        for row, copied in zip(actual, expected, strict=True):
            expected_scores = [score for _, score in ranked(copied)]
            assert [tokens for tokens, _ in ranked(row)] == [tokens for tokens, _ in ranked(copied)]
            scores = [score for _, score in ranked(row)]
            assert scores == pytest.approx(expected_scores, rel=0, abs=float32_error(logit))
        assert len({row.tokens for row in actual}) > 1, "equal results would hide mixed-up inputs"
        lengths[name] = {len(row.tokens) for row in actual}
    assert len(lengths["a start token"]) > 1, "inputs end at different times"


def test_memory_is_not_copied(subject: Subject) -> None:
    decoding = subject.start()
    before = memory_of(decoding)
    assert before and all(shape[0] == INPUTS for _, shape in before.values())
    alone = decoding.expand_beams(1)
    alone.step(np.ones(INPUTS, np.int64), np.zeros(INPUTS, np.int64))
    beams = alone.expand_beams(BEAMS)
    assert beams.batch == INPUTS * BEAMS
    beams.reorder(np.array([0, 0, 1, 1, 4, 5, 6, 7, 9, 9, 9, 9]))
    beams.step(np.ones(beams.batch, np.int64), np.ones(beams.batch, np.int64))
    assert memory_of(beams) == before
    reordered = beams.select(np.array([1, 0, 2, 3, 4, 4, 4, 4, 11, 10, 9, 8]))
    assert memory_of(reordered) == before, "only beams of one input are reordered"


def test_finished_inputs_are_removed_with_their_memory(subject: Subject) -> None:
    rows = np.array([1, 0, 2, 3, 11, 10, 9, 8])
    shared, copied = (start_beams(subject, shared=shared) for shared in (True, False))
    selected, expected = shared.select(rows), copied.select(rows)
    assert all(shape[0] == 2 for _, shape in memory_of(selected).values())
    assert_same_logits(selected, expected)


def test_separated_beams_each_get_a_copy_of_the_memory(subject: Subject) -> None:
    rows = np.array([8, 1, 5])
    shared, copied = (start_beams(subject, shared=shared) for shared in (True, False))
    selected, expected = shared.select(rows), copied.select(rows)
    assert all(shape[0] == 3 for _, shape in memory_of(selected).values())
    assert_same_logits(selected, expected)
    assert_same_logits(selected.expand_beams(2), expected.expand_beams(2))


def start_beams(subject: Subject, *, shared: bool) -> OnnxRuntimeDecoding:
    """Returns a decoding in which every beam has decoded another token."""
    decoding = subject.start(shared=shared).expand_beams(1)
    decoding.prefill(np.ones((INPUTS, 2), np.int64), np.zeros(3, np.int64), np.ones(3, np.int64))
    beams = decoding.expand_beams(BEAMS)
    beams.step(np.arange(beams.batch) % 7, np.full(beams.batch, 2))
    return beams


def assert_same_logits(actual: OnnxRuntimeDecoding, expected: OnnxRuntimeDecoding) -> None:
    """Asserts that two decodings return the same logits for the same prompts."""
    tokens = (np.arange(2 * actual.batch) % 5).reshape(-1, 2)
    position, last = np.full(actual.batch, 3), np.arange(actual.batch) % 2
    logits = actual.prefill(tokens, position, last)
    # a product of several rows may sum in another order
    assert_close_in_float32(logits, expected.prefill(tokens, position, last))


def test_one_graph_serves_searches_and_single_sequences(subject: Subject) -> None:
    """If both graphs have the same inputs and outputs, the weights are loaded once."""
    backend = OnnxRuntimeBackend(subject.bundle, "fp32", BackendOptions(threads=1))
    assert backend.step_session is backend.beam_session
    tokens, position = np.array([1, 3, 4]), np.zeros(INPUTS, np.int64)
    plain = OnnxRuntimeBackend(without_beam_step(subject.bundle), "fp32", BackendOptions(threads=1))
    assert plain.beam_session is None
    # the beam step graph multiplies several rows at once, the step graph one by one
    assert_close_in_float32(
        backend.start(subject.arrays).step(tokens, position),
        plain.start(subject.arrays).step(tokens, position),
    )


def test_beams_copy_the_memory_without_a_beam_step_graph(tmp_path: Path) -> None:
    """Additive attention adds the query to every memory position: its beams cannot share it."""
    case = dataclasses.replace(find("attend-and-tell"), max_length=LENGTH)
    bundle = export(case, case.model(), tmp_path / "bundle")
    assert GraphRole.BEAM_STEP not in bundle.graphs("fp32")
    arrays = {n: v.numpy() for n, v in case.inputs(INPUTS, case.sizes[0]).items()}
    decoding = Subject(bundle, arrays).start()
    assert decoding.expand_beams(1) is decoding
    assert decoding.expand_beams(2).batch == 2 * INPUTS


@pytest.mark.parametrize(
    ("rows", "beams", "inputs", "together"),
    [
        ([3, 2, 1, 0], 2, [1, 0], 2),
        ([4, 5, 4], 3, [1], 3),
        ([0, 2, 1, 3], 2, [0, 1, 0, 1], 1),
        ([5], 2, [2], 1),
        ([2, 0], 1, [2, 0], 1),
    ],
)
def test_inputs_of_chosen_beams(
    rows: list[int], beams: int, inputs: list[int], together: int
) -> None:
    actual_inputs, actual_together = inputs_of(np.array(rows), beams)
    assert (actual_inputs.tolist(), actual_together) == (inputs, together)


def test_beam_search_of_the_reference_gives_the_same_tokens(
    tiny_model: nn.Module, tiny_path: Path
) -> None:
    """A bundle whose default is a beam search has golden samples from it."""
    arrays = {"image": random_floats(INPUTS, 1, 8, 24).numpy()}
    actual = search(FullRerun(tiny_model, LENGTH).start(arrays), PROMPTS["ragged"])
    exported = Subject(open_bundle(tiny_path), arrays).start()
    expected = search(exported, PROMPTS["ragged"])
    assert [row.tokens for row in actual] == [row.tokens for row in expected]
