"""Tests of the division of recordings: none is both calibrated with and measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.errors import InputError
from tests.benchmarks.real.speech import CALIBRATION, copy_calibration, read_speech, spread
from tests.benchmarks.real.tiny_whisper import write_speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(
        tmp_path_factory.mktemp("speech") / "many", [f"text {i}" for i in range(130)]
    )


@pytest.fixture(scope="module")
def few(folder: Path) -> Path:
    return write_speech(folder.parent / "few", ["four queen of clubs", "five"])


def test_a_whole_run_measures_all_that_do_not_calibrate(folder: Path, few: Path) -> None:
    speech = read_speech([folder, few], None)
    assert len(speech.calibration) == CALIBRATION and speech.left_over == 0
    held_out = {recording.path for recording in speech.held_out["many"]}
    assert held_out.isdisjoint(speech.calibration)
    assert held_out.union(speech.calibration) == set(folder.glob("*.wav"))
    assert [recording.text for recording in speech.held_out["few"]] == [
        "four queen of clubs",
        "five",
    ]
    assert speech.held_out["few"][1].seconds == pytest.approx(0.525)
    assert len(speech.recordings) == 130 - CALIBRATION + 2


def test_a_short_run_takes_evenly_spaced_ones(folder: Path, few: Path) -> None:
    speech = read_speech([folder, few], 4)
    assert len(speech.calibration) == 4 and len(speech.held_out["many"]) == 4
    assert speech.left_over == 130 - 8
    assert speech.held_out["many"][0].path.name == "001.wav"  # the first one calibrates
    assert spread(range(10), 4) == [0, 3, 6, 9]


def test_other_texts_or_roles_are_another_run(folder: Path, few: Path, tmp_path: Path) -> None:
    speech = read_speech([folder, few], 4)
    assert speech.digest() == read_speech([folder, few], 4).digest()
    assert speech.digest() != read_speech([folder], 4).digest()
    other = write_speech(tmp_path / "few", ["four queen of clubs", "nine"])
    assert speech.digest() != read_speech([folder, other], 4).digest()


def test_the_calibration_folder_holds_no_other_recording(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibration"
    for limit in (6, 4):
        speech = read_speech([folder], limit)
        copy_calibration(speech, out)
        assert {path.name for path in out.iterdir()} == {p.name for p in speech.calibration}


def test_too_few_recordings_and_equal_names_are_one_line(few: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_speech([few], None)
    assert str(caught.value) == (
        f"{few} has 2 recordings, and 64 of them only calibrate; give a folder of 128 or more "
        "first, or a smaller --limit"
    )
    with pytest.raises(InputError, match="two folders of speech have one name: few, few"):
        read_speech([few, few], None)
