"""Speech features against the feature extractors of transformers, and unusable sound files."""

from __future__ import annotations

import struct
import sys
import wave
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.input_specs import AudioInput, FilterBank, LogMel, Waveform
from hybrid_deploy.errors import InputError
from hybrid_deploy.runtime.preprocess import audio_features
from hybrid_deploy.runtime.preprocess.audio import batch_audio, load_audio
from hybrid_deploy.runtime.preprocess.prepare import prepare
from tests.benchmarks.reliability.trials import PeakRam
from tests.closeness import assert_close_in_float32

RATE = 16000
LOG_MEL = AudioInput("input_features", RATE, LogMel(80, 400, 160, 2 * RATE), mask="attention_mask")
FILTER_BANK = AudioInput("input_features", RATE, FilterBank(80), mask="attention_mask")
WAVEFORM = AudioInput("input_values", RATE, Waveform(normalize=True), mask="attention_mask")


def speech(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Returns a chirp of rising volume with noise, so that no filter is empty."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (200 + 1500 * time) * time) * np.clip(time, 0.05, 0.6)
    return (tone + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def write_wav(
    path: Path, data: bytes, *, width: int = 2, channels: int = 1, rate: int = RATE
) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setsampwidth(width)
        file.setnchannels(channels)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def extractor(name: str, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, name)(**settings)


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_equals_whispers(mels: int) -> None:
    whisper = extractor("WhisperFeatureExtractor", feature_size=mels, chunk_length=2)
    signals = [speech(1.37), speech(2.0, seed=1), np.zeros(800, np.float32)]
    spec = msgspec.structs.replace(LOG_MEL, features=LogMel(mels, 400, 160, 2 * RATE))
    actual = batch_audio(signals, spec)
    expected = whisper(signals, sampling_rate=RATE, return_attention_mask=True, return_tensors="np")
    assert actual["input_features"].shape == (3, mels, 200)
    # transformers sums in float32 with torch, `log_mel` in float64. The faintest band above the
    # floor has a 10000th of the loudest amplitude, and so 10000 times its relative error, in a
    # logarithm that is divided by 4.
    faint = 10_000 / (2 * np.log(10))
    assert_close_in_float32(
        actual["input_features"], expected["input_features"], size=faint, roundings=4
    )
    np.testing.assert_array_equal(actual["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize(("center", "scale"), [(True, True), (True, False), (False, False)])
def test_filter_bank_equals_speech_to_texts(center: bool, scale: bool) -> None:
    reference = extractor(
        "Speech2TextFeatureExtractor",
        do_ceptral_normalize=center or scale,
        normalize_means=center,
        normalize_vars=scale,
    )
    signals = [speech(0.8), speech(0.5, seed=1)]
    spec = msgspec.structs.replace(FILTER_BANK, features=FilterBank(80, center, scale))
    actual = batch_audio(signals, spec)
    expected = reference(signals, sampling_rate=RATE, padding=True, return_tensors="np")
    assert actual["input_features"].shape == (2, 78, 80)
    assert_close_in_float32(actual["input_features"], expected["input_features"])
    np.testing.assert_array_equal(actual["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("normalize", [True, False])
def test_waveform_equals_moonshines(normalize: bool) -> None:
    reference = extractor(
        "Wav2Vec2FeatureExtractor", do_normalize=normalize, return_attention_mask=True
    )
    signals = [speech(0.8), speech(0.5, seed=1)]
    spec = msgspec.structs.replace(WAVEFORM, features=Waveform(normalize))
    actual = batch_audio(signals, spec)
    expected = reference(signals, sampling_rate=RATE, padding=True, return_tensors="np")
    assert_close_in_float32(actual["input_values"], expected["input_values"])
    np.testing.assert_array_equal(actual["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(tmp_path: Path, width: int) -> None:
    signal = speech(0.1)
    scale = 1 << (8 * width - 1)
    levels = np.round(signal.astype(np.float64) * (scale - 1)).astype(np.int64)
    data = b"".join(
        int(v + 128).to_bytes(1, "little")
        if width == 1
        else int(v).to_bytes(width, "little", signed=True)
        for v in levels
    )
    loaded = load_audio(write_wav(tmp_path / "a.wav", data, width=width), RATE)
    assert loaded.dtype == np.float32
    # two quantization steps of the file, and the rounding of numbers up to 1 to float32
    np.testing.assert_allclose(loaded, signal, rtol=0, atol=2 / scale + 1e-7)


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = np.array([[16384, 0], [-16384, -16384]], "<i2")
    path = write_wav(tmp_path / "a.wav", stereo.tobytes(), channels=2)
    assert load_audio(path, RATE).tolist() == [0.25, -0.5]


def test_error_of_a_wrong_rate_names_the_conversion(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", bytes(200), rate=44100)
    message = r"a\.wav has 44100 samples per second, the model takes 16000; convert it with: "
    with pytest.raises(InputError, match=message + r"ffmpeg -i \S*a\.wav -ar 16000 -ac 1"):
        prepare([path], WAVEFORM)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no sound: it is empty"):
        prepare([write_wav(tmp_path / "empty.wav", b"")], WAVEFORM)
    with pytest.raises(InputError, match=r"no\.wav does not exist"):
        prepare([tmp_path / "no.wav"], WAVEFORM)
    (tmp_path / "half.wav").write_bytes((tmp_path / "empty.wav").read_bytes()[:20])
    with pytest.raises(InputError, match=r"half\.wav is"):
        prepare([tmp_path / "half.wav"], WAVEFORM)
    (tmp_path / "zero.wav").write_bytes(b"")
    with pytest.raises(InputError, match="it ends too early"):
        prepare([tmp_path / "zero.wav"], WAVEFORM)


def test_other_formats_need_soundfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "a.mp3").write_bytes(b"ID3" + bytes(64))
    with pytest.raises(InputError, match=r"a\.mp3 is not PCM in a WAV file; convert it with"):
        load_audio(tmp_path / "a.mp3", RATE)


def test_length_limits() -> None:
    with pytest.raises(InputError, match=r"2\.5 s long, the model takes 2 s; cut it into parts"):
        batch_audio([speech(2.5)], LOG_MEL)
    limited = msgspec.structs.replace(WAVEFORM, max_seconds=0.5)
    with pytest.raises(InputError, match=r"0\.6 s long, the model takes 0\.5 s"):
        batch_audio([speech(0.6)], limited)
    with pytest.raises(InputError, match="100 samples long, it needs 400"):
        batch_audio([speech(0.5)[:100]], FILTER_BANK)


def test_unequal_lengths_need_a_mask() -> None:
    spec = msgspec.structs.replace(WAVEFORM, mask=None)
    with pytest.raises(InputError, match="takes no mask; run them one by one"):
        batch_audio([speech(0.2), speech(0.3)], spec)
    assert list(batch_audio([speech(0.2)] * 2, spec)) == ["input_values"]


def test_features_of_silence_are_finite() -> None:
    silence = np.zeros(RATE, np.float32)
    for spec in (LOG_MEL, FILTER_BANK, WAVEFORM):
        assert np.isfinite(batch_audio([silence], spec)[spec.name]).all()


def riff(data: bytes, form: bytes, *, size: int | None = None, total: int | None = None) -> bytes:
    """Returns the bytes of a WAV file whose header may declare other sizes than it has."""
    chunks = b"fmt " + len(form).to_bytes(4, "little") + form
    chunks += b"LIST" + (3).to_bytes(4, "little") + b"abc\0"
    chunks += b"data" + (len(data) if size is None else size).to_bytes(4, "little") + data
    total = 4 + len(chunks) if total is None else total
    return b"RIFF" + total.to_bytes(4, "little") + b"WAVE" + chunks


def form_of(form: int, bits: int, *, extended: bool = False) -> bytes:
    """Returns a format chunk of one channel; the extensible form hides `form` in a GUID."""
    basic = struct.pack("<HHIIHH", form, 1, RATE, RATE * bits // 8, bits // 8, bits)
    if not extended:
        return basic
    guid = struct.pack("<H", form) + bytes.fromhex("000000001000800000aa00389b71")
    return struct.pack("<H", 0xFFFE) + basic[2:] + struct.pack("<HHI", 22, bits, 0) + guid


LEVELS = np.array([0.5, -0.25, 0.125, -1.0], np.float32)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("kind", ["<f4", "<f8", "<i2", "<i4", "24 bits"])
def test_wav_files_of_every_form(tmp_path: Path, kind: str, extended: bool) -> None:
    if kind.startswith("<f"):
        data, form = LEVELS.astype(kind).tobytes(), 3
    else:
        bits = 24 if kind == "24 bits" else 8 * int(kind[-1])
        whole = (LEVELS.astype(np.float64) * (1 << (bits - 1))).astype(np.int64)
        data = b"".join(int(v).to_bytes(bits // 8, "little", signed=True) for v in whole)
        form = 1
    path = tmp_path / "a.wav"
    path.write_bytes(riff(data, form_of(form, 8 * len(data) // 4, extended=extended)))
    np.testing.assert_array_equal(load_audio(path, RATE), LEVELS)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_file_written_into_a_pipe_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    data = LEVELS.tobytes()
    path.write_bytes(riff(data, form_of(3, 32), size=size, total=size))
    np.testing.assert_array_equal(load_audio(path, RATE), LEVELS)


def test_an_empty_file_with_chunks_behind_its_sound_stays_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(riff(b"", form_of(1, 16)) + b"LIST\x04\0\0\0abcd")
    with pytest.raises(InputError, match="it is empty"):
        load_audio(path, RATE)


@pytest.mark.parametrize("kept", [13, 40, 60, 0.5, 0.999])
def test_a_file_that_ends_before_its_header_says_so_is_refused(tmp_path: Path, kept: float) -> None:
    whole = write_wav(tmp_path / "a.wav", (speech(0.2) * 9000).astype("<i2").tobytes()).read_bytes()
    path = tmp_path / "cut.wav"
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(InputError, match=r"cut\.wav is a damaged sound file: it ends too early"):
        load_audio(path, RATE)


def test_a_cut_flac_file_is_refused(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "a.flac"
    soundfile.write(path, speech(2.0), RATE)
    assert len(load_audio(path, RATE)) == 2 * RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.flac is (a damaged|not a) sound file"):
        load_audio(path, RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(riff(np.array([0.5, value], "<f4").tobytes(), form_of(3, 32)))
    with pytest.raises(InputError, match="it holds NaN or infinity"):
        load_audio(path, RATE)


def sparse_wav(path: Path, size_bytes: int, *, size: int | None = None) -> Path:
    """Writes a WAV file of silence of 16 bits that takes no room on the disk."""
    declared = size_bytes if size is None else size
    path.write_bytes(riff(b"", form_of(1, 16), size=declared, total=size))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size_bytes)
    return path


@pytest.mark.parametrize("limit_s", [None, 30.0])
@pytest.mark.parametrize("size", [None, 0xFFFFFFFF])
def test_a_recording_that_is_too_long_is_refused_unread(
    tmp_path: Path, limit_s: float | None, size: int | None
) -> None:
    path = sparse_wav(tmp_path / "a.wav", 2_000_000_000, size=size)
    spec = msgspec.structs.replace(WAVEFORM, max_seconds=limit_s)
    ram = PeakRam()
    with pytest.raises(InputError) as caught:
        prepare([path], spec)
    assert str(caught.value) == (
        f"{path} is longer than the {limit_s or 3600:g} s that are taken; cut it into parts"
    )
    with pytest.raises(InputError, match="longer than the 6250 s that are taken"):
        load_audio(path, RATE)
    assert ram.growth_bytes() < 50_000_000


def test_a_compressed_recording_is_read_up_to_the_limit(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", speech(5.0), RATE)
    with pytest.raises(InputError, match="longer than the 2 s that are taken"):
        load_audio(tmp_path / "a.flac", RATE, 2 * RATE)
    assert len(load_audio(tmp_path / "a.flac", RATE, 5 * RATE)) == 5 * RATE


def test_a_recording_is_read_in_blocks(tmp_path: Path) -> None:
    """Blocks of a megabyte, of two channels, meet without a gap."""
    levels = np.random.default_rng(0).integers(-9000, 9000, (700_000, 2)).astype("<i2")
    path = write_wav(tmp_path / "a.wav", levels.tobytes(), channels=2)
    expected = (levels / float(1 << 15)).mean(1).astype(np.float32)
    np.testing.assert_array_equal(load_audio(path, RATE), expected)


def test_a_file_of_many_parts_before_its_sound_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.wav", riff(LEVELS.tobytes(), form_of(3, 32))
    path.write_bytes(whole[:12] + b"junk\0\0\0\0" * 10_000 + whole[12:])
    with pytest.raises(InputError, match="its first 10,000 parts are no sound"):
        load_audio(path, RATE)


@pytest.mark.parametrize("spec", [LOG_MEL, FILTER_BANK])
def test_features_in_parts_are_those_of_the_whole(
    spec: AudioInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batch_audio([speech(2.0)], spec)["input_features"]
    monkeypatch.setattr(audio_features, "_NUMBERS_AT_ONCE", 10 * 512)
    parts = batch_audio([speech(2.0)], spec)["input_features"]
    assert_close_in_float32(parts, whole)
