"""`run` on files that cannot be read, hold too much, or have names of several lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.input_specs import ArrayInput
from hybrid_deploy.bundle.manifest import Vocabulary
from hybrid_deploy.cli import main

DENIED = "cannot be read: Permission denied; check the path and its permissions"


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def check_that_only_one_fails(bundle: Path, good: Path, bad: Path) -> None:
    text = invoke("run", bundle, good).stdout
    result = invoke("run", bundle, good, bad, good)
    assert (result.exit_code, result.stdout) == (1, 2 * text)
    assert result.stderr.splitlines() == [
        f"{bad}: {bad} {DENIED}",
        "error: 1 of 3 inputs failed; see the lines above",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tiny_path: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").touch(mode=0)
    check_that_only_one_fails(tiny_path, page, tmp_path / "bad.png")


def test_a_file_that_the_system_does_not_open(
    tiny_path: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, opens, may = tmp_path / "bad.png", open, os.access
    bad.touch()

    def refuse(path: object, *args: object, **options: object) -> object:
        if str(path) == str(bad):
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "access", lambda path, *mode: path != str(bad) and may(path, *mode))
    check_that_only_one_fails(tiny_path, page, bad)


def test_a_file_of_several_inputs(own_path: Path, tmp_path: Path) -> None:
    bundle = open_bundle(own_path)
    seal_bundle(own_path, msgspec.structs.replace(bundle.manifest, preprocess=ArrayInput("image")))
    picture = np.random.default_rng(0).random((2, 1, 8, 16), np.float32)
    np.save(tmp_path / "two.npy", picture)
    np.savez(tmp_path / "two.npz", image=picture)
    np.save(tmp_path / "one.npy", picture[:1])
    text = invoke("run", own_path, tmp_path / "one.npy").stdout
    files = [tmp_path / name for name in ("two.npy", "one.npy", "two.npz")]
    result = invoke("run", own_path, *files)
    assert (result.exit_code, result.stdout) == (1, text)
    assert result.stderr.splitlines()[:2] == [
        f"{file}: {file} holds 2 inputs as image, each file must hold one: an array whose first "
        "size is 1; split it"
        for file in (files[0], files[2])
    ]


def test_a_name_of_two_lines_forges_no_line(tiny_path: Path, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "a\nerror: forged.png"
    bad.touch()
    result = invoke("run", tiny_path, page, bad)
    first, last = result.stderr.splitlines()
    assert first.startswith(f"{tmp_path}/a\\nerror: forged.png: ")
    assert last.startswith("error: 1 of 2 inputs failed")
    (_, record) = json.loads(invoke("run", tiny_path, page, bad, "--format", "json").stdout)
    assert record["file"] == str(bad)


def test_a_text_of_two_lines_is_one_line(own_path: Path, page: Path) -> None:
    manifest = open_bundle(own_path).manifest
    vocabulary = manifest.vocabulary
    assert isinstance(vocabulary, Vocabulary)
    tokens = tuple("\n" for _ in vocabulary.tokens)
    changed = msgspec.structs.replace(vocabulary, tokens=tokens)
    seal_bundle(own_path, msgspec.structs.replace(manifest, vocabulary=changed))
    for options in ((), ("--stream",), ("--beams", "2", "--n-best", "2")):
        lines = invoke("run", own_path, page, page, *options).stdout.splitlines()
        assert len(lines) == (4 if "--beams" in options else 2)
        assert "\\n" in lines[0]
    (record,) = json.loads(invoke("run", own_path, page, "--format", "json").stdout)
    assert set(record["text"]) == {"\n"}
