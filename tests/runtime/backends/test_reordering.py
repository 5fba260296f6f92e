"""Reordered and selected sequences, against batches that had this order from the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.onnxruntime.cache_rows import move_rows, moved_rows
from hybrid_deploy.runtime.backends.protocol import IntArray, ReorderableDecoding
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from tests.closeness import assert_close_in_float32
from tests.models.zoo.case import random_floats, random_tokens
from tests.models.zoo.cases import find
from tests.models.zoo.check import export

BATCH, VOCABULARY = 4, 10
HISTORY = random_tokens(VOCABULARY, BATCH, 5).numpy()
NEXT = random_tokens(VOCABULARY, BATCH, seed=8).numpy()


@dataclasses.dataclass(frozen=True)
class Subject:
    """A bundle and a batch of its inputs."""

    bundle: Bundle
    inputs: Mapping[str, NDArray[Any]]

    def start(self, rows: IntArray) -> ReorderableDecoding:
        """Returns a decoding of chosen rows of the inputs."""
        chosen = {name: array[rows] for name, array in self.inputs.items()}
        backend = load_backend("onnxruntime", self.bundle, "fp32", BackendOptions(threads=1))
        decoding = backend.start(chosen)
        assert isinstance(decoding, ReorderableDecoding) and decoding.resizable
        return decoding


@pytest.fixture(scope="module", params=["tiny", "attend-and-tell", "prefix-causal"])
def subject(
    request: pytest.FixtureRequest, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """A decoder with caches, one with a recurrent state, one whose caches begin with memory."""
    if request.param == "tiny":
        return Subject(open_bundle(tiny_path), {"image": random_floats(BATCH, 1, 8, 24).numpy()})
    case = dataclasses.replace(find(request.param), max_length=9)
    bundle = export(case, case.model(), tmp_path_factory.mktemp("bundles") / "bundle")
    return Subject(bundle, {n: v.numpy() for n, v in case.inputs(BATCH, case.sizes[0]).items()})


def feed(decoding: ReorderableDecoding, history: IntArray) -> None:
    """Decodes a prompt of 2 tokens, and then 3 more tokens one by one."""
    batch = len(history)
    decoding.prefill(history[:, :2], np.zeros(batch, np.int64), np.ones(batch, np.int64))
    for index in range(2, history.shape[1]):
        decoding.step(history[:, index], np.full(batch, index))


def next_logits(decoding: ReorderableDecoding, rows: IntArray) -> NDArray[np.float32]:
    """Returns the logits of two more steps, (rows, 2, vocabulary)."""
    steps = []
    for index in (5, 6):
        steps.append(decoding.step(NEXT[rows], np.full(len(rows), index)).copy())
    return np.stack(steps, 1)


@pytest.mark.parametrize("rows", [(0, 0, 2, 1), (3, 2, 1, 0), (0, 1, 2, 3)])
def test_reordered_beams_continue_from_their_source(
    subject: Subject, rows: tuple[int, ...]
) -> None:
    same_input = np.zeros(BATCH, np.int64)  # as beams have
    sources = np.array(rows)
    decoding, expected = subject.start(same_input), subject.start(same_input)
    feed(decoding, HISTORY)
    decoding.reorder(sources)
    feed(expected, HISTORY[sources])
    every_row = np.arange(BATCH)
    # a kernel may compute four rows together, and the rest of a batch in another order
    assert_close_in_float32(next_logits(decoding, every_row), next_logits(expected, every_row))


@pytest.mark.parametrize("rows", [(1,), (0, 2), (0, 0, 3, 3, 1, 1), (2, 0, 1, 3)])
def test_selected_sequences_keep_their_memory(subject: Subject, rows: tuple[int, ...]) -> None:
    sources = np.array(rows)
    decoding = subject.start(np.arange(BATCH))
    feed(decoding, HISTORY)
    chosen, expected = decoding.select(sources), subject.start(sources)
    assert chosen.batch == len(rows)
    feed(expected, HISTORY[sources])
    # kernels for other batch sizes may sum in another order
    assert_close_in_float32(next_logits(chosen, sources), next_logits(expected, sources))


def test_selected_sequences_can_be_selected_and_reordered_again(subject: Subject) -> None:
    decoding = subject.start(np.arange(BATCH))
    feed(decoding, HISTORY)
    beams = decoding.select(np.array([1, 1, 3, 3]))
    beams.reorder(np.array([1, 0, 3, 2]))
    last = beams.select(np.array([2, 3]))
    expected = subject.start(np.array([3, 3]))
    feed(expected, HISTORY[[3, 3]])
    rows = np.array([3, 3])
    assert_close_in_float32(next_logits(last, rows), next_logits(expected, rows))


def test_rows_that_do_not_move_are_not_written() -> None:
    array = np.arange(12.0).reshape(4, 3)
    rows = np.array([0, 0, 2, 1])
    assert moved_rows(rows).tolist() == [1, 3]
    expected = array[rows]
    move_rows(array, rows)
    np.testing.assert_array_equal(array, expected)
    array.setflags(write=False)
    move_rows(array, np.arange(4))  # a write would raise


def test_a_fixed_batch_cannot_be_resized(tiny_bundle: Bundle) -> None:
    variant = tiny_bundle.variant("fp32")
    token, *further_inputs = variant.step.inputs
    assert token.name == "token"
    fixed = (msgspec.structs.replace(token, shape=(2,)), *further_inputs)
    step = msgspec.structs.replace(variant.step, inputs=fixed)
    variants = {"fp32": msgspec.structs.replace(variant, step=step)}
    manifest = msgspec.structs.replace(tiny_bundle.manifest, variants=variants)
    backend = load_backend(
        "onnxruntime", Bundle(tiny_bundle.folder, manifest), "fp32", BackendOptions()
    )
    decoding = backend.start({"image": np.zeros((2, 1, 8, 16), np.float32)})
    assert isinstance(decoding, ReorderableDecoding) and not decoding.resizable
    with pytest.raises(UsageError, match="decode 2 sequences at a time, 1 are needed"):
        decoding.select(np.array([0]))
