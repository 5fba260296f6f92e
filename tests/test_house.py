"""Tests that this repository keeps the limits of its folders and reports a broken limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import MOST_FILES, MOST_LINES, ROOT, faults, rooms


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """The smallest tree of folders that keeps every limit."""
    for top in MOST_FILES:
        (tmp_path / top).mkdir()
        (tmp_path / top / "one.py").write_text("x = 1\n")
        (tmp_path / top / "README.md").write_text("what is here\n")
        (tmp_path / top / "__init__.py").touch()
    assert faults(tmp_path) == []
    return tmp_path


def test_this_repository_keeps_every_limit() -> None:
    assert faults(ROOT) == []
    assert len(list(rooms(ROOT))) > 40


@pytest.mark.parametrize("top", MOST_FILES)
def test_one_file_too_many_is_reported(house: Path, top: str) -> None:
    room = house / top / "inner" / "room"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    for number in range(MOST_FILES[top] - 1):
        (room / f"f{number}.py").write_text("x = 1\n")
    assert faults(house) == []
    (room / "more.py").write_text("x = 1\n")
    most = MOST_FILES[top]
    assert faults(house) == [f"{top}/inner/room holds {most + 1} files, {most} at most"]


@pytest.mark.parametrize("top", MOST_FILES)
def test_one_line_too_many_is_reported(house: Path, top: str) -> None:
    (house / top / "long.py").write_text("x = 1\n" * MOST_LINES)
    assert faults(house) == []
    (house / top / "long.py").write_text("x = 1\n" * (MOST_LINES + 1))
    assert faults(house) == [f"{top}/long.py has {MOST_LINES + 1} lines, {MOST_LINES} at most"]


def test_a_missing_top_folder_and_a_missing_readme_are_reported(house: Path) -> None:
    (house / "runtime" / "one.py").unlink()
    (house / "runtime" / "__init__.py").unlink()
    (house / "export" / "README.md").unlink()
    assert faults(house) == ["runtime holds no Python file", "export has no README.md"]


def test_a_folder_that_is_no_package_is_reported(house: Path) -> None:
    """import-linter does not see the modules of such a folder."""
    (house / "runtime" / "hidden").mkdir()
    (house / "runtime" / "hidden" / "one.py").write_text("import torch\n")
    assert faults(house) == ["runtime/hidden has no __init__.py"]


def test_a_file_outside_the_rooms_is_reported(house: Path) -> None:
    (house / "helper.py").write_text("x = 1\n")
    (house / "tools").mkdir()
    (house / "tools" / "one.py").write_text("x = 1\n")
    assert faults(house) == ["helper.py stands in no room", "tools/one.py stands in no room"]


def test_a_stub_counts_as_a_file(house: Path) -> None:
    (house / "runtime" / "long.pyi").write_text("x: int\n" * (MOST_LINES + 1))
    assert faults(house) == [f"runtime/long.pyi has {MOST_LINES + 1} lines, {MOST_LINES} at most"]


def test_symbolic_links_are_not_followed(house: Path) -> None:
    (house / "hybrid_deploy" / "export").symlink_to(house / "export")
    assert [room.path for room in rooms(house)] == list(MOST_FILES)


def test_a_stray_module_and_an_upward_import_break_the_contracts(tmp_path: Path) -> None:
    """import-linter reads a copy of the sources; the test adds both faults to the copy."""
    for top in ("hybrid_deploy", "export", "calibration", "runtime"):
        shutil.copytree(ROOT / top, tmp_path / top, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert "0 broken" in lint_imports(tmp_path)
    (tmp_path / "hybrid_deploy" / "stray.py").write_text("x = 1\n")
    host = tmp_path / "runtime" / "host" / "cgroups.py"
    host.write_text(host.read_text() + "import torch\nimport hybrid_deploy.runtime.session\n")
    report = lint_imports(tmp_path)
    broken = {line.removesuffix(" BROKEN") for line in report.splitlines() if "BROKEN" in line}
    assert broken == {
        "the house",
        "runtime",
        "the device side never needs the toolkit's dependencies",
    }


def lint_imports(folder: Path) -> str:
    """Runs import-linter on the sources in a folder and returns what it prints."""
    lint = str(Path(sys.executable).with_name("lint-imports"))
    command = [lint, "--no-logo", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr
