"""Every option of a generation, through a session of the tiny bundle."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.errors import BackendError, UsageError
from hybrid_deploy.runtime.backends.onnxruntime.decoding import OnnxRuntimeDecoding
from hybrid_deploy.runtime.backends.protocol import (
    FloatArray,
    IntArray,
)
from hybrid_deploy.runtime.backends.registry import load_backend
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import GenerationResult, Session, load_session
from hybrid_deploy.runtime.session.streaming import TokenEvent
from tests.closeness import float32_error

Arrays = dict[str, NDArray[Any]]
SUM = float32_error(1.0)  # relative error of a sum of scores, which all have one sign


@pytest.fixture(scope="module")
def session(tiny_path: Path) -> Session:
    return load_session(tiny_path, threads=1)


@pytest.fixture(scope="module")
def images() -> Arrays:
    rng = np.random.default_rng(5)
    return {"image": rng.standard_normal((6, 1, 8, 24)).astype(np.float32)}


def run(session: Session, images: Arrays, **options: Any) -> list[GenerationResult]:
    return session.run_arrays(images, options=GenerateOptions(**options))[0]


def test_scores_add_up_to_the_sequence_score(session: Session, images: Arrays) -> None:
    for penalty in (0.0, 1.0, 2.0):
        results = run(session, images, beams=3, n_best=3, length_penalty=penalty, scores=True)
        for best in results:
            assert len(best.alternatives) == 2
            ranked = [best, *best.alternatives]
            assert len({result.tokens for result in ranked}) == 3
            totals = [r.sequence_score for r in ranked if r.sequence_score is not None]
            assert totals == sorted(totals, reverse=True)
            for result, total in zip(ranked, totals, strict=True):
                assert result.scores is not None and len(result.scores) == len(result.tokens)
                expected = sum(result.scores) / len(result.tokens) ** penalty
                assert total == pytest.approx(expected, rel=SUM)
                assert result.text is not None


def test_beams_find_sequences_at_least_as_probable_as_greedy(
    session: Session, images: Arrays, tiny_logit: float
) -> None:
    greedy = run(session, images, beams=1, scores=True)
    beams = run(session, images, beams=4, length_penalty=0.0, early_stopping="never", scores=True)
    sums = [(sum(g.scores or ()), sum(b.scores or ())) for g, b in zip(greedy, beams, strict=True)]
    # a score has the error of its logits: several rows are summed in another order than one
    error = float32_error(tiny_logit) * max(len(row.tokens) for row in (*greedy, *beams))
    assert all(b >= g - error for g, b in sums)
    assert any(b > g + 10 * error for g, b in sums), "some sequence must be better"


def test_the_inputs_of_a_batch_are_searched_independently(session: Session, images: Arrays) -> None:
    together = run(session, images, beams=3, n_best=2)
    for index, expected in enumerate(together):
        (alone,) = run(session, {"image": images["image"][index : index + 1]}, beams=3, n_best=2)
        assert [each.tokens for each in (alone, *alone.alternatives)] == [
            each.tokens for each in (expected, *expected.alternatives)
        ]


def test_beams_of_the_bundle_are_used_unless_options_replace_them(
    session: Session, images: Arrays
) -> None:
    manifest = session.bundle.manifest
    generation = msgspec.structs.replace(manifest.generation, beams=4, length_penalty=2.0)
    changed = msgspec.structs.replace(manifest, generation=generation)
    with_beams = Session(Bundle(session.bundle.folder, changed), "fp32", session.backend)
    results = with_beams.run_arrays(images)[0]
    assert results == run(session, images, beams=4, length_penalty=2.0)
    assert run(with_beams, images, beams=1) == session.run_arrays(images)[0]
    sampled = run(with_beams, images, temperature=0.5)
    assert all(result.sequence_score is None for result in sampled)


def test_sampling_repeats_with_a_seed(session: Session, images: Arrays) -> None:
    options = {"temperature": 3.0, "top_k": 8, "seed": 4}
    first = run(session, images, **options)
    assert first == run(session, images, **options)
    assert [r.tokens for r in first] != [r.tokens for r in session.run_arrays(images)[0]]
    assert [r.tokens for r in first] != [
        r.tokens for r in run(session, images, **options | {"seed": 5})
    ]


def test_a_stop_string_ends_the_text_before_it(session: Session, images: Arrays) -> None:
    plain = session.run_arrays(images)[0]
    text = next(r.text for r in plain if r.text and len(r.text) > 3)
    stop = text[1:3]
    for beams in (1, 3):
        without_stop = run(session, images, beams=beams)
        for before, after in zip(
            without_stop, run(session, images, beams=beams, stop=(stop,)), strict=True
        ):
            assert after.text is not None and stop not in after.text
            if beams == 1:
                assert before.text is not None
                assert after.text == before.text.partition(stop)[0]
                assert (after.finish == "stop") == (stop in before.text)
    assert any(r.finish == "stop" for r in run(session, images, stop=(stop,)))


@pytest.mark.parametrize(
    "options", [{}, {"beams": 3}, {"temperature": 2.0, "seed": 1}, {"scores": True}]
)
def test_the_text_matches_the_pattern(
    session: Session, images: Arrays, options: dict[str, Any]
) -> None:
    pattern = "[ace]{2}[b-h]{1,2}"
    for result in run(session, images, allowed=pattern, **options):
        assert result.finish == "end" and result.text is not None
        assert len(result.text) in (3, 4)
        assert set(result.text[:2]) <= set("ace")


def test_a_pattern_that_no_text_can_match(session: Session, images: Arrays) -> None:
    with pytest.raises(
        BackendError, match=r"the generation settings allow no token for sequence 0 at step 2"
    ):
        run(session, images, allowed="aaz")
    with pytest.raises(
        BackendError, match=r"the generation settings allow no token for sequence 0 at step 2"
    ):
        run(session, images, allowed="aaz", beams=2)


def test_a_function_of_allowed_tokens(session: Session, images: Arrays) -> None:
    def even(tokens: IntArray) -> list[int]:
        return [2] if len(tokens) > 4 else [4, 6, 8, 10]

    for result in run(session, images, allowed=even):
        assert len(result.tokens) == 5 and all(t % 2 == 0 for t in result.tokens)


def test_options_of_lengths_and_tokens(session: Session, images: Arrays) -> None:
    assert all(len(r.tokens) == 2 for r in run(session, images, max_new_tokens=2, suppressed=(2,)))
    assert all(len(r.tokens) == 3 for r in run(session, images, max_length=4, suppressed=(2,)))
    forced = run(session, images, forced={1: 5, 2: 6})
    assert all(r.tokens[:2] == (5, 6) for r in forced)
    longer = run(session, images, min_length=7)
    assert all(len(r.tokens) >= 7 for r in longer)
    once = run(session, images, no_repeat_ngram=1)
    assert all(len(set(r.tokens)) == len(r.tokens) for r in once)
    full = run(session, images, max_new_tokens=50, suppressed=(2,))
    assert {(r.finish, len(r.tokens)) for r in full} == {("capacity", 8)}


def test_a_stream_yields_every_token_in_order(session: Session, images: Arrays) -> None:
    options = GenerateOptions(scores=True)
    expected, _ = session.run_arrays(images, options=options)
    stream = session.stream(images, options=options)
    events = list(stream)
    assert stream.results == expected
    assert stream.timings.first_token_ms > 0
    for index, result in enumerate(expected):
        row_events = [event for event in events if event.row == index]
        assert tuple(event.token for event in row_events) == result.tokens
        assert tuple(event.score for event in row_events) == result.scores
        assert "".join(event.text or "" for event in row_events) == result.text
        finishes = [event.finish for event in row_events]
        assert finishes == [None] * (len(row_events) - 1) + [result.finish]
    rows = [event.row for event in events[:6]]
    assert rows == list(range(6)), "each row has its first token before the second step"


def test_a_stream_holds_back_text_that_may_become_a_stop_string(
    session: Session, images: Arrays
) -> None:
    text = next(r.text for r in session.run_arrays(images)[0] if r.text and len(r.text) > 3)
    for stop in (text[1:3], text[-1] + "?"):
        options = GenerateOptions(stop=(stop,))
        stream = session.stream(images, options=options)
        events = list(stream)
        for index, result in enumerate(stream.results):
            assert "".join(e.text or "" for e in events if e.row == index) == result.text


def test_a_callback_sees_the_tokens(session: Session, page: Path) -> None:
    seen: list[TokenEvent] = []
    (result,), _ = session.run_files([page], on_token=seen.append)
    assert tuple(event.token for event in seen) == result.tokens
    assert "".join(event.text or "" for event in seen) == result.text


def test_a_callback_that_fails_leaves_the_session_usable(session: Session, images: Arrays) -> None:
    def fail(event: TokenEvent) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        session.run_arrays(images, on_token=fail)
    assert session.run_arrays(images)[0]


def test_leaving_a_stream_cancels_the_generation(session: Session, images: Arrays) -> None:
    complete = session.run_arrays(images)[0]
    with session.stream(images) as stream:
        first = next(stream)
    assert first.row == 0
    assert list(stream) == []
    for result, expected in zip(stream.results, complete, strict=True):
        assert result.tokens == expected.tokens[:1]
        assert result.finish == ("cancelled" if len(expected.tokens) > 1 else expected.finish)


def test_a_beam_search_cannot_be_streamed(session: Session, images: Arrays) -> None:
    with pytest.raises(UsageError, match="known at its end; ask for beams=1"):
        session.stream(images, options=GenerateOptions(beams=2))
    with pytest.raises(UsageError, match="known at its end; ask for beams=1"):
        session.run_arrays(images, options=GenerateOptions(beams=2), on_token=print)


@pytest.mark.parametrize("beams", [1, 2])
def test_finish_of_cancelled_and_late_runs(session: Session, images: Arrays, beams: int) -> None:
    cancel = threading.Event()
    cancel.set()
    options = GenerateOptions(beams=beams)
    results, timings = session.run_arrays(images, options=options, cancel=cancel)
    assert {(r.tokens, r.text, r.finish) for r in results} == {((), "", "cancelled")}
    assert timings.step_ms == ()
    late = GenerateOptions(beams=beams, timeout_s=1e-9)
    assert {r.finish for r in session.run_arrays(images, options=late)[0]} == {"timeout"}
    in_time = GenerateOptions(beams=beams, timeout_s=1e3)
    assert (
        session.run_arrays(images, options=in_time)[0]
        == session.run_arrays(images, options=options)[0]
    )


def test_a_cancelled_search_returns_its_beams(session: Session, images: Arrays) -> None:
    """The function of allowed tokens sets the event after two new tokens."""
    cancel = threading.Event()

    def allowed(tokens: IntArray) -> list[int]:
        if len(tokens) == 3:
            cancel.set()
        return list(range(3, 11))

    options = GenerateOptions(beams=2, allowed=allowed, scores=True)
    for result in session.run_arrays(images, options=options, cancel=cancel)[0]:
        assert (len(result.tokens), result.finish) == (3, "cancelled")
        assert result.sequence_score == pytest.approx(sum(result.scores or ()) / 3, rel=SUM)


def test_many_threads_share_a_session(session: Session) -> None:
    rng = np.random.default_rng(9)
    variations: list[dict[str, Any]] = [
        {},
        {"beams": 3},
        {"temperature": 2.0, "seed": 3},
        {"allowed": "[a-e]+"},
    ]
    jobs = []
    for index in range(48):
        shape = (1 + index % 3, 1, 8, 16 + 8 * (index % 4))
        image = {"image": rng.standard_normal(shape).astype(np.float32)}
        jobs.append(
            (image, GenerateOptions(**variations[index % 4]), [1, 5] if index % 5 == 0 else [])
        )
    serial = [session.run_arrays(i, options=o, prompt=p)[0] for i, o, p in jobs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            futures = [pool.submit(session.run_arrays, i, options=o, prompt=p) for i, o, p in jobs]
            assert [future.result(timeout=120)[0] for future in futures] == serial
    assert len({result.tokens for results in serial for result in results}) > 10


def test_threads_load_the_prefill_graph_once(tiny_bundle: Bundle, images: Arrays) -> None:
    from hybrid_deploy.runtime.backends.registry import BackendOptions

    backend = load_backend("onnxruntime", tiny_bundle, "fp32", BackendOptions(1))
    session = Session(tiny_bundle, "fp32", backend)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: session.run_arrays(images, prompt=[1, 4])[0], range(8)))
    assert all(result == results[0] for result in results)


def test_a_failed_step_leaves_the_session_usable(
    session: Session, images: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = session.run_arrays(images)[0]
    step, calls = OnnxRuntimeDecoding.step, []

    def failing(self: OnnxRuntimeDecoding, token: IntArray, position: IntArray) -> FloatArray:
        calls.append(1)
        logits = step(self, token, position)
        if len(calls) == 3:
            logits[1] = np.nan
        return logits

    monkeypatch.setattr(OnnxRuntimeDecoding, "step", failing)
    with pytest.raises(BackendError, match="the logits of sequence 1 at step 2 are not finite"):
        session.run_arrays(images)
    monkeypatch.undo()
    assert session.run_arrays(images)[0] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be a whole number from 1 to 256, got 0"),
        ({"beams": 2.0}, r"beams must be a whole number from 1 to 256, got 2\.0"),
        ({"n_best": 0}, "n_best must be a whole number from 1 to 256, got 0"),
        ({"n_best": None}, "n_best must be a whole number from 1 to 256, got None"),
        ({"n_best": 3, "beams": 2}, "the 3 best sequences need as many beams, there are 2"),
        ({"temperature": 0}, r"temperature must be from 1e-09 to 1e\+09, got 0"),
        ({"temperature": float("nan")}, r"temperature must be from 1e-09 to 1e\+09, got nan"),
        ({"beams": 257}, "beams must be a whole number from 1 to 256, got 257"),
        ({"suppressed": (3, -1)}, "suppressed has token -1; token ids begin at 0"),
        ({"suppressed": (999,)}, r"suppressed has token 999, the model's last is \d+$"),
        ({"forced": {2: 999}}, r"forced has token 999, the model's last is \d+$"),
        ({"forced": {1: -1}}, "forced has token -1; token ids begin at 0"),
        ({"forced": {-1: 1}}, "each position of forced must be a whole number from 0 on, got -1"),
        ({"seed": -1, "temperature": 1.0}, "seed must be a whole number from 0 on, got -1"),
        (
            {"seed": (1, -2), "temperature": 1.0},
            "each seed must be a whole number from 0 on, got -2",
        ),
        ({"allowed": "a" * 10_001}, "the pattern has 10001 characters, at most 10000 are taken"),
        ({"top_k": -1}, "top_k must be a whole number from 0 on, got -1"),
        ({"top_p": 0}, "top_p must be over 0 and at most 1, got 0"),
        ({"top_p": 1.5}, r"top_p must be over 0 and at most 1, got 1\.5"),
        ({"min_p": -0.5}, r"min_p must be at least 0 and at most 1, got -0\.5"),
        ({"seed": 3}, "a seed without sampling has no effect; give a temperature too"),
        ({"beams": 2, "top_k": 3}, "beams and sampling exclude each other"),
        ({"early_stopping": "soon"}, "early_stopping must be True, False or 'never', got 'soon'"),
        ({"length_penalty": float("inf")}, "length_penalty must be from -30 to 30, got inf"),
        ({"repetition_penalty": 0}, r"repetition_penalty must be from 1e-09 to 1e\+09, got 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be a whole number from 0 on"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1 on, got 0"),
        ({"max_length": 1}, "a prompt of 1 tokens leaves no room in a sequence of 1"),
        ({"timeout_s": 0}, r"timeout_s must be from 1e-09 to 1e\+09, got 0"),
        ({"stop": ("",)}, "a stop string is empty; give at least one character"),
        ({"allowed": "[a"}, r"'\[a' is not a regular expression"),
    ],
)
def test_wrong_options(
    session: Session, images: Arrays, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        run(session, images, **options)


def test_options_on_text_need_a_vocabulary(session: Session, images: Arrays) -> None:
    changed = msgspec.structs.replace(session.bundle.manifest, vocabulary=None)
    without_vocabulary = Session(Bundle(session.bundle.folder, changed), "fp32", session.backend)
    for options, name in (({"stop": ("a",)}, "a stop string"), ({"allowed": "a"}, "a pattern")):
        with pytest.raises(UsageError, match=f"has no vocabulary, so {name} cannot be compared"):
            run(without_vocabulary, images, **options)
    assert {event.text for event in without_vocabulary.stream(images)} == {None}
