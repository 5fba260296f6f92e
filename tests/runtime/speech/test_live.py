"""Live sound: text is firm once two decodings agree, and never changes afterwards."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy import GenerateOptions, load_session
from hybrid_deploy.errors import InputError, MissingDependencyError, UsageError
from hybrid_deploy.runtime.preprocess.audio import batch_audio
from hybrid_deploy.runtime.preprocess.wav_files import RAW_FORMS, raw_blocks
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.live import LiveDecoder, LiveText
from hybrid_deploy.runtime.speech.microphone import microphone_blocks
from tests.conftest import TinyWhisper
from tests.models.tiny_whisper import END, RATE, START, VOCABULARY, sound

FloatArray = NDArray[np.float32]
STEP = RATE // 4
SHORT = GenerateOptions(max_new_tokens=4, suppressed=tuple(range(START, VOCABULARY)))
"""Four tokens of text: a random model also makes timestamps, which are no text."""


@pytest.fixture(scope="module")
def session(tiny_whisper: TinyWhisper) -> Session:
    return load_session(tiny_whisper.path, threads=1)


def blocks(signal: FloatArray, step: int = STEP) -> Iterator[FloatArray]:
    return (signal[begin : begin + step] for begin in range(0, len(signal), step))


class Trusting(LiveDecoder):
    """A decoder that takes the improbable texts of a random model for speech."""

    def __init__(self, session: Session, **options: Any) -> None:
        super().__init__(session, SHORT, **options)
        self._rules = replace(self._rules, log_probability=-1e9)


def tokens_after(session: Session, signal: FloatArray, firm: tuple[int, ...]) -> tuple[int, ...]:
    """Returns what an own decoding makes of a signal after the firm tokens, with them."""
    inputs = batch_audio([signal], session.bundle.manifest.preprocess)  # type: ignore[arg-type]
    options = replace(SHORT, begin_suppressed=()) if firm else SHORT
    (result,), _ = session.run_arrays(inputs, prompt=firm, options=options)
    return firm + tuple(token for token in result.tokens if token != END)


def common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return tuple(a for a, _ in pairs)


def test_firm_text_is_what_two_decodings_agree_on(session: Session) -> None:
    grown = 0
    for seed in range(6):
        signal = np.concatenate([sound(seed, 0.5), np.tile(sound(seed, 0.1), 9)])
        decoder = Trusting(session, part_s=2.0)
        before: tuple[int, ...] = ()
        for number in range(1, 5):
            firm = decoder._firm
            pieces = list(decoder.feed(signal[(number - 1) * STEP : number * STEP]))
            newest = tokens_after(session, signal[: number * STEP], firm)
            agreed = common_prefix(newest, before)
            assert decoder._firm == (agreed if len(agreed) > len(firm) else firm)
            grown += decoder._firm != firm
            assert bool(pieces) == (decoder._firm != firm)
            assert decoder._firm[: len(firm)] == firm, "firm text never changes"
            before = newest
    assert grown > 3, "some text must become firm before the end"


@pytest.mark.parametrize("step", [STEP, 3 * STEP, 10 * RATE])
def test_parts_follow_each_other_and_hold_the_pieces(session: Session, step: int) -> None:
    signal = sound(4, 5.3)
    decoder = Trusting(session, part_s=1.5)
    pieces: list[LiveText] = list(decoder.run(blocks(signal, step)))
    spans = [piece.part for piece in pieces if piece.part is not None]
    assert spans[0].begin_s == 0 and spans[-1].end_s == pytest.approx(5.3)
    assert [span.end_s for span in spans[:-1]] == [span.begin_s for span in spans[1:]]
    assert all(span.end_s - span.begin_s <= 2 for span in spans)
    text, heard = "", 0
    for piece in pieces:
        text += piece.text
        if piece.part is not None:
            assert text.strip() == piece.part_text
            heard += bool(text.strip())
            text = ""
    assert heard > 1 and not text


def test_nothing_is_said_in_silence(session: Session) -> None:
    quiet = np.zeros(3 * RATE, np.float32)
    decoder = LiveDecoder(session, SHORT, part_s=1.5)
    decoder._rules = replace(decoder._rules, log_probability=0.0, no_speech=0.0)  # all is silence
    pieces = list(decoder.run(blocks(quiet)))
    assert [piece.text for piece in pieces] == [""] * len(pieces) and len(pieces) > 1


def test_no_sound_at_all(session: Session) -> None:
    assert list(LiveDecoder(session).run([])) == []
    (end,) = LiveDecoder(session).run([np.zeros(10, np.float32)])
    assert (end.text, end.part_text) == ("", "")


def test_what_does_not_go_with_live_sound(session: Session, tiny_path: Any) -> None:
    with pytest.raises(UsageError, match="does not make text of sound alone"):
        LiveDecoder(load_session(tiny_path))
    for options in (
        GenerateOptions(timestamps=True),
        GenerateOptions(beams=2),
        GenerateOptions(temperature=1.0),
    ):
        with pytest.raises(UsageError, match="no timestamps, beams or sampling"):
            LiveDecoder(session, options)
    with pytest.raises(UsageError, match=r"part_s must be 0\.4 to 2, got 3"):
        LiveDecoder(session, part_s=3)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        list(LiveDecoder(session).run([np.full(STEP, np.nan, np.float32)]))


@pytest.mark.parametrize("form", RAW_FORMS)
def test_raw_samples(form: str) -> None:
    kinds = {"u8": "u1", "s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
    signal = sound(1, 0.01)
    if form == "f32le":
        data = signal.astype("<f4").tobytes()
    elif form == "u8":
        data = np.round(signal * 127 + 128).astype("u1").tobytes()
    elif form == "s24le":
        wide = np.round(signal * (1 << 23)).astype("<i4").view("u1").reshape(-1, 4)
        data = wide[:, :3].tobytes()
    else:
        scale = (1 << 8 * np.dtype(kinds[form]).itemsize - 1) - 1
        data = np.round(signal.astype(np.float64) * scale).astype(kinds[form]).tobytes()
    read = list(raw_blocks(io.BytesIO(data + b"\0"), form, 50))
    assert [len(block) for block in read[:3]] == [50, 50, 50]
    tolerance = 1 / 100 if form == "u8" else 1e-4
    whole = np.concatenate(read)[: len(signal)]
    np.testing.assert_allclose(whole, signal, atol=tolerance)


class FakeStream:
    """The stream of a device that has recorded more with each read, and is then stopped."""

    recorded = (0, 900, 100)

    def __init__(self, samplerate: int, channels: int, dtype: str) -> None:
        assert (channels, dtype) == (1, "float32")
        if samplerate != RATE:
            raise PortAudioError("Invalid sample rate")
        self.reads = 0

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def read_available(self) -> int:
        if self.reads == len(self.recorded):
            raise KeyboardInterrupt
        return self.recorded[self.reads]

    def read(self, frames: int) -> tuple[FloatArray, bool]:
        self.reads += 1
        return np.full((frames, 1), self.reads, np.float32), False


class PortAudioError(Exception):
    """The error of PortAudio."""


def test_the_microphone_through_the_interface_of_its_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = SimpleNamespace(InputStream=FakeStream, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    heard = list(microphone_blocks(RATE, 0.03))
    assert [(len(block), block[0]) for block in heard] == [(480, 1), (900, 2), (480, 3)]
    with pytest.raises(InputError, match="no microphone can be read at 8000 samples per second"):
        next(microphone_blocks(8000, 0.03))


def test_a_machine_without_the_library_or_portaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependencyError, match=r"'hybrid-deploy\[microphone\]'"):
        next(microphone_blocks(RATE, 1.0))

    class WithoutPortAudio:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [WithoutPortAudio(), *sys.meta_path])
    with pytest.raises(InputError, match="finds no PortAudio: PortAudio library not found"):
        next(microphone_blocks(RATE, 1.0))
