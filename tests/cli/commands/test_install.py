"""install and rollback, with the golden samples decoded in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.cli import main


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_an_update_and_the_way_back(
    own_path: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = tmp_path / "slots"
    (tmp_path / "click.py").write_text("raise SystemExit('a module of the working folder ran')")
    monkeypatch.chdir(tmp_path)
    code, output = call("install", own_path, "--into", slots, "--format", "json")
    assert code == 0, output
    record = json.loads(output.splitlines()[-1])
    assert record == {"current": str(slots / "0001"), "link": str(slots / "current")}
    assert call("run", slots / "current", page)[0] == 0
    manifest = open_bundle(own_path).manifest
    wrong = msgspec.structs.replace(manifest.golden[0], tokens=(3, 3, 3, 3))
    seal_bundle(own_path, msgspec.structs.replace(manifest, golden=(wrong,)))
    code, output = call("install", own_path, "--into", slots)
    assert code == 1
    assert (
        "does not give the original model's tokens on this machine; nothing was switched" in output
    )
    assert sorted(path.name for path in slots.iterdir()) == [".installed.json", "0001", "current"]
    seal_bundle(own_path, manifest)
    assert call("install", own_path, "--into", slots)[0] == 0
    code, output = call("rollback", slots)
    assert (code, output) == (0, f"{slots / 'current'} is 0001 now\n")
    assert call("rollback", slots)[0] == 2


def test_an_empty_name_is_not_the_current_folder(
    own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for arguments in (("install", own_path, "--into", ""), ("rollback", "")):
        code, output = call(*arguments)
        assert (code, "a path was expected, got an empty text" in output) == (2, True)
    assert list(Path.cwd().iterdir()) == []
