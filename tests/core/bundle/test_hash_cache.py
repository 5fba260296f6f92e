"""Hashes are remembered as long as a file stays what it was."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.hash_cache import HashCache
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.errors import BundleError

LONG_AGO = time.time() - 3600


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "weights.bin").write_bytes(b"12345678")
    os.utime(tmp_path / "files" / "weights.bin", (LONG_AGO, LONG_AGO))
    return tmp_path / "files"


def remembered(folder: Path) -> HashCache:
    known = HashCache(folder)
    known.remember("weights.bin", "abc")
    known.save()
    return HashCache(folder)


def test_an_unchanged_file_is_known(folder: Path) -> None:
    assert HashCache(folder).sha256("weights.bin") is None
    assert remembered(folder).sha256("weights.bin") == "abc"


@pytest.mark.parametrize("change", ["size", "time", "other file", "gone"])
def test_a_changed_file_is_not(folder: Path, change: str) -> None:
    known, path = remembered(folder), folder / "weights.bin"
    if change == "size":
        path.write_bytes(b"123456789")
        os.utime(path, (LONG_AGO, LONG_AGO))
    elif change == "time":
        os.utime(path, (LONG_AGO, LONG_AGO + 1))
    else:
        path.rename(folder / "before")
        if change == "other file":
            path.write_bytes(b"87654321")
            os.utime(path, (LONG_AGO, LONG_AGO))
    assert known.sha256("weights.bin") is None


def test_a_file_of_this_moment_is_not_kept(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"00000000")  # could change again within a clock tick
    assert remembered(folder).sha256("weights.bin") is None


def test_damaged_memory_is_no_memory(folder: Path, own_cache: Path) -> None:
    remembered(folder)
    for path in own_cache.rglob("*.json"):
        path.write_bytes(b"{")
    assert HashCache(folder).sha256("weights.bin") is None


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where a folder is wanted")
    assert remembered(folder).sha256("weights.bin") is None


def aged(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def test_a_bundle_is_read_once(
    own_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(own_path)
    open_bundle(own_path, only="fp32")
    monkeypatch.setattr(
        "hybrid_deploy.bundle.bundle._record", lambda path: pytest.fail(f"read {path}")
    )
    open_bundle(own_path, only="fp32")


def test_a_changed_byte_is_found_all_the_same(own_path: Path, tiny_bundle: Bundle) -> None:
    aged(own_path)
    open_bundle(own_path, only="fp32")
    for name in tiny_bundle.manifest.files:
        path = own_path / name
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes(bad)
        with pytest.raises(BundleError, match=f"is damaged: {name} was changed"):
            open_bundle(own_path, only="fp32")
        path.write_bytes(good)
    open_bundle(own_path, only="fp32")
