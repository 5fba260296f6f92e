"""When the text of a window is decoded again at a higher temperature, and when nobody speaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_deploy import GenerateOptions, load_session
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.session.results import GenerationResult
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.fallback import (
    NO_FALLBACK,
    FallbackRules,
    WindowResult,
    compression_ratio,
    decode_window,
    mean_log_probability,
    no_speech_probability,
)
from hybrid_deploy.runtime.speech.sequential import SequentialDecoder
from tests.conftest import TinyWhisper
from tests.models.tiny_whisper import NO_SPEECH, PREVIOUS, START, VOCABULARY, features_of, sound

TIMES = GenerateOptions(timestamps=True)
IMPROBABLE = replace(NO_FALLBACK, temperatures=(0.0, 0.4, 0.8), log_probability=0.0)
"""Rules that reject every text, because no mean log-probability reaches 0."""


@pytest.fixture(scope="module")
def session(tiny_whisper: TinyWhisper) -> Session:
    return load_session(tiny_whisper.path, threads=1)


def decoded(session: Session, rules: FallbackRules, options: GenerateOptions = TIMES) -> Any:
    inputs = {"input_features": features_of(sound(1, 1.5)).numpy()}
    with session.encode(inputs) as encoded:
        return decode_window(session, encoded, (), options, rules)


def test_the_compression_ratio_is_that_of_transformers() -> None:
    whisper = pytest.importorskip("transformers").WhisperForConditionalGeneration
    random = np.random.default_rng(0)
    for vocabulary in (171, 51_865):
        for tokens in (random.integers(0, vocabulary, 40), np.tile([5, 6, 7], 40), np.array([9])):
            expected = whisper._retrieve_compression_ratio(torch.from_numpy(tokens), vocabulary)
            assert compression_ratio(tokens.tolist(), vocabulary) == expected


def test_a_text_that_repeats_itself_is_decoded_again(session: Session) -> None:
    accepted = decoded(session, NO_FALLBACK)
    ratio = compression_ratio(accepted.result.tokens, VOCABULARY)
    assert accepted.temperature == 0
    rules = replace(NO_FALLBACK, temperatures=(0.0, 0.5), compression_ratio=ratio)
    assert decoded(session, rules).temperature == 0, "the ratio itself is accepted"
    again = decoded(session, replace(rules, compression_ratio=ratio - 1e-6))
    assert again.temperature == 0.5
    assert again.result.tokens != accepted.result.tokens
    assert len(again.timings.step_ms) > len(accepted.timings.step_ms)


def test_an_improbable_text_is_decoded_at_every_temperature(session: Session) -> None:
    window: WindowResult = decoded(session, replace(IMPROBABLE, no_speech=1.0))
    assert (window.temperature, window.silent) == (0.8, False)
    assert mean_log_probability(window.result) < 0
    again = decoded(session, replace(IMPROBABLE, no_speech=1.0))
    assert again.result == window.result, "the seed is fixed"
    other = decoded(session, IMPROBABLE, replace(TIMES, temperature=1.0, seed=7))
    assert other.result.tokens != window.result.tokens


def test_beams_are_left_at_a_temperature(session: Session) -> None:
    options = replace(TIMES, beams=2)
    assert decoded(session, NO_FALLBACK, options).result.sequence_score is not None
    assert decoded(session, IMPROBABLE, options).result.sequence_score is None


def test_the_probability_of_silence_is_that_of_the_model(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    features = features_of(sound(5, 1.0))
    with session.encode({"input_features": features.numpy()}) as encoded:
        for before in ([], [PREVIOUS, 4, 5]):
            with torch.no_grad():
                tokens = torch.tensor([[*before, START]])
                logits = tiny_whisper.model(features, decoder_input_ids=tokens).logits[0, -1]
            expected = float(logits.softmax(-1)[NO_SPEECH])
            assert no_speech_probability(session, encoded, before) == pytest.approx(expected, 1e-3)


def test_a_silent_window_is_left_out(session: Session) -> None:
    rules = replace(IMPROBABLE, no_speech=0.0)
    window = decoded(session, rules)
    assert window.silent and window.temperature == 0
    parts = list(SequentialDecoder(session, None, rules).parts(sound(1, 5.0)))
    assert [part.span.begin_s for part in parts] == [0, 2, 4]
    assert not any(part.segments for part in parts)


def test_a_warm_text_is_no_context(session: Session) -> None:
    """The next window must not read a text that was sampled at 0.5 or above."""
    warm = replace(IMPROBABLE, temperatures=(0.8,), no_speech=1.0)
    cold = replace(warm, temperatures=(0.2,))
    results: dict[str, list[GenerationResult | None]] = {}
    for name, rules in {"warm": warm, "cold": cold}.items():
        for context in (False, True):
            decoder = SequentialDecoder(session, None, rules, condition_on_previous=context)
            parts = list(decoder.parts(sound(3, 7.0)))
            results[f"{name} {context}"] = [part.result for part in parts]
    assert results["warm True"] == results["warm False"]
    assert results["cold True"] != results["cold False"]


@pytest.mark.parametrize(
    "wrong", [{"temperatures": ()}, {"temperatures": (-1.0,)}, {"no_speech": float("nan")}]
)
def test_rules_are_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"fallback rules are|temperatures start"):
        FallbackRules(**wrong)
