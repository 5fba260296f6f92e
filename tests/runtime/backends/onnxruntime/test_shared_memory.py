"""Beams that share the memory of their input, against beams that have a copy each."""

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
from hybrid_deploy.runtime.backends.protocol import (
    Decoding,
    IntArray,
)
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
        """Starts to decode, in a variant with and without the graph whose beams share memory."""
        bundle = self.bundle if shared else without_beam_step(self.bundle)
        return OnnxRuntimeBackend(bundle, "fp32", BackendOptions(threads=1)).start(self.arrays)


def without_beam_step(bundle: Bundle, variant: str = "fp32") -> Bundle:
    """Returns a bundle as one that was written before there was such a graph."""
    plain = msgspec.structs.replace(bundle.variant(variant), beam_step=None)
    variants = bundle.manifest.variants | {variant: plain}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


def memory_of(decoding: OnnxRuntimeDecoding) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Returns where every memory tensor lies, and its shape."""
    values = decoding._memory.items()
    return {n: (v.data_ptr(), tuple(v.shape())) for n, v in values if is_memory(n)}


@pytest.fixture(scope="module", params=["tiny", "width-mask", "width-mask-18"])
def subject(
    request: pytest.FixtureRequest, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """An ordinary decoder, and one with masks over memory of unequal lengths, written out too."""
    if request.param == "tiny":
        return Subject(open_bundle(tiny_path), {"image": random_floats(INPUTS, 1, 8, 24).numpy()})
    case = dataclasses.replace(find("width-mask"), max_length=LENGTH)
    opset = 18 if request.param.endswith("18") else 24
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    bundle = export(case, case.model(), path, opset)
    arrays = {n: v.numpy() for n, v in case.inputs(INPUTS, case.sizes[0]).items()}
    return Subject(bundle, arrays)


def search(decoding: Decoding, prompts: list[list[int]]) -> tuple[SequenceResult, ...]:
    rules = DecodingSettings(
        Limits((2, 5, 7), 0, LENGTH, LENGTH), beams=Beams(BEAMS, 3), scores=True
    )
    return BeamSearch(decoding, prompts, rules).run().sequences


def ranked(row: SequenceResult) -> list[tuple[tuple[int, ...], float | None]]:
    return [(each.tokens, each.sequence_score) for each in (row, *row.alternatives)]


def test_shared_memory_gives_what_copies_give(subject: Subject) -> None:
    lengths = {}
    first = subject.start().step(np.ones(INPUTS, np.int64), np.zeros(INPUTS, np.int64))
    logit = largest(first)  # a total is a mean of scores
    for name, prompts in PROMPTS.items():
        found, wanted = (search(subject.start(shared=shared), prompts) for shared in (True, False))
        for row, copied in zip(found, wanted, strict=True):
            totals = [total for _, total in ranked(copied)]
            assert [tokens for tokens, _ in ranked(row)] == [tokens for tokens, _ in ranked(copied)]
            found_totals = [total for _, total in ranked(row)]
            assert found_totals == pytest.approx(totals, rel=0, abs=float32_error(logit))
        assert len({row.tokens for row in found}) > 1, "or it proves nothing"
        lengths[name] = {len(row.tokens) for row in found}
    assert len(lengths["a start token"]) > 1, "inputs end at different times"


def test_memory_stays_where_it_is(subject: Subject) -> None:
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
    same = beams.select(np.array([1, 0, 2, 3, 4, 4, 4, 4, 11, 10, 9, 8]))
    assert memory_of(same) == before, "beams change places, inputs do not"


def test_finished_inputs_take_their_memory_along(subject: Subject) -> None:
    rows = np.array([1, 0, 2, 3, 11, 10, 9, 8])
    shared, copied = (start_beams(subject, shared=shared) for shared in (True, False))
    left, wanted = shared.select(rows), copied.select(rows)
    assert all(shape[0] == 2 for _, shape in memory_of(left).values())
    same_logits(left, wanted)


def test_beams_that_part_get_a_memory_each(subject: Subject) -> None:
    rows = np.array([8, 1, 5])
    shared, copied = (start_beams(subject, shared=shared) for shared in (True, False))
    left, wanted = shared.select(rows), copied.select(rows)
    assert all(shape[0] == 3 for _, shape in memory_of(left).values())
    same_logits(left, wanted)
    same_logits(left.expand_beams(2), wanted.expand_beams(2))


def start_beams(subject: Subject, *, shared: bool) -> OnnxRuntimeDecoding:
    """Feeds every beam other tokens."""
    decoding = subject.start(shared=shared).expand_beams(1)
    decoding.prefill(np.ones((INPUTS, 2), np.int64), np.zeros(3, np.int64), np.ones(3, np.int64))
    beams = decoding.expand_beams(BEAMS)
    beams.step(np.arange(beams.batch) % 7, np.full(beams.batch, 2))
    return beams


def same_logits(one: OnnxRuntimeDecoding, other: OnnxRuntimeDecoding) -> None:
    """Feeds two decodings the same prompt, and compares what comes of it."""
    tokens = (np.arange(2 * one.batch) % 5).reshape(-1, 2)
    position, last = np.full(one.batch, 3), np.arange(one.batch) % 2
    found = one.prefill(tokens, position, last)
    # products of several rows sum in another order
    assert_close_in_float32(found, other.prefill(tokens, position, last))


def test_one_graph_serves_searches_and_single_sequences(subject: Subject) -> None:
    """Where both graphs take and return the same, the weights are loaded once."""
    backend = OnnxRuntimeBackend(subject.bundle, "fp32", BackendOptions(threads=1))
    assert backend.step_session is backend.beam_session
    tokens, position = np.array([1, 3, 4]), np.zeros(INPUTS, np.int64)
    plain = OnnxRuntimeBackend(without_beam_step(subject.bundle), "fp32", BackendOptions(threads=1))
    assert plain.beam_session is None
    # the graph of the search multiplies several rows where the other one multiplies each
    assert_close_in_float32(
        backend.start(subject.arrays).step(tokens, position),
        plain.start(subject.arrays).step(tokens, position),
    )


def test_what_cannot_be_folded_copies(tmp_path: Path) -> None:
    """Attention that adds the row to every position has no such form; beams are what they were."""
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
    found: tuple[IntArray, int] = inputs_of(np.array(rows), beams)
    assert (found[0].tolist(), found[1]) == (inputs, together)


def test_full_reruns_are_searched_too(tiny_model: nn.Module, tiny_path: Path) -> None:
    """Golden samples of a bundle whose defaults are beams come from them."""
    arrays = {"image": random_floats(INPUTS, 1, 8, 24).numpy()}
    found = search(FullRerun(tiny_model, LENGTH).start(arrays), PROMPTS["ragged"])
    exported = Subject(open_bundle(tiny_path), arrays).start()
    wanted = search(exported, PROMPTS["ragged"])
    assert [row.tokens for row in found] == [row.tokens for row in wanted]
