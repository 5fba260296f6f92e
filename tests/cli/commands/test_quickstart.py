"""`hybrid-deploy quickstart` replaces nothing of the user; the whole way is run by the README."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hybrid_deploy.cli import main
from hybrid_deploy.cli.commands.quickstart import _write_lines
from hybrid_deploy.errors import InputError, OutputExistsError


def refusal(out: Path, *options: str) -> str:
    """Returns the error line of a quickstart that is refused and writes nothing."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, ["quickstart", "--out", str(out), *options])
    assert result.exit_code == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    return result.stderr.removeprefix("error: ").rstrip()


@pytest.mark.parametrize("name", ["lines/labels.csv", "calibration/0001.png", "readings.png"])
def test_files_of_the_user_are_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    output = tmp_path / name.split("/")[0]
    assert refusal(tmp_path) == f"{output} already exists; give --force to replace it"


def test_force_replaces_nothing_that_is_no_output(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "0001.png").write_text("an earlier one")
    (lines / "notes.txt").write_text("mine")
    assert refusal(tmp_path, "--force") == (
        f"{lines} is not replaced: notes.txt in it is none of its lines; move that away, or name "
        "another output"
    )
    (lines / "notes.txt").rename(tmp_path / "notes.txt")
    (tmp_path / "readings.png").symlink_to("notes.txt")
    assert refusal(tmp_path, "--force") == (
        f"{tmp_path / 'readings.png'} is a link, a regular file was expected; name another output"
    )


def test_lines_are_written_as_a_whole(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    folder = tmp_path / "out" / "lines"
    paths = _write_lines(folder, "test", 3, force=False)
    assert paths == [folder / f"{number:04d}.png" for number in range(3)]
    with pytest.raises(OutputExistsError):
        _write_lines(folder, "test", 2, force=False)
    _write_lines(folder, "test", 2, force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0001.png", "labels.csv"]
    (folder / "0001.png").unlink()
    (folder / "0001.png").symlink_to("elsewhere")
    with pytest.raises(InputError, match=r"0001\.png in it is none of its lines"):
        _write_lines(folder, "test", 2, force=True)
