"""A file system that was mounted again is another medium: it may have been changed meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_deploy.bundle import hash_cache
from hybrid_deploy.bundle.hash_cache import HashCache
from hybrid_deploy.bundle.medium import medium_of
from hybrid_deploy.cache_dir import CACHE_VARIABLE

_CONTENT = bytes(range(256)) * 16  # a block


class Stick:
    """An image of a file system that can be mounted, and changed while it is not."""

    def __init__(self, folder: Path) -> None:
        self.image, self.place = folder / "stick.img", folder / "stick"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(2 << 20)

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.place))

    def unmount(self) -> None:
        _run("umount", str(self.place))

    def change(self) -> None:
        """Changes a block of the image, and so no time in it."""
        content = self.image.read_bytes()
        assert content.count(_CONTENT) == 1
        self.image.write_bytes(content.replace(_CONTENT, _CONTENT[::-1]))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Stick]:
    """A mounted stick; it is unmounted at the end."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("only root mounts file systems, and mkfs.ext4 makes them")
    stick = Stick(tmp_path)
    _run("mkfs.ext4", "-q", str(stick.image))
    try:
        stick.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"nothing can be mounted here: {error.stderr.decode()}")
    try:
        yield stick
    finally:
        stick.unmount()


def test_a_stick_that_was_changed_elsewhere_is_hashed_again(
    stick: Stick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_cache, "_CLOCK_TICK_NS", 0)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if medium_of(stick.place) is None:
        pytest.skip("Linux tells mounts apart from 6.8 on")
    weights = stick.place / "weights.bin"
    weights.write_bytes(_CONTENT)
    os.sync()
    before = weights.stat()
    hashes = HashCache(stick.place)
    hashes.remember("weights.bin", "abc", before, before)
    hashes.save()
    assert HashCache(stick.place).sha256("weights.bin", weights.stat()) == "abc"
    stick.unmount()
    stick.change()
    stick.mount()
    after = weights.stat()
    assert weights.read_bytes() == _CONTENT[::-1]
    same = ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_dev")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    assert HashCache(stick.place).sha256("weights.bin", after) is None


def test_the_file_system_of_the_root_stays_the_same(tmp_path: Path) -> None:
    assert medium_of(Path("/")) == medium_of(Path("/"))
    medium = medium_of(Path("/"))
    assert medium is None or medium.mount is None


def test_a_missing_folder_is_on_no_medium(tmp_path: Path) -> None:
    assert medium_of(tmp_path / "missing") is None
