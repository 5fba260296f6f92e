"""Long recordings, window after window, compared with the long form of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hybrid_deploy import GenerateOptions, load_session
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.preprocess.audio_features import LongLogMel, log_mel
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.fallback import NO_FALLBACK
from hybrid_deploy.runtime.speech.parts import Part
from hybrid_deploy.runtime.speech.sequential import SequentialDecoder
from tests.conftest import TinyWhisper
from tests.models.tiny_whisper import (
    END,
    FIRST_TIMESTAMP,
    PREVIOUS,
    RATE,
    features_of,
    generated_tokens,
    sound,
)


@pytest.fixture(scope="module")
def session(tiny_whisper: TinyWhisper) -> Session:
    return load_session(tiny_whisper.path, threads=1)


def decoded(session: Session, signal: Any, **options: Any) -> list[Part]:
    return list(SequentialDecoder(session, None, NO_FALLBACK, **options).parts(signal))


def segments_of(tiny: TinyWhisper, signal: Any, **options: Any) -> list[dict[str, Any]]:
    with torch.no_grad():
        made = tiny.model.generate(
            features_of(signal, whole=True),
            return_timestamps=True,
            return_segments=True,
            temperature=(0.0,),
            **options,
        )
    return list(made["segments"][0])


def test_timestamps_of_one_window_are_those_of_transformers(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    options, times = GenerateOptions(timestamps=True), set()
    for seed in range(6):
        features = features_of(sound(seed, 1.7))
        expected = generated_tokens(tiny_whisper.model, features, return_timestamps=True)
        (result,), _ = session.run_arrays({"input_features": features.numpy()}, options=options)
        assert [token for token in result.tokens if token != END] == expected
        times |= {token for token in expected if token >= FIRST_TIMESTAMP}
    assert len(times) > 3, "the timestamps must differ"


def test_timestamps_of_beams_are_those_of_transformers(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    options, outputs = GenerateOptions(timestamps=True, beams=3), set()
    for seed in range(4):
        features = features_of(sound(seed, 1.7))
        expected = generated_tokens(
            tiny_whisper.model, features, return_timestamps=True, num_beams=3
        )
        (result,), _ = session.run_arrays({"input_features": features.numpy()}, options=options)
        assert [token for token in result.tokens if token != END] == expected
        outputs.add(result.tokens)
    assert len(outputs) > 1


@pytest.mark.parametrize("context", [False, True])
def test_segments_of_long_sound_are_those_of_transformers(
    session: Session, tiny_whisper: TinyWhisper, context: bool
) -> None:
    windows = set()
    for seed in range(3):
        signal = sound(seed, 9.3)
        expected = segments_of(tiny_whisper, signal, condition_on_prev_tokens=context)
        parts = decoded(session, signal, condition_on_previous=context)
        segments = [segment for part in parts for segment in part.segments]
        for ours, theirs in zip(segments, expected, strict=True):
            tokens = theirs["tokens"].tolist()
            # transformers keeps the second of two timestamps at the end of a window's last segment
            assert list(ours.tokens) in (tokens, tokens[:-1])
        windows.add(tuple(part.span.begin_s for part in parts))
    assert any(len(begins) > 5 for begins in windows), "windows must begin at timestamps"
    assert len(windows) > 1


def test_windows_follow_each_other_without_end(session: Session) -> None:
    signal = sound(1, 7.0)
    parts = decoded(session, signal)
    begins = [part.span.begin_s for part in parts]
    assert begins == sorted(set(begins))
    assert parts[-1].span.end_s == pytest.approx(7.0)
    for part in parts:
        for segment in part.segments:
            assert part.span.begin_s <= segment.begin_s <= segment.end_s <= part.span.end_s


def test_a_part_has_the_text_of_its_segments(session: Session) -> None:
    for part in decoded(session, sound(2, 6.0)):
        assert part.result is not None and part.result.text is not None
        assert part.result.text.split() == " ".join(s.text for s in part.segments).split()


def test_the_language_is_detected_in_the_first_window(
    session: Session, tiny_whisper: TinyWhisper
) -> None:
    options = GenerateOptions(language="auto")
    for seed in range(8):
        signal = sound(seed, 5.0)
        parts = list(SequentialDecoder(session, options, NO_FALLBACK).parts(signal))
        first = parts[0].result
        assert first is not None and first.language is not None
        named = GenerateOptions(language=first.language)
        again = list(SequentialDecoder(session, named, NO_FALLBACK).parts(signal))
        assert [p.segments for p in again] == [p.segments for p in parts]


def test_parts_of_the_spectrogram_are_those_of_the_whole() -> None:
    signal = sound(4, 3.21)
    whole = log_mel(signal, RATE, 80, 400, 160)
    parts = LongLogMel(signal, RATE, 80, 400, 160)
    assert parts.frames == whole.shape[1]
    for begin, count in ((0, 50), (31, 200), (300, 400)):
        made = parts.part(begin, count, 500)
        there = whole[:, begin : begin + count]
        np.testing.assert_allclose(made[:, : there.shape[1]], there, atol=1e-6)
        assert not made[:, there.shape[1] :].any() and made.shape == (80, 500)


def test_what_a_bundle_must_have(session: Session, tiny_path: Any) -> None:
    with pytest.raises(UsageError, match="does not take the log-mel features of sound alone"):
        SequentialDecoder(load_session(tiny_path))
    decoder = SequentialDecoder(session, None, NO_FALLBACK, prompt=[PREVIOUS, 4, 5])
    assert next(decoder.parts(sound(0, 3.0))).result is not None
