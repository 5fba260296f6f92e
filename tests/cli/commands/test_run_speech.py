"""`run` on speech: language, task, times, subtitles and long recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hybrid_deploy import GenerateOptions, load_session
from hybrid_deploy.cli import main
from tests.conftest import TinyWhisper
from tests.models.tiny_whisper import sound, write_wav


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("sound") / "speech.wav", sound(1, 1.6))


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("sound") / "talk.wav", sound(2, 6.4))


def output(*args: object) -> str:
    result = CliRunner().invoke(main, ["run", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def records(*args: object) -> list[dict[str, Any]]:
    return list(json.loads(output(*args, "--format", "json")))


def refused(*args: object) -> str:
    result = CliRunner().invoke(main, ["run", *map(str, args)])
    assert result.exit_code == 2, result.output
    assert not result.stdout
    return result.stderr


def test_language_and_task(tiny_whisper: TinyWhisper, speech: Path) -> None:
    session = load_session(tiny_whisper.path)
    options = GenerateOptions(language="de", task="translate")
    (expected,), _ = session.run_files([speech], options=options)
    (record,) = records(tiny_whisper.path, speech, "--language", "de", "--task", "translate")
    assert record["tokens"] == list(expected.tokens)
    (default,) = records(tiny_whisper.path, speech)
    assert default["tokens"] != record["tokens"] and "language" not in default
    (detected,) = records(tiny_whisper.path, speech, "--language", "auto")
    assert detected["language"] in ("de", "en", "fr")
    assert "no language 'nl'; it has en, de, fr" in refused(
        tiny_whisper.path, speech, "--language", "nl"
    )


def test_a_bundle_shows_its_languages(tiny_whisper: TinyWhisper) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(tiny_whisper.path)])
    line = "speech: languages de en fr, by default en, transcribe, timestamps"
    assert line in shown.stdout.splitlines()


def test_times_of_a_recording(tiny_whisper: TinyWhisper, speech: Path) -> None:
    (record,) = records(tiny_whisper.path, speech, "--timestamps")
    segments = record["segments"]
    assert segments and "begin_s" not in record
    assert all(0 <= s["begin_s"] <= s["end_s"] <= 1.6 for s in segments)
    lines = output(tiny_whisper.path, speech, "--timestamps").splitlines()
    assert lines == [f"[{s['begin_s']:.2f} -> {s['end_s']:.2f}] {s['text']}" for s in segments]
    stamp = "{:02}:{:02}:{:06.3f}".format
    begin = stamp(0, 0, segments[0]["begin_s"])
    assert output(tiny_whisper.path, speech, "--format", "vtt").startswith(f"WEBVTT\n\n{begin} -->")
    subtitles = output(tiny_whisper.path, speech, "--format", "srt")
    assert subtitles.startswith(f"1\n{begin.replace('.', ',')} -->")


@pytest.mark.parametrize("cut", ["quiet", "timestamps"])
def test_long_recordings(tiny_whisper: TinyWhisper, talk: Path, cut: str) -> None:
    parts = records(tiny_whisper.path, talk, "--long", "--cut", cut, "--timestamps")
    assert len(parts) > 3
    assert [part["begin_s"] for part in parts] == sorted(part["begin_s"] for part in parts)
    assert parts[-1]["end_s"] == pytest.approx(6.4)
    begins = [segment["begin_s"] for part in parts for segment in part["segments"]]
    assert begins == sorted(begins) and begins[-1] > 4
    lines = output(tiny_whisper.path, talk, "--long", "--cut", cut).splitlines()
    assert lines == [part["text"] for part in parts] or cut == "quiet"
    assert output(tiny_whisper.path, talk, "--long", "--cut", cut, "--format", "srt").count("-->")


def test_requests_that_exclude_each_other(
    tiny_whisper: TinyWhisper, tiny_path: Path, page: Path, speech: Path, talk: Path
) -> None:
    path = tiny_whisper.path
    assert "give --long with it" in refused(path, talk, "--cut", "quiet")
    assert "give --cut timestamps too" in refused(path, talk, "--long", "--context")
    assert "run the files one by one" in refused(path, talk, speech, "--format", "srt")
    assert "without times and --long" in refused(path, talk, "--timestamps", "--stream")
    assert "sound files alone" in refused(path, "--text", "a", "--timestamps")
    assert "does not take sound alone" in refused(tiny_path, page, "--timestamps")
    result = CliRunner().invoke(main, ["run", str(path), str(talk), "--timestamps"])
    assert result.exit_code != 0 and "is longer than the 2 s that are taken" in result.stderr


def test_live_sound_from_a_pipe(tiny_whisper: TinyWhisper) -> None:
    samples = (sound(4, 4.2) * 32767).astype("<i2").tobytes()
    arguments = [str(tiny_whisper.path), "-", "--pcm", "s16le", "--rate", "16000", "--step", "0.5"]
    printed = CliRunner().invoke(main, ["run", *arguments, "--max-tokens", "5"], input=samples)
    assert printed.exit_code == 0, printed.stderr
    arguments += ["--max-tokens", "5", "--format", "json"]
    listed = CliRunner().invoke(main, ["run", *arguments], input=samples)
    parts = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [line.strip() for line in printed.stdout.splitlines()] == [p["text"] for p in parts]
    assert parts[0]["begin_s"] == 0 and parts[-1]["end_s"] == pytest.approx(4.2)


def test_requests_for_live_sound(tiny_whisper: TinyWhisper, talk: Path) -> None:
    path = tiny_whisper.path
    assert "say its form, as --pcm s16le --rate 16000" in refused(path, "-")
    assert "--rate belongs to raw samples" in refused(path, talk, "--rate", "16000")
    assert "FILES - with --pcm" in refused(path, talk, "--pcm", "s16le")
    assert "FILES - with --pcm" in refused(path, talk, "--microphone")
    pcm = ("-", "--pcm", "s16le")
    assert "without --text" in refused(path, *pcm, "--rate", "16000", "--timestamps")
    assert "takes no --prompt" in refused(path, *pcm, "--rate", "16000", "--prompt", "1")
    assert "come with no --rate, the model takes 16000" in refused(path, *pcm)
    assert "ffmpeg -f s16le -ar 8000 -i -" in refused(path, *pcm, "--rate", "8000")


def test_variants_are_compared_in_a_language(
    tiny_whisper: TinyWhisper, speech: Path, tmp_path: Path
) -> None:
    session = load_session(tiny_whisper.path)
    texts = {}
    for language in ("en", "fr"):
        options = GenerateOptions(language=language)
        (result,), _ = session.run_files([speech], options=options)
        texts[language] = result.text
    assert texts["en"] != texts["fr"] and texts["fr"]
    (tmp_path / "a.wav").write_bytes(speech.read_bytes())
    (tmp_path / "labels.csv").write_text(f'file,text\na.wav,"{texts["fr"]}"\n')
    exact = []
    for language in ("en", "fr"):
        arguments = ["--samples", tmp_path, "--language", language, "--format", "json"]
        done = CliRunner().invoke(main, ["compare", str(tiny_whisper.path), *map(str, arguments)])
        assert done.exit_code == 0, done.stderr
        exact += [row["exact_percent"] for row in json.loads(done.stdout)]
    assert exact == [0, 100]
