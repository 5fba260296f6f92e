from pathlib import Path

import pytest

from hybrid_deploy.accuracy import load_labels, measure_accuracy
from hybrid_deploy.errors import InputError


def test_character_error_rate_and_exact_match() -> None:
    accuracy = measure_accuracy(["123", "45678", "90"], ["123", "4567", "91"])
    assert accuracy.lines == 3
    assert accuracy.cer_percent == pytest.approx(20.0)  # two errors in ten characters
    assert accuracy.exact_percent == pytest.approx(100 / 3)


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,text\na.png,12\nb.png,\n")
    labels = load_labels(tmp_path)
    assert [(label.file, label.text) for label in labels] == [
        (tmp_path / "a.png", "12"),
        (tmp_path / "b.png", ""),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no labels.csv; write one with the columns file and text"),
        ("name,label\na,b\n", "needs the columns file and text"),
        ("file,text\n", "has no rows"),
    ],
)
def test_bad_labels(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        load_labels(tmp_path)
