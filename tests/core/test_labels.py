"""Labels beside inputs: read as spreadsheets write them, refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.errors import InputError
from hybrid_deploy.labels import load_labels


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
            "{path} names 2 of 3 files that are missing or no files, first {folder}/b.png",
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


def labelled(folder: Path, rows: list[str], count: int = 6) -> Path:
    """Writes `count` pictures without content, and a table of these rows."""
    for number in range(count):
        (folder / f"{number}.png").touch()
    (folder / "labels.csv").write_text("file,text\n" + "\n".join(rows) + "\n")
    return folder


ROWS = [f"{number}.png,{number}{number}" for number in range(6)]


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        ({1: '1.png,"11'}, 3, "a row that is no row of a table begins here"),
        ({1: '1.png,"11', 3: '3.png,"33"'}, 3, "a row that is no row of a table begins here"),
        ({1: '1.png,"11', 3: '3.png,33"'}, 3, "the text holds the row of 2.png too"),
        ({2: '2.png,"22"2'}, 4, "a row that is no row of a table begins here"),
        ({2: "2.png,22, and more"}, 4, "3 fields in 2 columns"),
        ({4: "1.png,other"}, 6, "1.png has a row in line 3 too; leave one out"),
        ({4: "./1.png,other"}, 6, "./1.png has a row in line 3 too; leave one out"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(
    tmp_path: Path, change: dict[int, str], line: int, reason: str
) -> None:
    rows = [change.get(number, row) for number, row in enumerate(ROWS)]
    with pytest.raises(InputError) as caught:
        load_labels(labelled(tmp_path, rows))
    assert str(caught.value).startswith(f"{tmp_path / 'labels.csv'}, line {line}: {reason}")


def test_quotes_commas_and_line_breaks_in_a_text(tmp_path: Path) -> None:
    rows = ['0.png,"say ""yes"", or"', "", '1.png,"two\nlines"', 'other.png,a "b"', '2.png,"c"']
    (tmp_path / "other.png").touch()
    labels = load_labels(labelled(tmp_path, rows, count=3))
    assert [label.text for label in labels] == ['say "yes", or', "two\nlines", 'a "b"', "c"]


def test_a_line_of_a_text_may_be_longer_than_a_file_name(tmp_path: Path) -> None:
    text = "first\n" + "x" * 300 + " second"
    (label,) = load_labels(labelled(tmp_path, [f'0.png,"{text}"'], count=1))
    assert label.text == text


def test_files_without_a_row_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = labelled(tmp_path, ROWS[:2])
    (folder / "notes.txt").touch()
    assert len(load_labels(folder)) == 2
    assert caplog.messages == [
        f"4 files in {folder} have no row in labels.csv and are left out, first 2.png"
    ]
    caplog.clear()
    (folder / "labels.csv").write_text("file,text\n" + "\n".join(ROWS) + "\n")
    load_labels(folder)
    assert not caplog.messages
