"""`hybrid-deploy compare`: nothing that was not measured looks like a number or a success."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.accuracy import normalizers
from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.cli.commands.compare import check_rows
from hybrid_deploy.errors import BackendError
from tests.fakes.speech_bundle import export_listener, write_sounds


def compare(bundle: Path, samples: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["compare", str(bundle), "--samples", str(samples), *args])


@pytest.fixture
def samples(page: Path) -> Path:
    """Folder with one picture and its label."""
    (page.parent / "labels.csv").write_text("file,text\npage.png,abc\n")
    return page.parent


def test_without_a_vocabulary_there_is_no_accuracy(own_path: Path, samples: Path) -> None:
    seal_bundle(own_path, msgspec.structs.replace(open_bundle(own_path).manifest, vocabulary=None))
    (row,) = json.loads(compare(own_path, samples, "--format", "json").stdout)
    assert (row["cer_percent"], row["exact_percent"]) == (None, None)
    assert row["total_ms"] > 0
    assert row["status"].startswith("no accuracy: the bundle has no vocabulary")
    result = compare(own_path, samples, "--format", "md")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split(" | ")[3:5] == ["-", "-"]
    assert "normalised" not in result.stdout


def test_without_jiwer_there_are_no_error_rates(
    tiny_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    result = compare(tiny_path, samples, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["cer_percent"], row["exact_percent"], row["worst"]) == (None, 0.0, [])
    assert row["status"].startswith("no error rates: jiwer is not installed")
    assert "no error rates: jiwer is not installed" in compare(tiny_path, samples).stdout


def test_every_row_failed(own_path: Path, samples: Path) -> None:
    manifest = open_bundle(own_path).manifest
    endless = msgspec.structs.replace(manifest.generation, start_tokens=())
    seal_bundle(own_path, msgspec.structs.replace(manifest, generation=endless))
    result = compare(own_path, samples, "--format", "json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["status"].startswith("failed: ")
    assert result.stderr.splitlines()[-1].startswith(
        f"error: none of the 1 rows of {own_path} could be measured; the first failed: "
    )


def test_no_row_at_all(own_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no backend can run .* so nothing was compared"):
        check_rows([], own_path)


def test_one_row_that_works_is_enough(own_path: Path) -> None:
    check_rows([{"status": "failed: no GPU"}, {"status": "ok"}], own_path)


def test_a_single_token_has_no_time_per_token(own_path: Path, samples: Path) -> None:
    manifest = open_bundle(own_path).manifest
    short = msgspec.structs.replace(manifest.generation, max_length=2)
    seal_bundle(own_path, msgspec.structs.replace(manifest, generation=short))
    result = compare(own_path, samples, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["token_ms"] is None
    assert "nan" not in compare(own_path, samples).stdout


def test_a_bundle_that_reads_keeps_case_and_punctuation(tiny_path: Path, samples: Path) -> None:
    (row,) = json.loads(compare(tiny_path, samples, "--format", "json").stdout)
    assert row["normalizer"] == "none"
    text = row["worst"][0]["decoded"]
    (samples / "labels.csv").write_text(f"file,text\npage.png,{text.upper()}!\n")
    for options, exact in (((), 0), (("--normalize", "basic"), 100)):
        (row,) = json.loads(compare(tiny_path, samples, "--format", "json", *options).stdout)
        assert row["exact_percent"] == exact


def test_labels_without_text(tiny_path: Path, samples: Path) -> None:
    (samples / "labels.csv").write_text('file,text\npage.png,""\n')
    result = compare(tiny_path, samples, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["cer_percent"], row["exact_percent"]) == (None, 0)
    assert row["status"].startswith("no error rates: every expected text is empty")


def test_no_labels_at_all(tiny_path: Path, samples: Path) -> None:
    (samples / "labels.csv").write_text("file,text\n")
    result = compare(tiny_path, samples)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {samples / 'labels.csv'} has no rows\n"


SPOKEN = {"a.wav": "Grey cats!", "b.wav": "uh, um", "c.wav": "twenty-one"}


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_listener(tmp_path_factory.mktemp("bundles") / "listener.bundle")


def test_english_speech_is_normalised_as_english(listener: Path, tmp_path: Path) -> None:
    pytest.importorskip("whisper_normalizer")
    sounds = write_sounds(tmp_path / "sounds", SPOKEN)
    result = compare(listener, sounds, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0] == (
        "1 of 3 labels are empty once whisper has normalised them; whatever is decoded there "
        "counts as errors"
    )
    (row,) = json.loads(result.stdout)
    assert (row["normalizer"], row["status"]) == ("whisper", "ok")
    assert row["wer_percent"] is not None and row["cer_low_percent"] <= row["cer_percent"]
    texts = {loss["input"]: loss["decoded"] for loss in row["worst"]}
    assert len(texts) > 0
    (sounds / "labels.csv").write_text(
        "file,text\n" + "".join(f'{name},"{text.upper()}."\n' for name, text in texts.items())
    )
    (row,) = json.loads(compare(listener, sounds, "--format", "json").stdout)
    assert (row["cer_percent"], row["wer_percent"], row["exact_percent"]) == (0, 0, 100)


def test_the_library_of_the_default_is_named_before_anything_is_decoded(
    listener: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalizers._english.cache_clear()
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    sounds = write_sounds(tmp_path / "sounds", SPOKEN)
    result = compare(listener, sounds)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: whisper-normalizer is not installed; install it with: pip install "
        "'hybrid-deploy[report]', or give --normalize basic\n"
    )
    basic = compare(listener, sounds, "--normalize", "basic", "--format", "json")
    assert json.loads(basic.stdout)[0]["normalizer"] == "basic"


def test_english_is_no_normaliser_for_another_script(listener: Path, tmp_path: Path) -> None:
    pytest.importorskip("whisper_normalizer")
    sounds = write_sounds(tmp_path / "sounds", {"a.wav": "हिन्दी में बात"})
    result = compare(listener, sounds)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --normalize whisper is for English, and 100% of the labels' letters are not Latin; "
        "give --normalize basic\n"
    )
    assert compare(listener, sounds, "--normalize", "basic").exit_code == 0
