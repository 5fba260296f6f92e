"""A name that nobody but the toolkit made is none of its temporary names."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.bundle.atomic_write import recover, staged_folder, write_file
from hybrid_deploy.temporary_names import Kind, is_temporary_name, temporary_name


@pytest.mark.parametrize("kind", ["staging", "retired", "writing", "linking"])
@pytest.mark.parametrize(
    "base", ["d.bundle", ".hidden", "new\nline", "\udcff", "a.staging-0123abcd"]
)
def test_a_made_name_is_known(base: str, kind: Kind) -> None:
    name = temporary_name(base, kind)
    assert is_temporary_name(name)
    assert is_temporary_name(name, base, kind)
    assert not is_temporary_name(name, "other", kind)
    assert name != temporary_name(base, kind)


@pytest.mark.parametrize(
    "name",
    [
        ".d.bundle.staging-deadbeef",
        ".d.bundle.staging-deadbeefdeadbeef",
        ".d.bundle.retired-0badcafe",
        ".notes.writing-deadbeef",
    ],
)
def test_a_name_of_the_same_form_is_not(name: str) -> None:
    assert not is_temporary_name(name)


def test_an_edited_name_is_not() -> None:
    name = temporary_name("d.bundle", "staging")
    for edited in (
        f"{name[:-1]}x",
        name.replace("d.bundle", "e.bundle"),
        name.replace("staging", "retired"),
        f"{name}.txt",
    ):
        assert not is_temporary_name(edited)


def test_what_a_user_calls_so_stays(tmp_path: Path) -> None:
    target = tmp_path / "d.bundle"
    for kind in ("staging-deadbeef", "retired-0badcafe", "retired-0123456789abcdef"):
        (tmp_path / f".d.bundle.{kind}" / "d.bundle").mkdir(parents=True)
        (tmp_path / f".d.bundle.{kind}" / "notes.txt").write_text("mine")
    (tmp_path / ".d.bundle.writing-deadbeef").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    recover(target)
    assert not target.exists(), "nothing of a user is brought back"
    with staged_folder(target):
        pass
    target.rmdir()
    write_file(target, b"new")
    target.unlink()
    assert sorted(tmp_path.rglob("*")) == before
