"""The benchmark of long speech on a tiny model: each form is measured on the joined sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.benchmarks.long_speech.__main__ import FORMS, joined, main, words_of
from tests.conftest import TinyWhisper
from tests.models.tiny_whisper import RATE, sound, write_wav


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    for index in range(3):
        write_wav(tmp_path / f"{index}.wav", sound(index, 1.5))
    rows = [f'{index}.wav,"Text, number {index}"' for index in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,text", *rows]))
    return tmp_path


def test_sentences_are_joined(samples: Path) -> None:
    signal, text = joined(samples, 1, 2, 0.25)
    assert len(signal) == 2 * (1.5 + 0.25) * RATE
    np.testing.assert_allclose(signal[: RATE // 2], sound(1, 1.5)[: RATE // 2], atol=1e-4)
    assert not signal[int(1.5 * RATE) : int(1.75 * RATE)].any()
    assert text == "Text, number 1 Text, number 2"
    assert words_of(text + " It's well-known.") == "text number 1 text number 2 it's well known"


def test_every_form_is_measured(tiny_whisper: TinyWhisper, samples: Path) -> None:
    pytest.importorskip("jiwer")
    arguments = [str(tiny_whisper.path), "--samples", str(samples)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    rows = [line for line in done.stdout.splitlines() if line.startswith("| cut ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(FORMS)
    assert all(float(row.split("|")[2]) > 0 for row in rows)
