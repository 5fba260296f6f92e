"""Hashes are remembered as long as a file is unchanged."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.bundle import hash_cache
from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.bundle_file import BundleFile
from hybrid_deploy.bundle.hash_cache import HashCache
from hybrid_deploy.bundle.medium import medium_of
from hybrid_deploy.bundle.signature import Trust
from hybrid_deploy.bundle.signing import make_keys, sign
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.errors import BundleError

LONG_AGO = time.time() - 3600


@pytest.fixture(autouse=True)
def fine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets files count as old at once; nobody can set back the time of their last change."""
    monkeypatch.setattr(hash_cache, "_CLOCK_TICK_NS", 0)


@pytest.fixture(autouse=True)
def cache_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "weights.bin").write_bytes(b"12345678")
    os.utime(tmp_path / "files" / "weights.bin", (LONG_AGO, LONG_AGO))
    return tmp_path / "files"


def status(folder: Path) -> os.stat_result:
    return (folder / "weights.bin").stat()


def cache_with_one_hash(folder: Path) -> HashCache:
    """Returns the cache as a later process reads it, after one file was hashed."""
    hashes = HashCache(folder)
    hashes.remember("weights.bin", "abc", status(folder), status(folder))
    hashes.save()
    return HashCache(folder)


def test_hash_of_an_unchanged_file_is_remembered(folder: Path) -> None:
    assert HashCache(folder).sha256("weights.bin", status(folder)) is None
    assert cache_with_one_hash(folder).sha256("weights.bin", status(folder)) == "abc"


@pytest.mark.parametrize(
    "change", ["size", "time", "content, with the time set back", "other file"]
)
def test_hash_of_a_changed_file_is_not_returned(folder: Path, change: str) -> None:
    hashes, path = cache_with_one_hash(folder), folder / "weights.bin"
    if change == "size":
        path.write_bytes(b"123456789")
        os.utime(path, (LONG_AGO, LONG_AGO))
    elif change == "time":
        os.utime(path, (LONG_AGO, LONG_AGO + 1))
    elif change == "content, with the time set back":
        path.write_bytes(b"87654321")
        os.utime(path, (LONG_AGO, LONG_AGO))
    else:
        path.rename(folder / "before")
        path.write_bytes(b"87654321")
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert hashes.sha256("weights.bin", status(folder)) is None


@pytest.mark.parametrize("modified", [0.0, LONG_AGO], ids=["now", "set back"])
def test_hash_of_a_file_written_just_now_is_not_remembered(
    folder: Path, modified: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a later write may have the same time
    path = folder / "weights.bin"
    path.write_bytes(b"00000000")
    if modified:
        os.utime(path, (modified, modified))
    assert cache_with_one_hash(folder).sha256("weights.bin", status(folder)) is None


def test_damaged_cache_file_is_ignored(folder: Path, cache_path: Path) -> None:
    cache_with_one_hash(folder)
    for path in cache_path.rglob("*.json"):
        path.write_bytes(b"{")
    assert HashCache(folder).sha256("weights.bin", status(folder)) is None


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path, cache_path: Path) -> None:
    cache_path.write_text("a file in the place of the folder")
    assert cache_with_one_hash(folder).sha256("weights.bin", status(folder)) is None


def test_a_bundle_is_hashed_once(
    own_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_bundle(own_path, only="fp32")
    monkeypatch.setattr(BundleFile, "_read", lambda self, consume: pytest.fail(f"read {self.path}"))
    open_bundle(own_path, only="fp32")


@pytest.mark.parametrize("other", ["boot", "device", "mount"])
def test_hash_of_another_medium_is_not_returned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    cache_with_one_hash(folder)
    medium = medium_of(folder)
    assert medium is not None
    changed = {"boot": "of tomorrow", "device": medium.device + 1, "mount": 1}
    later = msgspec.structs.replace(medium, **{other: changed[other]})
    monkeypatch.setattr(hash_cache, "medium_of", lambda folder: later)
    assert HashCache(folder).sha256("weights.bin", status(folder)) is None
    assert cache_with_one_hash(folder).sha256("weights.bin", status(folder)) == (
        None if other == "device" else "abc"
    )


def test_where_mounts_look_alike_nothing_is_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_cache, "medium_of", lambda folder: None)
    assert cache_with_one_hash(folder).sha256("weights.bin", status(folder)) is None


def test_hashes_of_an_earlier_version_are_hashed_again(folder: Path, cache_path: Path) -> None:
    cache_with_one_hash(folder)
    for path in cache_path.rglob("*.json"):
        path.write_bytes(msgspec.json.encode(json.loads(path.read_bytes())["states"]))
    assert HashCache(folder).sha256("weights.bin", status(folder)) is None
    assert cache_with_one_hash(folder).sha256("weights.bin", status(folder)) == "abc"


def test_every_byte_is_hashed_if_a_signature_is_asked_for(
    own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    private, public = make_keys(tmp_path / "release.key")
    sign(own_path, private, version=1)
    opened = open_bundle(own_path, only="fp32")
    changed = own_path / "fp32" / "step.onnx"
    states = {name: record.sha256 for name, record in opened.manifest.files.items()}
    monkeypatch.setattr(HashCache, "sha256", lambda cache, name, status: states[name])
    changed.write_bytes(bytes(changed.stat().st_size))
    open_bundle(own_path, only="fp32")  # as the hashes say of a medium that was changed unseen
    with pytest.raises(BundleError, match=r"step\.onnx was changed"):
        open_bundle(own_path, only="fp32", trust=Trust((public,)))


def test_a_changed_byte_is_found_despite_the_cache(own_path: Path, tiny_bundle: Bundle) -> None:
    open_bundle(own_path, only="fp32")
    for name in tiny_bundle.manifest.files:
        path = own_path / name
        original = path.read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=f"is damaged: {name} was changed"):
            open_bundle(own_path, only="fp32")
        path.write_bytes(original)
    open_bundle(own_path, only="fp32")
