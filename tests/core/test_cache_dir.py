"""Where the cache folder lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_deploy.cache_dir import CACHE_VARIABLE, cache_folder


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("~/x", "home/x/engines"),
        ("", "home/.cache/hybrid_deploy/engines"),
        (None, "home/.cache/hybrid_deploy/engines"),
    ],
)
def test_the_home_folder_is_meant_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable is None:
        monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(CACHE_VARIABLE, variable)
    assert cache_folder("engines") == tmp_path / folder


def test_any_other_folder_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a~b"))
    assert cache_folder("engines") == tmp_path / "a~b" / "engines"
