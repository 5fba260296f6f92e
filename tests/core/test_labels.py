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
