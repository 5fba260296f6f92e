"""The search itself: what it asks of a backend, and what its settings change.

That it finds what transformers finds is tested in tests/benchmarks/generation_equality.
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
    """The next token depends on the last one alone. Caches hold tokens, and follow them."""

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
    decoding: Markov, beams: Beams, prompts: list[list[int]] | None = None, **rules: object
) -> tuple[SequenceResult, ...]:
    limits = Limits((END,), 0, LENGTH, LENGTH)
    chosen = DecodingSettings(limits, beams=beams, scores=True, **rules)  # type: ignore[arg-type]
    return BeamSearch(decoding, prompts or [[1]] * decoding.batch, chosen).run().sequences


def every_sequence(table: FloatArray) -> list[tuple[float, tuple[int, ...]]]:
    """Lists all sequences after token 1, the likeliest first."""
    found = []
    others = [token for token in range(VOCABULARY) if token != END]
    for length in range(1, LENGTH):
        for begin in itertools.product(others, repeat=length - 1):
            lasts = range(VOCABULARY) if length == LENGTH - 1 else (END,)
            for last in lasts:
                tokens = (1, *begin, last)
                total = sum(float(table[a, b]) for a, b in itertools.pairwise(tokens))
                found.append((total, tokens[1:]))
    return sorted(found, reverse=True)


def test_a_wide_search_finds_the_likeliest_of_all_sequences() -> None:
    """With as many beams as there are sequences to keep, nothing can be missed."""
    table = table_of(1, inputs=1)
    beams = Beams(200, 5, length_penalty=0.0, early_stopping="never")
    (best,) = search(Markov(table, np.zeros(1, np.int64)), beams)
    wanted = every_sequence(table[0])[:5]
    for given, (total, tokens) in zip((best, *best.alternatives), wanted, strict=True):
        assert given.tokens == tokens
        # a sum of terms of one sign, in float32 and in float64
        assert given.sequence_score == pytest.approx(total, rel=float32_error(1.0))


def test_settings_matter() -> None:
    found = {}
    for penalty, early in itertools.product((-1.0, 0.0, 1.0, 3.0), (True, False, "never")):
        beams = Beams(3, 1, penalty, early)  # type: ignore[arg-type]
        each = tuple(
            row.tokens
            for seed in range(8)
            for row in search(Markov(table_of(seed), np.arange(3)), beams)
        )
        found[penalty, early] = each
    assert len({found[penalty, False] for penalty in (-1.0, 0.0, 1.0, 3.0)}) == 4
    assert len({found[1.0, early] for early in (True, False, "never")}) > 1


def test_memory_is_selected_once_and_caches_follow_their_beams() -> None:
    decoding = Markov(table_of(3), np.arange(3))
    rows = search(decoding, Beams(2, early_stopping="never"), [[1], [3, 1], [4, 5, 1]])
    *first, expansion = decoding.calls[:3]
    assert (first, expansion) == (["expand_beams 1", "prefill"], "expand_beams 2")
    later = decoding.calls[3:]
    assert [call for call in later if call.startswith("select")] in (
        [], ["select 2"], ["select 4"], ["select 4", "select 2"],
    )  # fmt: skip
    assert all(row.finish in ("end", "length") for row in rows)


def test_caches_hold_what_the_beams_are() -> None:
    """Every step sees the whole history of its beam; else it would not find the same."""

    class Checked(Markov):
        def step(self, token: IntArray, position: IntArray) -> FloatArray:
            logits = super().step(token, position)
            for row, end in zip(self.tokens, position, strict=True):
                sums.add(tuple(row[: end + 1].tolist()))
                assert (row[: end + 1] >= 0).all()
            return logits

        def _chosen(self, rows: IntArray) -> Markov:
            chosen = super()._chosen(rows)
            chosen.__class__ = Checked
            return chosen

    sums: set[tuple[int, ...]] = set()
    table = table_of(5)
    rows = search(Checked(table, np.arange(3)), Beams(3, 3, early_stopping="never"))
    for row in rows:
        for each in (row, *row.alternatives):
            assert (1, *each.tokens[:-1]) in sums


def test_inputs_are_dropped_once_half_have_ended() -> None:
    table = table_of(4)
    table[0, :, END] = 9  # the first two end at once
    table[1, :, END] = 9
    table[2, :, END] = -9
    decoding = Markov(table, np.arange(3))
    search(decoding, Beams(2))
    assert "select 2" in decoding.calls
    assert decoding.calls[-2:] == ["step 2", "reorder"] or decoding.calls[-1] == "step 2"


def test_many_end_tokens() -> None:
    """Were all the best continuations ends, there would be no beam to go on with."""
    table = table_of(6, 1)
    table[0, :, [2, 3, 4]] += 5
    limits = Limits((2, 3, 4), 0, LENGTH, LENGTH)
    rules = DecodingSettings(limits, beams=Beams(2, 2, early_stopping="never"))
    (row,) = BeamSearch(Markov(table, np.zeros(1, np.int64)), [[1]], rules).run().sequences
    assert row.finish == "end" and len(row.alternatives) == 1
    assert Beams(2).candidates(3) == 8 and Beams(2).candidates(0) == 4


def test_given_up_searches_give_their_best_beams() -> None:
    cancel = threading.Event()

    class Cancelling(Markov):
        def expand_beams(self, count: int) -> Markov:
            if count > 1:
                cancel.set()
            wide = super().expand_beams(count)
            wide.__class__ = Cancelling
            return wide

    rules = DecodingSettings(Limits((END,), 0, LENGTH, LENGTH), beams=Beams(3, 3), scores=True)
    table = table_of(7)
    table[:, :, END] = -50
    found = BeamSearch(
        Cancelling(table, np.arange(3)), [[1]] * 3, rules, Cancellation(cancel)
    ).run()
    for row, scores in zip(found.sequences, table[:, 1], strict=True):
        assert row.finish == "cancelled"
        best = np.argsort(-scores)[:3]
        assert [each.tokens for each in (row, *row.alternatives)] == [
            (token,) for token in best.tolist()
        ]


def test_errors_name_the_sequence_and_the_step() -> None:
    bad = table_of(8)
    bad[1, :, 3] = np.nan
    with pytest.raises(BackendError, match="the logits of sequence 1 at step 0 are not finite"):
        search(Markov(bad, np.arange(3)), Beams(2))
    nothing = (Suppressed(np.arange(VOCABULARY)),)
    with pytest.raises(
        BackendError, match="the generation settings allow no token for sequence 0 at step 0"
    ):
        search(Markov(table_of(8), np.arange(3)), Beams(2), processors=nothing)


def test_what_cannot_be_searched() -> None:
    rules = DecodingSettings(Limits((END,), 0, LENGTH, LENGTH), beams=Beams(2))
    with pytest.raises(UsageError, match="a beam search needs graphs without a fixed batch"):
        BeamSearch(CountingDecoding([5]), [[1]], rules)
    fixed = Markov(table_of(0), np.arange(3))
    fixed.resizable = False
    with pytest.raises(
        UsageError,
        match=r"ask for one beam, export without --batch, or take --backend onnxruntime$",
    ):
        BeamSearch(fixed, [[1]] * 3, rules)
    with pytest.raises(CapacityError):
        BeamSearch(Markov(table_of(0), np.arange(3)), [[1] * 7] * 3, rules)


@pytest.mark.parametrize("size", [1, 9, 64, 700, 5000, 5003])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_largest_places_are_those_of_sorting(size: int, count: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(20):
        values = rng.standard_normal(size).astype(np.float32)
        values[rng.random(size) < 0.2] = -np.inf
        wanted = np.sort(values)[::-1][: min(count, size)]
        places = top_k_indices(values, min(count, size))
        np.testing.assert_array_equal(values[places], wanted)
        assert len(set(places.tolist())) == len(places)
