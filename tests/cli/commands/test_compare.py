"""`hybrid-deploy compare`: nothing that was not measured looks like a number or a success."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.cli.commands.compare import check_rows
from hybrid_deploy.errors import BackendError


def compare(bundle: Path, samples: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["compare", str(bundle), "--samples", str(samples), *args])


@pytest.fixture
def samples(page: Path) -> Path:
    """Folder with one picture and its label."""
    (page.parent / "labels.csv").write_text("file,text\npage.png,abc\n")
    return page.parent


def test_without_a_vocabulary_there_is_no_accuracy(own_path: Path, samples: Path) -> None:
    seal_bundle(own_path, msgspec.structs.replace(open_bundle(own_path).manifest, vocabulary=None))
    (row,) = json.loads(compare(own_path, samples, "--format", "json").stdout)
    assert (row["cer_percent"], row["exact_percent"]) == (None, None)
    assert row["total_ms"] > 0
    assert row["status"].startswith("no accuracy: the bundle has no vocabulary")
    result = compare(own_path, samples, "--format", "md")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split(" | ")[3:5] == ["-", "-"]


def test_without_jiwer_there_are_no_error_rates(
    tiny_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    result = compare(tiny_path, samples, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["cer_percent"], row["exact_percent"]) == (None, 0.0)
    assert row["status"].startswith("no error rates: jiwer is not installed")


def test_every_row_failed(own_path: Path, samples: Path) -> None:
    manifest = open_bundle(own_path).manifest
    endless = msgspec.structs.replace(manifest.generation, start_tokens=())
    seal_bundle(own_path, msgspec.structs.replace(manifest, generation=endless))
    result = compare(own_path, samples, "--format", "json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["status"].startswith("failed: ")
    assert result.stderr.splitlines()[-1].startswith(
        f"error: none of the 1 rows of {own_path} could be measured; the first failed: "
    )


def test_no_row_at_all(own_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no backend can run .* so nothing was compared"):
        check_rows([], own_path)


def test_one_row_that_works_is_enough(own_path: Path) -> None:
    check_rows([{"status": "failed: no GPU"}, {"status": "ok"}], own_path)


def test_a_single_token_has_no_time_per_token(own_path: Path, samples: Path) -> None:
    manifest = open_bundle(own_path).manifest
    short = msgspec.structs.replace(manifest.generation, max_length=2)
    seal_bundle(own_path, msgspec.structs.replace(manifest, generation=short))
    result = compare(own_path, samples, "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["token_ms"] is None
    assert "nan" not in compare(own_path, samples).stdout
