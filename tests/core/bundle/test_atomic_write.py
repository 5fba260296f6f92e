import errno
import os
from pathlib import Path

import pytest

from hybrid_deploy.bundle import atomic_write as atomic
from hybrid_deploy.errors import HybridDeployError, InputError, OutputExistsError


def test_folder_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic.staged_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
    assert (target / "a").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing_behind(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), atomic.staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="out already exists; give --force to replace it"):
        with atomic.staged_folder(tmp_path / "out"):
            raise AssertionError("the block must not run")


def test_failure_with_force_keeps_the_old_folder(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "a").write_text("old")
    with pytest.raises(ValueError, match="no"), atomic.staged_folder(old, force=True) as folder:
        (folder / "a").write_text("new")
        raise ValueError("no")
    assert (old / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_force_replaces(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with atomic.staged_folder(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="is a file, a folder was expected"):
        with atomic.staged_folder(tmp_path / "out", force=True):
            raise AssertionError("the block must not run")


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HybridDeployError, match="was not written: the disk is full"):
        with atomic.staged_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_write_file_replaces_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic.write_file(target, b"one")
    atomic.write_file(target, b"two")
    assert target.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic.write_file(target, b"one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HybridDeployError, match="the disk is full"):
        atomic.write_file(target, b"two")
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]
