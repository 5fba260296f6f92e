"""A file of a bundle is read and hashed from one descriptor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid_deploy.bundle import bundle_file
from hybrid_deploy.bundle.bundle_file import BundleFile
from hybrid_deploy.bundle.manifest import FileRecord
from hybrid_deploy.errors import BundleError

CONTENT = bytes(range(256)) * 4
RECORD = FileRecord(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundle_file, "_CHUNK_BYTES", 100)  # several chunks, and a rest
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    return tmp_path / "weights.bin"


def opened(path: Path, expected: FileRecord | None = RECORD) -> BundleFile:
    return BundleFile(path.parent, path.name, expected)


def test_content_is_read_and_copied(path: Path, tmp_path: Path) -> None:
    file = opened(path)
    assert file.read() == CONTENT == file.read(), "a file can be read again"
    file.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert os.stat(tmp_path / "copy").st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        file.copy_to(tmp_path / "copy")


def test_a_copy_for_which_there_is_no_room_is_no_whole_one(path: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    file = opened(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) - 1, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.copy_to(tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("change", ["renamed", "deleted"])
def test_an_open_file_outlives_its_name(path: Path, change: str) -> None:
    file = opened(path)
    path.unlink()
    if change == "renamed":
        path.write_bytes(bytes(len(CONTENT)))
    assert file.read() == CONTENT


@pytest.mark.parametrize(
    "change", [lambda p: os.truncate(p, 0), lambda p: p.write_bytes(bytes(len(CONTENT)))]
)
def test_changed_content_is_refused(
    path: Path, change: Callable[[Path], object], tmp_path: Path
) -> None:
    file = opened(path)
    change(path)
    uses: list[Callable[[], object]] = [
        file.read,
        file.check,
        lambda: file.copy_to(tmp_path / "copy"),
    ]
    for use in uses:
        with pytest.raises(BundleError, match=r"is damaged: weights\.bin was changed"):
            use()


def test_a_file_that_no_manifest_lists_is_read_as_it_is(path: Path) -> None:
    file = opened(path, None)
    file.check()
    assert file.read() == CONTENT


def test_what_is_no_file_is_refused_at_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("no", "is missing"), ("link", "is not readable"), ("pipe", "is no file")):
        with pytest.raises(BundleError, match=f"is incomplete: {name} {reason}"):
            opened(tmp_path / name)
    with pytest.raises(BundleError, match="is no file"):
        opened(tmp_path, None)


def test_the_descriptor_is_closed(path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    file = opened(path)
    file.close()
    file.close()
    opened(path)  # closed when it is no longer used
    assert set(os.listdir("/proc/self/fd")) == before
