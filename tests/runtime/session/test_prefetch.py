"""Runs of many inputs, and recordings longer than the model accepts."""

from __future__ import annotations

import threading
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.input_specs import AudioInput, FilterBank, LogMel, Waveform
from hybrid_deploy.errors import InputError, UsageError
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.preprocess.audio_windows import longest_s, windows
from hybrid_deploy.runtime.session.prefetch import Prefetcher
from hybrid_deploy.runtime.session.results import GenerationResult, Timings
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.fakes.counting import CountingDecoding

Arrays = Mapping[str, NDArray[Any]]
RATE = 16000


@pytest.fixture(scope="module")
def session(tiny_path: Path) -> Session:
    return load_session(tiny_path, threads=1)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Returns pictures of different widths; the fourth file is not a picture."""
    rng = np.random.default_rng(1)
    paths = []
    for number in range(9):
        pixels = rng.integers(0, 255, (8, 10 + 4 * number), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    paths[3].write_text("no picture")
    return paths


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_order_is_kept_and_errors_belong_to_their_items(
    session: Session, files: list[Path], batch: int
) -> None:
    outcomes = list(session.run_many(iter(files), batch=batch))
    assert [outcome.item for outcome in outcomes] == files
    for path, outcome in zip(files, outcomes, strict=True):
        if path is files[3]:
            assert isinstance(outcome.error, InputError) and outcome.result is None
            assert "3.png is not an image" in str(outcome.error)
            continue
        assert outcome.error is None and outcome.timings is not None
        assert outcome.timings.preprocess_ms > 0
        if batch == 1:
            assert outcome.result == session.run_files([path])[0][0]


def test_every_batch_has_the_prompt_of_an_iterator(session: Session, files: list[Path]) -> None:
    outcomes = session.run_many(files[:3], prompt=iter([1, 5, 4]))  # type: ignore[arg-type]
    expected = [session.run_files([path], prompt=[1, 5, 4])[0][0] for path in files[:3]]
    assert [outcome.result for outcome in outcomes] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"beams": 2}}, r"options must be GenerateOptions, got \{'beams': 2\}"),
        ({"cancel": 3}, r"cancel must be a threading\.Event, got 3"),
        ({"prompt": "12"}, "token ids as the prompt were expected, got '12'"),
    ],
)
def test_arguments_of_another_type(
    session: Session, files: list[Path], arguments: dict[str, Any], message: str
) -> None:
    for run in (session.run_files, session.run_many, session.stream):
        with pytest.raises(UsageError, match=message):
            run(files[:1], **arguments)


def test_files_and_arrays_may_be_mixed(session: Session, files: list[Path]) -> None:
    items: list[Path | Arrays] = [
        files[0],
        session.prepare([files[0]]),
        session.prepare(files[1:3]),
    ]
    alone, same, several = session.run_many(items)
    assert isinstance(alone.result, GenerationResult) and alone.result == same.result
    assert "must be a batch of one" in str(several.error)
    together = list(session.run_many(items[:2], batch=2))
    assert [outcome.result for outcome in together] == [alone.result] * 2


def test_inputs_are_taken_only_when_they_are_needed(session: Session, files: list[Path]) -> None:
    taken: list[Path] = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(files[len(taken) % 3])
            yield taken[-1]

    outcomes = session.run_many(endless(), ahead=2)
    for _ in range(4):
        assert next(outcomes).error is None
    outcomes.close()  # type: ignore[attr-defined]
    assert 4 <= len(taken) <= 4 + 3
    assert "prepare" not in [thread.name.partition("_")[0] for thread in threading.enumerate()]


def test_no_batch_starts_after_a_cancellation(session: Session, files: list[Path]) -> None:
    cancel = threading.Event()
    outcomes = session.run_many(files, cancel=cancel)
    next(outcomes)
    cancel.set()
    assert list(outcomes) == []


def test_the_next_batch_is_prepared_while_one_is_decoded() -> None:
    """Preparing and decoding wait for each other, so this ends only if they overlap."""
    both = threading.Barrier(2, timeout=30)
    threads = set()

    def prepare(items: Sequence[int]) -> Arrays:
        threads.add(threading.current_thread().name.partition("_")[0])
        if items[0] > 0:
            both.wait()
        return {"items": np.array(items)}

    def run(arrays: Arrays) -> tuple[list[GenerationResult], Timings]:
        if arrays["items"][0] < 5:
            both.wait()
        results = [GenerationResult(None, (int(n),), None, "end") for n in arrays["items"]]
        return results, Timings(0, 0, 0, ())

    prefetcher = Prefetcher(prepare, run, lambda: False, lambda _: None, batch=1, ahead=1)
    outcomes = list(prefetcher.outcomes(range(6)))
    assert [o.result.tokens for o in outcomes if o.result] == [(n,) for n in range(6)]
    assert threads == {"prepare"}


def test_a_bug_in_prepare_is_not_caught() -> None:
    def prepare(items: Sequence[int]) -> Arrays:
        raise ZeroDivisionError("a bug")

    prefetcher: Prefetcher[int] = Prefetcher(
        prepare, lambda arrays: ([], Timings(0, 0, 0, ())), lambda: False, lambda _: None, 1, 1
    )
    with pytest.raises(ZeroDivisionError):
        list(prefetcher.outcomes([1, 2]))


def test_options_apply_to_all_inputs(session: Session, files: list[Path]) -> None:
    options = GenerateOptions(max_new_tokens=1)
    results = [o.result for o in session.run_many(files[:3], options=options)]
    assert all(result is not None and len(result.tokens) == 1 for result in results)
    with pytest.raises(UsageError, match="batch must be a whole number from 1 to 65536, got 0"):
        session.run_many(files, batch=0)


def spoken(*loud: tuple[float, float], seconds: float) -> NDArray[np.float32]:
    """Returns noise that is loud in these ranges of seconds, and almost silent elsewhere."""
    time = np.arange(round(seconds * RATE)) / RATE
    volume = np.full(len(time), 0.001)
    for begin, end in loud:
        volume[(time >= begin) & (time < end)] = 0.5
    return (volume * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def test_windows_are_cut_where_it_is_quiet() -> None:
    signal = spoken((0, 1.7), (1.9, 3.5), (3.6, 5.0), seconds=5.0)
    parts = list(windows(signal, RATE, 2.0))
    np.testing.assert_array_equal(np.concatenate([part.signal for part in parts]), signal)
    first, second, *_ = parts
    assert 1.7 < first.end_s < 1.9 and second.begin_s == first.end_s
    assert 3.5 < second.end_s < 3.6
    assert all(part.end_s - part.begin_s <= 2.0 for part in parts)


def test_windows_without_sound_are_left_out() -> None:
    signal = np.concatenate([spoken((0, 1), seconds=1.0), np.zeros(4 * RATE, np.float32)])
    parts = list(windows(signal, RATE, 1.0))
    assert len(parts) <= 2 and parts[-1].end_s <= 2.0
    assert next(windows(signal[:100], RATE, 1.0)).signal.size == 100


@pytest.mark.parametrize(
    ("spec", "window_s", "expected_s"),
    [
        (AudioInput("a", RATE, LogMel(80, 400, 160, 30 * RATE)), None, 30.0),
        (AudioInput("a", RATE, LogMel(80, 400, 160, 30 * RATE)), 12.5, 12.5),
        (AudioInput("a", RATE, FilterBank(80), max_seconds=20.0), None, 20.0),
        (AudioInput("a", RATE, Waveform()), 7.0, 7.0),
    ],
)
def test_longest_window(spec: AudioInput, window_s: float | None, expected_s: float) -> None:
    assert longest_s(spec, window_s) == expected_s


def test_window_lengths_out_of_range() -> None:
    whisper = AudioInput("a", RATE, LogMel(80, 400, 160, 30 * RATE))
    with pytest.raises(UsageError, match=r"window_s must be 0\.2 to 30, got 31"):
        longest_s(whisper, 31)
    with pytest.raises(UsageError, match=r"window_s must be 0\.2 to 30, got 0"):
        longest_s(whisper, 0)
    with pytest.raises(UsageError, match="does not say how long the model hears; give window_s"):
        longest_s(AudioInput("a", RATE, Waveform()))


def test_a_model_that_does_not_take_sound(session: Session, files: list[Path]) -> None:
    with pytest.raises(UsageError, match="does not take sound alone"):
        session.run_long_audio(files[0])


class HalfSecondTokens:
    """A backend that decodes one token for each half second of sound."""

    name = version = "numpy"

    def start(self, inputs: Arrays) -> CountingDecoding:
        (sound,) = inputs.values()
        return CountingDecoding([10 + sound.shape[1] // (RATE // 2)] * len(sound))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_recording_of_any_length(session: Session, tmp_path: Path, batch: int) -> None:
    signal = spoken((0, 1.7), (1.9, 3.5), (3.6, 4.2), seconds=4.2)
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((signal * 8000).astype("<i2").tobytes())
    spec = AudioInput("sound", RATE, Waveform(), max_seconds=2.0)
    changed = msgspec.structs.replace(session.bundle.manifest, preprocess=spec, vocabulary=None)
    audio_session = Session(Bundle(session.bundle.folder, changed), "fp32", HalfSecondTokens())
    outcomes = list(audio_session.run_long_audio(path, prompt=[10], batch=batch))
    ranges_s = [(o.item.begin_s, o.item.end_s) for o in outcomes]
    assert ranges_s[0][0] == 0 and ranges_s[-1][1] == pytest.approx(4.2)
    assert [end for _, end in ranges_s[:-1]] == [begin for begin, _ in ranges_s[1:]]
    for outcome, (begin, end) in zip(outcomes, ranges_s, strict=True):
        assert outcome.result is not None
        assert len(outcome.result.tokens) == 1 + (int((end - begin) * RATE) // (RATE // 2))
    with pytest.raises(InputError, match=r"no\.wav does not exist"):
        audio_session.run_long_audio(tmp_path / "no.wav")
