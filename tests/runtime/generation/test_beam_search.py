"""Beam search: its calls of a decoding, and the effect of its settings.

Equality with Hugging Face transformers is tested in tests/benchmarks/generation_equality.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError, CapacityError, UsageError
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.logits_processors import Suppressed
from hybrid_deploy.runtime.generation.sequences import Cancellation, Limits, SequenceResult
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings
from hybrid_deploy.runtime.generation.top_k import top_k_indices
from tests.closeness import float32_error
from tests.fakes.counting import CountingDecoding

VOCABULARY, END, LENGTH = 7, 2, 6


class Markov:
    """A decoding whose next token depends only on the last one; its caches hold the tokens.

    Attributes:
        table: log-probabilities (inputs, last token, next token).
        inputs: (batch,), the input of every row.
        tokens: (batch, LENGTH), the cache: the token at every position, or -1.
        calls: the methods that were called, in order.
    """

    resizable = True

    def __init__(self, table: FloatArray, inputs: IntArray, tokens: IntArray | None = None) -> None:
        self.batch = len(inputs)
        self.table, self.inputs = table, inputs
        self.tokens = np.full((self.batch, LENGTH), -1) if tokens is None else tokens
        self.calls: list[str] = []

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        self.calls.append("prefill")
        for row, prompt, end in zip(self.tokens, tokens, last, strict=True):
            row[: end + 1] = prompt[: end + 1]
        return self.table[self.inputs, tokens[np.arange(self.batch), last]]

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        self.calls.append(f"step {self.batch}")
        self.tokens[np.arange(self.batch), position] = token
        return self.table[self.inputs, token]

    def reorder(self, rows: IntArray) -> None:
        assert (self.inputs == self.inputs[rows]).all(), "beams stay with their input"
        self.calls.append("reorder")
        self.tokens = self.tokens[rows]

    def expand_beams(self, count: int) -> Markov:
        self.calls.append(f"expand_beams {count}")
        return self._chosen(np.repeat(np.arange(self.batch), count))

    def select(self, rows: IntArray) -> Markov:
        self.calls.append(f"select {len(rows)}")
        return self._chosen(rows)

    def _chosen(self, rows: IntArray) -> Markov:
        chosen = Markov(self.table, self.inputs[rows], self.tokens[rows])
        chosen.calls = self.calls
        return chosen


def table_of(seed: int, inputs: int = 3) -> FloatArray:
    """Returns log-probabilities (inputs, last token, next token)."""
    logits = 2 * np.random.default_rng(seed).standard_normal((inputs, VOCABULARY, VOCABULARY))
    normalized: FloatArray = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return normalized.astype(np.float32)


def search(
    decoding: Markov, beams: Beams, prompts: list[list[int]] | None = None, **settings: object
) -> tuple[SequenceResult, ...]:
    limits = Limits((END,), 0, LENGTH, LENGTH)
    all_settings = DecodingSettings(
        limits,
        beams=beams,
        scores=True,
        **settings,  # type: ignore[arg-type]
    )
    return BeamSearch(decoding, prompts or [[1]] * decoding.batch, all_settings).run().sequences


def every_sequence(table: FloatArray) -> list[tuple[float, tuple[int, ...]]]:
    """Returns all sequences after token 1 with their total scores, the most probable first."""
    sequences = []
    not_end = [token for token in range(VOCABULARY) if token != END]
    for length in range(1, LENGTH):
        for begin in itertools.product(not_end, repeat=length - 1):
            lasts = range(VOCABULARY) if length == LENGTH - 1 else (END,)
            for last in lasts:
                tokens = (1, *begin, last)
                total = sum(float(table[a, b]) for a, b in itertools.pairwise(tokens))
                sequences.append((total, tokens[1:]))
    return sorted(sequences, reverse=True)


def test_search_with_enough_beams_finds_the_most_probable_sequences() -> None:
    """With 200 beams no sequence is dropped, so the result is that of trying all of them."""
    table = table_of(1, inputs=1)
    beams = Beams(200, 5, length_penalty=0.0, early_stopping="never")
    (best,) = search(Markov(table, np.zeros(1, np.int64)), beams)
    expected = every_sequence(table[0])[:5]
    for actual, (total, tokens) in zip((best, *best.alternatives), expected, strict=True):
        assert actual.tokens == tokens
        # a float32 and a float64 sum of terms of one sign
        assert actual.sequence_score == pytest.approx(total, rel=float32_error(1.0))


def test_length_penalty_and_early_stopping_change_the_result() -> None:
    results = {}
    for penalty, early in itertools.product((-1.0, 0.0, 1.0, 3.0), (True, False, "never")):
        beams = Beams(3, 1, penalty, early)  # type: ignore[arg-type]
        results[penalty, early] = tuple(
            row.tokens
            for seed in range(8)
            for row in search(Markov(table_of(seed), np.arange(3)), beams)
        )
    assert len({results[penalty, False] for penalty in (-1.0, 0.0, 1.0, 3.0)}) == 4
    assert len({results[1.0, early] for early in (True, False, "never")}) > 1


def test_beams_are_expanded_once_and_inputs_dropped_at_most_twice() -> None:
    decoding = Markov(table_of(3), np.arange(3))
    rows = search(decoding, Beams(2, early_stopping="never"), [[1], [3, 1], [4, 5, 1]])
    assert decoding.calls[:3] == ["expand_beams 1", "prefill", "expand_beams 2"]
    later = decoding.calls[3:]
    assert [call for call in later if call.startswith("select")] in (
        [], ["select 2"], ["select 4"], ["select 4", "select 2"],
    )  # fmt: skip
    assert all(row.finish in ("end", "length") for row in rows)


def test_caches_hold_the_tokens_of_their_beams() -> None:
    """In every step the cache row of a beam holds all earlier tokens of that beam."""

    class Checked(Markov):
        def step(self, token: IntArray, position: IntArray) -> FloatArray:
            logits = super().step(token, position)
            for row, end in zip(self.tokens, position, strict=True):
                histories.add(tuple(row[: end + 1].tolist()))
                assert (row[: end + 1] >= 0).all()
            return logits

        def _chosen(self, rows: IntArray) -> Markov:
            chosen = super()._chosen(rows)
            chosen.__class__ = Checked
            return chosen

    histories: set[tuple[int, ...]] = set()
    table = table_of(5)
    rows = search(Checked(table, np.arange(3)), Beams(3, 3, early_stopping="never"))
    for row in rows:
        for sequence in (row, *row.alternatives):
            assert (1, *sequence.tokens[:-1]) in histories


def test_inputs_are_dropped_once_half_have_ended() -> None:
    table = table_of(4)
    table[0, :, END] = 9  # the first two inputs end in the first step
    table[1, :, END] = 9
    table[2, :, END] = -9
    decoding = Markov(table, np.arange(3))
    search(decoding, Beams(2))
    assert "select 2" in decoding.calls
    assert decoding.calls[-2:] == ["step 2", "reorder"] or decoding.calls[-1] == "step 2"


def test_beams_go_on_when_most_continuations_are_end_tokens() -> None:
    table = table_of(6, 1)
    table[0, :, [2, 3, 4]] += 5
    limits = Limits((2, 3, 4), 0, LENGTH, LENGTH)
    settings = DecodingSettings(limits, beams=Beams(2, 2, early_stopping="never"))
    (row,) = BeamSearch(Markov(table, np.zeros(1, np.int64)), [[1]], settings).run().sequences
    assert row.finish == "end" and len(row.alternatives) == 1
    assert Beams(2).candidates(3) == 8 and Beams(2).candidates(0) == 4


def cancelling(cancel: threading.Event) -> type[Markov]:
    """Returns a decoding that cancels a search when it expands its beams."""

    class Cancelling(Markov):
        def expand_beams(self, count: int) -> Markov:
            if count > 1:
                cancel.set()
            expanded = super().expand_beams(count)
            expanded.__class__ = Cancelling
            return expanded

    return Cancelling


def test_cancelled_searches_return_their_best_beams() -> None:
    cancel = threading.Event()

    settings = DecodingSettings(Limits((END,), 0, LENGTH, LENGTH), beams=Beams(3, 3), scores=True)
    table = table_of(7)
    table[:, :, END] = -50
    result = BeamSearch(
        cancelling(cancel)(table, np.arange(3)), [[1]] * 3, settings, Cancellation(cancel)
    ).run()
    for row, scores in zip(result.sequences, table[:, 1], strict=True):
        assert row.finish == "cancelled"
        best = np.argsort(-scores)[:3]
        assert [sequence.tokens for sequence in (row, *row.alternatives)] == [
            (token,) for token in best.tolist()
        ]


def test_a_cancelled_search_says_so_even_if_its_best_beam_has_ended() -> None:
    cancel = threading.Event()

    beams = Beams(3, 3, length_penalty=2.0, early_stopping="never")
    settings = DecodingSettings(Limits((END,), 0, LENGTH, LENGTH), beams=beams)
    table = table_of(7)
    table[:, 1, END] = table[:, 1].max() + 1
    decoding = cancelling(cancel)(table, np.arange(1))
    (row,) = BeamSearch(decoding, [[1]], settings, Cancellation(cancel)).run().sequences
    assert row.tokens == (END,) and row.finish == "cancelled"


def test_errors_name_the_sequence_and_the_step() -> None:
    with_nan = table_of(8)
    with_nan[1, :, 3] = np.nan
    with pytest.raises(BackendError, match="the logits of sequence 1 at step 0 are not finite"):
        search(Markov(with_nan, np.arange(3)), Beams(2))
    suppress_all = (Suppressed(np.arange(VOCABULARY)),)
    with pytest.raises(
        BackendError, match="the generation settings allow no token for sequence 0 at step 0"
    ):
        search(Markov(table_of(8), np.arange(3)), Beams(2), processors=suppress_all)


def test_search_refuses_fixed_batches_and_long_prompts() -> None:
    settings = DecodingSettings(Limits((END,), 0, LENGTH, LENGTH), beams=Beams(2))
    with pytest.raises(UsageError, match="a beam search needs graphs without a fixed batch"):
        BeamSearch(CountingDecoding([5]), [[1]], settings)
    fixed = Markov(table_of(0), np.arange(3))
    fixed.resizable = False
    with pytest.raises(
        UsageError,
        match=r"ask for one beam, export without --batch, or take --backend onnxruntime$",
    ):
        BeamSearch(fixed, [[1]] * 3, settings)
    with pytest.raises(CapacityError):
        BeamSearch(Markov(table_of(0), np.arange(3)), [[1] * 7] * 3, settings)


@pytest.mark.parametrize("size", [1, 9, 64, 700, 5000, 5003])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_top_k_indices_are_those_of_sorting(size: int, count: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        values = rng.standard_normal(size).astype(np.float32)
        values[rng.random(size) < 0.2] = -np.inf
        expected = np.sort(values)[::-1][: min(count, size)]
        indices = top_k_indices(values, min(count, size))
        np.testing.assert_array_equal(values[indices], expected)
        assert len(set(indices.tolist())) == len(indices)
