import sys
from pathlib import Path

import pytest

from hybrid_deploy.accuracy import (
    character_error_percent,
    load_labels,
    measure_accuracy,
    word_error_percent,
)
from hybrid_deploy.errors import InputError, MissingDependencyError


def test_character_error_rate_and_exact_match() -> None:
    accuracy = measure_accuracy(["123", "45678", "90"], ["123", "4567", "91"])
    assert accuracy.lines == 3
    assert accuracy.cer_percent == pytest.approx(20.0)  # two errors in ten characters
    assert accuracy.exact_percent == pytest.approx(100 / 3)


def test_word_error_rate() -> None:
    accuracy = measure_accuracy(["to be or", "not"], ["to  be for ", "not"])
    assert accuracy.wer_percent == pytest.approx(25.0)  # one of four words, spaces do not count


def test_single_words_have_no_word_error_rate() -> None:
    assert measure_accuracy(["123", "4"], ["123", "5 6"]).wer_percent is None


def test_text_where_none_is_expected_counts_as_insertions() -> None:
    assert character_error_percent(["abcd", ""], ["abcd", "xy"]) == pytest.approx(50.0)
    assert character_error_percent(["abcd", " "], ["abcd", ""]) == 0
    assert word_error_percent(["a b c d", ""], ["a b c d", "x y"]) == pytest.approx(50.0)


def test_only_empty_expected_texts_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        measure_accuracy(["", " "], ["a", ""])
    assert str(caught.value) == (
        "every expected text is empty, so there is no error rate; check the labels"
    )


def test_missing_jiwer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingDependencyError) as caught:
        measure_accuracy(["a"], ["a"])
    assert str(caught.value) == (
        "jiwer is not installed; install it with: pip install 'hybrid-deploy[report]'"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels(tmp_path: Path, encoding: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    content = "file,text,by\na.png,zwölf,me\nb.png,,\n"
    (tmp_path / "labels.csv").write_text(content, encoding=encoding)
    labels = load_labels(tmp_path)
    assert [(label.file, label.text) for label in labels] == [
        (tmp_path / "a.png", "zwölf"),
        (tmp_path / "b.png", ""),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "{folder} has no labels.csv; write one with the columns file and text, a row per input",
        ),
        (b"name,label\na,b\n", "{path} needs the columns file and text, it has name, label"),
        (b"file\na.png\n", "{path} needs the columns file and text, it has file"),
        (b"", "{path} needs the columns file and text, it has none"),
        (b"file,text,text\na.png,1,2\n", "{path} has the column text twice"),
        (b"file,text\n", "{path} has no rows"),
        (b"file,text\na.png\n", "{path}, line 2: expected a file and its text"),
        (b"file,text\n,12\n", "{path}, line 2: expected a file and its text"),
        (
            b"file,text\na.png,1\nb.png,2\nc.png,3\n",
            "{path} names 2 of 3 files that do not exist, first {folder}/b.png",
        ),
        (
            "file,text\na.png,zwölf\n".encode("latin-1"),
            "{path} is not UTF-8 text; convert it with iconv -t UTF-8",
        ),
    ],
)
def test_bad_labels(tmp_path: Path, content: bytes | None, message: str) -> None:
    (tmp_path / "a.png").touch()
    if content is not None:
        (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_labels(tmp_path)
    assert str(caught.value) == message.format(folder=tmp_path, path=tmp_path / "labels.csv")
