import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hybrid_deploy.bundle import atomic_write as atomic
from hybrid_deploy.bundle import placement
from hybrid_deploy.errors import HybridDeployError, InputError, OutputExistsError
from hybrid_deploy.temporary_names import temporary_name


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


def test_a_file_that_a_killed_process_was_writing_is_removed_by_the_next(tmp_path: Path) -> None:
    target, dead = tmp_path / "file", tmp_path / temporary_name("file", "writing")
    dead.write_bytes(b"half")
    (tmp_path / ".file.writing-deadbeef").write_bytes(b"mine")
    atomic.write_file(target, b"new")
    assert not dead.exists()
    assert sorted(os.listdir(tmp_path)) == [".file.writing-deadbeef", "file"]


def test_a_file_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic._temporary_file(target) as theirs:
        theirs.write_bytes(b"half")
        atomic.write_file(target, b"ours")
        assert theirs.read_bytes() == b"half"
        theirs.replace(target)
    assert target.read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    target, dead = tmp_path / "out", tmp_path / temporary_name("out", "staging")
    dead.mkdir()
    with atomic.staged_folder(target) as theirs:
        with atomic.staged_folder(target, force=True) as ours:
            assert theirs.is_dir() and not dead.exists()
            (ours / "a").touch()
        atomic.remove_temporary(tmp_path)
        assert theirs.is_dir()
        (target / "a").unlink()
        target.rmdir()
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_is_too_large_for_the_system_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HybridDeployError, match="larger than the system allows; see ulimit -f"):
        with atomic.staged_folder(tmp_path / "out"):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def test_write_file_replaces_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic.write_file(target, b"one")
    atomic.write_file(target, b"two")
    assert target.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [target]


def full(*arguments: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_after_the_new_name_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def full_for_names(descriptor: int) -> None:
        full() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else flush(descriptor)

    monkeypatch.setattr(os, "fsync", full_for_names)
    atomic.write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new", "so no line may say that it was not written"


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic.write_file(target, b"one")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HybridDeployError, match="the disk is full"):
        atomic.write_file(target, b"two")
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_force_replaces_a_folder_and_leaves_nothing_else(
    tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(placement, "_exchange", lambda first, second: False)
    for content in ("old", "new"):
        with atomic.staged_folder(tmp_path / "out", force=True) as folder:
            (folder / content).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_two_folders_exchange_their_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / name).mkdir(parents=True)
    if not placement._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two names in one step")
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "b" / "a").is_dir()


def test_a_link_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(InputError, match="is a link, a folder was expected"):
        with atomic.staged_folder(tmp_path / "out", force=True):
            raise AssertionError("the block must not run")


def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Replaces `out` in two renames, and ends before one of them, as a kill does.

    Args:
        tmp_path: folder of `out`.
        monkeypatch: undone at the end.
        number: how many renames are still made.
    """
    rename, take_name, calls = Path.rename, placement._take_name, iter(range(number))

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def last_calls(*arguments: Any) -> Any:
            if next(calls, None) is None:
                raise SystemExit
            return call(*arguments)

        return last_calls

    with monkeypatch.context() as patch:
        patch.setattr(placement, "_exchange", lambda first, second: False)
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        patch.setattr(Path, "rename", counted(rename))
        patch.setattr(placement, "_take_name", counted(take_name))
        with pytest.raises(SystemExit), atomic.staged_folder(tmp_path / "out", force=True) as new:
            (new / "new").touch()


def test_a_folder_that_a_killed_process_set_aside_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    killed(tmp_path, monkeypatch, 2)
    assert not (tmp_path / "out").exists()
    assert atomic.is_set_aside(tmp_path / "out")
    atomic.recover(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_next_write_removes_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "out").mkdir()
    killed(tmp_path, monkeypatch, number)
    (tmp_path / ".out.staging-deadbeef").mkdir()
    with atomic.staged_folder(tmp_path / "out", force=True) as folder:
        (folder / "newer").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.staging-deadbeef"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["newer"]


@pytest.mark.parametrize(("umask", "modes"), [(0o022, (0o755, 0o644)), (0o077, (0o700, 0o600))])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, modes: tuple[int, int]) -> None:
    before = os.umask(umask)
    try:
        with atomic.staged_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
        atomic.write_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == modes[0]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == modes[1]
