"""Tests the runner of the reliability checks: its output, kept results, page and exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.benchmarks.reliability import __main__ as runner
from tests.benchmarks.reliability.checks import CHECKS, Check

_MODULE = """
import os
from pathlib import Path
from tests.benchmarks.reliability.row import Row

def check(count, seed):
    Path(__file__).with_name(f"ran {{__name__}} {{count}} {{seed}}").touch()
    {body}
"""


def row(tried: str = "count", faults: str = "()", caught: str = "True") -> str:
    return f"return Row('files', {tried}, 'refused', {faults}, 'a lie', {caught}, 2.0)"


class Checks:
    """Writes checks of given bodies to a folder and runs them with the command.

    Args:
        folder: folder of the modules and of the page.
        patch: sets the table of the checks.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        patch.syspath_prepend(str(folder))

    def run(self, *arguments: str, **bodies: str) -> Result:
        for name, body in bodies.items():
            module = self.folder / f"check_of_{name}.py"
            module.write_text(_MODULE.format(body=body), encoding="utf-8")
        listed = {name: Check(f"check_of_{name}", 200) for name in (*bodies, "not_written_yet")}
        self._patch.setattr(runner, "CHECKS", listed)
        return CliRunner().invoke(runner.main, [*arguments, "--out", str(self.folder / "page.md")])

    @property
    def page(self) -> str:
        return (self.folder / "page.md").read_text(encoding="utf-8")

    @property
    def runs(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("ran *"))


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checks:
    return Checks(tmp_path, monkeypatch)


def test_all_checks_are_run_and_written_to_the_page(checks: Checks) -> None:
    done = checks.run("--share", "0.1", "--seed", "5", first=row(), second=row())
    assert done.exit_code == 0, done.output
    assert "first: 20 tried, refused; ok (2 s)" in done.output
    assert "2 of 2 checks are ok." in checks.page and "Not run: not_written_yet." in checks.page
    assert "| files | 20 | refused | ok | a lie | yes | 2 |" in checks.page
    assert checks.runs == ["ran check_of_first 20 5", "ran check_of_second 20 5"]


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (row(faults="('seed 7: lost',)"), "1 FAULTS"),
        (row(caught="False"), "BLIND: it did not notice the planted fault"),
        (row(tried="0"), "NOTHING TRIED"),
        ("raise ValueError('no bundle')", "1 FAULTS"),
        ("os._exit(3)", "1 FAULTS"),
    ],
    ids=["fault", "blind", "idle", "broken", "crashed"],
)
def test_a_row_that_is_not_ok_is_exit_code_1(checks: Checks, body: str, verdict: str) -> None:
    done = checks.run(sound=row(), bad=body)
    assert done.exit_code == 1
    assert verdict in done.output and "sound: 200 tried, refused; ok" in done.output
    assert "1 of 2 checks are ok." in checks.page and verdict in checks.page


def test_a_later_run_uses_what_an_earlier_one_left(checks: Checks, tmp_path: Path) -> None:
    kept = ("--resume", str(tmp_path / "kept"))
    assert checks.run(*kept, "bad", bad=row(caught="False"), other=row()).exit_code == 1
    done = checks.run(*kept, bad=row(), other=row())
    assert done.exit_code == 1, "a kept result that is not ok stays so"
    assert "BLIND" in done.output and "from an earlier run" in done.output
    assert checks.runs == ["ran check_of_bad 200 0", "ran check_of_other 200 0"]
    assert "1 of 2 checks are ok." in checks.page
    assert checks.run(*kept, "--seed", "1", bad=row(), other=row()).exit_code == 0
    assert len(checks.runs) == 4


def test_a_name_that_is_not_there_is_refused(checks: Checks) -> None:
    for name in ("typo", "not_written_yet"):
        done = checks.run(name, sound=row())
        assert done.exit_code == 2 and f"there is no check '{name}'" in done.output
    assert checks.run().exit_code == 2, "nothing to run is no success"


def test_a_share_never_scales_a_check_to_nothing() -> None:
    assert {check.scaled(1e-9) for check in CHECKS.values()} == {1}
