"""No bundle and no file name commands the user's terminal, whatever a command prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.runtime.session.session import load_session
from tests.benchmarks.reliability.tiny_bundle import manifest_of, sealed

HOSTILE = "\x1b[2J\x9b31m|<b>`\u202e[red]:skull:"


@pytest.fixture
def hostile(own_path: Path, page: Path) -> Path:
    """A bundle whose names and words would clear the screen, with a file of such a name."""
    manifest = manifest_of(own_path)
    manifest["name"] = manifest["producer"] = HOSTILE
    manifest["vocabulary"]["tokens"][3:] = [HOSTILE] * 8
    variant = manifest["variants"]["fp32"]
    variant["precision"] = {"encoder": HOSTILE, "decoder": HOSTILE}
    manifest["dims"][HOSTILE] = {"min": 1, "typical": 1, "max": 1}
    manifest["golden"][0]["tokens"] = [3, 3]
    (own_path / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))
    samples = own_path.parent / "samples"
    samples.mkdir()
    shutil.copy(page, samples / f"{HOSTILE.replace('/', '')}.png")
    (samples / "labels.csv").write_text(f"file,text\n{HOSTILE}.png,{HOSTILE}\n", encoding="utf-8")
    return own_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_harmless(result: Result) -> None:
    for stream in (result.stdout, result.stderr):
        shown = stream.replace("\n", "").replace("\t", "")
        assert shown.isprintable(), shown
    assert "failed unexpectedly" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{bundle}"],
        ["inspect", "{bundle}", "--format", "json"],
        ["verify", "{bundle}", "--format", "md"],
        ["run", "{bundle}", "{sample}"],
        ["run", "{bundle}", "{sample}", "--beams", "2", "--n-best", "2"],
        ["run", "{bundle}", "{sample}", "--stream"],
        ["run", "{bundle}", "{sample}", "--format", "json"],
        ["run", "{bundle}", "{sample}", f"{HOSTILE}.png"],
        ["run", "{bundle}", f"{HOSTILE}.png"],
        ["run", "{bundle}", "{sample}", "--variant", HOSTILE],
        ["run", "{bundle}", "{sample}", "--format", HOSTILE],
        ["profile", "{bundle}", "{sample}", "--runs", "1", "--warmup", "0"],
        ["compare", "{bundle}", "--samples", "{samples}", "--format", "md"],
        ["compare", "{bundle}", "--samples", "{samples}", "--format", "csv"],
        ["quantize", "{bundle}", "--precision", HOSTILE],
        [HOSTILE],
    ],
)
def test_nothing_reaches_the_terminal(arguments: list[str], hostile: Path) -> None:
    samples = hostile.parent / "samples"
    (sample,) = samples.glob("*.png")
    places = {"bundle": hostile, "samples": samples, "sample": sample}
    assert_harmless(run(*(argument.format(**places) for argument in arguments)))


def test_json_keeps_the_text(hostile: Path) -> None:
    sample = hostile / "golden" / "page.png"
    (expected,), _ = load_session(hostile).run_files([sample])
    assert HOSTILE in (expected.text or "")
    (record,) = json.loads(run("run", hostile, sample, "--format", "json").stdout)
    assert record["text"] == expected.text
    shown: Any = json.loads(run("inspect", hostile, "--format", "json").stdout)
    assert shown["name"] == open_bundle(hostile).manifest.name == HOSTILE


def test_a_table_of_markdown_keeps_its_columns(hostile: Path) -> None:
    result = run("compare", hostile, "--samples", hostile.parent / "samples", "--format", "md")
    tables = [part for part in result.stdout.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3  # speed beside accuracy, intervals, worst inputs
    for table in tables:
        heading, _, *rows = table.splitlines()
        assert rows
        assert {row.replace("\\|", "").count("|") for row in rows} == {heading.count("|")}


def test_nothing_is_written_into_a_bundle(own_path: Path, tiny_path: Path) -> None:
    before = sorted(own_path.rglob("*"))
    for arguments in (
        ["calibrate", own_path, "--golden", "-o", own_path / "manifest.json", "--force"],
        ["calibrate", own_path, "--golden", "-o", own_path / "new" / "scales.json"],
        ["keygen", own_path / "release.key"],
        ["install", tiny_path, "--into", own_path / "slots"],
        ["export", "tests.conftest:job", "-o", own_path / "fp32" / "new.bundle"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert f"would lie in the bundle {own_path}, which no other" in result.stderr
    assert sorted(own_path.rglob("*")) == before


def test_a_manifest_of_a_web_page_is_no_bundle(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "my app"}')
    result = run("calibrate", tiny_path, "--golden", "-o", tmp_path / "scales.json")
    assert result.exit_code == 0, result.stderr


def test_a_name_of_two_lines_stays_in_one(own_path: Path) -> None:
    before = run("inspect", own_path).stdout
    manifest = manifest_of(own_path)
    manifest["name"] = manifest["producer"] = "tiny\nerror: forged"
    (own_path / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))
    after = run("inspect", own_path).stdout
    assert len(after.splitlines()) == len(before.splitlines())
    assert after.startswith("tiny\\nerror: forged: ")
